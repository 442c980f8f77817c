from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr
from tenacity import wait_none

from runcap.exporters import OTelSink
from runcap.guardrails import Budget, Guard
from runcap.guardrails.testing import Recorder, Reply, ScriptedProvider
from runcap.guardrails.testing.provider import Script
from runcap.integrations.langchain import BudgetCallbackHandler

Serve = Callable[[Script], ScriptedProvider]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Core's `with_retry` waits for seconds between attempts."""
    monkeypatch.setattr("langchain_core.runnables.retry.wait_exponential_jitter", lambda **kwargs: wait_none())


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


class Caller:
    """Calls a runnable, sync or async; all async calls of a test share one loop, for clients keep connections."""

    def __init__(self, *, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self._runner = asyncio.Runner()

    def run(self, coroutine: Any) -> Any:
        return self._runner.run(coroutine, context=contextvars.copy_context())

    def invoke(self, runnable: Any, given: Any, config: Any = None, **kwargs: Any) -> Any:
        if self.asynchronous:
            return self.run(runnable.ainvoke(given, config, **kwargs))
        return runnable.invoke(given, config, **kwargs)

    def batch(self, runnable: Any, given: list[Any], config: Any = None, **kwargs: Any) -> list[Any]:
        if self.asynchronous:
            return list(self.run(runnable.abatch(given, config, **kwargs)))
        return list(runnable.batch(given, config, **kwargs))

    def stream(self, runnable: Any, given: Any, config: Any = None, **kwargs: Any) -> list[Any]:
        if self.asynchronous:
            return list(self.run(_all(runnable.astream(given, config, **kwargs))))
        return list(runnable.stream(given, config, **kwargs))

    def close(self) -> None:
        self._runner.close()


async def _all(stream: AsyncIterator[Any]) -> list[Any]:
    return [one async for one in stream]


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> Iterator[Caller]:
    made = Caller(asynchronous=request.param == "async")
    yield made
    made.close()


@pytest.fixture(params=["invoke", "ainvoke"])
def invoke(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs an agent, sync or async."""

    def call(agent: Any, given: Any = USER, config: Any = None) -> Any:
        if request.param == "invoke":
            return agent.invoke(given, config)
        return asyncio.run(agent.ainvoke(given, config))

    return call


def called(messages: list[Any]) -> None:
    """Every tool call of a history is answered, once."""
    asked = [call["id"] for message in messages for call in getattr(message, "tool_calls", ())]
    answered = [message.tool_call_id for message in messages if message.type == "tool"]
    assert sorted(asked) == sorted(answered)
