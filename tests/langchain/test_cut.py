"""Answers that runcap ends before their time: told, usable, and never run as half a tool call."""

from __future__ import annotations

import asyncio
import threading
from decimal import Decimal
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from runcap.guardrails import BudgetExceeded, CallEnded
from runcap.guardrails.testing import Reply
from runcap.integrations.langchain import BudgetMiddleware, guard_model

from .conftest import LOOK_UP, USER, Serve, Watch, claude, looping, openai

MAKES = pytest.mark.parametrize("make", [openai, claude])
STYLES = pytest.mark.parametrize("style", ["invoke", "ainvoke", "stream", "astream"])


def ask(model: Any, style: str) -> AIMessage:
    """One answer, in one of the call styles."""

    async def astream() -> Any:
        return [chunk async for chunk in model.astream("hi")]

    if style == "invoke":
        return _message(model.invoke("hi"))
    if style == "ainvoke":
        return _message(asyncio.run(model.ainvoke("hi")))
    chunks = list(model.stream("hi")) if style == "stream" else asyncio.run(astream())
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return _message(whole)


def _message(answer: BaseMessage) -> AIMessage:
    assert isinstance(answer, AIMessage)
    return answer


@MAKES
@STYLES
def test_an_answer_cut_by_a_clamp_says_so(serve: Serve, make: Any, style: str) -> None:
    provider = serve(Reply(text="word " * 2_000, output_tokens=2_000))
    watch = Watch(usd="0.005")
    answer = ask(guard_model(make(provider, max_tokens=4_000), watch.guard), style)
    mark = answer.response_metadata["runcap"]
    assert mark["cut"] == "clamp"
    assert provider.served[0].output_tokens == mark["output_cap"] < 2_000
    assert str(answer.content)
    assert Decimal("0.0049") < provider.cost_usd <= Decimal("0.005")
    span = dict(watch.spans[0].attributes or {})
    assert (span["runcap.call.clamped"], span["runcap.call.cut"]) == (True, "clamp")
    assert span["gen_ai.request.max_tokens"] == mark["output_cap"]
    watch.idle()


@MAKES
@STYLES
def test_an_answer_cut_by_the_users_own_cap_is_none_of_our_business(serve: Serve, make: Any, style: str) -> None:
    provider = serve(Reply(text="word " * 2_000, output_tokens=2_000))
    watch = Watch(usd="1")
    answer = ask(guard_model(make(provider, max_tokens=300), watch.guard), style)
    assert "runcap" not in answer.response_metadata
    assert provider.served[0].output_tokens == 300


@MAKES
@STYLES
def test_a_tool_call_that_was_cut_is_not_run(serve: Serve, make: Any, style: str) -> None:
    provider = serve(Reply(tool_calls=[("look_up", {"query": "x" * 8_000})], output_tokens=2_000))
    watch = Watch(usd="0.0105")
    model = guard_model(make(provider, max_tokens=4_000), watch.guard).bind_tools([LOOK_UP])
    with pytest.raises(BudgetExceeded, match="cut inside a tool call"):
        ask(model, style)
    (end,) = watch.recorder.of(CallEnded)
    assert (end.cut, end.error_type, end.state) == ("clamp", "BudgetExceeded", "settled")
    assert watch.guard.default_run.spent_usd == provider.cost_usd <= Decimal("0.0105")
    watch.idle()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_stopping_a_run_ends_its_streams_with_what_has_come(serve: Serve, asynchronous: bool) -> None:
    gate = threading.Event()
    provider = serve(Reply(text="word " * 400, output_tokens=400, chunk_gate=gate))
    watch = Watch(usd="1")
    model = guard_model(openai(provider), watch.guard)
    seen: list[AIMessageChunk] = []

    def read(chunk: Any) -> None:
        seen.append(chunk)
        if chunk.content:
            watch.guard.default_run.stop("enough")
            gate.set()

    async def consume() -> None:
        async for chunk in model.astream("hi"):
            read(chunk)

    if asynchronous:
        asyncio.run(consume())
    else:
        for chunk in model.stream("hi"):
            read(chunk)
    assert 0 < len("".join(str(one.content) for one in seen)) < 5 * 400
    assert any(one.response_metadata.get("runcap", {}).get("cut") == "stopped" for one in seen)
    run = watch.guard.default_run
    assert (run.spent_usd or 0) > 0
    assert run.unknown_usd > 0  # what the provider billed of it was never said
    with pytest.raises(BudgetExceeded, match="enough"):
        model.invoke("more")
    watch.idle()


def test_a_stream_that_is_not_bounded_is_cut_when_the_budget_is_gone(serve: Serve) -> None:
    provider = serve(Reply(text="word " * 4_000, output_tokens=4_000))
    watch = Watch(usd="0.015")
    image = {"type": "image_url", "image_url": {"url": "https://example.com/of-any-size.png"}}
    model = guard_model(openai(provider, max_tokens=16_000), watch.guard)
    chunks = list(model.stream([HumanMessage([image])]))
    assert [one.response_metadata["runcap"]["cut"] for one in chunks if "runcap" in one.response_metadata] == ["hold"]
    (end,) = watch.recorder.of(CallEnded)
    assert (end.cut, end.guarantee) == ("hold", "expected")
    assert 1_000 < len("".join(str(one.content) for one in chunks)) < 5 * 4_000
    watch.idle()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_refused_tool_call_is_answered_and_nothing_dangles(serve: Serve, asynchronous: bool) -> None:
    calls = [("look_up", {"query": str(number)}) for number in range(3)]
    provider = serve(lambda number, body: Reply(tool_calls=calls))
    watch = Watch(tool_calls=4)
    ran: list[str] = []

    @tool("look_up")
    def counted(query: str) -> str:
        """Count."""
        ran.append(query)
        return "no"

    agent = create_agent(
        openai(provider), [counted], middleware=[BudgetMiddleware(watch.guard)], checkpointer=InMemorySaver()
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    with pytest.raises(BudgetExceeded, match="tool_calls cap 4"):
        if asynchronous:
            asyncio.run(agent.ainvoke(USER, config))
        else:
            agent.invoke(USER, config)
    messages = agent.get_state(config).values["messages"]
    asked = [str(call["id"]) for one in messages if isinstance(one, AIMessage) for call in one.tool_calls]
    answered = [one.tool_call_id for one in messages if one.type == "tool"]
    assert sorted(asked) == sorted(answered)
    assert len(ran) == 4
    assert sum("budget" in str(one.content) for one in messages if one.type == "tool") == 2
    watch.idle()


def test_two_agents_of_one_middleware_at_once_answer_for_their_own_runs(serve: Serve) -> None:
    provider = serve(looping())
    watch = Watch(tool_calls=1)
    agent = create_agent(openai(provider), [LOOK_UP], middleware=[BudgetMiddleware(watch.guard)])
    barrier = threading.Barrier(8)
    ended: list[str] = []

    def work() -> None:
        barrier.wait()
        try:
            agent.invoke(USER)
        except BudgetExceeded as halted:
            ended.append(halted.run_id)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ended)) == 8
    assert provider.received == 16  # each: a call, its one tool, a call whose tool is refused
