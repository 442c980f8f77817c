from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from runcap.exporters import OTelSink
from runcap.guardrails import Budget, Guard
from runcap.guardrails.testing import Recorder, Reply, ScriptedProvider
from runcap.guardrails.testing.provider import Script
from runcap.integrations.langchain import BudgetCallbackHandler

Serve = Callable[[Script], ScriptedProvider]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a scripted provider that lasts as long as the test."""
    running: list[ScriptedProvider] = []

    def start(script: Script) -> ScriptedProvider:
        running.append(ScriptedProvider(script, keep_alive=False).__enter__())
        return running[-1]

    yield start
    for provider in running:
        provider.__exit__(None, None, None)


def openai(provider: ScriptedProvider, **more: Any) -> ChatOpenAI:
    defaults: dict[str, Any] = {"model": "gpt-4o", "max_tokens": 1000, "max_retries": 0, "stream_usage": True}
    return ChatOpenAI(base_url=provider.openai_url, api_key=SecretStr("none"), **(defaults | more))


def claude(provider: ScriptedProvider, **more: Any) -> ChatAnthropic:
    defaults: dict[str, Any] = {"model": "claude-sonnet-5", "max_tokens": 1000, "max_retries": 0}
    return ChatAnthropic(base_url=provider.root_url, api_key=SecretStr("none"), **(defaults | more))


class Watch:
    """A handler with everything it tells: spans and events."""

    def __init__(self, **budget: Any) -> None:
        self.exporter = InMemorySpanExporter()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.sink = OTelSink(tracers)
        self.recorder = Recorder()
        self.guard = Guard(Budget(**budget), sinks=(self.sink, self.recorder))
        self.handler = BudgetCallbackHandler(self.guard)

    @property
    def config(self) -> Any:
        return {"callbacks": [self.handler]}

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def tree(self) -> list[tuple[str, str | None]]:
        """Every span's name with its parent's, in order of their starts."""
        names = {span.context.span_id: span.name for span in self.spans if span.context}
        ordered = sorted(self.spans, key=lambda span: span.start_time or 0)
        return [(span.name, names.get(span.parent.span_id) if span.parent else None) for span in ordered]

    def idle(self) -> None:
        """Nothing is open, held or remembered."""
        self.guard.calls.drain()
        assert self.sink.open_spans == 0
        assert len(self.handler._nodes) == 0
        assert len(self.guard.calls) == 0
        run = self.handler.last_run
        assert run is None or run.held_usd == 0


@tool
def look_up(query: str) -> str:
    """Look something up."""
    return f"nothing found for {query}"


LOOK_UP: BaseTool = look_up


def looping(output_tokens: int = 100) -> Script:
    """A model that asks for the tool for ever, with other words each time."""
    return lambda number, body: Reply(tool_calls=[("look_up", {"query": f"try {number}"})], output_tokens=output_tokens)


def said(messages: list[Any]) -> Any:
    """An agent's input."""
    return {"messages": messages}


USER = said([("user", "find it")])
