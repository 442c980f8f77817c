"""Events -> spans, in the shape the GenAI conventions give: `invoke_agent` -> `chat {model}`, `execute_tool {tool}`."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from runcap.guardrails.events import (
    AgentEnded,
    AgentStarted,
    BudgetWarned,
    CallEnded,
    CallRefused,
    CallStarted,
    Event,
    LoopWarned,
    PrefixBroken,
    RunPaused,
    RunStopped,
    TierSwitched,
    ToolEnded,
    ToolStarted,
)

from . import semconv as sc
from .attributes import Value, dollars, of_balance, of_break, of_call, of_loop, of_refusal, of_run, of_switch

_FAILED = frozenset({"refused", "error"})


@dataclass(slots=True)
class _Live:
    """An agent's or a tool's span, and what the calls below it add up to."""

    span: Span
    context: Context
    parent_id: str | None
    is_agent: bool
    run_id: str
    agent_name: str | None
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    unpriced: int = 0


class OTelSink:
    """Spans on a tracer provider: the global one unless another is given (looked up at the first event).

    A `chat` span is made when its call has ended, with the true times, so that none can be left open; agents and tools
    are live spans. Cost stands on `chat` spans only; roll-ups and budget state are `runcap.*`. Never any content.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("runcap", tracer_provider=tracer_provider)
        self._live: dict[str, _Live] = {}
        self._calls: dict[str, tuple[Context, str | None]] = {}
        self._lock = threading.RLock()

    @property
    def open_spans(self) -> int:
        """Spans of agents and tools under way, and calls in flight."""
        return len(self._live) + len(self._calls)

    def __call__(self, event: Event) -> None:
        """Take one event."""
        match event:
            case CallStarted():
                self._call_started(event)
            case CallEnded():
                self._call_ended(event)
            case AgentStarted():
                name = f"{sc.OPERATION_AGENT} {event.name}"
                attributes = of_run(event.run, sc.OPERATION_AGENT) | {sc.AGENT_NAME: event.name}
                self._open(event, name, attributes, agent_name=event.name)
            case ToolStarted():
                attributes = of_run(event.run, sc.OPERATION_TOOL) | {sc.TOOL_NAME: event.name, sc.TOOL_TYPE: "function"}
                if event.tool_call_id is not None:
                    attributes[sc.TOOL_CALL_ID] = event.tool_call_id
                self._open(event, f"{sc.OPERATION_TOOL} {event.name}", attributes)
            case AgentEnded() | ToolEnded():
                self._close(event)
            case _:
                self._add_event(event)

    def _add_event(self, event: Event) -> None:
        """What is no span of its own stands on one as a span event."""
        match event:
            case CallRefused():
                self._note(event.parent_id, event, sc.EVENT_REFUSED, of_refusal(event))
            case TierSwitched():
                self._note(event.parent_id, event, sc.EVENT_TIER, of_switch(event))
            case PrefixBroken():
                self._note(event.parent_id, event, sc.EVENT_PREFIX, of_break(event))
            case RunPaused():
                self._note(event.parent_id, event, sc.EVENT_PAUSED, of_refusal(event))
            case LoopWarned():
                self._note(event.parent_id, event, sc.EVENT_LOOP, of_loop(event))
            case BudgetWarned():
                about: dict[str, Value] = {
                    sc.WARNED_UNIT: event.unit,
                    sc.WARNED_SHARE: event.share,
                    sc.WARNED_SCOPE: event.scope,
                }
                self._note_run(event, sc.EVENT_WARNED, about | of_balance(event.balance))
            case RunStopped():
                self._note_run(event, sc.EVENT_STOPPED, {sc.STOPPED: event.reason})
            case _:
                pass

    def _call_started(self, event: CallStarted) -> None:
        parent = self._live.get(event.parent_id or "")
        name = parent.agent_name if parent is not None else None
        self._calls[event.call_id] = (parent.context if parent is not None else get_current(), name)

    def _call_ended(self, event: CallEnded) -> None:
        context, agent_name = self._calls.pop(event.call_id, (None, None))
        attributes = of_call(event)
        if agent_name is not None:
            attributes[sc.AGENT_NAME] = agent_name
        span = self._tracer.start_span(
            f"{sc.OPERATION_CHAT} {event.model or 'unknown'}",
            context=context,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=event.started_ns,
        )
        if event.error_type is not None and event.error_type not in ("CancelledError", "GeneratorExit"):
            span.set_status(Status(StatusCode.ERROR, event.error_type))
        span.end(event.time_ns)
        if event.parent_id is not None:
            self._roll_up(event, event.parent_id)

    def _roll_up(self, event: CallEnded, parent_id: str) -> None:
        with self._lock:
            live = self._live.get(parent_id)
            while live is not None:
                live.calls += 1
                if event.usage is not None:
                    live.input_tokens += event.usage.input_tokens
                    live.output_tokens += event.usage.output_tokens
                if event.cost_nano is None:
                    live.unpriced += 1
                else:
                    live.cost_nano += event.cost_nano
                live = self._live.get(live.parent_id or "")

    def _open(
        self,
        event: AgentStarted | ToolStarted,
        name: str,
        attributes: dict[str, Value],
        *,
        agent_name: str | None = None,
    ) -> None:
        parent = self._live.get(event.parent_id or "")
        above = parent.agent_name if parent is not None else None
        if agent_name is None and above is not None:
            attributes[sc.AGENT_NAME] = above
        span = self._tracer.start_span(
            name,
            context=parent.context if parent is not None else get_current(),
            kind=SpanKind.INTERNAL,
            attributes=attributes,
            start_time=event.time_ns,
        )
        context = trace.set_span_in_context(span, Context())
        is_agent = isinstance(event, AgentStarted)
        self._live[event.node_id] = _Live(span, context, event.parent_id, is_agent, event.run.id, agent_name or above)

    def _close(self, event: AgentEnded | ToolEnded) -> None:
        live = self._live.pop(event.node_id, None)
        if live is None:
            return
        span = live.span
        span.set_attribute(sc.OUTCOME, event.outcome)
        if isinstance(event, AgentEnded):
            span.set_attributes(_totals(live) | of_balance(event.balance))
        if event.outcome in _FAILED and event.error_type is not None:
            span.set_attribute(sc.ERROR_TYPE, event.error_type)
            # The type's name, not the text: an error's message may quote content.
            span.set_status(Status(StatusCode.ERROR, event.error_type))
        span.end(event.time_ns)

    def _note(self, parent_id: str | None, event: Event, name: str, attributes: dict[str, Value]) -> None:
        live = self._live.get(parent_id or "")
        span = live.span if live is not None else trace.get_current_span()
        span.add_event(name, attributes, event.time_ns)

    def _note_run(self, event: Event, name: str, attributes: dict[str, Value]) -> None:
        for live in list(self._live.values()):
            if live.run_id == event.run.id and live.is_agent:
                live.span.add_event(name, attributes, event.time_ns)
                return
        trace.get_current_span().add_event(name, attributes, event.time_ns)


def _totals(live: _Live) -> dict[str, Value]:
    totals: dict[str, Value] = {
        sc.TOTAL_CALLS: live.calls,
        sc.TOTAL_INPUT_TOKENS: live.input_tokens,
        sc.TOTAL_OUTPUT_TOKENS: live.output_tokens,
        sc.TOTAL_COST_USD: dollars(live.cost_nano),
    }
    # A sum that leaves calls out says so: their cost is unknown, not zero.
    return totals | ({sc.TOTAL_UNPRICED_CALLS: live.unpriced} if live.unpriced else {})
