"""Beside another GenAI instrumentation: whose span stands for a call, so that nothing is counted twice.

Money depends on none of this: it is booked from what the provider answers, whatever becomes of spans.
"""

from __future__ import annotations

import logging
from typing import Any, Literal, get_args
from uuid import UUID

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider, NoOpHistogram, NoOpMeterProvider, get_meter_provider
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, Tracer, TracerProvider

from runcap.guardrails import forks

from . import semconv as sc
from .attributes import Value
from .joint import Joint, Kept
from .others import Other, at_work, current_chat, goes_elsewhere

Setting = Literal["auto", "enrich", "stand back", "own"]
"""`"own"`: our spans, whatever else is there. `"enrich"`: where another has a span of the same call, tool or agent,
what only runcap knows goes onto it, and none of ours is made. `"stand back"`: no spans at all, and no `gen_ai.*`
metrics but cost. `"auto"`: enrich where another instrumentation is at work, else own.
"""

_LANGCHAINS = 7

_log = logging.getLogger("runcap")


class Beside:
    """Makes the spans of one sink, or takes another's for them.

    Args:
        setting: see `Setting`.
        tracer_provider: where the sink's spans go; the global one where None.
        meter_provider: where its metrics go; the global one where None.

    Raises:
        ValueError: no such setting.
    """

    def __init__(
        self,
        setting: Setting = "auto",
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        if setting not in get_args(Setting):
            known = ", ".join(f'"{one}"' for one in get_args(Setting))
            raise ValueError(f"OTelSink.beside must be one of {known}; got {setting!r}")
        self._setting = setting
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._seen: tuple[Other, ...] = ()
        self._others: tuple[Other, ...] = ()
        self._checked_for: object = None
        self._told = False
        self._lock = forks.rlock()

    @property
    def stands_back(self) -> bool:
        """No span of ours is made, and nothing is written on another's."""
        return self._setting == "stand back"

    def others(self) -> tuple[str, ...]:
        """The other instrumentations now at work whose spans go where ours go, by their packages' names."""
        return tuple(other.name for other in self._find())

    def start(
        self,
        tracer: Tracer,
        name: str,
        node_id: str,
        *,
        context: Context | None,
        kind: SpanKind,
        attributes: dict[str, Value],
        start_time: int,
        links: list[Link] | None = None,
        native_id: str | None = None,
    ) -> Span:
        """The span of a call, a tool or an agent, which `node_id` names: ours, or one that stands for another's.

        It is to be ended like any other. `native_id` is LangChain's id of the run, where `node_id` is not.
        """
        if self._joins():
            others = self._find()
            nobody = not others and self._setting == "auto"
            joint = None if nobody else self._join(others, attributes, (node_id, native_id))
            if joint is not None:
                joint.start(tracer, name, context=context, kind=kind, start_time=start_time, links=links or ())
                return joint
        return tracer.start_span(
            name, context=context, kind=kind, attributes=attributes, links=links, start_time=start_time
        )

    def is_joined(self) -> bool:
        """Whether a span begun now may be another's: look when the call begins, for at its end that may be gone."""
        return self._joins() and bool(self._setting != "auto" or self._find())

    def here(self) -> Span:
        """The span that an event belongs to of which no node is known: the current one."""
        return INVALID_SPAN if self.stands_back else trace.get_current_span()

    def gives_standard_metrics(self, provider: str | None = None) -> bool:
        """Whether `gen_ai.*` metrics but cost are ours to give: no, where another counts to the same meter provider.

        `provider` is who serves the call that is to be counted, as `gen_ai.provider.name` has it.
        """
        if self._setting == "own":
            return True
        if self.stands_back:
            return False
        return not any(
            self._is_counted_by(other)
            for other in self._find()
            if not other.providers or (provider or "").startswith(other.providers)
        )

    def refused(self, call_id: str, kind: str) -> None:
        """A call was refused in its start callback: another that has heard of it already hears nothing more from
        LangChain. It is told that the call failed, or its span would stay open for good.
        """
        others = at_work()
        run = _uuid(call_id) if others else None
        for other in others:
            if run is None or other.find is None:
                continue
            span = other.find(run)
            if span is not None and span.is_recording():
                try:
                    other.handler.on_llm_error(type(kind, (Exception,), {})(), run_id=run)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is another's, and the refusal stands
                    _log.debug("runcap: %s could not be told of a refusal: %s", other.name, type(error).__name__)

    def _joins(self) -> bool:
        if self._setting != "own":
            return True
        if not self._told:
            self._find()
        return False

    def _join(
        self, others: tuple[Other, ...], attributes: dict[str, Value], ids: tuple[str | None, ...]
    ) -> Joint | None:
        is_call = attributes.get(sc.OPERATION_NAME) == sc.OPERATION_CHAT
        in_langchain = [other for other in others if not other.providers]
        runs = [run for one in ids if one is not None and (run := _uuid(one)) is not None] if in_langchain else []
        # LangChain's own ids are of version 7; a call named otherwise is LangChain's all the same, as a rule.
        named = any(run.version == _LANGCHAINS for run in runs)
        certain = not is_call or (named and all(other.certain for other in in_langchain))
        made = self._made(others, in_langchain, attributes, is_call=is_call, certain=certain)
        candidate = self._current_chat() if is_call and (in_langchain or self._setting != "auto") else None
        if candidate is None and made == "whole" and not in_langchain:
            return None
        finders = [other.find for other in in_langchain if other.find is not None]
        joint = Joint(attributes, made, candidate, writes=not self.stands_back, lock=self._lock)
        joint.look_with(finders, runs, self._is_ours)
        return joint

    def _made(
        self,
        others: tuple[Other, ...],
        in_langchain: list[Other],
        attributes: dict[str, Value],
        *,
        is_call: bool,
        certain: bool,
    ) -> Kept:
        """What becomes of a span of which no other is found."""
        if self.stands_back:
            return "none"
        if not is_call:
            return "none" if any(other.find is None for other in in_langchain) else "whole"
        provider = str(attributes.get(sc.PROVIDER_NAME, ""))
        below = any(provider.startswith(other.providers) for other in others if other.providers)
        return "settled" if below or (in_langchain and not certain) else "whole"

    def _current_chat(self) -> Span | None:
        span = current_chat()
        return span if span is not None and self._is_ours(span) else None

    def _is_ours(self, span: Span) -> bool:
        """Whether it goes where ours go."""
        return not goes_elsewhere(span, self._provider())

    def _provider(self) -> object:
        return self._tracer_provider or trace.get_tracer_provider()

    def _find(self) -> tuple[Other, ...]:
        seen = at_work()
        if not seen and not self._seen:
            return ()
        provider = self._provider()
        if seen != self._seen or provider is not self._checked_for:
            self._others = tuple(other for other in seen if not goes_elsewhere(other.tracer, provider))
            self._seen, self._checked_for = seen, provider
        if self._others and not self._told:
            self._told = True
            _log.info(_TOLD[self._setting], ", ".join(other.name for other in self._others))
        return self._others

    def _is_counted_by(self, other: Other) -> bool:
        ours: Any = self._meter_provider or get_meter_provider()
        if other.providers:  # what it counts to is not to be had; the global provider, unless it was given another
            return not other.name.startswith("openinference") and ours is get_meter_provider() and _is_real(ours)
        histogram: Any = getattr(other.histogram, "_real_instrument", None) or other.histogram
        if histogram is None or isinstance(histogram, NoOpHistogram) or not _is_real(ours):
            return False
        theirs = getattr(histogram, "_measurement_consumer", None)
        return theirs is None or theirs is getattr(ours, "_measurement_consumer", theirs)


def _is_real(provider: object) -> bool:
    """Whether something is counted by it."""
    return not isinstance(provider, NoOpMeterProvider) and type(provider).__name__ != "_ProxyMeterProvider"


_TOLD: dict[str, str] = {
    "own": "runcap: %s traces the same calls: a sum of tokens over all spans has them twice",
    "auto": 'runcap: %s traces the same calls: runcap adds to its spans (for spans of our own, OTelSink(beside="own"))',
    "enrich": "runcap: %s traces the same calls: runcap adds to its spans",
    "stand back": "runcap: %s traces the same calls: runcap makes no spans",
}


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
