"""Spans made current while a call or a tool runs, so that what HTTP clients, databases and users trace nests under it.

A context is entered and left in one function, never across hooks. A generator that is dropped may be finished in
another context than it was entered in: it is left alone there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import Span, SpanContext, Status, StatusCode
from opentelemetry.util.types import Attributes, AttributeValue


class Place:
    """Where the code runs: inside this span. A tool's is not known before its start is told."""

    __slots__ = ("span", "tool_call_id")

    def __init__(self, span: Span | None = None, tool_call_id: str | None = None) -> None:
        self.span = span
        self.tool_call_id = tool_call_id


_here: ContextVar[Place | None] = ContextVar("runcap_place", default=None)


def here() -> Place | None:
    """Where this code runs; None outside of any call or tool that was entered."""
    return _here.get()


class Inside:
    """Enter it, and the context is current; for one `with` block."""

    __slots__ = ("_context", "_place", "_tokens")

    def __init__(self, place: Place, context: Context) -> None:
        self._place = place
        self._context = context
        self._tokens: tuple[Token[Place | None], Token[Context]] | None = None

    def __enter__(self) -> None:
        self._tokens = (_here.set(self._place), attach(self._context))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tokens is not None and _here.get() is self._place:
            with suppress(ValueError):  # a coroutine that nobody awaits may be finished in a copy of its context
                _here.reset(self._tokens[0])
                detach(self._tokens[1])
        self._tokens = None


def inside_tool(tool_call_id: str) -> Inside:
    """The context of a tool that is about to start: its span becomes current once it is there."""
    place = Place(tool_call_id=tool_call_id)
    return Inside(place, trace.set_span_in_context(_SpanOf(place, trace.get_current_span())))


def entered(span: Span, tool_call_id: str | None) -> None:
    """A tool's span began; where its context was entered, it is current from now on. A retry's takes its place."""
    place = _here.get()
    if place is not None and place.tool_call_id is not None and place.tool_call_id == tool_call_id:
        place.span = span


def context_below(span: Span, context: Context) -> Context:
    """Where something that `span` called begins: under what the user's code inside of it made current, if anything."""
    place = _here.get()
    return get_current() if place is not None and place.span is span else context


class _SpanOf(Span):
    """Stands for the span of a place; until there is one, for the span around it."""

    def __init__(self, place: Place, around: Span) -> None:
        self._place = place
        self._around = around

    @property
    def _span(self) -> Span:
        return self._place.span or self._around

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_place", "_around", "_span"):  # a copy that has nothing yet
            raise AttributeError(name)
        return getattr(self._span, name)

    def get_span_context(self) -> SpanContext:
        return self._span.get_span_context()

    def is_recording(self) -> bool:
        return self._span.is_recording()

    def end(self, end_time: int | None = None) -> None:
        """Whoever made the span ends it."""

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self._span.set_attributes(attributes)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self._span.set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        self._span.add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        self._span.add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self._span.update_name(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self._span.set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT002 - as OpenTelemetry has it
    ) -> None:
        self._span.record_exception(exception, attributes, timestamp, escaped)
