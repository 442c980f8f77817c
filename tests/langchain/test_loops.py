"""Agents that repeat themselves: what is told of it, what is halted, and what is left behind."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ToolErrorMiddleware, ToolRetryMiddleware
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from runcap.exporters import LogSink
from runcap.guardrails import BudgetExceeded, Guard, Loop, LoopHalted, LoopPolicy, LoopWarned, RunStopped
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetCallbackHandler, BudgetMiddleware
from runcap.integrations.langchain.toolloops import digest

from .conftest import LOOK_UP, USER, Serve, Watch, openai, said

THREAD: dict[str, Any] = {"configurable": {"thread_id": "1"}}
REPEAT = Loop("repeat", 3, 1, ("look_up",))


class Loops(Watch):
    """A `Watch` of a guard that looks for loops, attached in either way."""

    def __init__(self, policy: LoopPolicy, *, middleware: bool = True, **budget: Any) -> None:
        super().__init__(**(budget or {"steps": 50}))
        self.log = io.StringIO()
        sinks = (self.sink, self.recorder, LogSink(stream=self.log, format="logfmt"))
        self.guard = Guard(self.guard.budget, loops=policy, sinks=sinks)
        self.handler = BudgetCallbackHandler(self.guard)
        self.middleware = BudgetMiddleware(self.guard) if middleware else None

    def agent(self, provider: ScriptedProvider, tools: Sequence[BaseTool] = (LOOK_UP,), *more: Any, **kw: Any) -> Any:
        own = [self.middleware] if self.middleware else []
        # Asynchronous clients keep their connections for longer than the loop they belong to.
        model = openai(provider, default_headers={"Connection": "close"})
        agent: Any = create_agent(model, list(tools), middleware=[*own, *more], **kw)
        return agent if self.middleware else agent.with_config(self.config)

    @property
    def found(self) -> list[tuple[Loop, bool]]:
        return [(event.loop, event.halted) for event in self.recorder.of(LoopWarned)]


@pytest.fixture(params=["middleware", "handler"])
def attached(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "middleware")


def asking(*calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Reply]:
    """A turn for each, then the end."""
    return [*(Reply(tool_calls=turn) for turn in calls), Reply(text="done")]


def look_up(query: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [("look_up", {"query": query})]


FOR_EVER = Reply(tool_calls=look_up("secret"))


def unanswered(agent: Any) -> int:
    messages = agent.get_state(THREAD).values["messages"]
    asked = [call["id"] for message in messages for call in getattr(message, "tool_calls", ())]
    answered = [message.tool_call_id for message in messages if isinstance(message, ToolMessage)]
    assert len(answered) == len(set(answered))
    return len(set(asked) - set(answered))


def test_a_repeated_call_warns_once(serve: Serve, invoke: Any, attached: bool) -> None:
    provider, watch = serve(asking(*[look_up("secret")] * 5)), Loops(LoopPolicy(), middleware=attached)
    assert invoke(watch.agent(provider, name="helper"))["messages"][-1].text == "done"
    assert watch.found == [(REPEAT, False)]
    assert watch.handler.last_run.tool_calls == 5
    whole = next(span for span in watch.spans if span.name == "invoke_agent helper")
    (event,) = [event for event in whole.events if event.name == "runcap.loop"]
    assert dict(event.attributes or {}) == {
        "runcap.loop.kind": "repeat",
        "runcap.loop.times": 3,
        "runcap.loop.period": 1,
        "runcap.loop.tools": ("look_up",),
        "runcap.loop.halted": False,
    }
    assert "event=loop" in watch.log.getvalue()
    watch.idle()


def test_a_halted_loop_leaves_no_call_unanswered(serve: Serve, invoke: Any) -> None:
    provider, watch = serve(FOR_EVER), Loops(LoopPolicy(halt=5))
    ran: list[str] = []
    agent = watch.agent(provider, [counting(ran)], checkpointer=InMemorySaver())
    with pytest.raises(LoopHalted, match=r"^loop: look_up called 5 times with the same arguments \(run "):
        invoke(agent, USER, THREAD)
    assert (len(ran), provider.received) == (4, 5)
    assert watch.handler.last_run.tool_calls == 4
    assert watch.found == [(REPEAT, False), (Loop("repeat", 5, 1, ("look_up",)), True)]
    assert len(watch.recorder.of(RunStopped)) == 1
    assert unanswered(agent) == 0
    last = agent.get_state(THREAD).values["messages"][-1]
    assert (last.status, last.text) == ("error", "Not done: calls repeat themselves; the run was halted as a loop.")
    watch.idle()


def test_the_others_of_a_halted_turn_are_answered_too(serve: Serve, invoke: Any) -> None:
    turn = look_up("x") * 6
    provider, watch = serve(Reply(tool_calls=turn)), Loops(LoopPolicy(halt=3))
    ran: list[str] = []
    agent = watch.agent(provider, [counting(ran)], checkpointer=InMemorySaver())
    with pytest.raises(LoopHalted):
        invoke(agent, USER, THREAD)
    assert len(ran) <= 2  # fewer where the third is asked for before the first has begun
    assert unanswered(agent) == 0
    assert [halted for _, halted in watch.found] == [True]
    watch.idle()


def test_a_handler_alone_halts_too(serve: Serve, invoke: Any) -> None:
    provider, watch = serve(FOR_EVER), Loops(LoopPolicy(halt=4), middleware=False)
    ran: list[str] = []
    with pytest.raises(LoopHalted, match="look_up called 4 times"):
        invoke(watch.agent(provider, [counting(ran)], ToolErrorMiddleware(lambda error, request: "failed")))
    assert (len(ran), provider.received) == (3, 4)
    assert [halted for _, halted in watch.found] == [False, True]
    watch.idle()


def test_a_graph_of_ones_own_is_halted(serve: Serve, invoke: Any) -> None:
    provider, watch = serve(FOR_EVER), Loops(LoopPolicy(halt=3), middleware=False)
    model = openai(provider).bind_tools([LOOK_UP])

    def think(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    def after(state: MessagesState) -> str:
        return "tools" if getattr(state["messages"][-1], "tool_calls", None) else END

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode([LOOK_UP], handle_tool_errors=True))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", after)
    graph.add_edge("tools", "think")
    with pytest.raises(LoopHalted):
        invoke(graph.compile(), USER, watch.config)
    assert provider.received == 3
    watch.idle()


def test_other_arguments_are_no_loop_be_it_by_a_blank(serve: Serve, attached: bool) -> None:
    queries = ["x", "x ", " x", "x", "x\n", "X"]
    provider, watch = serve(asking(*map(look_up, queries))), Loops(LoopPolicy(warn=2), middleware=attached)
    watch.agent(provider).invoke(USER)
    assert watch.found == []


def test_the_order_of_arguments_is_no_difference(serve: Serve, attached: bool) -> None:
    turns: Any = [[("add", dict(pairs))] for pairs in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)])]
    provider, watch = serve(asking(*turns)), Loops(LoopPolicy(warn=2), middleware=attached)
    watch.agent(provider, [add]).invoke(USER)
    assert watch.found == [(Loop("repeat", 2, 1, ("add",)), False)]


def test_exempt_tools_may_repeat(serve: Serve, attached: bool) -> None:
    policy = LoopPolicy(warn=2, halt=3, exempt=["look_up"])
    provider, watch = serve(asking(*[look_up("x")] * 6)), Loops(policy, middleware=attached)
    assert watch.agent(provider).invoke(USER)["messages"][-1].text == "done"
    assert watch.found == []


def test_calls_that_take_turns(serve: Serve, attached: bool) -> None:
    turn: Any = [look_up("x"), [("add", {"a": 1, "b": 2})], look_up("y")]
    provider, watch = serve(asking(*turn * 4)), Loops(LoopPolicy(halt=4), middleware=attached)
    with pytest.raises(LoopHalted, match="look_up -> add -> look_up called 4 times over"):
        watch.agent(provider, [LOOK_UP, add]).invoke(USER)
    names = ("look_up", "add", "look_up")
    assert watch.found == [(Loop("cycle", 3, 3, names), False), (Loop("cycle", 4, 3, names), True)]


def different(number: int, body: Any) -> Reply:
    return Reply(tool_calls=look_up(f"try {number}"))


@pytest.mark.parametrize("how", ["raised", "returned"])
def test_the_same_error_again(serve: Serve, invoke: Any, attached: bool, how: str) -> None:
    provider, watch = serve(different), Loops(LoopPolicy(halt=4), middleware=attached)
    others = [ToolErrorMiddleware(lambda error, request: "failed")] if how == "raised" else []
    with pytest.raises(LoopHalted, match="look_up failed 4 times with the same error"):
        invoke(watch.agent(provider, [failing(handled=how == "returned")], *others))
    assert watch.found == [(Loop("error", times, 1, ("look_up",)), times == 4) for times in (3, 4)]
    assert provider.received == 4
    watch.idle()


def test_a_tool_that_there_is_not_fails_alike(serve: Serve) -> None:
    provider = serve(lambda number, body: Reply(tool_calls=[("look", {"query": f"try {number}"})]))
    watch = Loops(LoopPolicy(halt=3))
    with pytest.raises(LoopHalted, match="look failed 3 times with the same error"):
        watch.agent(provider).invoke(USER)
    assert provider.received == 3


@pytest.mark.parametrize("first", [True, False])
def test_attempts_of_a_retry_are_one_call_and_one_failure(serve: Serve, attached: bool, first: bool) -> None:
    retry = ToolRetryMiddleware(max_retries=3, initial_delay=0, jitter=False, on_failure="continue")
    provider, watch = serve(asking(look_up("x"), look_up("y"))), Loops(LoopPolicy(warn=2), middleware=attached)
    watch.middleware, own = (None, [watch.middleware]) if watch.middleware else (None, [])
    stack: list[Any] = [*own, retry] if first else [retry, *own]
    agent: Any = create_agent(openai(provider), [failing(handled=False)], middleware=stack)
    agent.invoke(USER, None if own else watch.config)
    assert watch.found == [(Loop("error", 2, 1, ("look_up",)), False)]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_parallel_sub_agents_that_do_the_same_are_no_loop(serve: Serve, attached: bool, asynchronous: bool) -> None:
    inner = serve(lambda number, body: answer_after(2, body))
    outer = serve(asking([("delegate", {"task": f"{number}"}) for number in range(4)]))
    watch = Loops(LoopPolicy(halt=3), middleware=attached)

    def delegate(task: str) -> str:
        """Have it done."""
        return str(watch.agent(inner).invoke(said([("user", task)]))["messages"][-1].text)

    async def adelegate(task: str) -> str:
        """Have it done."""
        return str((await watch.agent(inner).ainvoke(said([("user", task)])))["messages"][-1].text)

    agent = watch.agent(outer, [StructuredTool.from_function(delegate, adelegate)])
    answer = asyncio.run(agent.ainvoke(USER)) if asynchronous else agent.invoke(USER)
    assert answer["messages"][-1].text == "done"
    assert watch.handler.last_run.tool_calls == 4 + 4 * 2
    assert watch.found == []
    watch.idle()


def answer_after(turns: int, body: Mapping[str, Any]) -> Reply:
    asked = sum(message["role"] == "assistant" for message in body["messages"])
    return Reply(text="done") if asked == turns else Reply(tool_calls=look_up("x"))


def test_a_top_up_gives_the_agent_another_chance(serve: Serve) -> None:
    provider, watch = serve(FOR_EVER), Loops(LoopPolicy(halt=3))
    agent = watch.agent(provider, checkpointer=InMemorySaver())
    with watch.guard.run() as run:
        for received in (3, 6):
            with pytest.raises(LoopHalted):
                agent.invoke(USER, THREAD)
            assert (provider.received, unanswered(agent)) == (received, 0)
            with pytest.raises(LoopHalted):
                agent.invoke(USER, THREAD)
            assert provider.received == received
            run.top_up(steps=1)


def test_a_cap_still_says_that_it_is_one(serve: Serve) -> None:
    provider, watch = serve(FOR_EVER), Loops(LoopPolicy(halt=9), tool_calls=2)
    with pytest.raises(BudgetExceeded, match="tool_calls cap 2"):
        watch.agent(provider).invoke(USER)


def test_no_content_anywhere(serve: Serve, attached: bool) -> None:
    provider, watch = serve(FOR_EVER), Loops(LoopPolicy(halt=3), middleware=attached)
    with pytest.raises(LoopHalted) as caught:
        watch.agent(provider, [failing(handled=True)]).invoke(said([("user", "secret prompt")]))
    told = json.dumps([json.loads(span.to_json()) for span in watch.spans])
    told += repr(watch.recorder.events) + watch.log.getvalue() + str(caught.value)
    assert "runcap.loop" in told
    assert "secret" not in told


def test_without_a_policy_nothing_is_looked_at(serve: Serve) -> None:
    provider, watch = serve(asking(*[look_up("x")] * 6)), Watch(steps=50)
    agent: Any = create_agent(openai(provider), [LOOK_UP], middleware=[BudgetMiddleware(watch.guard)])
    agent.invoke(USER)
    assert watch.recorder.of(LoopWarned) == []


def test_digests() -> None:
    assert digest({"a": 1, "b": [2, {"c": 3, "d": 4}]}) == digest({"b": [2, {"d": 4, "c": 3}], "a": 1})
    assert len({digest({"a": value}) for value in (1, 1.0, "1", True, None, "1 ", [1], "\ud800")}) == 8
    whole: list[Any] = []
    whole.append(whole)
    assert digest(whole) == digest(whole)
    assert digest({1: "a", "b": 2}) == digest({1: "a", "b": 2})
    thing = object()
    assert digest({"a": thing}) == digest({"a": thing}) != digest({"a": object()})


def counting(ran: list[str]) -> BaseTool:
    def look_up(query: str) -> str:
        """Look something up."""
        ran.append(query)
        return "nothing"

    return StructuredTool.from_function(look_up)


def failing(*, handled: bool) -> BaseTool:
    def look_up(query: str) -> str:
        """Look something up."""
        raise ToolException("secret failure")

    return StructuredTool.from_function(look_up, handle_tool_error=handled)


@tool
def add(a: int, b: int) -> int:
    """Add."""
    return a + b
