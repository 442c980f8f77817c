"""Which other GenAI instrumentations are at work in this process, and the span that one of them has for a run."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from opentelemetry import trace
from opentelemetry.trace import Span

from . import semconv as sc

_BASE = "opentelemetry.instrumentation.instrumentor"
_LANGSMITHS = "langsmith._internal.otel._otel_exporter"
_CLIENTS = re.compile(
    r"^(?:opentelemetry|openinference)\.instrumentation\.(?:genai\.)?"
    r"(openai|openai_v2|anthropic|bedrock|google_genai|google_generativeai|vertexai|mistralai|groq)$"
)
_LANGCHAIN = re.compile(r"^(?:opentelemetry|openinference)\.instrumentation\.(?:\w+\.)?langchain\w*$")
_PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "openai": ("openai", "azure", "deepseek", "x_ai"),
    "openai_v2": ("openai", "azure", "deepseek", "x_ai"),
    "anthropic": ("anthropic",),
    "bedrock": ("aws",),
    "google_genai": ("gcp",),
    "google_generativeai": ("gcp",),
    "vertexai": ("gcp",),
    "mistralai": ("mistral",),
    "groq": ("groq",),
}
"""Whose calls an instrumented client package makes: how `gen_ai.provider.name` begins."""

_CHATS = frozenset({"chat", "text_completion", "generate_content"})
_OPENINFERENCE_KIND = "openinference.span.kind"
_SCOPE = "runcap"

Finder = Callable[[UUID], Span | None]


@dataclass(frozen=True, slots=True)
class Other:
    """Another instrumentation.

    `find` gives the span it has for a LangChain run, None where its spans cannot be had while they are open. `certain`:
    the span of a call is always to be found, so that a call without one is none of its. `providers`: of an instrumented
    client package, whose calls it traces; empty where LangChain itself is instrumented. `tracer` is what it makes spans
    with, and `histogram` what it counts tokens with, None where it does not or that is not known. `handler` is what it
    hears LangChain's callbacks with.
    """

    name: str
    find: Finder | None = None
    certain: bool = False
    providers: tuple[str, ...] = ()
    tracer: object = None
    histogram: object = None
    handler: Any = None


def at_work() -> tuple[Other, ...]:
    """Those that are instrumenting now, in whatever order they and runcap were set up."""
    base = getattr(sys.modules.get(_BASE), "BaseInstrumentor", None)
    if base is None and _LANGSMITHS not in sys.modules:
        return ()
    found: list[Other] = []
    for instrumentor in _instrumentors(base) if base is not None else ():
        mark = _mark_of(instrumentor)
        key = (id(instrumentor), id(mark))
        known = _known.get(key)
        if known is None:
            if len(_known) >= _KEPT:
                _known.clear()
            known = _known[key] = (instrumentor, mark, _describe(instrumentor))
        if known[2] is not None:
            found.append(known[2])
    if _langsmith_exports():
        found.append(_LANGSMITH)
    return tuple(found)


def is_chat(span: Span) -> bool:
    """Whether it is another's live span of a model call."""
    if not span.is_recording():
        return False
    attributes = attributes_of(span)
    if attributes.get(sc.OPERATION_NAME) not in _CHATS and attributes.get(_OPENINFERENCE_KIND) != "LLM":
        return False
    return getattr(getattr(span, "instrumentation_scope", None), "name", None) != _SCOPE


def attributes_of(span: Span) -> Mapping[str, Any]:
    """What stands on it so far; empty where the span does not tell."""
    attributes = getattr(span, "attributes", None)
    return attributes if isinstance(attributes, Mapping) else {}


def goes_elsewhere(made_by: object, ours: object) -> bool:
    """Whether a span or tracer is another provider's than ours; no, where that is not known."""
    resource, own = getattr(made_by, "resource", None), getattr(ours, "resource", None)
    return resource is not None and own is not None and resource is not own


def current_chat() -> Span | None:
    """The span of a model call that this code runs in, if another made it."""
    span = trace.get_current_span()
    return span if is_chat(span) else None


_KEPT = 64
_known: dict[tuple[int, int], tuple[object, object, Other | None]] = {}
_LANGSMITH = Other("langsmith")


def _instrumentors(base: Any) -> Iterator[Any]:
    """The instrumentors that are on. Each is one object; to call its class would initialise it anew."""
    for kind in base.__subclasses__():
        one = kind.__dict__.get("_instance")
        if one is not None and getattr(one, "_is_instrumented_by_opentelemetry", False):
            yield one


def _mark_of(instrumentor: Any) -> object:
    """What is another one when it is switched off and on again: its handler, or what puts that into all managers."""
    own = getattr(instrumentor, "_callback_handler", None) or getattr(instrumentor, "_tracer", None)
    return own if own is not None else _wrapped_init()


def _describe(instrumentor: Any) -> Other | None:
    name = type(instrumentor).__module__
    client = _CLIENTS.match(name)
    if client is not None:
        return Other(name, providers=_PROVIDERS[client[1]])
    if not _LANGCHAIN.match(name):
        return None
    describe = _LANGCHAINS.get(name)
    try:
        return describe(name, instrumentor) if describe is not None else Other(name)
    except AttributeError:  # another version of it: its spans are not to be had
        return Other(name)


def _official(name: str, instrumentor: Any) -> Other:
    handler = instrumentor._callback_handler  # noqa: SLF001 - nothing public leads from a run to its span
    get = handler._invocation_manager.get_invocation  # noqa: SLF001
    telemetry = handler._telemetry_handler  # noqa: SLF001

    def find(run_id: UUID) -> Span | None:
        return getattr(get(run_id), "span", None)

    tracer, instruments = getattr(telemetry, "_tracer", None), getattr(telemetry, "_instruments", None)
    histogram = getattr(instruments, "token_usage", None)
    return Other(name, find, certain=True, tracer=tracer, histogram=histogram, handler=handler)


def _openinference(name: str, instrumentor: Any) -> Other:
    tracer = instrumentor._tracer  # noqa: SLF001 - the public get_span() prints where it is off
    made_with = getattr(getattr(tracer, "_tracer", None), "__wrapped__", None)
    return Other(name, tracer.get_span, tracer=made_with, handler=tracer)


def _traceloop(name: str, _: Any) -> Other:
    handler = _injected(name)
    spans = handler.spans

    def find(run_id: UUID) -> Span | None:
        return getattr(spans.get(run_id), "span", None)

    return Other(name, find, tracer=handler.tracer, histogram=handler.token_histogram, handler=handler)


def _injected(name: str) -> Any:
    """The handler that an instrumentor puts into every callback manager, found where it does so."""
    wrapped = _wrapped_init()
    while wrapped is not None:
        wrapper: Any = getattr(wrapped, "_self_wrapper", None)
        if type(wrapper).__module__.startswith(name):
            return wrapper._callback_handler  # noqa: SLF001 - as above
        wrapped = getattr(wrapped, "__wrapped__", None)
    raise AttributeError(name)


def _wrapped_init() -> object:
    managers = sys.modules.get("langchain_core.callbacks.base")
    return vars(managers.BaseCallbackManager)["__init__"] if managers is not None else None


_LANGCHAINS: Mapping[str, Callable[[str, Any], Other]] = {
    "opentelemetry.instrumentation.genai.langchain": _official,
    "openinference.instrumentation.langchain": _openinference,
    "opentelemetry.instrumentation.langchain": _traceloop,
}


def _langsmith_exports() -> bool:
    """LangSmith makes OpenTelemetry spans of what it traces, after the fact."""
    return _LANGSMITHS in sys.modules and any(
        os.environ.get(name, "").lower() == "true" for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2")
    )
