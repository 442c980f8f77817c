"""`Budget(on_breach="finish")`: at the cap the root agent gives one last answer, and nothing is left dangling."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from runcap.guardrails import BudgetExceeded, Guard, LoopPolicy
from runcap.guardrails.budget import Budget
from runcap.guardrails.events import CallStarted
from runcap.guardrails.testing import Recorder, Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware

from .conftest import LOOK_UP, USER, Caller, Serve, Watch, called, claude, openai

THREAD: dict[str, Any] = {"configurable": {"thread_id": "1"}}
LAST = "Done: the search. Left: all else."
both = pytest.mark.parametrize("make", [openai, claude], ids=["openai", "anthropic"])


def is_last(body: Mapping[str, Any]) -> bool:
    return not body.get("tools") or body.get("tool_choice") in ("none", {"type": "none"})


def never_done(number: int, body: Mapping[str, Any]) -> Reply:
    if is_last(body):
        return Reply(text=LAST, output_tokens=60)
    return Reply(tool_calls=[(_tools(body)[-1], {"query": f"try {number}"})], output_tokens=80)


def _tools(body: Mapping[str, Any]) -> list[str]:
    return [one.get("name") or one["function"]["name"] for one in body["tools"]]


def agent_of(watch: Watch, model: Any, tools: list[BaseTool] | None = None, **more: Any) -> Any:
    stack = more.pop("middleware", None) or [BudgetMiddleware(watch.guard)]
    return create_agent(
        model, tools if tools is not None else [LOOK_UP], middleware=stack, checkpointer=InMemorySaver(), **more
    )


def finished(watch: Watch, agent: Any, provider: ScriptedProvider) -> Any:
    """Well ended: an answer, no call left unanswered, nothing over, nothing left behind. The last message."""
    messages = agent.get_state(THREAD).values["messages"]
    called(messages)
    last = messages[-1]
    assert isinstance(last, AIMessage)
    assert last.text
    assert not last.tool_calls
    caps, run = watch.guard.budget, watch.handler.last_run
    assert caps.usd is None or provider.cost_usd <= caps.usd
    assert caps.steps is None or run.course.top_ups or provider.received <= caps.steps
    assert caps.tokens is None or sum(one.input_tokens + one.output_tokens for one in provider.served) <= caps.tokens
    assert (run.spent_usd, run.steps) == (provider.cost_usd, provider.received)
    watch.idle()
    return last


def finish(**caps: Any) -> Watch:
    return Watch(**caps, on_breach="finish")


def last_calls(watch: Watch) -> int:
    return sum(one.last for one in watch.recorder.of(CallStarted))


@both
@pytest.mark.parametrize("caps", [{"usd": "0.05"}, {"steps": 4}, {"tokens": 12_000}, {"tool_calls": 3}], ids=str)
def test_the_last_answer(serve: Serve, caller: Caller, make: Any, caps: dict[str, Any]) -> None:
    provider, watch = serve(never_done), finish(**caps)
    agent = agent_of(watch, make(provider))
    answer = caller.invoke(agent, USER, THREAD)
    assert finished(watch, agent, provider).text == LAST == answer["messages"][-1].text
    assert answer["messages"][-1].response_metadata["runcap"]["ended"] == next(iter(caps))
    assert provider.received > 2
    assert last_calls(watch) == 1
    if "steps" in caps:
        assert provider.received == caps["steps"], "the step of the last answer is not lost"


def test_it_is_told_why_and_keeps_its_tools_for_the_cache(serve: Serve, caller: Caller) -> None:
    bodies: list[Mapping[str, Any]] = []

    def script(number: int, body: Mapping[str, Any]) -> Reply:
        bodies.append(body)
        return never_done(number, body)

    provider, watch = serve(script), finish(steps=3)
    agent = agent_of(watch, openai(provider))
    caller.invoke(agent, USER, THREAD)
    assert bodies[-1]["tools"] == bodies[0]["tools"]
    assert bodies[-1]["tool_choice"] == "none"
    assert "used up (steps)" in bodies[-1]["messages"][-1]["content"]
    assert bodies[-1]["messages"][:-1][: len(bodies[-2]["messages"])] == bodies[-2]["messages"]
    told = [one for one in agent.get_state(THREAD).values["messages"] if "used up" in one.text]
    assert not told, "the instruction is no part of the conversation"


@pytest.mark.parametrize("tells", [True, False], ids=["tells", "quiet"])
def test_the_agent_is_told_when_a_share_is_reached(serve: Serve, caller: Caller, tells: bool) -> None:
    bodies: list[Mapping[str, Any]] = []

    def script(number: int, body: Mapping[str, Any]) -> Reply:
        bodies.append(body)
        return never_done(number, body)

    provider, watch = serve(script), finish(steps=6, warn_at=(0.5,), tell_agent=tells)
    agent = agent_of(watch, openai(provider))
    caller.invoke(agent, USER, THREAD)
    finished(watch, agent, provider)
    told = ["50% of the budget of this run (steps)" in str(body["messages"]) for body in bodies]
    assert told == [False] * 3 + [tells] * 3
    before, after = (body["messages"] for body in bodies[-3:-1])
    assert after[: len(before)] == before, "once said it stays, so that the prompt is cached"


def test_seconds_end_it_without_a_call(serve: Serve, caller: Caller) -> None:
    provider, watch = serve(lambda number, body: Reply(tool_calls=[("look_up", {"query": "x"})], latency=0.15)), None
    watch = finish(seconds=0.4)
    agent = agent_of(watch, openai(provider))
    caller.invoke(agent, USER, THREAD)
    assert "used up (seconds)" in finished(watch, agent, provider).text
    assert last_calls(watch) == 0


def test_a_tool_call_that_comes_too_late_is_answered(serve: Serve, caller: Caller) -> None:
    reply = Reply(tool_calls=[("look_up", {"query": "x"})], latency=0.3)
    provider, watch = serve(reply), finish(seconds=0.2)
    agent = agent_of(watch, openai(provider))
    caller.invoke(agent, USER, THREAD)
    finished(watch, agent, provider)
    assert provider.received == 1


@both
def test_a_cap_below_any_call_ends_plainly(serve: Serve, caller: Caller, make: Any) -> None:
    provider, watch = serve(never_done), finish(usd="0.0005")
    agent = agent_of(watch, make(provider))
    caller.invoke(agent, USER, THREAD)
    assert "used up (usd)" in finished(watch, agent, provider).text
    assert provider.received == 0


def sub_agent(caller: Caller, watch: Watch, model: Any, *, own: bool, name: str = "ask") -> BaseTool:
    stack = [BudgetMiddleware(watch.guard)] if own else []
    agent: Any = create_agent(model, [LOOK_UP], middleware=stack)

    def ask(query: str) -> str:
        """Ask a colleague."""
        return str(agent.invoke({"messages": [("user", query)]})["messages"][-1].text)

    async def aask(query: str) -> str:
        """Ask a colleague."""
        return str((await agent.ainvoke({"messages": [("user", query)]}))["messages"][-1].text)

    a = caller.asynchronous
    return StructuredTool.from_function(None if a else ask, aask if a else None, name=name)


@both
@pytest.mark.parametrize("own", [True, False], ids=["managed", "bare"])
@pytest.mark.parametrize("caps", [{"steps": 7}, {"usd": "0.05"}], ids=str)
def test_a_sub_agent_at_the_cap_ends_plainly_and_the_root_answers(
    serve: Serve, caller: Caller, make: Any, own: bool, caps: dict[str, Any]
) -> None:
    provider, watch = serve(never_done), finish(**caps)
    agent = agent_of(watch, make(provider), [sub_agent(caller, watch, make(provider), own=own)])
    messages = caller.invoke(agent, USER, THREAD)["messages"]
    assert finished(watch, agent, provider).text == LAST
    assert [one.type for one in messages] == ["human", "ai", "tool", "ai"]
    assert "used up" in messages[2].text
    assert last_calls(watch) == 1


@pytest.mark.parametrize("own", [True, False], ids=["managed", "bare"])
def test_sub_agents_at_once(serve: Serve, caller: Caller, own: bool) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        if not is_last(body) and "ask" in _tools(body):
            return Reply(tool_calls=[("ask", {"query": f"part {part}"}) for part in range(4)])
        return never_done(number, body)

    provider, watch = serve(script), finish(usd="0.06", steps=20)
    agent = agent_of(watch, openai(provider), [sub_agent(caller, watch, openai(provider), own=own)])
    messages = caller.invoke(agent, USER, THREAD)["messages"]
    assert finished(watch, agent, provider).text == LAST
    assert all("Not done" in one.text or "used up" in one.text for one in messages if one.type == "tool")
    assert last_calls(watch) == 1


class Verdict(BaseModel):
    """A verdict."""

    fine: bool


@both
@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy, None])
@pytest.mark.parametrize("tools", [True, False], ids=["tools", "none"])
def test_an_agent_that_owes_a_structured_answer_ends(
    serve: Serve, caller: Caller, make: Any, strategy: Any, tools: bool
) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        if is_last(body) and "last answer" in str(body["messages"][-1]):
            return Reply(text=LAST)
        names = _tools(body) if body.get("tools") else []
        if "Verdict" in names:
            return Reply(tool_calls=[("Verdict", {"fine": "perhaps"})])
        return Reply(tool_calls=[("look_up", {"query": f"{number}"})] if names else [], text="" if names else "{}")

    provider, watch = serve(script), finish(steps=4)
    wanted = Verdict if strategy is None else strategy(Verdict)
    agent = agent_of(watch, make(provider), [LOOK_UP] if tools else [], response_format=wanted)
    try:
        answer = caller.invoke(agent, USER, THREAD)
    except Exception as error:
        if strategy is ToolStrategy or tools:
            raise
        assert "Verdict" in str(error)  # noqa: PT017 - the provider's own schema was not kept: the agent's own error
        return
    assert finished(watch, agent, provider).text == LAST
    assert answer.get("structured_response") is None
    assert provider.received == 4


@both
def test_tools_called_all_the_same_are_dropped(serve: Serve, caller: Caller, make: Any) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        text = "Some words first." if is_last(body) and number == 5 else ""
        return Reply(text=text, tool_calls=[("look_up", {"query": f"{number}"})], output_tokens=50)

    for steps, says in ((6, "Some words first."), (4, "used up (steps)")):
        provider, watch = serve(script), finish(steps=steps)
        agent = agent_of(watch, make(provider))
        caller.invoke(agent, USER, THREAD)
        last = finished(watch, agent, provider)
        assert says in last.text
        assert provider.received == steps
        assert not [block for block in last.content_blocks if block["type"] == "tool_call"]


@both
def test_a_last_answer_cut_by_its_clamp_is_kept(serve: Serve, caller: Caller, make: Any) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        return Reply(text="word " * 4_000, output_tokens=5_000) if is_last(body) else never_done(number, body)

    provider, watch = serve(script), finish(steps=3)
    agent = agent_of(watch, make(provider, max_tokens=8_000))
    caller.invoke(agent, USER, THREAD)
    last = finished(watch, agent, provider)
    assert last.text.startswith("word word")
    assert provider.served[-1].output_tokens == 1_024


def test_a_loop_that_is_halted_ends_with_an_answer(serve: Serve, caller: Caller) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        return Reply(text=LAST) if is_last(body) else Reply(tool_calls=[("look_up", {"query": "the same"})])

    provider, watch = serve(script), finish(usd=1)
    watch.guard = Guard(watch.guard.budget, loops=LoopPolicy(halt=3), sinks=(watch.sink, watch.recorder))
    watch.handler = type(watch.handler)(watch.guard)
    agent = agent_of(watch, openai(provider))
    answer = caller.invoke(agent, USER, THREAD)
    last = finished(watch, agent, provider)
    assert last.text == LAST
    assert last.response_metadata["runcap"]["ended"] == "loop"
    assert provider.received < 8
    assert "halted as a loop" in answer["messages"][-2].text


def test_two_agents_in_one_run_give_one_last_answer(serve: Serve, caller: Caller) -> None:
    provider, watch = serve(never_done), finish(steps=5)
    first, second = (agent_of(watch, openai(provider)) for _ in range(2))
    with watch.guard.run() as run:
        caller.invoke(first, USER, THREAD)
        caller.invoke(second, USER, THREAD)
    assert finished(watch, first, provider).text == LAST
    assert "used up (steps)" in finished(watch, second, provider).text
    assert run.steps == 5


def test_a_top_up_gives_another_last_answer(serve: Serve, caller: Caller) -> None:
    provider, watch = serve(never_done), finish(steps=3)
    agent = agent_of(watch, openai(provider))
    with watch.guard.run() as run:
        caller.invoke(agent, USER, THREAD)
        run.top_up(steps=2)
        caller.invoke(agent, USER, THREAD)
    assert finished(watch, agent, provider).text == LAST
    assert run.steps == provider.received == 5
    assert last_calls(watch) == 2


def test_stopped_by_the_user_it_raises(serve: Serve, caller: Caller) -> None:
    provider, watch = serve(never_done), finish(steps=9)
    agent = agent_of(watch, openai(provider))
    with watch.guard.run() as run:
        run.stop("enough")
        with pytest.raises(BudgetExceeded, match="run stopped: enough"):
            caller.invoke(agent, USER, THREAD)
    assert provider.received == 0


def test_stopped_by_the_user_in_a_tool_it_raises(serve: Serve, caller: Caller) -> None:
    provider, watch = serve(never_done), finish(steps=9)

    def look_up(query: str) -> str:
        """Stop."""
        run.stop("enough")
        return "stopped"

    agent = agent_of(watch, openai(provider), [StructuredTool.from_function(look_up)])
    with watch.guard.run() as run, pytest.raises(BudgetExceeded, match="run stopped: enough"):
        caller.invoke(agent, USER, THREAD)
    assert provider.received == 1


@both
@pytest.mark.parametrize("mode", ["messages", "values", "updates"])
def test_streamed(serve: Serve, caller: Caller, make: Any, mode: Any) -> None:
    provider, watch = serve(never_done), finish(steps=3)
    agent = agent_of(watch, make(provider))
    pieces = caller.stream(agent, USER, THREAD, stream_mode=mode)
    assert finished(watch, agent, provider).text == LAST
    if mode == "messages":
        texts = [one.text for one, _ in pieces if isinstance(one, AIMessageChunk)]
        assert "".join(texts).endswith(LAST)


def test_streamed_and_plain_the_message_comes_through(serve: Serve, caller: Caller) -> None:
    provider, watch = serve(never_done), finish(usd="0.0005")
    agent = agent_of(watch, openai(provider))
    pieces = caller.stream(agent, USER, THREAD, stream_mode="messages")
    assert "used up (usd)" in pieces[-1][0].text


OTHERS: dict[str, Any] = {
    "retry": lambda model: ModelRetryMiddleware(max_retries=2, initial_delay=0, jitter=False),
    "fallback": lambda model: ModelFallbackMiddleware(model),
    "summary": lambda model: SummarizationMiddleware(model, trigger=("messages", 6), keep=("messages", 2)),
}


@both
@pytest.mark.parametrize(
    ("other", "caps"),
    [
        (other, caps)
        for other in OTHERS
        for caps in ({"steps": 9}, {"usd": "0.04"})
        if (other, *caps) != ("summary", "usd")
    ],
)
@pytest.mark.parametrize("place", ["first", "last"])
def test_with_other_middlewares(
    serve: Serve, caller: Caller, make: Any, other: str, place: str, caps: dict[str, Any]
) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        return Reply(status=500) if number == 1 and other != "summary" else never_done(number, body)

    provider, watch = serve(script), finish(**caps)
    stack: list[Any] = [BudgetMiddleware(watch.guard), OTHERS[other](make(provider))]
    agent = agent_of(watch, make(provider), middleware=stack if place == "first" else stack[::-1])
    caller.invoke(agent, USER, THREAD)
    messages = agent.get_state(THREAD).values["messages"]
    called(messages)
    assert messages[-1].text == LAST
    assert provider.cost_usd <= (watch.guard.budget.usd or 1)
    assert provider.received <= (watch.guard.budget.steps or 99)
    watch.idle()


@both
def test_a_refused_summary_of_another_middleware_is_raised(serve: Serve, caller: Caller, make: Any) -> None:
    """It is made before the model's turn, where nothing can answer in its place; the history stays whole."""
    provider, watch = serve(never_done), finish(usd="0.04")
    agent = agent_of(
        watch, make(provider), middleware=[BudgetMiddleware(watch.guard), OTHERS["summary"](make(provider))]
    )
    with pytest.raises(BudgetExceeded):
        caller.invoke(agent, USER, THREAD)
    called(agent.get_state(THREAD).values["messages"])
    watch.idle()


def test_an_agent_that_is_led_back_to_its_model_ends_all_the_same(serve: Serve, caller: Caller) -> None:
    class Insists(AgentMiddleware[Any, Any, Any]):
        def after_model(self, state: Any, runtime: Any) -> Any:
            return {"jump_to": "model"}

        after_model.__can_jump_to__ = ["model"]  # type: ignore[attr-defined]

    provider, watch = serve(never_done), finish(steps=3)
    agent = agent_of(watch, openai(provider), middleware=[BudgetMiddleware(watch.guard), Insists()])
    with pytest.raises(BudgetExceeded):
        caller.invoke(agent, USER, THREAD)
    assert provider.received == 3


@both
async def test_many_at_once_in_one_run_give_one_last_answer(serve: Serve, make: Any) -> None:
    provider, watch = serve(never_done), finish(steps=30)
    agents = [agent_of(watch, make(provider)) for _ in range(10)]
    async with watch.guard.run() as run:
        answers = await asyncio.gather(*(one.ainvoke(USER, THREAD) for one in agents))
    assert sum(one["messages"][-1].text == LAST for one in answers) == 1
    assert all(isinstance(one["messages"][-1], AIMessage) for one in answers)
    assert run.steps == provider.received == 30


def test_an_agent_whose_last_answer_fails_ends_without_it(serve: Serve, caller: Caller) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        return Reply(status=500) if is_last(body) else never_done(number, body)

    provider, watch = serve(script), Recorder()
    guard = Guard(Budget(steps=3, on_breach="finish"), sinks=(watch,))
    agent: Any = create_agent(openai(provider), [LOOK_UP], middleware=[BudgetMiddleware(guard)])
    messages = caller.invoke(agent, USER)["messages"]
    called(messages)
    assert messages[-1].text.startswith("The budget of this run is used up (steps)")
    assert provider.received == 3
