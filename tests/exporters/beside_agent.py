"""An agent beside another instrumentation, in a process of its own, for instrumentations patch theirs for good.

Prints a line of JSON for each plan it is given: every span that was begun, what was logged, the provider's own bill.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from runcap.exporters.otel.sink import OTelSink
from runcap.guardrails import Budget, Guard
from runcap.guardrails.errors import Refused
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetCallbackHandler, BudgetMiddleware, auto_attach, guard_model

INSTRUMENTORS = {
    "official": ("opentelemetry.instrumentation.genai.langchain", "LangChainInstrumentor"),
    "openinference": ("openinference.instrumentation.langchain", "LangChainInstrumentor"),
    "traceloop": ("opentelemetry.instrumentation.langchain", "LangchainInstrumentor"),
    "client": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
}


class Kept(SpanProcessor):
    """Every span that was begun, ended or not."""

    def __init__(self) -> None:
        self.begun: list[ReadableSpan] = []

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        self.begun.append(span)


class Logged(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


class Scene:
    """One agent, run once by a plan."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.plan = plan
        self.kept, self.elsewhere, self.logged = Kept(), Kept(), Logged()
        self.tracers, self.meters = TracerProvider(), MeterProvider([InMemoryMetricReader()])
        self.tracers.add_span_processor(self.kept)
        self.instrumentor: Any = None

    def instrument(self, order: str) -> None:
        who = self.plan.get("who")
        if who not in INSTRUMENTORS or self.plan["order"] != order:
            return
        module, name = INSTRUMENTORS[who]
        theirs = TracerProvider() if self.plan.get("elsewhere") else self.tracers
        if theirs is not self.tracers:
            theirs.add_span_processor(self.elsewhere)
        self.instrumentor = getattr(importlib.import_module(module), name)()
        self.instrumentor.instrument(tracer_provider=theirs, meter_provider=self.meters)

    def script(self, number: int, body: Mapping[str, Any]) -> Reply:
        if self.plan.get("flaky") and number == 0:
            return Reply(status=503)
        if body["messages"][-1]["role"] == "tool":
            return Reply(text="done", cached_tokens=8)
        return Reply(tool_calls=[("look", {"query": "x"}), ("look", {"query": "y"})], output_tokens=20)

    def play(self) -> dict[str, Any]:
        _tracers[:] = [self.tracers]
        logging.getLogger().addHandler(self.logged)
        self.instrument("first")
        with ScriptedProvider(self.script) as provider:
            sink = OTelSink(self.tracers, self.meters, beside=self.plan.get("beside", "auto"))
            guard = Guard(Budget(usd=self.plan.get("usd", "1")), sinks=[sink])
            refused = self._call(provider, guard)
            served = provider.served
        standard = sink._beside.gives_standard_metrics("openai")
        if self.instrumentor is not None:
            self.instrumentor.uninstrument()
        logging.getLogger().removeHandler(self.logged)
        return {
            "spans": [shown(span) for span in self.kept.begun],
            "elsewhere": [shown(span) for span in self.elsewhere.begun],
            "bill": {
                "input": sum(one.input_tokens for one in served),
                "output": sum(one.output_tokens for one in served),
                "usd": str(sum(one.cost_usd for one in served)),
                "calls": len(served),
            },
            "logged": [line for line in self.logged.lines if line[0] != "INFO" or line[1].startswith("runcap")],
            "open": sink.open_spans,
            "refused": refused,
            "standard_metrics": standard,
        }

    def _call(self, provider: ScriptedProvider, guard: Guard) -> str | None:
        attach = self.plan["attach"]
        settings: Any = {"max_tokens": 100, "api_key": "k", "base_url": provider.openai_url}
        model: Any = ChatOpenAI(model="gpt-4o", max_retries=2, stream_usage=True, **settings)
        if attach == "constructor":
            model.callbacks = [BudgetCallbackHandler(guard)]
        elif attach == "model":
            model = guard_model(model, guard)
        middleware = [BudgetMiddleware(guard)] if attach == "middleware" else []
        config: Any = {"callbacks": [BudgetCallbackHandler(guard)]} if attach == "config" else {}
        self.instrument("last")
        called: Any = model
        if not self.plan.get("direct"):
            called = create_agent(model, [look], middleware=middleware, name="bob")
        try:
            with auto_attach(guard) if attach == "auto" else nullcontext():
                run(called, config, self.plan["how"])
        except Refused as error:
            return type(error).__name__
        return None


_tracers: list[TracerProvider] = []


@tool
def look(query: str) -> str:
    """Look something up."""
    with trace.get_tracer("user", tracer_provider=_tracers[0]).start_as_current_span("users own"):
        return "found"


def asked(called: Any) -> Any:
    said = [("user", "hi")]
    return said if isinstance(called, BaseChatModel) else {"messages": said}


async def run_async(called: Any, config: Any, how: str) -> None:
    if how == "ainvoke":
        await called.ainvoke(asked(called), config)
        return
    stream = called.astream(asked(called), config)
    async for _ in stream:
        if how in ("aclose", "aabandon"):
            break
    if how == "aclose":
        await stream.aclose()


def run(called: Any, config: Any, how: str) -> None:
    if how.startswith("a"):
        asyncio.run(run_async(called, config, how))
    elif how == "stream":
        list(called.stream(asked(called), config))
    elif how == "v3":
        list(called.stream_events(asked(called), config, version="v3"))
    else:
        called.invoke(asked(called), config)


def shown(span: ReadableSpan) -> dict[str, Any]:
    assert span.context is not None
    return {
        "name": span.name,
        "id": span.context.span_id,
        "parent": span.parent.span_id if span.parent is not None else None,
        "trace": span.context.trace_id,
        "attributes": dict(span.attributes or {}),
        "events": [event.name for event in span.events],
        "scope": span.instrumentation_scope.name if span.instrumentation_scope is not None else None,
        "ended": span.end_time is not None,
    }


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.INFO)
    warnings.simplefilter("ignore")  # the framework's own
    for plan in json.loads(sys.argv[1]):
        print(json.dumps(Scene(plan).play()), flush=True)  # noqa: T201 - what the test reads
