"""A span that stands for another instrumentation's of the same call, tool or agent; or for ours, where it has none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import Attributes, AttributeValue

from runcap.guardrails.money import NANO

from . import semconv as sc
from .attributes import Value
from .others import Finder, attributes_of

Kept = Literal["whole", "settled", "none"]
"""What is made of ours where no span of another's is found. `"settled"`: it has one, but not to be had, so that ours
carries cost and budget, but neither tokens nor the name of an operation, which would count the call again.
"""

_USAGE = sc.USAGE_INPUT_TOKENS.removesuffix("input_tokens")
_COST = sc.COST_AMOUNT.removesuffix("amount")
_SETTLED = "settle"
_ADDED_UP = (sc.COST_AMOUNT, sc.CALL_UNKNOWN_USD)
"""Where a model is called again for one call of LangChain's, one span stands for all attempts."""


class Joint(Span):
    """Looks for the other's span when it begins, when it is asked what it is, and when it ends.

    The other may start its span after ours and end it before: what is known while it is open stands on it. What is
    told when it is closed already goes onto a span of ours below it, if it is a call; money is never left out.
    """

    def __init__(
        self,
        attributes: dict[str, Value],
        kept: Kept,
        candidate: Span | None,
        *,
        writes: bool,
        lock: threading.RLock,
    ) -> None:
        self._is_call = attributes.get(sc.OPERATION_NAME) == sc.OPERATION_CHAT
        self._attributes: dict[str, Any] = dict(attributes)
        self._events: list[tuple[str, Attributes, int | None]] = []
        self._links: list[Link] = []
        self._status: tuple[Status | StatusCode, str | None] | None = None
        self._kept: Kept = kept
        self._candidate = candidate
        self._writes = writes
        self._lock = lock
        self._theirs: Span | None = None
        self._own: Span | None = None
        self._ended = False
        self._find: Callable[[], Span | None] = lambda: None

    def look_with(self, finders: Sequence[Finder], runs: Sequence[UUID], is_ours: Callable[[Span], bool]) -> None:
        """Where another's span is to be looked for; `is_ours` says whether it goes where ours goes."""

        def find() -> Span | None:
            for run in runs:
                for finder in finders:
                    span = finder(run)
                    if span is not None:
                        return span if is_ours(span) else None
            return None

        if finders and runs:
            self._find = find

    def start(
        self,
        tracer: Tracer,
        name: str,
        *,
        context: Context | None,
        kind: SpanKind,
        start_time: int,
        links: Sequence[Link],
    ) -> None:
        """What a span of ours would begin with."""
        self._tracer, self._name, self._kind, self._start_time = tracer, name, kind, start_time
        self._context = context
        self._around = trace.get_current_span(context)
        self._links = list(links)
        with self._lock:
            self._look()

    def here(self) -> Span:
        """What is to be made current: the other's span itself, if there is one; what is current, if none is made."""
        with self._lock:
            theirs = self._look() or self._candidate
            return theirs if theirs is not None else self._around if self._kept == "none" else self

    def known_context(self) -> SpanContext | None:
        """`get_span_context()`, but None where it is not settled yet whose span this is."""
        with self._lock:
            span = self._look() or self._own or self._candidate
            if span is None and self._kept == "none":
                span = self._around
            return None if span is None else span.get_span_context()

    def get_span_context(self) -> SpanContext:
        """The other's; ours where it has none, which is made now."""
        with self._lock:
            known = self.known_context()
            return known if known is not None else self._make().get_span_context()

    def is_recording(self) -> bool:
        """Until it is ended."""
        return not self._ended

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Onto the other's span, where it does not say so itself; or onto ours."""
        with self._lock:
            theirs, own = self._look(), self._own
            if own is not None:
                own.set_attributes(self._ours(attributes))
            elif theirs is None or not theirs.is_recording():
                self._attributes.update(attributes)
            else:
                self._write(theirs, attributes)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """See `set_attributes`."""
        self.set_attributes({key: value})

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Onto the other's span, or ours."""
        with self._lock:
            theirs, own = self._look(), self._own
            if own is not None:
                own.add_event(name, attributes, timestamp)
            elif theirs is None or not theirs.is_recording():
                self._events.append((name, attributes, timestamp))
            elif self._writes:
                theirs.add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Onto the other's span, or ours."""
        with self._lock:
            theirs, own = self._look(), self._own
            if own is not None:
                own.add_link(context, attributes)
            elif theirs is None or not theirs.is_recording():
                self._links.append(Link(context, attributes))
            elif self._writes:
                theirs.add_link(context, attributes)

    def update_name(self, name: str) -> None:
        """Of ours; the other's keeps its own."""
        self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Of ours; the other tells its own."""
        with self._lock:
            self._status = (status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT002 - as OpenTelemetry has it
    ) -> None:
        """The other does so itself."""

    def end(self, end_time: int | None = None) -> None:
        """Settle whose span it was; the other's stays open, for it ends it itself."""
        with self._lock:
            if self._ended:
                return
            theirs = self._look() or (self._candidate if self._own is None else None)
            self._ended = True
            if self._own is None and theirs is not None and not _is_over(theirs):
                self._flush(theirs)
                return
            if self._own is None and self._kept == "whole" and (theirs is not None or self._was_given_up()):
                self._kept = "settled" if self._is_call else "none"
            if self._own is None and self._kept == "none":
                return
            own = self._make()
            if self._status is not None:
                own.set_status(*self._status)
            own.end(end_time)

    def _was_given_up(self) -> bool:
        """Nobody waited for its end, so that the other's span, begun after ours, may have been there and gone."""
        return self._is_call and self._attributes.get(sc.CALL_STATE) == "unknown"

    def _look(self) -> Span | None:
        """The other's span. What was told before it was found goes onto it as soon as it is."""
        if self._theirs is None and self._own is None and not self._ended:
            self._theirs = self._find()
            if self._theirs is not None and not self._is_call and not _is_over(self._theirs):
                self._flush(self._theirs)
        return self._theirs

    def _flush(self, theirs: Span) -> None:
        attributes, events, links = self._attributes, self._events, self._links
        self._attributes, self._events, self._links = {}, [], []
        if not theirs.is_recording() or not self._writes:
            return
        self._write(theirs, attributes)
        for name, figures, timestamp in events:
            theirs.add_event(name, figures, timestamp)
        for link in links:
            theirs.add_link(link.context, link.attributes)

    def _write(self, theirs: Span, attributes: Mapping[str, Any]) -> None:
        if not self._writes:
            return
        said = attributes_of(theirs)
        ours = {key: value for key, value in attributes.items() if not (key in said and _is_standard(key))}
        ours.pop(sc.ERROR_TYPE, None)  # of an attempt, perhaps, that was made again; the other tells how it ended
        for key in _ADDED_UP:
            if self._is_call and key in ours and key in said:
                ours[key] = (round(said[key] * NANO) + round(ours[key] * NANO)) / NANO
        theirs.set_attributes(ours)

    def _ours(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        if self._kept != "settled":
            return dict(attributes)
        return {key: value for key, value in attributes.items() if not _counts(key)}

    def _make(self) -> Span:
        """Our own span, begun when it began."""
        if self._own is not None:
            return self._own
        name, kind, context = self._name, self._kind, self._context
        if self._kept == "settled":
            name, kind = f"{_SETTLED} {name.partition(' ')[2]}", SpanKind.INTERNAL
            theirs = self._theirs or self._candidate
            context = context if theirs is None else trace.set_span_in_context(theirs, context)
        own = self._own = self._tracer.start_span(
            name,
            context=context,
            kind=kind,
            attributes=self._ours(self._attributes),
            links=self._links,
            start_time=self._start_time,
        )
        for event in self._events:
            own.add_event(*event)
        return own


def here(span: Span) -> Span:
    """What is to be made current of a span."""
    return span.here() if isinstance(span, Joint) else span


def known_context(span: Span) -> SpanContext | None:
    """What a span is, without making one of it; None where it is not settled yet whose it is."""
    return span.known_context() if isinstance(span, Joint) else span.get_span_context()


def _is_over(span: Span) -> bool:
    """Ended; one that never recorded, for it is not sampled, is not."""
    return not span.is_recording() and not isinstance(span, NonRecordingSpan)


def _is_standard(key: str) -> bool:
    """Whether others say it too."""
    return not key.startswith(("runcap.", _COST))


def _counts(key: str) -> bool:
    """Whether it makes a span count as a call, or its tokens as used."""
    return key == sc.OPERATION_NAME or (key.startswith(_USAGE) and not key.startswith(_COST))
