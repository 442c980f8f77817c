"""Events -> spans, in the shape the GenAI conventions give: `invoke_agent` -> `chat {model}`, `execute_tool {tool}`."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from weakref import WeakSet

from opentelemetry import trace
from opentelemetry._logs import LoggerProvider
from opentelemetry.context import Context, get_current
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TracerProvider

from runcap.guardrails import forks
from runcap.guardrails.events import (
    AgentEnded,
    AgentStarted,
    CallEnded,
    CallRefused,
    CallStarted,
    Event,
    RunWentOn,
    ToolEnded,
    ToolStarted,
)
from runcap.guardrails.recent import Recent
from runcap.guardrails.sinks import Content

from . import semconv as sc
from .attributes import (
    Value,
    moments,
    of_balance,
    of_call,
    of_request,
    of_run,
)
from .beside import Beside, Setting
from .content import DEFAULT_LIMIT, ContentMode, Contents, Redact
from .current import Inside, Place, context_below, entered, inside_tool
from .joint import Joint, here, known_context
from .live import Agents, Call, Live, of_totals
from .metrics import Meters
from .notices import notice_of
from .others import goes_elsewhere
from .traceparent import parse, say

_FAILED = frozenset({"refused", "error"})
_GIVEN_UP = ("CancelledError", "GeneratorExit")
"""How calls end that nobody waits for any more: no errors."""
_NOWHERE: AbstractContextManager[object] = nullcontext()
_JUST_ENDED = 64
"""Calls whose spans are remembered for `ids_of`, which others ask a moment later."""
_PAUSED = 1_024
"""Interrupted agents whose spans are remembered, to be linked to from where they go on."""


class OTelSink:
    """Spans on a tracer provider: the global one unless another is given (looked up at the first event).

    A `chat` span has the true times of its call, and ends with it, whatever becomes of the call; agents and tools are
    live spans. Where runcap runs the call or the tool itself (guarded models, `BudgetMiddleware`) its span is current
    meanwhile, unless the program traces to another provider. Cost stands on `chat` spans only; roll-ups and budget
    state are `runcap.*`. No content, unless it is asked for.

    Args:
        tracer_provider: where spans go.
        meter_provider: where metrics go; likewise.
        tags: names of the run's tags that go onto spans, as `runcap.tag.*`; others are left out.
        metric_tags: those that go onto metrics. Each multiplies the number of series: no users, no ids.
        agent_name: `gen_ai.agent.name` of what happens outside of any agent.
        legacy_names: also write cache writes by the attribute's former name, which Arize Phoenix reads.
        beside: what becomes of our spans where another instrumentation traces the same calls: `"auto"`, `"enrich"`,
            `"stand back"` or `"own"`. See `beside.Setting`.
        content: where prompts, answers, tool arguments and results go: `"none"`, `"span"`, `"event"` or `"both"`;
            None leaves it to OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT. See `Contents`.
        redact: is given each piece of content, and returns what to record of it; None for nothing.
        content_limit: bytes a piece of content has at most; what is longer is shortened.
        logger_provider: where events with content go; the global one unless another is given.

    Raises:
        TypeError: `tags` are no collection of names, or `redact` is no plain function.
        ValueError: an unknown `content` or `beside`, or a `content_limit` below 256.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        tags: Collection[str] = sc.TAGS,
        metric_tags: Collection[str] = (),
        agent_name: str = "default",
        legacy_names: bool = False,
        beside: Setting = "auto",
        content: ContentMode | None = None,
        redact: Redact | None = None,
        content_limit: int = DEFAULT_LIMIT,
        logger_provider: LoggerProvider | None = None,
    ) -> None:
        if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
            raise TypeError(f'OTelSink.tags must be names of tags, e.g. ("task", "user"); got {tags!r}')
        self._tracer = trace.get_tracer("runcap", tracer_provider=tracer_provider)
        self._own_provider = tracer_provider
        self._tags = frozenset(tags)
        self._agent_name = agent_name
        self._legacy = legacy_names
        self._beside = Beside(beside, tracer_provider, meter_provider)
        self._meters = Meters(meter_provider, tags=metric_tags)
        self._contents = Contents(content, redact, content_limit, logger_provider)
        self._live: dict[str, Live] = {}
        self._calls: dict[str, Call] = {}
        self._agents = Agents()
        self._interrupted: Recent[tuple[str, str], SpanContext] = Recent(_PAUSED)
        self._ended: Recent[str, Span] = Recent(_JUST_ENDED)
        self._is_asked = False
        self._lock = forks.rlock()
        _every.add(self)

    @property
    def open_spans(self) -> int:
        """Spans of agents and tools under way, and calls in flight."""
        return len(self._live) + len(self._calls)

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if self._meters.wants(event):
            self._measure(event)
        match event:
            case CallStarted():
                self._call_started(event)
            case CallEnded():
                self._call_ended(event)
            case AgentStarted():
                self._agent_started(event)
            case ToolStarted():
                self._tool_started(event)
            case AgentEnded() | ToolEnded():
                self._close(event)
            case _:
                self._add_event(event)

    @property
    def takes_content(self) -> bool:
        """Content is asked for."""
        return self._contents.enabled

    def take_content(self, content: Content) -> None:
        """Keep it until its call or tool ends."""
        self._contents.take(content)

    def around_call(self, call_id: str) -> AbstractContextManager[object]:
        """Make the call's span current, for one `with` block."""
        call = self._calls.get(call_id)
        if call is None or self._is_apart():
            return _NOWHERE
        span = call.span or self._begin(call)
        return Inside(Place(span), trace.set_span_in_context(here(span)))

    def around_tool(self, tool_call_id: str) -> AbstractContextManager[object]:
        """Make the tool's span current from its start on, for one `with` block."""
        return _NOWHERE if self._is_apart() else inside_tool(tool_call_id)

    def _is_apart(self) -> bool:
        """The program traces to another provider: what it traces would have a parent there that never arrives."""
        own = self._own_provider
        return own is not None and goes_elsewhere(trace.get_tracer_provider(), own)

    def ids_of(self, event: Event) -> tuple[int, int] | None:
        """The ids of the trace and of the span an event belongs to; None where there is none, or it is not kept."""
        self._is_asked = True
        call_id = getattr(event, "call_id", "")
        call = self._calls.get(call_id)
        if call is not None and call.span is not None:
            return _ids(call.span)
        ended = self._ended.get(call_id)
        if ended is not None:
            return _ids(ended)
        names = (
            getattr(event, "node_id", None),
            getattr(event, "parent_id", None),
            self._agents.outermost(event.run.id),
        )
        live = next((one for name in names if name is not None and (one := self._live.get(name))), None)
        return None if live is None else _ids(live.span)

    def _measure(self, event: Event) -> None:
        agent_name, provider = None, None
        match event:
            case CallEnded():
                call, provider = self._calls.get(event.call_id), event.provider
                agent_name = self._agent_name if call is None else call.agent_name
            case ToolEnded():
                live = self._live.get(event.node_id)
                agent_name = None if live is None else live.agent_name
            case _:
                pass
        self._meters(event, agent_name, standard=self._beside.gives_standard_metrics(provider))

    def trace_of(self, run_id: str) -> str | None:
        """The `traceparent` of the run's outermost agent; None where it has none under way."""
        root = self._live.get(self._agents.outermost(run_id))
        return None if root is None else say(root.span.get_span_context())

    def _add_event(self, event: Event) -> None:
        """What is no span of its own stands on one as a span event."""
        notice = notice_of(event)
        if notice is not None:
            node_id = self._agents.outermost(event.run.id) if notice.of_run else getattr(event, "parent_id", None)
            live = self._live.get(node_id or "")
            span = live.span if live is not None else self._beside.here()
            span.add_event(notice.name, notice.attributes, event.time_ns)
        match event:
            case CallRefused():
                self._beside.refused(event.call_id, event.kind)
            case RunWentOn():
                self._went_on(event)
            case _:
                pass

    def _call_started(self, event: CallStarted) -> None:
        parent = self._live.get(event.parent_id or "")
        name = parent.agent_name if parent is not None else self._agent_name
        call = self._calls[event.call_id] = Call(event, self._below(parent), name)
        if self._beside.is_joined():
            self._begin(call)

    def _begin(self, call: Call) -> Span:
        started = call.started
        asked = of_run(started.run, sc.OPERATION_CHAT, call.agent_name, self._tags) | of_request(started)
        call.span = span = self._start_call(started, call.context, asked, started.time_ns)
        return span

    def _call_ended(self, event: CallEnded) -> None:
        call = self._calls.pop(event.call_id, None)
        attributes = of_call(event)
        if self._legacy and event.usage is not None and event.usage.cache_write_tokens:
            attributes[sc.USAGE_CACHE_CREATION_TOKENS] = event.usage.cache_write_tokens
        agent_name = call.agent_name if call is not None else self._agent_name
        span = call.span if call is not None else None
        if span is not None:
            span.set_attributes(attributes)
        else:
            attributes = of_run(event.run, sc.OPERATION_CHAT, agent_name, self._tags) | attributes
            span = self._start_call(event, call.context if call is not None else None, attributes, event.started_ns)
        if self._contents.enabled:
            about = of_run(event.run, sc.OPERATION_CHAT, agent_name, self._tags) | attributes
            self._contents.end(event.call_id, span, about, event.time_ns)
        for name, figures, time_ns in moments(event):
            span.add_event(name, figures, time_ns)
        if event.error_type is not None and event.error_type not in _GIVEN_UP:
            span.set_status(Status(StatusCode.ERROR, event.error_type))
        span.end(event.time_ns)
        if self._is_asked:
            self._ended.put(event.call_id, span)
        if event.parent_id is not None:
            self._roll_up(event, event.parent_id)

    def _start_call(
        self, event: CallStarted | CallEnded, context: Context | None, attributes: dict[str, Value], started_ns: int
    ) -> Span:
        return self._beside.start(
            self._tracer,
            f"{sc.OPERATION_CHAT} {event.model or sc.UNKNOWN}",
            event.call_id,
            context=context,
            kind=SpanKind.INTERNAL if event.provider in sc.IN_PROCESS else SpanKind.CLIENT,
            attributes=attributes,
            start_time=started_ns,
        )

    def _roll_up(self, event: CallEnded, parent_id: str) -> None:
        with self._lock:
            live = self._live.get(parent_id)
            while live is not None:
                live.add(event)
                if isinstance(live.span, Joint):  # whose other may end before we are told that it does
                    live.span.set_attributes(of_totals(live))
                live = self._live.get(live.parent_id or "")

    def _agent_started(self, event: AgentStarted) -> None:
        attributes = of_run(event.run, sc.OPERATION_AGENT, event.name, self._tags)
        before = self._interrupted.get((event.run.conversation_id, event.name)) if event.resumed else None
        links = [] if before is None else [Link(before, {sc.LINK: sc.LINK_RESUMED})]
        self._open(event, f"{sc.OPERATION_AGENT} {event.name}", attributes, event.name, links)
        self._agents.enter(event.run.id, event.node_id)

    def _went_on(self, event: RunWentOn) -> None:
        live = self._live.get(event.node_id)
        if live is None:
            return
        live.run_id = event.run.id
        live.span.set_attribute(sc.RUN_ID, event.run.id)
        is_root = self._agents.outermost(event.instead_of) == event.node_id
        self._agents.leave(event.instead_of, event.node_id)
        self._agents.enter(event.run.id, event.node_id)
        if is_root:
            before = parse(event.trace)
            if before is not None:
                live.span.add_link(before, {sc.LINK: sc.LINK_RESUMED})

    def _tool_started(self, event: ToolStarted) -> None:
        parent = self._live.get(event.parent_id or "")
        agent_name = parent.agent_name if parent is not None else self._agent_name
        attributes = of_run(event.run, sc.OPERATION_TOOL, agent_name, self._tags)
        attributes[sc.TOOL_NAME], attributes[sc.TOOL_TYPE] = event.name, "function"
        for name, told in ((sc.TOOL_CALL_ID, event.tool_call_id), (sc.TOOL_DESCRIPTION, event.description)):
            if told is not None:
                attributes[name] = told
        span = self._open(event, f"{sc.OPERATION_TOOL} {event.name}", attributes, agent_name)
        entered(span, event.tool_call_id)

    def _open(
        self,
        event: AgentStarted | ToolStarted,
        name: str,
        attributes: dict[str, Value],
        agent_name: str,
        links: list[Link] | None = None,
    ) -> Span:
        around = self._below(self._live.get(event.parent_id or ""))
        span = self._beside.start(
            self._tracer,
            name,
            event.node_id,
            context=around,
            kind=SpanKind.INTERNAL,
            attributes=attributes,
            links=links,
            start_time=event.time_ns,
        )
        context = trace.set_span_in_context(span, around)  # baggage and all
        self._live[event.node_id] = Live(span, context, event.parent_id, event.run.id, agent_name)
        return span

    @staticmethod
    def _below(parent: Live | None) -> Context:
        return get_current() if parent is None else context_below(parent.span, parent.context)

    def _close(self, event: AgentEnded | ToolEnded) -> None:
        live = self._live.pop(event.node_id, None)
        if live is None:
            return
        span = live.span
        if self._contents.enabled:
            self._contents.end(event.node_id, span, {}, event.time_ns)
        span.set_attribute(sc.OUTCOME, event.outcome)
        if isinstance(event, AgentEnded):
            span.set_attributes(of_totals(live) | of_balance(event.balance))
            self._agent_ended(event, live)
        if event.outcome in _FAILED and event.error_type is not None:
            span.set_attribute(sc.ERROR_TYPE, event.error_type)
            # The type's name, not the text: an error's message may quote content.
            span.set_status(Status(StatusCode.ERROR, event.error_type))
        span.end(event.time_ns)

    def _agent_ended(self, event: AgentEnded, live: Live) -> None:
        self._agents.leave(live.run_id, event.node_id)
        if event.outcome == "interrupted":
            context = known_context(live.span)
            if context is not None:
                self._interrupted.put((event.run.conversation_id, live.agent_name), context)

    def _forget_parents(self) -> None:
        """In a forked child: what the parent process began, it ends; ended here too, it would be exported twice."""
        self._live.clear()
        self._calls.clear()
        self._contents.clear()
        self._agents.clear()


def _ids(span: Span) -> tuple[int, int] | None:
    context = known_context(span)
    return None if context is None else (context.trace_id, context.span_id)


_every: WeakSet[OTelSink] = WeakSet()


def _forked() -> None:
    for sink in tuple(_every):
        sink._forget_parents()  # noqa: SLF001 - this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
