"""A span's context as text that another process can link to: W3C `traceparent` (www.w3.org/TR/trace-context)."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace import SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_HEADER = "traceparent"
_propagator = TraceContextTextMapPropagator()


def say(context: SpanContext) -> str | None:
    """The text; None for a span that is none."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(trace.NonRecordingSpan(context)))
    return carrier.get(_HEADER)


def parse(text: str | None) -> SpanContext | None:
    """What `say` said; None where it is none."""
    if not text:
        return None
    nothing = trace.set_span_in_context(trace.INVALID_SPAN)
    context = trace.get_current_span(_propagator.extract({_HEADER: text}, nothing)).get_span_context()
    return context if context.is_valid else None
