"""What a log line says of an event: its level, its text, its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from runcap.guardrails.errors import RefusalDetails
from runcap.guardrails.events import (
    AgentEnded,
    AgentStarted,
    BudgetWarned,
    CallEnded,
    CallReconciled,
    CallRefused,
    CallStarted,
    Event,
    LoopWarned,
    PrefixBroken,
    RunEnded,
    RunPaused,
    RunStarted,
    RunStopped,
    RunToppedUp,
    TierSwitched,
    ToolEnded,
    ToolStarted,
)
from runcap.guardrails.ledger import Balance
from runcap.guardrails.money import show_usd

Line = tuple[Literal["debug", "info", "warning"], str, Mapping[str, object]]

_NO_FAULT = frozenset({"CancelledError", "GeneratorExit"})


def printable(text: str) -> str:
    """`text` on one line of a terminal: control characters, line breaks and half surrogate pairs are written out."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def told(event: Event) -> Line:  # noqa: PLR0911 - one for each kind
    """The line of an event."""
    match event:
        case CallStarted():
            return "debug", "call started", _started(event)
        case CallEnded():
            return "info" if _went_well(event) else "warning", "call", _call(event)
        case CallReconciled():
            figures = {"call": event.call_id, "tokens": event.usage.total_tokens, "cost": _show(event.cost_nano)}
            return "info", "reconciled", figures
        case TierSwitched():
            share = round(event.share, 4)
            return "info", "tier", {"before": event.before, "tier": event.tier, "share": share, "forced": event.forced}
        case ToolStarted():
            return "info", "tool", {"name": event.name}
        case ToolEnded() | AgentStarted() | AgentEnded():
            return _of_node(event)
        case RunStarted() | RunEnded() | RunToppedUp() | RunStopped() | RunPaused():
            return _of_run(event)
        case _:
            return _of_warning(event)


def _of_run(event: RunStarted | RunEnded | RunToppedUp | RunStopped | RunPaused) -> Line:
    match event:
        case RunStarted():
            budget = event.run.budget
            usd = None if budget is None or budget.usd is None else f"${budget.usd:f}"
            caps = {"usd": usd, "steps": budget.steps if budget is not None else None, "parent": event.run.parent_id}
            return "info", "run started", _given(caps)
        case RunEnded():
            spent, unknown = event.balance.spent, event.balance.unknown.nano
            told: dict[str, object] = {"spent": show_usd(spent.nano), "steps": spent.steps, "verdict": event.verdict}
            return "info", "run ended", told | ({"unknown": show_usd(unknown)} if unknown else {})
        case RunToppedUp():
            return "info", "topped up", _state(event.balance)
        case RunPaused():
            return "warning", "paused", _numbers(event.details)
        case RunStopped():
            return "warning", "stopped", {"reason": event.reason}


def _of_node(event: ToolEnded | AgentStarted | AgentEnded) -> Line:
    match event:
        case AgentStarted():
            return "debug", "agent", {"name": event.name}
        case AgentEnded():
            return "debug", "agent ended", {"outcome": event.outcome} | _given({"error": event.error_type})
        case ToolEnded():
            failed = event.outcome == "error"
            fields = {"outcome": event.outcome} | _given({"error": event.error_type})
            return "warning" if failed else "debug", "tool ended", fields


def _of_warning(event: Event) -> Line:
    match event:
        case CallRefused():
            return "warning", "refused", {"kind": event.kind} | _numbers(event.details)
        case BudgetWarned():
            return "warning", "budget", {"scope": event.scope, "unit": event.unit, "share": event.share}
        case LoopWarned(loop=loop):
            fields = {"kind": loop.kind, "times": loop.times, "tools": ",".join(loop.tools), "halted": event.halted}
            return "warning", "loop", fields
        case PrefixBroken():
            cost = _show(event.cost_nano)
            return "warning", "prefix broken", {"changed": event.what, "tokens": event.tokens, "cost": cost}
        case _:
            return "info", type(event).__name__, {}


def _went_well(event: CallEnded) -> bool:
    return event.state != "unknown" and (event.error_type is None or event.error_type in _NO_FAULT)


def _started(event: CallStarted) -> dict[str, object]:
    told: dict[str, object] = {
        "step": event.step,
        "model": event.model,
        "held": show_usd(event.held_nano),
        "cap": event.output_cap,
    }
    waited = round(event.waited_s, 3)
    return told | _given({"clamped": event.clamped, "waited_s": waited, "tier": event.tier, "last": event.last})


def _call(event: CallEnded) -> dict[str, object]:
    tokens = event.usage.total_tokens if event.usage else None
    left_out = event.history_cut.messages if event.history_cut is not None else None
    told: dict[str, object] = {
        "step": event.step,
        "model": event.model,
        "state": event.state,
        "tokens": tokens,
        "cost": _show(event.cost_nano),
    }
    more = {
        "unknown": _show(event.unknown_nano or None),
        "error": event.error_type,
        "cut": event.cut,
        "last": event.last,
        "tier": event.tier,
        "left_out": left_out,
    }
    first = event.first_chunk_s
    return told | _given(more) | ({} if first is None else {"first_chunk_s": round(first, 4)})


def _numbers(details: RefusalDetails) -> dict[str, object]:
    return {"unit": details.unit, "cap": details.show(details.cap), "spent": details.show(details.spent)}


def _state(balance: Balance) -> dict[str, object]:
    return {"cap": _show(balance.caps.nano), "spent": show_usd(balance.spent.nano), "steps": balance.spent.steps}


def _show(nano: int | None) -> str | None:
    return None if nano is None else show_usd(nano)


def _given(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value}
