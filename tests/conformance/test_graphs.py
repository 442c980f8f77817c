"""Graphs of langgraph: fan-outs, sub-agents in tools, interrupts and resumes, retries; every branch counted."""

from __future__ import annotations

import operator
import warnings
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import HumanMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import create_react_agent
from langgraph.types import Command, RetryPolicy, Send, interrupt

from runcap.guardrails import BudgetExceeded
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware, auto_attach, guard_model

from ..langchain.conftest import LOOK_UP, USER, looping, said
from .conftest import Caller, Serve, Watch, books, called, middleware, openai

THREAD: dict[str, Any] = {"configurable": {"thread_id": "1"}}
ONE_TOOL = [Reply(tool_calls=[("look_up", {"query": "x"})]), Reply(text="done")]


class _Topics(TypedDict):
    topics: list[str]
    answers: Annotated[list[str], operator.add]


def fan_out(caller: Caller, model: Any, **node: Any) -> Any:
    """Asks about every topic at once."""

    def ask(state: Any) -> dict[str, list[str]]:
        return {"answers": [model.invoke(state["topic"]).text]}

    async def aask(state: Any) -> dict[str, list[str]]:
        return {"answers": [(await model.ainvoke(state["topic"])).text]}

    graph = StateGraph(_Topics)
    graph.add_node("ask", aask if caller.asynchronous else ask, **node)
    graph.add_conditional_edges(START, lambda state: [Send("ask", {"topic": one}) for one in state["topics"]], ["ask"])
    graph.add_edge("ask", END)
    return graph.compile(name="fan")


def guarded(watch: Watch, provider: ScriptedProvider, **more: Any) -> Any:
    return guard_model(openai(provider, **more), watch.guard)


TOPICS = {"topics": [f"topic {number}" for number in range(8)]}


@pytest.mark.parametrize("also", ["alone", "handler"])
def test_a_fan_out_of_sends(serve: Serve, caller: Caller, also: str) -> None:
    provider, watch = serve(Reply(text="ok")), Watch(usd=1)
    config = watch.config if also == "handler" else None
    answer = caller.invoke(fan_out(caller, guarded(watch, provider)), TOPICS, config)
    assert answer["answers"] == ["ok"] * 8
    books(watch, provider, steps=8)


@pytest.mark.parametrize("also", ["alone", "handler"])
def test_a_fan_out_at_its_cap_on_steps(serve: Serve, caller: Caller, also: str) -> None:
    provider, watch = serve(Reply(text="ok")), Watch(steps=5)
    with pytest.raises(BudgetExceeded):
        caller.invoke(fan_out(caller, guarded(watch, provider)), TOPICS, watch.config if also == "handler" else None)
    books(watch, provider, steps=5)


def test_a_fan_out_waits_for_room_instead_of_failing(serve: Serve, caller: Caller) -> None:
    """Eight calls of at most $0.01 at once under $0.035: not all are held together, yet all are made."""
    provider, watch = serve(Reply(text="ok", output_tokens=100)), Watch(usd="0.035")
    answer = caller.invoke(fan_out(caller, guarded(watch, provider)), TOPICS)
    assert answer["answers"] == ["ok"] * 8
    books(watch, provider, steps=8)


def test_a_refused_branch_is_not_retried_by_a_retry_policy(serve: Serve, caller: Caller) -> None:
    provider, watch = serve(Reply(text="ok")), Watch(steps=5)
    policy = RetryPolicy(initial_interval=0, max_attempts=4, retry_on=Exception)
    with pytest.raises(BudgetExceeded):
        caller.invoke(fan_out(caller, guarded(watch, provider), retry_policy=policy), TOPICS)
    books(watch, provider, steps=5)


def test_what_a_retry_policy_tries_again_is_counted_again(serve: Serve, caller: Caller) -> None:
    provider, watch = serve([Reply(status=429), Reply(status=429), Reply(text="ok")]), Watch(usd=1)
    policy = RetryPolicy(initial_interval=0, max_attempts=4, jitter=False, retry_on=Exception)
    model = fan_out(caller, guarded(watch, provider), retry_policy=policy)
    assert caller.invoke(model, {"topics": ["one"]})["answers"] == ["ok"]
    books(watch, provider, steps=3)


def asks(caller: Caller, agent: Any) -> BaseTool:
    """A tool that asks an agent."""

    def text(answer: Any) -> str:
        return str(answer["messages"][-1].text)

    def look_up(query: str) -> str:
        return text(agent.invoke(said([("user", query)])))

    async def alook_up(query: str) -> str:
        return text(await agent.ainvoke(said([("user", query)])))

    return StructuredTool.from_function(
        func=None if caller.asynchronous else look_up,
        coroutine=alook_up if caller.asynchronous else None,
        name="look_up",
        description="Ask another agent.",
    )


INNER = [Reply(tool_calls=[("look_up", {"query": "x"})]), Reply(text="inner"), Reply(text="outer")]


@pytest.mark.parametrize("own", [False, True], ids=["bare sub-agent", "its own middleware"])
@pytest.mark.parametrize("outer", ["middleware", "handler", "auto_attach"])
def test_a_sub_agent_in_a_tool_spends_from_the_roots_run(serve: Serve, caller: Caller, outer: str, own: bool) -> None:
    provider, watch = serve(INNER), Watch(usd=1)
    inner = create_agent(openai(provider), [], middleware=[middleware(watch)] if own else [], name="inner")
    of_root: list[Any] = [middleware(watch)] if outer == "middleware" else []
    root = create_agent(openai(provider), [asks(caller, inner)], middleware=of_root, name="root")
    if outer == "auto_attach":
        with auto_attach(watch.guard):
            answer = caller.invoke(root, USER)
    else:
        answer = caller.invoke(root, USER, watch.config if outer == "handler" else None)
    assert answer["messages"][-1].text == "outer"
    books(watch, provider, steps=3)
    assert [name for name, _ in watch.tree() if name.startswith("invoke_agent")] == [
        "invoke_agent root",
        "invoke_agent inner",
    ]


@pytest.mark.parametrize("own", [False, True], ids=["bare sub-agent", "its own middleware"])
def test_a_sub_agent_that_never_stops_ends_both(serve: Serve, caller: Caller, own: bool) -> None:
    provider, watch = serve(looping()), Watch(steps=6)
    inner = create_agent(openai(provider), [LOOK_UP], middleware=[middleware(watch)] if own else [])
    root = create_agent(openai(provider), [asks(caller, inner)], middleware=[middleware(watch)])
    with pytest.raises(BudgetExceeded, match="steps cap 6"):
        caller.invoke(root, USER)
    books(watch, provider, steps=6)


def test_a_sub_agent_under_another_guard_spends_from_both(serve: Serve, caller: Caller) -> None:
    provider, watch, other = serve(INNER), Watch(usd=1), Watch(usd=1)
    inner = create_agent(openai(provider), [], middleware=[middleware(other)])
    root = create_agent(openai(provider), [asks(caller, inner)], middleware=[middleware(watch)])
    caller.invoke(root, USER)
    books(watch, provider, steps=3)
    other.idle()
    run = other.handler.last_run
    assert (run.steps, run.spent_usd) == (1, provider.served[1].cost_usd)


def test_a_sub_agent_at_the_cap_of_its_own_guard(serve: Serve, caller: Caller) -> None:
    """Its refusal bubbles through the root's tool node; neither guard is passed, neither keeps a hold."""
    provider, watch, other = serve(looping()), Watch(steps=20), Watch(steps=2)
    inner = create_agent(openai(provider), [LOOK_UP], middleware=[middleware(other)])
    root = create_agent(openai(provider), [asks(caller, inner)], middleware=[middleware(watch)])
    with pytest.raises(BudgetExceeded, match="steps cap 2"):
        caller.invoke(root, USER)
    for one, calls in ((watch, provider.served), (other, provider.served[1:])):
        one.idle()
        assert one.handler.last_run.spent_usd == sum(call.cost_usd for call in calls)
    assert (provider.received, other.handler.last_run.steps) == (3, 2)


@pytest.mark.parametrize("which", ["inner", "outer"])
def test_two_guards_on_one_agent_both_hold(serve: Serve, caller: Caller, which: str) -> None:
    provider = serve(looping())
    first, second = Watch(steps=3 if which == "outer" else 9), Watch(steps=3 if which == "inner" else 9)
    agent = create_agent(openai(provider), [LOOK_UP], middleware=[_named(first, "A"), _named(second, "B")])
    with pytest.raises(BudgetExceeded, match="steps cap 3"):
        caller.invoke(agent, USER)
    assert provider.received == 3
    for watch in (first, second):
        watch.idle()
        assert watch.handler.last_run.spent_usd == provider.cost_usd
    # The guard further in is asked first: what the other then refuses it has admitted, and gives back all but the step.
    assert first.handler.last_run.steps == 3
    assert second.handler.last_run.steps == (4 if which == "outer" else 3)


def _named(watch: Watch, name: str) -> Any:
    """langchain wants no two middlewares of one name."""
    kind = type(f"Budget{name}", (BudgetMiddleware,), {})
    return kind(watch.guard)


def test_create_react_agent_of_langgraph(serve: Serve, caller: Caller) -> None:
    for attach in ("model", "handler"):
        provider, watch = serve(looping()), Watch(steps=4)
        model = guarded(watch, provider) if attach == "model" else openai(provider)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it moved to langchain, and says so
            agent: Any = create_react_agent(model, [LOOK_UP])
        with pytest.raises(BudgetExceeded, match="steps cap 4"):
            caller.invoke(agent, USER, watch.config if attach == "handler" else None)
        books(watch, provider, steps=4)


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_human_in_the_loop_and_a_resume(serve: Serve, caller: Caller, place: str) -> None:
    provider, watch = serve(ONE_TOOL), Watch(usd=1)
    stack: list[Any] = [HumanInTheLoopMiddleware({"look_up": True}), middleware(watch)]
    agent = create_agent(
        openai(provider), [LOOK_UP], middleware=stack if place == "last" else stack[::-1], checkpointer=InMemorySaver()
    )
    with watch.guard.run() as run:
        assert "__interrupt__" in caller.invoke(agent, USER, THREAD)
        watch.idle()
        answer = caller.invoke(agent, Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    called(answer["messages"])
    assert answer["messages"][-1].text == "done"
    books(watch, provider, steps=2, run=run)
    assert run.tool_calls == 1


def test_an_agent_that_is_approved_step_by_step_is_one_run(serve: Serve, caller: Caller) -> None:
    """And what begins anew on the thread is another."""
    provider, watch = serve(ONE_TOOL), Watch(steps=2)
    stack: list[Any] = [HumanInTheLoopMiddleware({"look_up": True}), middleware(watch)]
    agent = create_agent(openai(provider), [LOOK_UP], middleware=stack, checkpointer=InMemorySaver())
    caller.invoke(agent, USER, THREAD)
    first = watch.handler.last_run
    assert (first.steps, first.ended) == (1, False)
    answer = caller.invoke(agent, Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    assert answer["messages"][-1].text == "done"
    watch.idle()
    assert watch.handler.last_run is first
    assert (first.steps, first.tool_calls, first.ended) == (2, 1, True)
    assert first.spent_usd == provider.cost_usd
    caller.invoke(agent, USER, THREAD)
    assert watch.handler.last_run is not first
    assert provider.received == 3


@pytest.mark.parametrize("attach", ["guard_model", "handler", "auto_attach"])
def test_an_interrupt_in_a_node_replays_its_call_and_counts_it(serve: Serve, caller: Caller, attach: str) -> None:
    """langgraph runs the node again from its start: the provider is asked twice, and two calls are counted."""
    provider, watch = serve(Reply(text="ok")), Watch(usd=1)
    model = guarded(watch, provider) if attach == "guard_model" else openai(provider)

    def ask(state: MessagesState) -> dict[str, Any]:
        answer = model.invoke(state["messages"])
        interrupt("go on?")
        return {"messages": [answer]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    compiled = graph.compile(checkpointer=InMemorySaver())
    config = THREAD | (watch.config if attach == "handler" else {})

    def both() -> None:
        caller.invoke(compiled, said([HumanMessage("hi")]), config)
        caller.invoke(compiled, Command(resume="yes"), config)

    with watch.guard.run() as run:
        if attach == "auto_attach":
            with auto_attach(watch.guard):
                both()
        else:
            both()
    books(watch, provider, steps=2, run=run)
