"""What is known of the runs that are under way, and what is said of them in plain lines. Knows no terminal."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from runcap.guardrails.amounts import Caps
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
    RunInfo,
    RunPaused,
    RunStarted,
    RunStopped,
    RunToppedUp,
    TierSwitched,
    ToolEnded,
    ToolStarted,
)
from runcap.guardrails.ledger import Balance
from runcap.guardrails.money import to_nano
from runcap.guardrails.refusals import CAP_PREFIX

from .log_fields import printable

_RUNS = 500
"""Runs under way that are kept in mind; of more, those that did nothing for longest are forgotten."""

_ENDED = 1_000
"""Runs that ended, kept in mind so that a call that settles late does not bring them back."""

_WARNINGS = 3


@dataclass(slots=True)
class RunState:
    """A run under way: `calls` are those in flight and the nano-dollars they hold; `nodes`, agents and tools at work.

    `said` is what was said of it in plain lines.
    """

    info: RunInfo
    since: float
    caps: Caps
    name: str | None = None
    step: int = 0
    tokens: int = 0
    spent: int = 0
    unknown: int = 0
    unpriced: int = 0
    refused: int = 0
    tier: str | None = None
    model: str | None = None
    tool: str | None = None
    halted: str | None = None
    paused: bool = False
    verdict: str | None = None
    calls: dict[str, int] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    warnings: dict[object, str] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    @property
    def is_busy(self) -> bool:
        """A call, a tool or an agent of it is at work."""
        return bool(self.calls or self.nodes) and not self.paused

    @property
    def held(self) -> int:
        """Nano-dollars that its calls in flight hold."""
        return sum(self.calls.values())

    def warn(self, key: object, text: str) -> None:
        """Keep the last few warnings, of those with one key the last."""
        self.warnings.pop(key, None)
        self.warnings[key] = text
        if len(self.warnings) > _WARNINGS:
            del self.warnings[next(iter(self.warnings))]

    def take(self, balance: Balance) -> None:
        """The ledger's own figures, unless they are older than what is known."""
        if balance.spent.nano >= self.spent:
            self.spent, self.unknown = balance.spent.nano, balance.unknown.nano
            self.step = max(self.step, balance.spent.steps)
            self.caps = balance.caps


class Row(NamedTuple):
    """A run as it is drawn, at an instant: money in nano-dollars, text that a terminal can show."""

    label: str
    tags: str
    seconds: float
    state: str
    step: int
    steps: int | None
    tokens: int
    spent: int
    held: int
    unknown: int
    cap: int | None
    unpriced: int
    tier: str
    tool: str
    warnings: tuple[str, ...]


class Runs:
    """The runs under way, by their events. One thread at a time."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, RunState] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def are_busy(self) -> bool:
        """Something is at work in one of them."""
        return any(state.is_busy for state in self._runs.values())

    @property
    def all_wait(self) -> bool:
        """Every run waits for a person's answer, or there is none."""
        return all(state.paused for state in self._runs.values())

    def take(self, event: Event, now: float) -> RunState | None:
        """Take an event: the run it is of, None where that is over."""
        run = event.run
        if isinstance(event, RunStarted):
            self._ended.pop(run.id, None)
        elif run.id in self._ended:
            self._settle_late(event)
            return None
        state = self._runs.get(run.id)
        if state is None:
            state = self._runs[run.id] = RunState(run, now, _caps(run))
            if len(self._runs) > _RUNS:
                self._runs.popitem(last=False)
        self._runs.move_to_end(run.id)
        self._update(state, event)
        if isinstance(event, RunEnded):
            del self._runs[run.id]
            self._ended[run.id] = None
            if len(self._ended) > _ENDED:
                self._ended.popitem(last=False)
        return state

    def rows(self, now: float, most: int) -> list[Row]:
        """The runs that did something last, at most so many, in the order they began."""
        latest = list(self._runs.values())[-most:]
        return [_row(state, now) for state in sorted(latest, key=lambda state: state.since)]

    def states(self) -> list[RunState]:
        """All of them."""
        return list(self._runs.values())

    def clear(self) -> None:
        """Forget them."""
        self._runs.clear()

    def _settle_late(self, event: Event) -> None:
        """A call of a run that is over: those around it still count it."""
        outer = self._runs.get(event.run.parent_id or "")
        if isinstance(event, CallEnded) and outer is not None:
            for run in self._chain(outer):
                _end_call(run, event)

    def _chain(self, state: RunState) -> Iterator[RunState]:
        """The run and the runs around it."""
        seen: set[str] = set()
        outer: RunState | None = state
        while outer is not None and outer.info.id not in seen:
            yield outer
            seen.add(outer.info.id)
            outer = self._runs.get(outer.info.parent_id or "")

    def _update(self, state: RunState, event: Event) -> None:
        text = warning(event)
        if text is not None:
            state.warn((event.loop.kind, event.loop.tools) if isinstance(event, LoopWarned) else text, text)
        match event:
            case CallStarted():
                for run in self._chain(state):
                    run.calls[event.call_id] = event.held_nano
                    run.step += run is not state
                state.step = max(state.step, event.step)
                state.model, state.tier, state.paused = event.model, event.tier or state.tier, False
            case CallEnded():
                for run in self._chain(state):
                    _end_call(run, event)
                if event.balance is not None:
                    state.take(event.balance)
            case ToolStarted():
                state.tool, state.paused = event.name, False
                state.nodes.add(event.node_id)
            case AgentStarted():
                state.name, state.paused = state.name or event.name, False
                state.nodes.add(event.node_id)
            case ToolEnded() | AgentEnded():
                state.nodes.discard(event.node_id)
            case _:
                _note(state, event)


def _end_call(run: RunState, event: CallEnded) -> None:
    run.calls.pop(event.call_id, None)
    run.tokens += event.usage.total_tokens if event.usage is not None else 0
    run.spent += event.cost_nano or 0
    run.unknown += event.unknown_nano
    run.unpriced += event.state == "settled" and event.cost_nano is None


def _note(state: RunState, event: Event) -> None:
    match event:
        case RunStopped():
            state.halted = _why(event.reason)
        case RunToppedUp():
            state.halted, state.paused = None, False
            state.said.clear()
            state.take(event.balance)
        case RunEnded():
            state.take(event.balance)
            state.verdict = event.verdict
        case RunPaused():
            state.paused = True
        case CallRefused():
            state.refused += 1
        case TierSwitched():
            state.tier = event.tier
        case BudgetWarned(scope="run"):
            state.take(event.balance)
        case CallReconciled():
            state.unpriced -= event.cost_nano is not None and state.unpriced > 0
        case _:
            pass


def warning(event: Event) -> str | None:
    """What a person is warned of by an event, in a few words; None where it is no warning."""
    match event:
        case BudgetWarned():
            limit = "" if event.scope == "run" else f" of the limit on {event.scope}"
            text = f"{event.share:.0%} of the {event.unit} cap{limit} used"
        case LoopWarned():
            text = f"loop: {event.loop}"
        case PrefixBroken():
            text = f"prefix broken at {event.what}, {event.tokens:,} tokens read again"
        case CallRefused():
            about = f" ({event.details.unit}, {event.details.scope})" if event.details.unit is not None else ""
            text = f"refused: {event.kind}{about}"
        case TierSwitched():
            text = f"goes on with {event.tier} at {event.share:.0%} of its dollars"
        case RunStopped():
            text = f"stopped: {_why(event.reason)}"
        case CallEnded(state="unknown"):
            text = "a call ended without usage: its cost is unknown"
        case _:
            return None
    return printable(text)


def _why(reason: str) -> str:
    return f"at its {reason.removeprefix(CAP_PREFIX)} cap" if reason.startswith(CAP_PREFIX) else reason


def _caps(run: RunInfo) -> Caps:
    budget = run.budget
    if budget is None:
        return Caps()
    nano = None if budget.usd is None else to_nano(budget.usd, "usd")
    return Caps(nano, budget.tokens, budget.steps, budget.tool_calls)


def show_tags(run: RunInfo) -> str:
    """Its tags, as `task=refund user=ada`."""
    return printable(" ".join(f"{name}={value}" for name, value in run.tags.items()))


def label(state: RunState) -> str:
    """What a run is called: its agent's name, where it has one, and the beginning of its id."""
    return printable(f"{state.name or 'run'} {state.info.id[:8]}")


def _row(state: RunState, now: float) -> Row:
    doing = "waits for an answer" if state.paused else f"stopped {state.halted}" if state.halted is not None else ""
    return Row(
        label=label(state),
        tags=show_tags(state.info),
        seconds=now - state.since,
        state=printable(doing),
        step=state.step,
        steps=state.caps.steps,
        tokens=state.tokens,
        spent=state.spent,
        held=state.held,
        unknown=state.unknown,
        cap=state.caps.nano,
        unpriced=state.unpriced,
        tier=printable(state.tier or state.model or ""),
        tool=printable(state.tool or ""),
        warnings=tuple(state.warnings.values()),
    )
