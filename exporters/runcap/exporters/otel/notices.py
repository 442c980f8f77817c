"""What is no span of its own: span events, each on the span of the agent or tool it concerns."""

from __future__ import annotations

from typing import NamedTuple

from runcap.guardrails.events import (
    BudgetWarned,
    CallReconciled,
    CallRefused,
    Event,
    LoopWarned,
    PrefixBroken,
    RunPaused,
    RunStopped,
    RunToppedUp,
    TierSwitched,
)

from . import semconv as sc
from .attributes import Value, of_balance, of_break, of_late_usage, of_loop, of_refusal, of_switch, of_warning


class Notice(NamedTuple):
    """A span event. `of_run`: it concerns the run, not one agent or tool in it."""

    name: str
    attributes: dict[str, Value]
    of_run: bool = False


def notice_of(event: Event) -> Notice | None:  # noqa: PLR0911 - one for each kind of event
    """The span event that tells of this; None where none does."""
    match event:
        case CallRefused():
            return Notice(sc.EVENT_REFUSED, of_refusal(event))
        case RunPaused():
            return Notice(sc.EVENT_PAUSED, of_refusal(event))
        case TierSwitched():
            return Notice(sc.EVENT_TIER, of_switch(event))
        case PrefixBroken():
            return Notice(sc.EVENT_PREFIX, of_break(event))
        case LoopWarned():
            return Notice(sc.EVENT_LOOP, of_loop(event))
        case BudgetWarned():
            return Notice(sc.EVENT_WARNED, of_warning(event), of_run=True)
        case RunStopped():
            return Notice(sc.EVENT_STOPPED, {sc.STOPPED: event.reason}, of_run=True)
        case RunToppedUp():
            return Notice(sc.EVENT_TOPPED_UP, of_balance(event.balance), of_run=True)
        case CallReconciled():
            return Notice(sc.EVENT_RECONCILED, of_late_usage(event), of_run=True)
        case _:
            return None
