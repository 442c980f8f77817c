from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from tenacity import wait_none

from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.guardrails.testing.provider import Script
from runcap.integrations.langchain import BudgetMiddleware, guard_model

from ..langchain import conftest as plain
from ..langchain.conftest import Serve, Watch, serve

__all__ = ["Caller", "Serve", "Watch", "books", "called", "caller", "claude", "hasty", "middleware", "openai", "serve"]

_CLOSING = {"default_headers": {"Connection": "close"}}
"""The packages keep their async clients for ever, open connections too, which outlive the loops they belong to."""


def openai(provider: ScriptedProvider, **more: Any) -> ChatOpenAI:
    return plain.openai(provider, **(_CLOSING | more))


def claude(provider: ScriptedProvider, **more: Any) -> ChatAnthropic:
    return plain.claude(provider, **(_CLOSING | more))


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


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Core's `with_retry` waits for seconds between attempts."""
    monkeypatch.setattr("langchain_core.runnables.retry.wait_exponential_jitter", lambda **kwargs: wait_none())


def middleware(watch: Watch) -> BudgetMiddleware:
    return BudgetMiddleware(watch.guard)


def books(watch: Watch, provider: ScriptedProvider, steps: int | None = None, run: Any = None) -> None:
    """What one run counted is what the provider received and billed; nothing is left behind."""
    watch.idle()
    run = run or watch.handler.last_run
    assert (run.steps, run.spent_usd, run.held_usd) == (provider.received, provider.cost_usd, 0)
    chats = [span for span in watch.spans if span.name.startswith("chat ")]
    assert len(chats) == provider.received
    if steps is not None:
        assert provider.received == steps
    caps = run.budget
    if caps is not None and caps.usd is not None:
        assert provider.cost_usd + run.unknown_usd <= caps.usd


def called(messages: list[Any]) -> None:
    """Every tool call of a history is answered, once."""
    asked = [call["id"] for message in messages for call in getattr(message, "tool_calls", ())]
    answered = [message.tool_call_id for message in messages if message.type == "tool"]
    assert sorted(asked) == sorted(answered)


both = pytest.mark.parametrize("make", [openai, claude], ids=["openai", "anthropic"])
_OK = Reply(text="ok")


both = pytest.mark.parametrize("make", [openai, claude], ids=["openai", "anthropic"])
_OK = Reply(text="ok")


def a_guarded(make: Any, serve: Serve, script: Script = _OK, **budget: Any) -> Any:
    provider, watch = serve(script), Watch(**(budget or {"usd": 1}))
    return provider, watch, guard_model(make(provider), watch.guard)


def total(watch: Watch, provider: ScriptedProvider, steps: int) -> None:
    books(watch, provider, steps=steps, run=watch.guard.default_run)
