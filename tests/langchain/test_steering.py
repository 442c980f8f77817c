"""What is sent where settings meet: histories and threads, thinking and cuts, last answers and other middlewares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, LLMToolSelectorMiddleware
from langchain_core.messages import AIMessage, SystemMessage
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from runcap.guardrails import Budget, Guard, History, Tier
from runcap.guardrails.events import CallStarted
from runcap.guardrails.testing import Recorder, Reply, ScriptedProvider, anthropic_wire
from runcap.integrations.langchain import BudgetMiddleware

from ..validators import check_anthropic, check_openai, sign
from .conftest import LOOK_UP, USER, Caller, Serve, called, claude, openai, said
from .test_finish import LAST, is_last

THREAD: dict[str, Any] = {"configurable": {"thread_id": "1"}}
MINI, TURBO, SONNET = "gpt-4o-mini", "gpt-4-turbo", "claude-sonnet-5"
ADAPTIVE, BY_HAND = {"type": "adaptive"}, {"type": "enabled", "budget_tokens": 1_024}
SUMMARY = "a secret summary"
Body = Mapping[str, Any]
both = pytest.mark.parametrize("make", [openai, claude], ids=["openai", "anthropic"])


class Thinking:
    """The wire of a Claude that thinks before it answers, and binds that to all it has read."""

    def __init__(self, wire: Any, body: Body) -> None:
        self.wire, self.body = wire, body

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wire, name)

    def whole(self, answer: Any, *, usage: bool) -> dict[str, Any]:
        made: dict[str, Any] = self.wire.whole(answer, usage=usage)
        signature = sign(self.body.get("system"), self.body["messages"])
        thought = {"type": "thinking", "thinking": "hm", "signature": signature}
        return {**made, "content": [thought, *made["content"]]}


@pytest.fixture
def thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claudes think where the request lets them."""
    plain = ScriptedProvider.answer

    def answer(self: ScriptedProvider, wire: Any, body: Body, out: Any) -> None:
        lets = wire is anthropic_wire.WIRE and body.get("thinking")
        plain(self, Thinking(wire, body) if lets else wire, body, out)

    monkeypatch.setattr(ScriptedProvider, "answer", answer)


class Bodies:
    """Answers with long tool calls until there are none any more, and keeps what was sent."""

    def __init__(self, calls: int = 99) -> None:
        self.sent: list[Body] = []
        self.calls = calls

    def __call__(self, number: int, body: Body) -> Reply:
        self.sent.append(body)
        if is_summary(body):
            return Reply(text=SUMMARY, output_tokens=20)
        if is_last(body) or len(self.agents) > self.calls:
            return Reply(text=LAST, output_tokens=20)
        return Reply(tool_calls=[("look_up", {"query": f"{number}" + " w" * 60})], output_tokens=150)

    @property
    def agents(self) -> list[Body]:
        """Those of the agent's own calls."""
        return [body for body in self.sent if not is_summary(body)]

    def check(self, **how: bool) -> None:
        for body in self.sent:
            if body["model"].startswith("claude"):
                check_anthropic(dict(body), **how)
            else:
                check_openai(dict(body))


def is_summary(body: Body) -> bool:
    return "Summarize this part" in json.dumps(body["messages"])


def agent_of(guard: Guard, model: Any, tools: list[BaseTool] | None = None, *inner: Any, **more: Any) -> Any:
    return create_agent(model, tools or [LOOK_UP], middleware=[BudgetMiddleware(guard), *inner], **more)


# Histories


class Own(AgentMiddleware[Any, Any, Any]):
    """Keeps what is sent in whose name."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        self.pairs.append((request.state["messages"][0].text, str(request.messages)))
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        self.pairs.append((request.state["messages"][0].text, str(request.messages)))
        return await handler(request)


def test_two_calls_of_one_thread_do_not_mix(serve: Serve, caller: Caller) -> None:
    """While the one's summary is made, the other is called, and its history cut too."""
    counts, own, agents = {"ALPHA": 0, "BRAVO": 0}, Own(), list[Any]()

    def script(number: int, body: Body) -> Reply:
        text = json.dumps(body["messages"])
        if is_summary(body):
            if not counts["BRAVO"]:
                agents[0].invoke(said([("user", "BRAVO")]), THREAD)
            return Reply(text=SUMMARY)
        name = "ALPHA" if "ALPHA" in text else "BRAVO"
        counts[name] += 1
        if counts[name] > 8:
            return Reply(text=f"done {name}")
        return Reply(tool_calls=[("look_up", {"query": f"{name} {number}" + " w" * 100})])

    provider = serve(script)
    guard = Guard(Budget(steps=60), history=History(400, summarize=openai(provider, model=MINI)), sinks=())
    agents.append(agent_of(guard, openai(provider), None, own))
    messages = caller.invoke(agents[0], said([("user", "ALPHA")]), THREAD)["messages"]
    assert messages[-1].text == "done ALPHA"
    assert {name for name, _ in own.pairs} == {"ALPHA", "BRAVO"}
    assert [(name, other in sent) for name, sent in own.pairs for other in counts if other != name] == [
        (name, False) for name, _ in own.pairs
    ]
    assert all(name in sent for name, sent in own.pairs)


def test_summaries_are_not_streamed(serve: Serve, caller: Caller) -> None:
    bodies = Bodies(calls=10)
    provider = serve(bodies)
    guard = Guard(Budget(usd=1), history=History(400, summarize=openai(provider, model=MINI)), sinks=())
    pieces = caller.stream(agent_of(guard, openai(provider)), USER, stream_mode="messages")
    assert any(map(is_summary, bodies.sent))
    assert any(SUMMARY in json.dumps(body["messages"]) for body in bodies.agents)
    assert "".join(one.text for one, _ in pieces if isinstance(one, AIMessage)) == LAST


# What agents are told


@both
def test_what_an_agent_is_told_stays(serve: Serve, caller: Caller, make: Any) -> None:
    bodies = Bodies(calls=7)
    provider = serve(bodies)
    guard = Guard(Budget(steps=10, warn_at=(0.3, 0.6), tell_agent=True), sinks=())
    caller.invoke(agent_of(guard, make(provider)), USER)
    prompts = [body["messages"] for body in bodies.sent]
    assert len(prompts) == 8
    for share, first in (("30%", 3), ("60%", 6)):
        told = [[f"{share} of the budget" in json.dumps(message) for message in prompt] for prompt in prompts]
        at = told[first].index(True)
        assert [one.index(True) if any(one) else None for one in told] == [None] * first + [at] * (8 - first)
    for before, after in pairwise(prompts):
        assert after[: len(before)] == before, "the prompt stays cached"
    bodies.check()


# Thinking


@pytest.mark.usefixtures("thinks")
@pytest.mark.parametrize("kept", [True, False], ids=["checkpoints", "none"])
def test_a_last_answer_is_kept_without_its_thinking(serve: Serve, caller: Caller, kept: bool) -> None:
    """It is bound to the instruction, which no later prompt has."""
    bodies = Bodies()
    provider = serve(bodies)
    guard = Guard(Budget(steps=4, on_breach="finish"), sinks=())
    agent = agent_of(guard, claude(provider, thinking=ADAPTIVE), checkpointer=InMemorySaver() if kept else None)
    messages = caller.invoke(agent, USER, THREAD)["messages"]
    assert messages[-1].text == LAST
    thought = ["thinking" in json.dumps(one.content) for one in messages if isinstance(one, AIMessage)]
    assert thought == [True] * 3 + [False]
    bodies.calls = 0
    caller.invoke(agent, said([*([] if kept else messages), ("user", "go on")]), THREAD)
    assert len(bodies.sent) == 5
    bodies.check(bound_thinking=True)


@pytest.mark.usefixtures("thinks")
def test_thinking_goes_with_a_cut_on_a_claude_further_down(serve: Serve, caller: Caller) -> None:
    bodies = Bodies(calls=24)
    provider = serve(bodies)
    top, lower = openai(provider, model=TURBO), claude(provider, thinking=ADAPTIVE)
    guard = Guard(Budget(usd="0.3"), tiers=[Tier(top), Tier(lower, at=0.2)], history=History(500), sinks=())
    caller.invoke(agent_of(guard, top), USER)
    assert {body["model"] for body in bodies.sent} == {TURBO, SONNET}
    assert len(bodies.sent[-1]["messages"]) < 2 * 24, "it was cut"
    bodies.check(bound_thinking=True)


@pytest.mark.usefixtures("thinks")
@pytest.mark.parametrize("steps", [6, 7, 8])
def test_manual_thinking_is_off_where_claude_refuses_to_think_on(serve: Serve, caller: Caller, steps: int) -> None:
    bodies = Bodies()
    provider = serve(bodies)
    guard = Guard(Budget(steps=steps, on_breach="finish"), history=History(300), sinks=())
    model = claude(provider, max_tokens=3_000, thinking=BY_HAND)
    assert caller.invoke(agent_of(guard, model), USER)["messages"][-1].text == LAST
    for body in bodies.sent:
        check_anthropic(dict(body), manual_thinking="thinking" in body)
    assert ["thinking" in body for body in bodies.sent][:2] == [True] * 2
    assert any("thinking" not in body for body in bodies.sent), "there was a cut"


# Last answers


def test_a_last_answer_on_another_providers_tier(serve: Serve, caller: Caller) -> None:
    bodies = Bodies()
    provider = serve(bodies)
    block: Any = {"type": "text", "text": "Be good.", "cache_control": {"type": "ephemeral"}}
    tiers = [Tier(claude(provider)), Tier(openai(provider, model=MINI), at=0.85)]
    guard = Guard(Budget(usd="0.02", on_breach="finish"), tiers=tiers, sinks=())
    agent = agent_of(guard, claude(provider), system_prompt=SystemMessage([block]))
    assert caller.invoke(agent, USER)["messages"][-1].text == LAST
    last = bodies.sent[-1]
    assert last["model"] == MINI
    assert is_last(last)
    assert "cache_control" in json.dumps(bodies.sent[0])
    assert "cache_control" not in json.dumps(last)
    assert last["messages"][0] == bodies.sent[-2]["messages"][0]
    bodies.check()


@pytest.mark.parametrize("caps", [{"steps": 5}, {"steps": 6}, {"usd": "0.01"}], ids=str)
def test_a_last_answer_past_a_selector_that_is_refused(serve: Serve, caller: Caller, caps: dict[str, Any]) -> None:
    bodies = Bodies()

    def script(number: int, body: Body) -> Reply:
        chosen = Reply(text='{"tools": ["look_up"]}', output_tokens=20)
        return chosen if body.get("response_format") else bodies(number, body)

    @tool
    def other(query: str) -> str:
        """Another."""
        return query

    provider = serve(script)
    guard = Guard(Budget(**caps, on_breach="finish"), sinks=())
    selector = LLMToolSelectorMiddleware(model=openai(provider, model=MINI), max_tools=1)
    messages = caller.invoke(agent_of(guard, openai(provider), [LOOK_UP, other], selector), USER)["messages"]
    called(messages)
    assert messages[-1].text == LAST
    assert provider.received <= caps.get("steps", 99)
    assert guard.budget.usd is None or provider.cost_usd <= guard.budget.usd
    bodies.check()


OWN = {
    "none": None,
    "raise": Budget(usd=1),
    "finish": Budget(usd=1, on_breach="finish"),
}


@pytest.mark.parametrize("own", OWN)
def test_a_run_inside_leaves_the_last_answer_its_room(serve: Serve, caller: Caller, own: str) -> None:
    def script(number: int, body: Body) -> Reply:
        outer = "OUTER" in json.dumps(body["messages"])
        if is_last(body):
            return Reply(text=LAST if outer else "of the inner one", output_tokens=300)
        name = "delegate" if outer else "look_up"
        return Reply(tool_calls=[(name, {"query": f"{number}"})], output_tokens=20 if outer else 400)

    provider, recorder = serve(script), Recorder()
    guard = Guard(Budget(usd="0.06", on_breach="finish"), sinks=(recorder,))
    inner, given = agent_of(guard, openai(provider)), said([("user", "part of it")])

    def delegate(query: str) -> str:
        """Delegate."""
        with nullcontext() if OWN[own] is None else guard.run(budget=OWN[own]):
            return str(inner.invoke(given)["messages"][-1].text)

    async def adelegate(query: str) -> str:
        """Delegate."""
        async with nullcontext() if OWN[own] is None else guard.run(budget=OWN[own]):
            return str((await inner.ainvoke(given))["messages"][-1].text)

    a = caller.asynchronous
    tools: list[BaseTool] = [
        StructuredTool.from_function(None if a else delegate, adelegate if a else None, name="delegate")
    ]
    outer = agent_of(guard, openai(provider), tools)
    last = caller.invoke(outer, said([("user", "OUTER" + " w" * 4_000)]))["messages"][-1]
    assert last.text == LAST
    assert last.response_metadata["runcap"]["ended"] == "usd"
    assert guard.budget.usd is not None
    assert provider.cost_usd <= guard.budget.usd
    assert sum(one.last for one in recorder.of(CallStarted)) == 1


# Replays


@pytest.mark.parametrize("around", [True, False], ids=["run", "none"])
def test_tool_calls_that_interrupt_count_once(serve: Serve, caller: Caller, around: bool) -> None:
    def ask_me(query: str) -> str:
        """Ask the user."""
        return str(interrupt(query))

    async def aask_me(query: str) -> str:
        """Ask the user."""
        return ask_me(query)

    provider = serve(lambda number, body: Reply(tool_calls=[("ask_me", {"query": f"{number}"})]))
    guard = Guard(Budget(tool_calls=6), sinks=())
    middleware = BudgetMiddleware(guard)
    a = caller.asynchronous
    tools = [StructuredTool.from_function(None if a else ask_me, aask_me if a else None, name="ask_me")]
    agent: Any = create_agent(openai(provider), tools, middleware=[middleware], checkpointer=InMemorySaver())
    with guard.run() if around else nullcontext():
        result = caller.invoke(agent, USER, THREAD)
        for calls in range(1, 5):
            assert result["__interrupt__"][0].value == f"{calls - 1}"
            assert (middleware.last_run.tool_calls, provider.received) == (calls, calls)
            result = caller.invoke(agent, Command(resume="yes"), THREAD)
    called(agent.get_state(THREAD).values["messages"][:-1])
