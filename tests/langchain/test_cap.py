"""The cap holds through a callback alone, on the real packages, against the provider's own bill."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, ModelRetryMiddleware, ToolRetryMiddleware
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from runcap.guardrails import Budget, BudgetExceeded, Guard, UnpricedModel
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetCallbackHandler

from .conftest import LOOK_UP, USER, Serve, Watch, claude, looping, openai, said


def run_to_the_cap(agent: Any, config: Any, style: str) -> None:
    """Invoke an agent in one of the call styles until the budget ends it."""
    with pytest.raises(BudgetExceeded):
        if style == "invoke":
            agent.invoke(USER, config)
        elif style == "stream":
            for _ in agent.stream(USER, config):
                pass
        elif style == "stream messages":
            for _ in agent.stream(USER, config, stream_mode="messages"):
                pass
        elif style == "ainvoke":
            asyncio.run(agent.ainvoke(USER, config))
        else:
            asyncio.run(_astream(agent, config))


async def _astream(agent: Any, config: Any) -> None:
    async for _ in agent.astream(USER, config, stream_mode="messages"):
        pass


STYLES = ["invoke", "stream", "stream messages", "ainvoke", "astream"]


def dear_replies(seed: int) -> Callable[[int, Any], Reply]:
    """Answers of 2,500 to 7,500 tokens to a prompt of 10,000: $0.05 to $0.10 at gpt-4o's prices."""
    rng = random.Random(seed)
    return lambda number, body: Reply(text="done", input_tokens=10_000, output_tokens=rng.randint(2_500, 7_500))


@pytest.mark.parametrize("where", ["config", "constructor"])
def test_60_dear_calls_under_one_dollar(serve: Serve, where: str) -> None:
    provider = serve(dear_replies(7))
    watch = Watch(usd=1)
    prompt = "All work and no play makes Jack a dull boy. " * 1_070  # 47 kB
    model = openai(provider, max_tokens=7_500, callbacks=[watch.handler] if where == "constructor" else None)
    for _ in range(60):
        try:
            model.invoke(prompt, watch.config if where == "config" else None)
        except BudgetExceeded:
            continue
    assert Decimal("0.90") <= provider.cost_usd <= 1
    assert watch.guard.default_run.spent_usd == provider.cost_usd
    watch.idle()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("make", [openai, claude])
def test_a_looping_agent_makes_exactly_its_steps(serve: Serve, style: str, make: Any) -> None:
    provider = serve(looping())
    watch = Watch(steps=5)
    run_to_the_cap(create_agent(make(provider), [LOOK_UP]), watch.config, style)
    assert provider.received == 5
    run = watch.handler.last_run
    assert run is not None
    assert (run.steps, run.tool_calls, run.spent_usd) == (5, 5, provider.cost_usd)
    watch.idle()


@pytest.mark.parametrize("style", STYLES)
def test_a_sub_agent_spends_from_the_roots_run(serve: Serve, style: str) -> None:
    provider = serve(looping())
    watch = Watch(steps=7)
    sub_agent = create_agent(openai(provider), [LOOK_UP], name="researcher")

    @tool("look_up")
    def research(query: str) -> str:
        """Ask the researcher, who never stops."""
        return str(sub_agent.invoke(said([("user", query)]))["messages"][-1].content)

    run_to_the_cap(create_agent(openai(provider), [research], name="boss"), watch.config, style)
    assert provider.received == 7
    run = watch.handler.last_run
    assert run is not None
    assert run.spent_usd == provider.cost_usd
    watch.idle()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "middleware",
    [
        pytest.param(
            lambda model: [ModelRetryMiddleware(max_retries=4), ToolRetryMiddleware(max_retries=4)], id="retry"
        ),
        pytest.param(lambda model: [ModelFallbackMiddleware(model, model)], id="fallback"),
    ],
)
def test_retries_and_fallbacks_swallow_no_refusal(serve: Serve, style: str, middleware: Any) -> None:
    provider = serve(looping())
    watch = Watch(steps=6)
    model = openai(provider)
    run_to_the_cap(create_agent(model, [LOOK_UP], middleware=middleware(model)), watch.config, style)
    assert provider.received == 6
    watch.idle()


def test_every_attempt_of_a_retry_is_a_step(serve: Serve) -> None:
    provider = serve(Reply(status=500))
    watch = Watch(steps=3)
    retry = ModelRetryMiddleware(max_retries=9, initial_delay=0, backoff_factor=0, jitter=False)
    with pytest.raises(BudgetExceeded):
        create_agent(openai(provider), [], middleware=[retry]).invoke(USER, watch.config)
    assert provider.received == 3
    watch.idle()


def test_a_refusal_inside_a_tool_passes_the_tool_node_that_handles_errors(serve: Serve) -> None:
    provider = serve(looping())
    watch = Watch(steps=4)
    model = openai(provider)

    @tool("look_up")
    def asks_a_model(query: str) -> str:
        """Ask a model for ever."""
        while True:
            model.invoke(query)

    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.bind_tools([asks_a_model]).invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([asks_a_model], handle_tool_errors=True))
    graph.add_edge(START, "model")
    graph.add_edge("model", "tools")
    graph.add_edge("tools", "model")
    with pytest.raises(BudgetExceeded):
        graph.compile().invoke(said([HumanMessage("go")]), watch.config)
    assert provider.received == 4
    watch.idle()


def test_tool_calls_are_capped_before_they_run(serve: Serve) -> None:
    provider = serve(looping())
    watch = Watch(tool_calls=2)
    ran: list[str] = []

    @tool("look_up")
    def counted(query: str) -> str:
        """Count."""
        ran.append(query)
        return "no"

    with pytest.raises(BudgetExceeded, match="tool_calls cap 2"):
        create_agent(openai(provider), [counted]).invoke(USER, watch.config)
    assert len(ran) == 2
    watch.idle()


def test_a_hand_built_graph_with_a_fan_out_counts_every_branch(serve: Serve) -> None:
    provider = serve(Reply(text="done"))
    watch = Watch(steps=3)
    model = openai(provider)

    def ask(state: MessagesState) -> dict[str, list[AnyMessage]]:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    for name in ("one", "two", "three", "four"):
        graph.add_node(name, ask)
        graph.add_edge(START, name)
        graph.add_edge(name, END)
    with pytest.raises(BudgetExceeded):
        graph.compile().invoke(said([HumanMessage("go")]), watch.config)
    assert provider.received == 3
    watch.idle()


def test_fifty_threads_reserve_exactly_their_steps(serve: Serve) -> None:
    provider = serve(Reply(text="done"))
    watch = Watch(steps=5)
    model = openai(provider)
    barrier = threading.Barrier(50)

    def call() -> None:
        barrier.wait()
        try:
            model.invoke("hi", watch.config)
        except BudgetExceeded:
            return

    threads = [threading.Thread(target=call) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert provider.received == 5
    watch.idle()


async def test_fifty_tasks_never_pass_a_dollar_cap(serve: Serve) -> None:
    provider = serve(dear_replies(3))
    watch = Watch(usd=1)
    model = openai(provider, max_tokens=7_500)
    prompt = "All work and no play makes Jack a dull boy. " * 1_070
    results = await asyncio.gather(*(model.ainvoke(prompt, watch.config) for _ in range(50)), return_exceptions=True)
    assert 0 < provider.cost_usd <= 1
    assert provider.received == sum(not isinstance(result, Exception) for result in results)
    watch.idle()


def test_attached_twice_or_from_16_threads_counts_once(serve: Serve) -> None:
    provider = serve(Reply(text="done"))
    watch = Watch(steps=10)
    same_guard = BudgetCallbackHandler(watch.guard)
    model = openai(provider, callbacks=[watch.handler])
    model.invoke("hi", {"callbacks": [watch.handler, watch.handler, same_guard]})
    agent = create_agent(model, [])
    agent.invoke(USER, {"callbacks": [watch.handler, same_guard]})
    run = watch.guard.default_run
    assert run.steps == 1
    assert watch.handler.last_run is not None
    assert watch.handler.last_run.steps == 1
    assert watch.handler.last_run is not run
    watch.idle()


def test_one_call_told_to_16_threads_counts_once() -> None:
    watch = Watch(steps=10)
    call, barrier = uuid4(), threading.Barrier(16)

    def start() -> None:
        barrier.wait()
        watch.handler.on_chat_model_start({}, [[HumanMessage("hi")]], run_id=call, invocation_params={"model": "m"})

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watch.guard.default_run.steps == 1


def test_an_unknown_model_is_refused_before_it_is_called(serve: Serve) -> None:
    provider = serve(Reply(text="done"))
    watch = Watch(usd=1)
    with pytest.raises(UnpricedModel, match="gpt-nope"):
        openai(provider, model="gpt-nope").invoke("hi", watch.config)
    assert provider.received == 0
    watch.idle()


async def test_a_refusal_is_quiet(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """It is raised to the caller; LangChain's "Error in ..." line and unawaited coroutines would say it is a fault."""
    provider = serve(looping())
    watch = Watch(steps=1)

    class Other(AsyncCallbackHandler):
        async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            """Hear."""

    agent = create_agent(openai(provider), [LOOK_UP])
    with warnings.catch_warnings(record=True) as caught, pytest.raises(BudgetExceeded):
        warnings.simplefilter("always")
        config: Any = {"callbacks": [Other(), watch.handler, Other()]}
        async for _ in agent.astream(USER, config, stream_mode="messages"):
            pass
    gc.collect()
    assert not [str(one.message) for one in caught]
    assert not caplog.records
    watch.idle()


@pytest.mark.parametrize("wrong", ["0.50", None, 3])
def test_a_handler_of_no_budget_says_so(wrong: Any) -> None:
    with pytest.raises(TypeError, match="needs a Budget or a Guard"):
        BudgetCallbackHandler(wrong)


def test_the_other_attach_form_takes_a_bare_budget(serve: Serve) -> None:
    provider: ScriptedProvider = serve(Reply(text="done"))
    handler = BudgetCallbackHandler(Budget(steps=1))
    assert isinstance(handler.guard, Guard)
    openai(provider).invoke("hi", {"callbacks": [handler]})
    assert handler.last_run is not None
    assert handler.last_run.spent_usd == provider.cost_usd
