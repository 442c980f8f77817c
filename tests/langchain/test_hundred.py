"""A hundred agents at random caps: each ends with an answer, none is over, and no tool call is left unanswered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver

from runcap.guardrails import Budget, Guard
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware

from ..effort import examples
from .conftest import LOOK_UP, USER, claude, openai

THREAD: Any = {"configurable": {"thread_id": "1"}}


def never_done(number: int, body: Mapping[str, Any]) -> Reply:
    """Asks for tools as long as there are any it may call; then says what it has."""
    choice = body.get("tool_choice")
    if not body.get("tools") or choice in ("none", {"type": "none"}):
        return Reply(text="Done: the search. Left: all else.", output_tokens=60)
    names = [one.get("name") or one["function"]["name"] for one in body["tools"]]
    wide = 2 if number % 5 == 0 else 1
    calls = [(names[(number + part) % len(names)], {"query": f"try {number}.{part}"}) for part in range(wide)]
    return Reply(tool_calls=calls, output_tokens=60 + number % 90)


def long_look_up(size: int) -> BaseTool:
    return StructuredTool.from_function(lambda query: "word " * size, name="look_up", description="Look it up.")


def sub_agent(model: Any, guard: Guard, *, own: bool) -> BaseTool:
    agent: Any = create_agent(model, [LOOK_UP], middleware=[BudgetMiddleware(guard)] if own else [])

    def ask(query: str) -> str:
        """Ask a colleague."""
        return str(agent.invoke({"messages": [("user", query)]})["messages"][-1].text)

    async def aask(query: str) -> str:
        """Ask a colleague."""
        return str((await agent.ainvoke({"messages": [("user", query)]}))["messages"][-1].text)

    return StructuredTool.from_function(ask, aask, name="ask")


@dataclass(frozen=True)
class Setting:
    make: Any
    budget: Budget
    subs: bool
    own: bool
    result: int
    max_tokens: int


def settings(seed: int, count: int) -> list[Setting]:
    rng = random.Random(seed)

    def caps() -> dict[str, Any]:
        usd = str(round(Decimal(rng.uniform(0.002, 0.1)), 4))
        steps = rng.randint(1, 30)
        return rng.choice([{"usd": usd}, {"usd": usd, "steps": steps}, {"steps": steps}])

    return [
        Setting(
            make=rng.choice([openai, claude]),
            budget=Budget(**caps(), on_breach="finish"),
            subs=rng.random() < 0.3,
            own=rng.random() < 0.5,
            result=rng.choice([5, 50, 500]),
            max_tokens=rng.choice([300, 1000, 4000]),
        )
        for _ in range(count)
    ]


@dataclass
class Ended:
    setting: Setting
    guard: Guard
    provider: ScriptedProvider
    agent: Any
    answer: Any = None

    @property
    def by_the_model(self) -> bool:
        return "Done: the search" in self.answer["messages"][-1].text


def agent_of(setting: Setting, provider: ScriptedProvider) -> Ended:
    guard = Guard(setting.budget, sinks=())
    model = setting.make(provider, max_tokens=setting.max_tokens)
    tools = [long_look_up(setting.result)]
    if setting.subs:
        tools.append(sub_agent(setting.make(provider), guard, own=setting.own))
    agent = create_agent(model, tools, middleware=[BudgetMiddleware(guard)], checkpointer=InMemorySaver())
    return Ended(setting, guard, provider, agent)


def dangling(agent: Any) -> int:
    messages = agent.get_state(THREAD).values["messages"]
    asked = {call["id"] for message in messages for call in getattr(message, "tool_calls", ())}
    return len(asked - {getattr(message, "tool_call_id", None) for message in messages})


def check(ended: Ended) -> None:
    last = ended.answer["messages"][-1]
    assert isinstance(last, AIMessage)
    assert last.text
    assert not last.tool_calls
    assert dangling(ended.agent) == 0
    caps = ended.setting.budget
    assert caps.usd is None or ended.provider.cost_usd <= caps.usd
    assert caps.steps is None or ended.provider.received <= caps.steps
    assert not len(ended.guard.calls)


def test_a_hundred_agents(record_property: Callable[[str, object], None], serve: Any) -> None:
    ends = [agent_of(setting, serve(never_done)) for setting in settings(seed=8, count=examples(100))]
    half = len(ends) // 2

    def end(one: Ended) -> None:
        one.answer = one.agent.invoke(USER, THREAD)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(end, ends[:half]))

    async def at_once() -> None:
        async def aend(one: Ended) -> None:
            one.answer = await one.agent.ainvoke(USER, THREAD)

        await asyncio.gather(*(aend(one) for one in ends[half:]))

    asyncio.run(at_once())
    for one in ends:
        check(one)
    real = sum(one.by_the_model for one in ends)
    assert real >= len(ends) - 1, "a cap that can pay a last answer is not spent before it"
    record_property("told", f"{len(ends)} agents, as many final answers, {real} by the model; 0 over, 0 dangling")
