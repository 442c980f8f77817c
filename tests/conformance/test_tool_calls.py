"""Tool calls under `BudgetMiddleware`: each refused one is answered by a ToolMessage, so that nothing dangles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    ToolCallLimitMiddleware,
    ToolErrorMiddleware,
    ToolRetryMiddleware,
)
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver

from runcap.guardrails import BudgetExceeded
from runcap.guardrails.testing import Reply

from ..langchain.conftest import LOOK_UP, USER, said
from .conftest import Caller, Serve, Watch, books, called, middleware, openai

THREAD: dict[str, Any] = {"configurable": {"thread_id": "1"}}


def three_at_once(number: int, body: Any) -> Reply:
    return Reply(tool_calls=[("look_up", {"query": f"{number}.{part}"}) for part in range(3)])


def stacks() -> Sequence[Any]:
    now: dict[str, Any] = {"initial_delay": 0, "jitter": False}
    others: dict[str, Any] = {
        "alone": lambda: None,
        "ToolRetry": lambda: ToolRetryMiddleware(max_retries=3, **now),
        "ToolError": lambda: ToolErrorMiddleware(lambda error, request: "failed"),
        "ToolCallLimit": lambda: ToolCallLimitMiddleware(run_limit=100),
        "HumanInTheLoop": lambda: HumanInTheLoopMiddleware({"other": True}),
    }
    return [
        pytest.param(make, first, id=f"{name}-{'first' if first else 'last'}")
        for name, make in others.items()
        for first in (True, False)
        if first or name != "alone"
    ]


def agent_of(watch: Watch, provider: Any, tools: list[BaseTool], make: Any, *, first: bool) -> Any:
    other = make()
    stack: list[Any] = [middleware(watch)] if other is None else [middleware(watch), other]
    return create_agent(
        openai(provider), tools, middleware=stack if first else stack[::-1], checkpointer=InMemorySaver()
    )


@pytest.mark.parametrize(("make", "first"), stacks())
@pytest.mark.parametrize("cap", [1, 3, 5])
def test_no_call_dangles_at_the_cap_on_tool_calls(
    serve: Serve, caller: Caller, cap: int, make: Any, first: bool
) -> None:
    provider, watch = serve(three_at_once), Watch(tool_calls=cap)
    ran: list[str] = []

    def look_up(query: str) -> str:
        """Look something up."""
        ran.append(query)
        return "nothing"

    agent = agent_of(watch, provider, [StructuredTool.from_function(look_up)], make, first=first)
    with pytest.raises(BudgetExceeded, match=f"tool_calls cap {cap}"):
        caller.invoke(agent, USER, THREAD)
    messages = agent.get_state(THREAD).values["messages"]
    called(messages)
    assert len(ran) == cap
    assert watch.handler.last_run.tool_calls == cap
    refused = [one for one in messages if one.type == "tool" and one.status == "error"]
    assert len(refused) == 3 * provider.received - cap
    books(watch, provider, steps=-(-(cap + 1) // 3))


def test_the_thread_goes_on_in_a_run_of_its_own(serve: Serve, caller: Caller) -> None:
    """The history that a cap leaves behind is one that a provider takes."""
    provider, watch = serve([three_at_once(0, None), Reply(text="done")]), Watch(tool_calls=2)
    agent = agent_of(watch, provider, [LOOK_UP], lambda: None, first=True)
    with pytest.raises(BudgetExceeded):
        caller.invoke(agent, USER, THREAD)
    answer = caller.invoke(agent, said([("user", "go on")]), THREAD)
    called(answer["messages"])
    assert answer["messages"][-1].text == "done"
    watch.idle()
    assert provider.received == 2


@pytest.mark.parametrize(("make", "first"), stacks())
def test_a_tool_whose_own_model_call_is_refused_is_answered(
    serve: Serve, caller: Caller, make: Any, first: bool
) -> None:
    provider, watch = serve(three_at_once), Watch(steps=3)
    inner = openai(provider)

    def look_up(query: str) -> str:
        """Ask a model."""
        return str(inner.invoke(query).text)

    async def alook_up(query: str) -> str:
        """Ask a model."""
        return str((await inner.ainvoke(query)).text)

    tool = StructuredTool.from_function(
        None if caller.asynchronous else look_up, alook_up if caller.asynchronous else None, name="look_up"
    )
    agent = agent_of(watch, provider, [tool], make, first=first)
    with pytest.raises(BudgetExceeded, match="steps cap 3"):
        caller.invoke(agent, USER, THREAD)
    called(agent.get_state(THREAD).values["messages"])
    books(watch, provider, steps=3)


def fails_twice(attempts: list[str]) -> BaseTool:
    def look_up(query: str) -> str:
        """Fail twice."""
        attempts.append(query)
        if len(attempts) < 3:
            raise ConnectionError("not yet")
        return "found"

    return StructuredTool.from_function(look_up)


def retry() -> ToolRetryMiddleware:
    return ToolRetryMiddleware(max_retries=3, initial_delay=0, jitter=False)


ONE_TOOL = [Reply(tool_calls=[("look_up", {"query": "x"})]), Reply(text="done")]


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_retried_tool_is_counted_once_an_attempt(serve: Serve, caller: Caller, first: bool) -> None:
    """Whichever of the two is further in: each time the tool runs, that is a tool call."""
    provider, watch, attempts = serve(ONE_TOOL), Watch(usd=1), list[str]()
    answer = caller.invoke(agent_of(watch, provider, [fails_twice(attempts)], retry, first=first), USER, THREAD)
    called(answer["messages"])
    books(watch, provider, steps=2)
    assert watch.handler.last_run.tool_calls == len(attempts) == 3


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_the_cap_ends_the_retries_of_a_tool(serve: Serve, caller: Caller, first: bool) -> None:
    provider, watch, attempts = serve(ONE_TOOL), Watch(tool_calls=2), list[str]()
    agent = agent_of(watch, provider, [fails_twice(attempts)], retry, first=first)
    with pytest.raises(BudgetExceeded, match="tool_calls cap 2"):
        caller.invoke(agent, USER, THREAD)
    called(agent.get_state(THREAD).values["messages"])
    books(watch, provider, steps=1)
    assert watch.handler.last_run.tool_calls == len(attempts) == 2


def test_a_tool_that_returns_directly_does_not_pass_its_refusal_off_as_an_answer(serve: Serve, caller: Caller) -> None:
    provider, watch = serve(three_at_once), Watch(tool_calls=2)
    tool = StructuredTool.from_function(lambda query: query, name="look_up", description="Look.", return_direct=True)
    agent = agent_of(watch, provider, [tool], lambda: None, first=True)
    with pytest.raises(BudgetExceeded):
        caller.invoke(agent, USER, THREAD)
    books(watch, provider, steps=1)
