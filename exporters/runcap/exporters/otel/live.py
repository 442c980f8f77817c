"""What is under way: the spans of agents and tools, the calls in flight, and what they add up to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.trace import Span

from runcap.guardrails import forks
from runcap.guardrails.events import CallEnded, CallStarted

from . import semconv as sc
from .attributes import Value, dollars


@dataclass(slots=True)
class Totals:
    """What calls add up to."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nano: int = 0
    unpriced: int = 0

    def add(self, event: CallEnded) -> None:
        """One more call."""
        self.calls += 1
        usage = event.usage
        if usage is not None:
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens
            self.cache_read_tokens += usage.cache_read_tokens
            self.reasoning_tokens += usage.reasoning_tokens
        if event.cost_nano is None:
            self.unpriced += 1
        else:
            self.cost_nano += event.cost_nano


@dataclass(slots=True)
class Live:
    """An agent's or a tool's span. `agent_name` is the agent's, or that of the agent the tool is used by."""

    span: Span
    context: Context
    parent_id: str | None
    run_id: str
    agent_name: str
    totals: Totals = field(default_factory=Totals)
    by_model: dict[str, Totals] = field(default_factory=dict)

    def add(self, event: CallEnded) -> None:
        """A call below it ended."""
        self.totals.add(event)
        model = event.model or sc.UNKNOWN
        of_model = self.by_model.get(model)
        if of_model is None:
            of_model = self.by_model[model] = Totals()
        of_model.add(event)


class Agents:
    """Of each run, the agents under way, in the order they began."""

    def __init__(self) -> None:
        self._of_run: dict[str, tuple[str, ...]] = {}
        self._lock = forks.rlock()

    def enter(self, run_id: str, node_id: str) -> None:
        """An agent began, or went on as another run's."""
        with self._lock:
            self._of_run[run_id] = (*self._of_run.get(run_id, ()), node_id)

    def leave(self, run_id: str, node_id: str) -> None:
        """It ended."""
        with self._lock:
            left = tuple(one for one in self._of_run.pop(run_id, ()) if one != node_id)
            if left:
                self._of_run[run_id] = left

    def outermost(self, run_id: str) -> str:
        """The run's outermost agent; of several side by side, the first. Empty where none is under way."""
        return next(iter(self._of_run.get(run_id, ())), "")

    def clear(self) -> None:
        """Forget all."""
        self._of_run.clear()


@dataclass(slots=True)
class Call:
    """A model call in flight. It has a span of its own only where somebody asked for it to be current."""

    started: CallStarted
    context: Context
    agent_name: str
    span: Span | None = None


def of_totals(live: Live) -> dict[str, Value]:
    """The roll-ups of an agent; by model as JSON, for backends flatten maps."""
    totals = live.totals
    attributes: dict[str, Value] = {
        sc.TOTAL_CALLS: totals.calls,
        sc.TOTAL_INPUT_TOKENS: totals.input_tokens,
        sc.TOTAL_OUTPUT_TOKENS: totals.output_tokens,
        sc.TOTAL_COST_USD: dollars(totals.cost_nano),
    }
    if totals.cache_read_tokens:
        attributes[sc.TOTAL_CACHE_READ_TOKENS] = totals.cache_read_tokens
    if totals.reasoning_tokens:
        attributes[sc.TOTAL_REASONING_TOKENS] = totals.reasoning_tokens
    if totals.unpriced:  # a sum that leaves calls out says so: their cost is unknown, not zero
        attributes[sc.TOTAL_UNPRICED_CALLS] = totals.unpriced
    if live.by_model:
        attributes[sc.TOTAL_BY_MODEL] = json.dumps({model: _short(one) for model, one in live.by_model.items()})
    return attributes


def _short(totals: Totals) -> dict[str, int | float]:
    told: dict[str, int | float] = {
        "calls": totals.calls,
        "input_tokens": totals.input_tokens,
        "output_tokens": totals.output_tokens,
        "cost_usd": dollars(totals.cost_nano),
    }
    return told | ({"unpriced_calls": totals.unpriced} if totals.unpriced else {})
