"""What a ledger that lasts is told of beside the ends of calls, so that it can be counted long after. Never content."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from . import offload
from .events import (
    BudgetWarned,
    CallRefused,
    Event,
    LoopWarned,
    PrefixBroken,
    RunInfo,
    RunPaused,
    RunStopped,
    TierSwitched,
)
from .ledger import Note
from .offload import may_block

if TYPE_CHECKING:
    from .guard import Guard

_UNAVAILABLE = "LedgerUnavailable"
"""The one refusal that is not noted: the ledger cannot be reached."""


def keep(event: Event, guard: Guard) -> None:
    """Have a ledger that lasts keep what is worth a note; where that would block a loop, on another thread."""
    make = _MAKERS.get(type(event))
    note = None if make is None else make(event)
    if note is None:
        return
    try:
        if may_block():
            guard.ledger.note(note)
        else:
            offload.hand_over(partial(guard.ledger.note, note))
    except Exception as error:  # noqa: BLE001 - a ledger of somebody else; nothing of this may touch the call
        guard.say_once(f"the ledger keeps no notes: {type(error).__name__}")


def note_of(event: Event) -> Note | None:
    """What a ledger keeps of an event; None for most."""
    make = _MAKERS.get(type(event))
    return None if make is None else make(event)


def _note(run: RunInfo, time_ns: int, kind: str, **more: Any) -> Note:
    return Note(run.id, run.parent_id, run.tags, kind, first_ns=time_ns, last_ns=time_ns, **more)


def _refused(event: CallRefused) -> Note | None:
    if event.kind == _UNAVAILABLE:
        return None
    why = event.details
    told = {"what": event.kind, "scope": why.scope, "unit": why.unit, "model": why.model}
    return _note(event.run, event.time_ns, "refused", **told)


def _broken(event: PrefixBroken) -> Note:
    told = {"what": event.what, "tokens": event.tokens, "cost_nano": event.cost_nano}
    return _note(event.run, event.time_ns, "prefix", **told)


def _switched(event: TierSwitched) -> Note:
    return _note(event.run, event.time_ns, "tier", what=event.tier)


def _looped(event: LoopWarned) -> Note:
    return _note(event.run, event.time_ns, "loop", what=event.loop.kind)


def _warned(event: BudgetWarned) -> Note:
    return _note(event.run, event.time_ns, "warned", what=f"{event.share:g}", scope=event.scope, unit=event.unit)


def _paused(event: RunPaused) -> Note:
    why = event.details
    return _note(event.run, event.time_ns, "paused", scope=why.scope, unit=why.unit)


def _stopped(event: RunStopped) -> Note:
    return _note(event.run, event.time_ns, "stopped", what=event.reason)


_MAKERS: dict[type, Callable[[Any], Note | None]] = {
    CallRefused: _refused,
    PrefixBroken: _broken,
    TierSwitched: _switched,
    LoopWarned: _looped,
    BudgetWarned: _warned,
    RunPaused: _paused,
    RunStopped: _stopped,
}
