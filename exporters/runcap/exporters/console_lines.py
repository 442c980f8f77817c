"""What a run says in plain lines, where there is no terminal to draw it on."""

from __future__ import annotations

from collections.abc import Iterator

from runcap.guardrails.events import (
    AgentStarted,
    CallEnded,
    CallReconciled,
    CallRefused,
    Event,
    RunEnded,
    RunPaused,
    RunStarted,
    RunToppedUp,
    ToolEnded,
    ToolStarted,
)
from runcap.guardrails.money import show_usd

from .console_runs import RunState, label, show_tags, warning
from .log_fields import printable


def lines(state: RunState, event: Event, now: float) -> Iterator[str]:
    """The lines of an event of this run, which has taken it: most have none."""
    text = printable(_text(state, event) or "")
    told = warning(event)
    if isinstance(event, RunEnded):
        yield summary(state, now)
    elif text:
        yield f"{label(state)}: {text}"
    if told is not None and not (isinstance(event, CallRefused) and told in state.said):
        state.said.add(told)  # a storm of refusals is one line, and their number at the end
        yield f"{label(state)}: {told}"


def summary(state: RunState, now: float, *, ended: bool = True) -> str:
    """A run in one line: how it ended, what it took."""
    tags = show_tags(state.info)
    parts = [
        f"{label(state)}{' ' if tags else ''}{tags}: {'ended' if ended else 'not ended'}",
        _of(f"{state.step:,}", state.caps.steps, "steps"),
        f"{state.tokens:,} tokens",
        money(state),
        f"{now - state.since:.1f} s",
    ]
    if state.refused:
        parts.append(f"{state.refused:,} refused")
    if state.halted is not None:
        parts.append(f"stopped {printable(state.halted)}")
    if state.verdict is not None:
        parts.append(printable(state.verdict))
    return ", ".join(parts)


def money(state: RunState) -> str:
    """What it spent of what, and what is not known."""
    cap = f" of {show_usd(state.caps.nano)}" if state.caps.nano is not None else ""
    unknown = f" and {show_usd(state.unknown)} unknown" if state.unknown else ""
    unpriced = f" and {state.unpriced} calls without a price" if state.unpriced else ""
    return f"{show_usd(state.spent)}{cap}{unknown}{unpriced}"


def _text(state: RunState, event: Event) -> str | None:  # noqa: PLR0911 - one for each kind
    match event:
        case RunStarted():
            caps = [f"cap {show_usd(state.caps.nano)}"] if state.caps.nano is not None else []
            caps += [f"{state.caps.steps:,} steps"] if state.caps.steps is not None else []
            return ", ".join([f"{show_tags(event.run)} started".strip(), *caps])
        case AgentStarted():
            return f"agent {event.name}"
        case ToolStarted():
            return f"tool {event.name}"
        case ToolEnded(outcome="error"):
            return f"a tool failed with {event.error_type}"
        case CallEnded():
            return _call(state, event)
        case CallReconciled():
            cost = "no price" if event.cost_nano is None else show_usd(event.cost_nano)
            return f"the usage of a call arrived: {event.usage.total_tokens:,} tokens, {cost}"
        case RunToppedUp():
            return f"topped up, {money(state)}"
        case RunPaused():
            return "at its cap, waits for an answer"
        case _:
            return None


def _call(state: RunState, event: CallEnded) -> str:
    step = _of(f"step {event.step}", state.caps.steps)
    tokens = f"{event.usage.total_tokens:,} tokens" if event.usage is not None else "no usage"
    cost = "cost unknown" if event.cost_nano is None else show_usd(event.cost_nano)
    error = f", {event.error_type}" if event.error_type is not None else ""
    return f"{step}: {event.model or 'a model'}, {tokens}, {cost}{error}; spent {money(state)}"


def _of(amount: str, cap: int | None, unit: str = "") -> str:
    return f"{amount}{f' of {cap:,}' if cap is not None else ''}{' ' if unit else ''}{unit}"
