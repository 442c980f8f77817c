"""Agents of `create_agent`: structured output, every way to stream, many at once, middlewares of one's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import nullcontext
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool
from pydantic import BaseModel

from runcap.guardrails import BudgetExceeded
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import auto_attach, guard_model

from ..langchain.conftest import LOOK_UP, USER, looping
from .conftest import Caller, Serve, Watch, books, both, called, middleware, openai

ONE_TOOL = [Reply(tool_calls=[("look_up", {"query": "x"})]), Reply(text="one two three")]


class Verdict(BaseModel):
    """A verdict."""

    fine: bool


@both
@pytest.mark.parametrize("strategy", ["tool", "provider", "plain"])
def test_structured_output(serve: Serve, caller: Caller, make: Any, strategy: str) -> None:
    by_tool = Reply(tool_calls=[("Verdict", {"fine": True})])
    wanted: Any = {"tool": ToolStrategy, "provider": ProviderStrategy}.get(strategy, lambda schema: schema)(Verdict)
    first = Reply(tool_calls=[("look_up", {"query": "x"})])
    provider, watch = serve([first, by_tool if strategy == "tool" else Reply(text='{"fine": true}')]), Watch(usd=1)
    agent = create_agent(make(provider), [LOOK_UP], middleware=[middleware(watch)], response_format=wanted)
    assert caller.invoke(agent, USER)["structured_response"] == Verdict(fine=True)
    books(watch, provider, steps=2)


def test_structured_output_that_is_asked_for_again(serve: Serve, caller: Caller) -> None:
    """What does not fit the schema goes back to the model: a step each time, up to the cap."""
    provider, watch = serve(Reply(tool_calls=[("Verdict", {"fine": "perhaps"})])), Watch(steps=4)
    agent: Any = create_agent(
        openai(provider), [], middleware=[middleware(watch)], response_format=ToolStrategy(Verdict)
    )
    with pytest.raises(BudgetExceeded):
        caller.invoke(agent, USER)
    books(watch, provider, steps=4)


MODES: list[Any] = ["values", "updates", "messages", "custom", "debug", ["messages", "updates"]]


@both
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_stream_modes(serve: Serve, caller: Caller, make: Any, mode: Any) -> None:
    provider, watch = serve(ONE_TOOL), Watch(usd=1)
    agent = create_agent(make(provider), [LOOK_UP], middleware=[middleware(watch)])
    assert caller.stream(agent, USER, stream_mode=mode) or mode == "custom"
    books(watch, provider, steps=2)
    assert watch.handler.last_run.tool_calls == 1


@both
@pytest.mark.filterwarnings("ignore:The v3 streaming protocol on Pregel is experimental")
def test_streams_of_events_v3(serve: Serve, caller: Caller, make: Any) -> None:
    for cap in (2, 1):
        provider, watch = serve(ONE_TOOL), Watch(steps=cap)
        agent = create_agent(make(provider), [LOOK_UP], middleware=[middleware(watch)])
        try:
            text = caller.run(_aread(agent)) if caller.asynchronous else _read(agent)
            assert (text, cap) == ("one two three", 2)
        except BudgetExceeded:
            assert cap == 1
        books(watch, provider, steps=cap)


def _read(agent: Any) -> str:
    stream = agent.stream_events(USER, version="v3")
    said = ["".join(message.text) for message in stream.messages]
    assert stream.output["messages"][-1].text == said[-1]
    return said[-1]


async def _aread(agent: Any) -> str:
    stream = await agent.astream_events(USER, version="v3")
    said = ["".join([delta async for delta in message.text]) async for message in stream.messages]
    assert (await stream.output())["messages"][-1].text == said[-1]
    return said[-1]


def test_events_v2(serve: Serve) -> None:
    provider, watch = serve(ONE_TOOL), Watch(usd=1)
    agent = create_agent(openai(provider), [LOOK_UP], middleware=[middleware(watch)])

    async def read() -> list[str]:
        events: AsyncIterator[Any] = agent.astream_events(USER, version="v2")
        return [event["event"] async for event in events]

    assert asyncio.run(read()).count("on_chat_model_start") == 2
    books(watch, provider, steps=2)


def test_agents_at_once_each_have_the_whole_budget(serve: Serve, caller: Caller) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        return Reply(text="done") if len(body["messages"]) > 4 else Reply(tool_calls=[("look_up", {"query": "x"})])

    provider, watch = serve(script), Watch(steps=3)
    agent = create_agent(openai(provider), [LOOK_UP], middleware=[middleware(watch)])
    answers = caller.batch(agent, [USER] * 8)
    assert {answer["messages"][-1].text for answer in answers} == {"done"}
    watch.idle()
    assert provider.received == 24


def test_agents_at_once_in_one_run_share_it(serve: Serve, caller: Caller) -> None:
    provider, watch = serve(looping(output_tokens=400)), Watch(usd="0.1")
    agent = create_agent(openai(provider), [LOOK_UP], middleware=[middleware(watch)])
    with watch.guard.run() as run:
        answers = caller.batch(agent, [USER] * 8, return_exceptions=True)
    assert all(isinstance(answer, BudgetExceeded) for answer in answers)
    books(watch, provider, run=run)
    assert provider.received > 8


def test_agents_in_raw_threads(serve: Serve) -> None:
    """A middleware is heard of in threads that carry no context."""
    provider, watch = serve(looping()), Watch(steps=2)
    agent = create_agent(openai(provider), [LOOK_UP], middleware=[middleware(watch)])
    refused: list[str] = []

    def call() -> None:
        with pytest.raises(BudgetExceeded) as caught:
            agent.invoke(USER)
        refused.append(str(caught.value))

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 6
    assert provider.received == 12
    watch.idle()


@pytest.mark.parametrize("attach", ["middleware", "auto_attach", "guard_model"])
@pytest.mark.parametrize("own", [[], [BaseCallbackHandler()]], ids=["no callbacks", "another handler"])
def test_a_tool_that_asks_a_model_with_callbacks_of_its_own(
    serve: Serve, caller: Caller, own: Any, attach: str
) -> None:
    provider, watch = serve(ONE_TOOL), Watch(usd=1)
    model = openai(provider)
    if attach == "guard_model":
        model = guard_model(model, watch.guard)

    def look_up(query: str) -> str:
        """Ask."""
        return str(model.invoke(query, {"callbacks": own}).text)

    async def alook_up(query: str) -> str:
        """Ask."""
        return str((await model.ainvoke(query, {"callbacks": own})).text)

    stack: list[Any] = [] if attach == "auto_attach" else [middleware(watch)]
    agent = create_agent(openai(provider), [StructuredTool.from_function(look_up, alook_up)], middleware=stack)
    with auto_attach(watch.guard) if attach == "auto_attach" else nullcontext():
        caller.invoke(agent, USER)
    books(watch, provider, steps=3)


class Both(AgentMiddleware[Any, Any, Any]):
    """A middleware of one's own, sync and async: `also` is a model that it uses as it sees fit."""

    def __init__(self, also: Any) -> None:
        super().__init__()
        self.also = also


class Twice(Both):
    """Asks twice and takes the second answer."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        handler(request)
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        await handler(request)
        return await handler(request)


class Swaps(Both):
    """Another model, by `override`."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(model=self.also))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(request.override(model=self.also))


class Rebuilds(Both):
    """Another model, in a request made from scratch: no middleware further out can guard that one."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(self.rebuilt(request))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(self.rebuilt(request))

    def rebuilt(self, request: Any) -> Any:
        kept = {name: getattr(request, name) for name in ("messages", "tools", "state", "runtime", "system_message")}
        return ModelRequest(model=self.also, **kept)


class Judges(Both):
    """Asks the request's own model for a second opinion."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        request.model.invoke("Fine?")
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        await request.model.ainvoke("Fine?")
        return await handler(request)


class Hooks(Both):
    """Asks a model in every hook there is."""

    def before_agent(self, state: Any, runtime: Any) -> None:
        self.also.invoke("before agent")

    def before_model(self, state: Any, runtime: Any) -> None:
        self.also.invoke("before model")

    def after_model(self, state: Any, runtime: Any) -> None:
        self.also.invoke("after model")

    def after_agent(self, state: Any, runtime: Any) -> None:
        self.also.invoke("after agent")

    async def abefore_agent(self, state: Any, runtime: Any) -> None:
        await self.also.ainvoke("before agent")

    async def abefore_model(self, state: Any, runtime: Any) -> None:
        await self.also.ainvoke("before model")

    async def aafter_model(self, state: Any, runtime: Any) -> None:
        await self.also.ainvoke("after model")

    async def aafter_agent(self, state: Any, runtime: Any) -> None:
        await self.also.ainvoke("after agent")


class Overrules(Both):
    """Asks a model about a tool call."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        self.also.invoke([HumanMessage("Is it safe?")])
        return handler(request)

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        await self.also.ainvoke([HumanMessage("Is it safe?")])
        return await handler(request)


OF_ONES_OWN: list[tuple[type[Both], int]] = [
    (Twice, 4),
    (Swaps, 2),
    (Rebuilds, 2),
    (Judges, 4),
    (Hooks, 8),
    (Overrules, 3),
]


def _stack(kind: type[Both], place: str, watch: Watch, provider: ScriptedProvider) -> Any:
    other = kind(openai(provider, model="gpt-4o-mini"))
    stack: list[Any] = [middleware(watch), other] if place == "first" else [other, middleware(watch)]

    def script(number: int, body: Mapping[str, Any]) -> Reply:
        asks = body.get("tools") and body["messages"][-1]["role"] == "user"
        return Reply(tool_calls=[("look_up", {"query": "x"})]) if asks else Reply(text="done")

    provider._script = script
    return create_agent(openai(provider), [LOOK_UP], middleware=stack)


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize(("kind", "requests"), OF_ONES_OWN, ids=[kind.__name__ for kind, _ in OF_ONES_OWN])
def test_middlewares_of_ones_own(serve: Serve, caller: Caller, kind: type[Both], requests: int, place: str) -> None:
    for cap in sorted({1, requests // 2, requests - 1, requests}):
        provider, watch = serve(Reply()), Watch(steps=cap)
        agent = _stack(kind, place, watch, provider)
        if cap < requests:
            with pytest.raises(BudgetExceeded, match=f"steps cap {cap}"):
                caller.invoke(agent, USER)
        else:
            answer = caller.invoke(agent, USER)
            called(answer["messages"])
            assert answer["messages"][-1].text == "done"
        books(watch, provider, steps=cap)
