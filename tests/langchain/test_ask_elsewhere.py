"""`Budget(on_breach="ask")` in runs inside runs, and by processes that know no more than the question says."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from runcap.guardrails import Budget, BudgetExceeded, Guard
from runcap.guardrails.testing import Reply
from runcap.integrations.langchain import BudgetMiddleware
from runcap.integrations.langchain.asking import read_record

from .conftest import LOOK_UP, USER, Caller, Serve, claude, looping, openai
from .test_ask import Asking, asked, first_ask_then_look, thread

PROCESSES = 4
both = pytest.mark.parametrize("make", [openai, claude], ids=["openai", "anthropic"])


def colleague(caller: Caller, guards: list[Guard], model: Any) -> BaseTool:
    """A sub-agent that works in a run of its own, without a budget of its own."""
    agents: list[Any] = []

    def agent() -> Any:
        if not agents:
            agents.append(create_agent(model, [LOOK_UP], middleware=[BudgetMiddleware(guards[0])]))
        return agents[0]

    def ask(query: str) -> str:
        """Ask a colleague."""
        with guards[0].run(task="part"):
            return str(agent().invoke({"messages": [("user", query)]})["messages"][-1].text)

    async def aask(query: str) -> str:
        """Ask a colleague."""
        async with guards[0].run(task="part"):
            return str((await agent().ainvoke({"messages": [("user", query)]}))["messages"][-1].text)

    a = caller.asynchronous
    return StructuredTool.from_function(None if a else ask, aask if a else None, name="ask")


@both
def test_a_run_in_a_tool_asks_for_the_run_at_its_cap(serve: Serve, caller: Caller, make: Any) -> None:
    provider, guards = serve(first_ask_then_look()), list[Guard]()
    model = make(provider, max_tokens=300)
    made = Asking(model, InMemorySaver(), [colleague(caller, guards, model)], usd="0.010")
    guards.append(made.guard)
    question = asked(caller.invoke(made.agent, USER, thread()))
    run_id, received = question["run_id"], 0
    for cap in ("0.01", "0.016", "0.022"):
        assert (question["run_id"], question["cap"]) == (run_id, cap)
        assert Decimal(question["spent"]) == provider.cost_usd <= Decimal(question["cap"])
        assert provider.received > received, "it goes on"
        received = provider.received
        question = asked(caller.invoke(made.agent, Command(resume={"usd": "0.006"}), thread()))
    with pytest.raises(BudgetExceeded, match=run_id):
        caller.invoke(made.agent, Command(resume=False), thread())
    made.idle()


def test_a_run_in_a_run_asks_for_the_outer_one(serve: Serve, caller: Caller) -> None:
    provider = serve(looping())
    made = Asking(openai(provider), InMemorySaver(), steps=3)
    with made.guard.run(user="ada") as outer, made.guard.run(task="refund") as inner:
        assert asked(caller.invoke(made.agent, USER, thread()))["run_id"] == outer.id
        for cap in (5, 7, 9):
            question = asked(caller.invoke(made.agent, Command(resume={"steps": 2}), thread()))
            assert (question["run_id"], question["cap"]) == (outer.id, f"{cap}")
            assert outer.balance.caps.steps == outer.steps == inner.steps == provider.received == cap
    made.idle()


def test_a_run_in_a_run_asks_for_itself_where_the_cap_is_its_own(serve: Serve, caller: Caller) -> None:
    provider = serve(looping())
    made = Asking(openai(provider), InMemorySaver(), steps=99)
    with made.guard.run() as outer, made.guard.run(budget=Budget(steps=2, on_breach="ask")) as inner:
        assert asked(caller.invoke(made.agent, USER, thread()))["run_id"] == inner.id
        question = asked(caller.invoke(made.agent, Command(resume={"steps": 2}), thread()))
        assert (question["run_id"], question["cap"], provider.received) == (inner.id, "4", 4)
        assert outer.balance.caps.steps == 99
    made.idle()


@both
def test_a_tool_call_that_was_cut_is_in_the_question(serve: Serve, caller: Caller, make: Any) -> None:
    """It is no answer, so that nothing of it is in the agent's state; but it was billed."""
    long = Reply(tool_calls=[("look_up", {"query": "w " * 1_500})], output_tokens=4_000)
    provider, saver, given = serve(long), InMemorySaver(), USER
    for process in range(PROCESSES):
        made = Asking(make(provider, max_tokens=4_000), saver, usd="0.012")
        question = asked(caller.invoke(made.agent, given, thread()))
        assert Decimal(question["cap"]) == Decimal("0.012") + process * Decimal("0.006")
        assert Decimal(question["spent"]) == provider.cost_usd <= Decimal(question["cap"])
        given = Command(resume={"usd": "0.006"})
    assert provider.received == PROCESSES
    assert question["record"]["run_id"] == question["run_id"]
    assert question["record"]["spent"]["usd"] == provider.cost_usd * 10**9


class Drafts(AgentMiddleware[Any, Any, Any]):
    """Has a draft made before each of the agent's calls, in the same node."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        self.model.invoke("draft it")
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        await self.model.ainvoke("draft it")
        return await handler(request)


def drafting(number: int, body: Mapping[str, Any]) -> Reply:
    if not body.get("tools"):
        return Reply(text="a draft", output_tokens=150)
    return Reply(tool_calls=[("look_up", {"query": f"try {number}"})], output_tokens=100)


@pytest.mark.parametrize("place", ["first", "last"])
def test_what_the_interrupted_node_spent_is_in_the_question(serve: Serve, caller: Caller, place: str) -> None:
    provider, saver, given = serve(drafting), InMemorySaver(), USER
    for process in range(PROCESSES):
        guard = Guard(Budget(usd="0.014", on_breach="ask"), sinks=())
        stack: list[Any] = [BudgetMiddleware(guard), Drafts(openai(provider, max_tokens=200))]
        stack = stack if place == "first" else stack[::-1]
        agent: Any = create_agent(openai(provider), [LOOK_UP], middleware=stack, checkpointer=saver)
        question = asked(caller.invoke(agent, given, thread()))
        assert Decimal(question["cap"]) == Decimal("0.014") + process * Decimal("0.01")
        assert Decimal(question["spent"]) == provider.cost_usd <= Decimal(question["cap"])
        given = Command(resume={"usd": "0.01"})


def test_a_record_that_cannot_be_read_is_no_new_budget() -> None:
    assert read_record({}) is None
    for broken in ({"run_id": "r"}, {"run_id": "r", "spent": {}, "unknown": {}, "top_ups": {}}, ["r"], "r"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_record(broken)
