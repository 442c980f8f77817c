"""Spans that are current while what they stand for runs: whatever is traced inside nests under the right one."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import httpx
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ToolRetryMiddleware
from langchain_core.tools import tool
from opentelemetry import trace

from runcap.guardrails.testing import Reply
from runcap.integrations.langchain import BudgetMiddleware, guard_model

from .conftest import USER, Caller, Serve, Watch, openai, said

Clients = Callable[[Watch], dict[str, Any]]


@pytest.fixture
def traced_http() -> Iterator[Callable[[Watch], dict[str, Any]]]:
    """HTTP clients that trace each request, as instrumented ones do."""
    clients: list[httpx.Client] = []

    def make(watch: Watch) -> dict[str, Any]:
        made = _traced_http(watch)
        clients.append(made["http_client"])
        return made

    yield make
    for client in clients:
        client.close()


def _traced_http(watch: Watch) -> dict[str, Any]:
    tracer = watch.sink._tracer

    def hook(request: httpx.Request) -> None:
        tracer.start_span(f"POST {request.url.path}").end()

    async def ahook(request: httpx.Request) -> None:
        hook(request)

    return {
        "http_client": httpx.Client(event_hooks={"request": [hook]}),
        "http_async_client": httpx.AsyncClient(event_hooks={"request": [ahook]}, headers={"Connection": "close"}),
    }


def span_in(watch: Watch, name: str) -> None:
    """What a tool's own code traces."""
    watch.sink._tracer.start_span(name).end()


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
def test_what_a_model_call_sends_is_inside_its_span(
    serve: Serve, caller: Caller, traced_http: Clients, streaming: bool
) -> None:
    provider = serve(Reply(text="one two three"))
    watch = Watch(usd=1)
    model = guard_model(openai(provider, streaming=streaming, **traced_http(watch)), watch.guard)
    caller.invoke(model, "hi")
    assert watch.tree() == [("chat gpt-4o", None), ("POST /v1/chat/completions", "chat gpt-4o")]
    assert not trace.get_current_span().get_span_context().is_valid
    watch.idle()


def test_every_attempt_has_its_own(serve: Serve, caller: Caller, traced_http: Clients) -> None:
    provider = serve([Reply(status=500), Reply(text="ok")])
    watch = Watch(usd=1)
    model = guard_model(openai(provider, max_retries=1, **traced_http(watch)), watch.guard)
    watch.guard.clock.sleep = lambda seconds: None  # type: ignore[method-assign]

    async def at_once(seconds: float) -> None:
        """No time passes."""

    watch.guard.clock.asleep = at_once  # type: ignore[method-assign]
    caller.invoke(model, "hi")
    assert watch.tree() == [
        ("chat gpt-4o", None),
        ("POST /v1/chat/completions", "chat gpt-4o"),
        ("chat gpt-4o", None),
        ("POST /v1/chat/completions", "chat gpt-4o"),
    ]
    parents = {span.parent.span_id for span in watch.spans if span.parent}
    assert len(parents) == 2


def test_what_a_tool_does_is_inside_its_span(serve: Serve, caller: Caller) -> None:
    calls = [("query", {"table": "a"}), ("query", {"table": "b"})]
    provider = serve([Reply(tool_calls=calls), Reply(text="done")])
    watch = Watch(usd=1)

    @tool
    def query(table: str) -> str:
        """Query a table, on a thread of its own that carries the context."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(copy_context().run, span_in, watch, f"SELECT {table}").result()
        trace.get_current_span().set_attribute("rows", 7)
        return "rows"

    agent = create_agent(openai(provider), [query], middleware=[BudgetMiddleware(watch.guard)], name="helper")
    caller.invoke(agent, USER)
    parents = {span.context.span_id: span for span in watch.spans if span.context}
    selects = {
        span.name: parents[span.parent.span_id]
        for span in watch.spans
        if span.name.startswith("SELECT") and span.parent
    }
    assert {span.name for span in selects.values()} == {"execute_tool query"}
    assert [dict(span.attributes or {})["rows"] for span in selects.values()] == [7, 7]
    by_call = {name[-1]: dict(span.attributes or {})["gen_ai.tool.call.id"] for name, span in selects.items()}
    assert by_call == {"a": "call_000000000", "b": "call_000000001"}
    assert {dict(span.attributes or {})["gen_ai.tool.description"] for span in selects.values()} == {
        "Query a table, on a thread of its own that carries the context."
    }
    watch.idle()


@pytest.mark.parametrize("outermost", [False, True], ids=["retry outside", "retry inside"])
def test_a_retried_tool_has_a_span_each_time(serve: Serve, caller: Caller, outermost: bool) -> None:
    provider = serve([Reply(tool_calls=[("flaky", {})]), Reply(text="done")])
    watch, tries = Watch(usd=1), [0]

    @tool
    def flaky() -> str:
        """Fail once."""
        tries[0] += 1
        span_in(watch, f"try {tries[0]}")
        if tries[0] == 1:
            raise ValueError
        return "ok"

    retry, budget = ToolRetryMiddleware(max_retries=1, initial_delay=0), BudgetMiddleware(watch.guard)
    middleware: list[Any] = [budget, retry] if outermost else [retry, budget]
    caller.invoke(create_agent(openai(provider), [flaky], middleware=middleware, name="helper"), USER)
    tools = [span for span in watch.spans if span.name == "execute_tool flaky"]
    inner = sorted((span for span in watch.spans if span.name.startswith("try")), key=lambda span: span.name)
    assert [span.parent.span_id for span in inner if span.parent] == [
        span.context.span_id for span in sorted(tools, key=lambda span: span.start_time or 0) if span.context
    ]


def test_a_sub_agent_is_under_the_span_its_tool_made(serve: Serve, caller: Caller) -> None:
    provider = serve([Reply(tool_calls=[("ask", {"query": "x"})]), Reply(text="inner"), Reply(text="outer")])
    watch = Watch(usd=1)
    sub_agent = create_agent(openai(provider), [], name="sub")

    @tool
    def ask(query: str) -> str:
        """Ask the sub-agent."""
        with watch.sink._tracer.start_as_current_span("looked up"):
            return str(sub_agent.invoke(said([("user", query)]))["messages"][-1].content)

    middleware: list[Any] = [BudgetMiddleware(watch.guard)]
    caller.invoke(create_agent(openai(provider), [ask], middleware=middleware, name="boss"), USER)
    assert watch.tree() == [
        ("invoke_agent boss", None),
        ("chat gpt-4o", "invoke_agent boss"),
        ("execute_tool ask", "invoke_agent boss"),
        ("looked up", "execute_tool ask"),
        ("invoke_agent sub", "looked up"),
        ("chat gpt-4o", "invoke_agent sub"),
        ("chat gpt-4o", "invoke_agent boss"),
    ]
    watch.idle()


def abandon(watch: Watch, model: Any, end: Callable[[Any], Any]) -> None:
    """Forty calls at once that nobody waits for to their end."""

    async def one() -> None:
        stream = model.astream("hi")
        async for _ in stream:
            await end(stream)
            return

    async def every() -> None:
        tasks = [asyncio.create_task(one()) for _ in range(40)]
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(every())
    watch.guard.calls.drain()


async def dropped(stream: Any) -> None:
    """The generator is left to the garbage collector."""


async def cancelled(stream: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await anext(stream)


async def closed(stream: Any) -> None:
    await stream.aclose()


@pytest.mark.parametrize("end", [dropped, cancelled, closed])
@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "callback"])
def test_forty_streams_given_up_leave_nothing(
    serve: Serve, end: Callable[[Any], Any], guarded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    provider = serve(Reply(text="one two three four five six seven eight"))
    watch = Watch(usd=10)
    bare = openai(provider)
    model = guard_model(bare, watch.guard) if guarded else bare.with_config(watch.config)
    with caplog.at_level(logging.DEBUG, logger="opentelemetry"):
        abandon(watch, model, end)
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]
    assert [span.name for span in watch.spans] == ["chat gpt-4o"] * 40
    assert all(span.end_time is not None for span in watch.spans)
    watch.idle()


def test_forty_calls_cancelled_in_flight_leave_nothing(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    provider = serve(Reply(text="late", gate=gate))
    watch = Watch(usd=10)
    agent = create_agent(openai(provider), [], middleware=[BudgetMiddleware(watch.guard)], name="helper")

    async def every() -> None:
        tasks = [asyncio.create_task(agent.ainvoke(USER)) for _ in range(40)]
        while len(watch.guard.calls) < 40:  # noqa: ASYNC110 - admitted by forty tasks, and nobody says so
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with caplog.at_level(logging.DEBUG, logger="opentelemetry"):
        asyncio.run(every())
    gate.set()
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]
    assert sorted(span.name for span in watch.spans) == ["chat gpt-4o"] * 40 + ["invoke_agent helper"] * 40
    watch.idle()
