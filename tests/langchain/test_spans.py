"""The spans of real agents: shape, strings, numbers; nothing left open, no content."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from runcap.guardrails import BudgetExceeded
from runcap.guardrails.testing import Reply

from .conftest import LOOK_UP, USER, Serve, Watch, looping, openai, said

ONE_TOOL = [Reply(tool_calls=[("look_up", {"query": "secret question"})]), Reply(text="secret answer")]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_official_shape(serve: Serve, asynchronous: bool) -> None:
    provider = serve(ONE_TOOL)
    watch = Watch(usd=1)
    agent = create_agent(openai(provider), [LOOK_UP], name="helper")
    if asynchronous:
        asyncio.run(agent.ainvoke(USER, watch.config))
    else:
        agent.invoke(USER, watch.config)
    assert watch.tree() == [
        ("invoke_agent helper", None),
        ("chat gpt-4o", "invoke_agent helper"),
        ("execute_tool look_up", "invoke_agent helper"),
        ("chat gpt-4o", "invoke_agent helper"),
    ]
    assert len({span.context.trace_id for span in watch.spans if span.context}) == 1
    kinds = {span.name: span.kind for span in watch.spans}
    assert kinds["chat gpt-4o"] is SpanKind.CLIENT
    assert kinds["execute_tool look_up"] is kinds["invoke_agent helper"] is SpanKind.INTERNAL
    watch.idle()


def test_attributes_and_totals(serve: Serve) -> None:
    provider = serve(ONE_TOOL)
    watch = Watch(usd=1, steps=9)
    agent = create_agent(openai(provider), [LOOK_UP], name="helper")
    agent.invoke(USER, watch.config | {"configurable": {"thread_id": "t-1"}})
    by_name = {span.name: dict(span.attributes or {}) for span in watch.spans}
    chats = [dict(span.attributes or {}) for span in watch.spans if span.name.startswith("chat")]
    chat, whole, used = chats[-1], by_name["invoke_agent helper"], by_name["execute_tool look_up"]
    served = provider.served[-1]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.max_tokens": 1000,
        "gen_ai.response.model": "gpt-4o",
        "gen_ai.response.id": "reply-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": served.input_tokens,
        "gen_ai.usage.output_tokens": served.output_tokens,
        "gen_ai.usage.cost.amount": float(served.cost_usd),
        "gen_ai.usage.cost.currency": "USD",
        "gen_ai.usage.cost.source": "local",
        "gen_ai.conversation.id": "t-1",
        "gen_ai.agent.name": "helper",
        "runcap.guarantee": "hard",
        "runcap.call.state": "settled",
        "runcap.step": 2,
        "runcap.budget.usd.cap": 1.0,
        "gen_ai.request.stream": False,
        "runcap.budget.steps.remaining": 7,
    }
    assert {name: chat.get(name) for name in expected} == expected
    assert used["gen_ai.operation.name"] == "execute_tool"
    assert used["gen_ai.tool.call.id"] == "call_000000000"
    assert used["gen_ai.agent.name"] == "helper"
    assert whole["gen_ai.operation.name"] == "invoke_agent"
    assert whole["runcap.total.calls"] == 2
    assert whole["runcap.total.cost_usd"] == pytest.approx(float(provider.cost_usd))
    assert "gen_ai.usage.cost.amount" not in whole
    assert sum(one["gen_ai.usage.cost.amount"] for one in chats) == pytest.approx(float(provider.cost_usd))  # type: ignore[misc]


def test_no_content_anywhere(serve: Serve) -> None:
    provider = serve(ONE_TOOL)
    watch = Watch(usd=1)
    agent = create_agent(openai(provider), [LOOK_UP], system_prompt="secret system")
    agent.invoke(said([("user", "secret prompt")]), watch.config)
    told = json.dumps([json.loads(span.to_json()) for span in watch.spans]) + repr(watch.recorder.events)
    assert "secret" not in told


def test_a_breach_is_an_error_on_the_span_with_its_numbers(serve: Serve) -> None:
    provider = serve(looping())
    watch = Watch(steps=2)
    with pytest.raises(BudgetExceeded):
        create_agent(openai(provider), [LOOK_UP], name="helper").invoke(USER, watch.config)
    whole = next(span for span in watch.spans if span.name == "invoke_agent helper")
    assert whole.status.status_code is StatusCode.ERROR
    assert whole.status.description == "BudgetExceeded"
    refused = next(event for event in whole.events if event.name == "runcap.refused")
    assert dict(refused.attributes or {}) == {
        "runcap.refused.kind": "BudgetExceeded",
        "runcap.refused.scope": "run",
        "runcap.refused.unit": "steps",
        "runcap.refused.cap": 2,
        "runcap.refused.spent": 2,
        "runcap.refused.held": 0,
        "runcap.refused.unknown": 0,
        "runcap.refused.needed": 1,
    }
    assert (whole.attributes or {})["runcap.run.stopped"] == "cap:steps"


def test_a_sub_agent_nests_under_its_tool_in_one_trace(serve: Serve) -> None:
    provider = serve([Reply(tool_calls=[("ask", {"query": "x"})]), Reply(text="inner"), Reply(text="outer")])
    watch = Watch(usd=1)
    sub_agent = create_agent(openai(provider), [], name="sub")

    @tool
    def ask(query: str) -> str:
        """Ask the sub-agent."""
        return str(sub_agent.invoke(said([("user", query)]))["messages"][-1].content)

    create_agent(openai(provider), [ask], name="boss").invoke(USER, watch.config)
    assert watch.tree() == [
        ("invoke_agent boss", None),
        ("chat gpt-4o", "invoke_agent boss"),
        ("execute_tool ask", "invoke_agent boss"),
        ("invoke_agent sub", "execute_tool ask"),
        ("chat gpt-4o", "invoke_agent sub"),
        ("chat gpt-4o", "invoke_agent boss"),
    ]
    totals = {span.name: (span.attributes or {}).get("runcap.total.calls") for span in watch.spans}
    assert (totals["invoke_agent boss"], totals["invoke_agent sub"]) == (3, 1)
    watch.idle()


def test_a_graph_inside_a_graph_is_an_agent_of_its_own(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    watch = Watch(steps=5)
    inner = create_agent(openai(provider), [], name="inner")
    graph = StateGraph(MessagesState)
    graph.add_node("first", inner)
    graph.add_edge(START, "first")
    graph.add_edge("first", END)
    graph.compile(name="outer").invoke(said([HumanMessage("hi")]), watch.config)
    assert watch.tree() == [
        ("invoke_agent outer", None),
        ("invoke_agent inner", "invoke_agent outer"),
        ("chat gpt-4o", "invoke_agent inner"),
    ]
    watch.idle()


def test_agents_live_under_the_users_own_span(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    watch = Watch(usd=1)
    tracer = watch.sink._tracer
    with tracer.start_as_current_span("request"):
        create_agent(openai(provider), [], name="helper").invoke(USER, watch.config)
        openai(provider).invoke("hi", watch.config)
    assert sorted(watch.tree(), key=str) == [
        ("chat gpt-4o", "invoke_agent helper"),
        ("chat gpt-4o", "request"),
        ("invoke_agent helper", "request"),
        ("request", None),
    ]
    assert not trace.get_current_span().is_recording()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_interrupt_is_no_error_and_logs_nothing(
    serve: Serve, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    provider = serve(Reply(text="ok"))
    watch = Watch(usd=1)
    model = openai(provider)

    def ask(state: MessagesState) -> dict[str, Any]:
        answer = model.invoke(state["messages"])
        interrupt("go on?")
        return {"messages": [answer]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    compiled = graph.compile(checkpointer=InMemorySaver(), name="asker")
    config = watch.config | {"configurable": {"thread_id": "1"}}
    start: Any = {"messages": [HumanMessage("hi")]}
    with caplog.at_level(logging.WARNING):
        if asynchronous:
            asyncio.run(compiled.ainvoke(start, config))
            asyncio.run(compiled.ainvoke(Command(resume="yes"), config))
        else:
            compiled.invoke(start, config)
            compiled.invoke(Command(resume="yes"), config)
    assert not caplog.records
    agents = [span for span in watch.spans if span.name == "invoke_agent asker"]
    assert [(span.attributes or {})["runcap.outcome"] for span in agents] == ["interrupted", "completed"]
    assert all(span.status.status_code is StatusCode.UNSET for span in watch.spans)
    watch.idle()


def test_a_hand_off_is_no_error(serve: Serve) -> None:
    provider = serve([Reply(tool_calls=[("transfer", {})]), Reply(text="done")])
    watch = Watch(usd=1)

    @tool
    def transfer(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Hand over to the other agent."""
        update = {"messages": [ToolMessage("over", tool_call_id=tool_call_id)]}
        return Command(goto="second", graph=Command.PARENT, update=update)

    graph = StateGraph(MessagesState)
    graph.add_node("first", create_agent(openai(provider), [transfer], name="first"), destinations=("second",))
    graph.add_node("second", create_agent(openai(provider), [], name="second"))
    graph.add_edge(START, "first")
    graph.compile(name="team").invoke(said([HumanMessage("hi")]), watch.config)
    outcomes = {span.name: (span.attributes or {}).get("runcap.outcome") for span in watch.spans}
    assert outcomes["invoke_agent first"] == "handoff"
    assert all(span.status.status_code is StatusCode.UNSET for span in watch.spans)
    watch.idle()


def test_an_error_names_its_type_and_never_its_text(serve: Serve) -> None:
    provider = serve(looping())
    watch = Watch(usd=1)

    @tool("look_up")
    def broken(query: str) -> str:
        """Fail."""
        raise KeyError("secret value")

    with pytest.raises(KeyError):
        create_agent(openai(provider), [broken]).invoke(USER, watch.config)
    failed = next(span for span in watch.spans if span.name == "execute_tool look_up")
    assert failed.status.description == "KeyError"
    assert "secret" not in "".join(span.to_json() for span in watch.spans)
    watch.idle()


def test_a_chain_of_an_agent_is_one_trace_under_the_agent(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    watch = Watch(usd=1)
    from langchain_core.runnables import RunnableLambda

    chain: Any = RunnableLambda(lambda text: {"messages": [("user", text)]}) | create_agent(
        openai(provider), [], name="a"
    )  # type: ignore[operator]
    chain.invoke("hi", watch.config)
    assert watch.tree() == [("invoke_agent a", None), ("chat gpt-4o", "invoke_agent a")]
    watch.idle()


def test_beside_other_handlers_nothing_of_theirs_changes(serve: Serve) -> None:
    provider = serve(ONE_TOOL)
    heard: list[str] = []

    class Other(BaseCallbackHandler):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            heard.append("start")

        def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            heard.append("end")

    watch = Watch(usd=1)
    create_agent(openai(provider), [LOOK_UP]).invoke(USER, {"callbacks": [Other(), watch.handler, Other()]})
    assert heard == ["start", "start", "end", "end"] * 2


def test_many_runs_leave_nothing(serve: Serve) -> None:
    from langchain_core.language_models import FakeListChatModel

    watch = Watch(steps=5)
    agent = create_agent(FakeListChatModel(responses=["ok"]), [])
    for _ in range(200):
        agent.invoke(USER, watch.config)
        assert watch.handler.last_run is not None
        assert not watch.handler.last_run.notes
    watch.idle()
    assert not watch.sink._live
    assert not watch.sink._calls
