"""Every way a call can end is accounted for: usage, partial streams, errors, cancellation, caches."""

from __future__ import annotations

import asyncio
import gc
import threading
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langgraph.graph import END, START, MessagesState, StateGraph

from runcap.guardrails import BudgetExceeded
from runcap.guardrails.events import CallEnded
from runcap.guardrails.testing import Reply

from .conftest import LOOK_UP, USER, Serve, Watch, claude, looping, openai, said


def ended(watch: Watch) -> CallEnded:
    return watch.recorder.of(CallEnded)[-1]


@pytest.mark.parametrize("make", [openai, claude])
@pytest.mark.parametrize("style", ["invoke", "stream", "ainvoke", "astream", "v3", "av3"])
def test_every_call_style_settles_to_the_providers_bill(serve: Serve, make: Any, style: str) -> None:
    provider = serve(Reply(text="a fine answer indeed", input_tokens=1000, cached_tokens=600, output_tokens=50))
    watch = Watch(usd=1)
    model = make(provider)

    async def stream() -> None:
        async for _ in model.astream("hi", watch.config):
            pass

    async def stream_v3() -> None:
        events = await model.astream_events("hi", watch.config, version="v3")
        async for _ in events:
            pass

    if style == "invoke":
        model.invoke("hi", watch.config)
    elif style == "stream":
        list(model.stream("hi", watch.config))
    elif style == "v3":
        list(model.stream_events("hi", watch.config, version="v3"))
    else:
        asyncio.run(
            {"ainvoke": lambda: model.ainvoke("hi", watch.config), "astream": stream, "av3": stream_v3}[style]()
        )
    assert len(provider.served) == 1
    assert watch.guard.default_run.spent_usd == provider.cost_usd
    assert watch.guard.default_run.usage.cache_read_tokens == 600
    assert ended(watch).state == "settled"
    watch.idle()


def test_n_choices_are_billed_once(serve: Serve) -> None:
    message = AIMessage("a", usage_metadata={"input_tokens": 10, "output_tokens": 8, "total_tokens": 18})
    watch = Watch(usd=1)
    call = uuid4()
    watch.handler.on_chat_model_start(
        {},
        [[HumanMessage("hi")]],
        run_id=call,
        metadata={"ls_provider": "openai"},
        invocation_params={"model": "gpt-4o", "n": 2, "max_tokens": 10},
    )
    watch.handler.on_llm_end(
        LLMResult(generations=[[ChatGeneration(message=message), ChatGeneration(message=message)]]), run_id=call
    )
    assert watch.guard.default_run.usage.total_tokens == 18


def test_a_stream_without_usage_is_charged_by_its_size_and_the_rest_is_unknown(serve: Serve) -> None:
    provider = serve(Reply(text="word " * 200, output_tokens=200, usage=False))
    watch = Watch(usd=1)
    list(openai(provider, stream_usage=False).stream("hi", watch.config))
    run = watch.guard.default_run
    end = ended(watch)
    assert end.state == "unknown"
    assert end.error_type is None
    assert end.usage is not None
    assert 200 <= end.usage.output_tokens <= 400
    assert run.unknown_usd > 0
    assert run.spent_usd is not None
    assert run.spent_usd + run.unknown_usd >= provider.cost_usd
    watch.idle()


def test_no_usage_at_all_is_charged_from_the_estimate() -> None:
    watch = Watch(steps=3)
    FakeListChatModel(responses=["four little words here"]).invoke("hi", watch.config)
    assert ended(watch).state == "unknown"
    assert watch.guard.default_run.usage.output_tokens == 11  # 22 bytes at 0.47, rounded up
    watch.idle()


@pytest.mark.parametrize("make", [openai, claude])
def test_a_stream_dropped_midway_is_charged_what_came(serve: Serve, make: Any) -> None:
    gate = threading.Event()
    provider = serve(Reply(text="word " * 400, output_tokens=400, chunk_gate=gate))
    watch = Watch(usd=1)
    for _ in make(provider).stream("hi", watch.config):
        break
    gc.collect()
    gate.set()
    run = watch.guard.default_run
    end = ended(watch)
    assert (end.state, end.error_type) == ("unknown", "GeneratorExit")
    assert end.cost_nano is not None
    assert run.unknown_usd > 0
    watch.idle()


async def test_an_abandoned_astream_of_a_graph_leaves_nothing(serve: Serve) -> None:
    provider = serve(Reply(text="word " * 400, output_tokens=400))
    watch = Watch(usd=1)
    agent = create_agent(openai(provider), [])
    stream = agent.astream(USER, watch.config, stream_mode="messages")
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    watch.idle()
    assert ended(watch).state in ("unknown", "settled")


@pytest.mark.parametrize(
    ("status", "state"), [(400, "released"), (401, "released"), (429, "released"), (500, "unknown")]
)
@pytest.mark.parametrize("make", [openai, claude])
def test_errors_of_the_provider(serve: Serve, make: Any, status: int, state: str) -> None:
    provider = serve(Reply(status=status))
    watch = Watch(usd=1)
    with pytest.raises(Exception, match=str(status)):
        make(provider).invoke("hi", watch.config)
    run = watch.guard.default_run
    assert ended(watch).state == state
    assert run.spent_usd == 0
    assert (run.unknown_usd > 0) == (state == "unknown")
    assert run.steps == 1
    watch.idle()


@pytest.mark.parametrize("make", [openai, claude])
def test_a_refused_connection_costs_nothing(serve: Serve, make: Any) -> None:
    provider = serve(Reply())
    model = make(provider)
    provider.__exit__(None, None, None)
    watch = Watch(usd=1)
    with pytest.raises(Exception, match=r"(?i)connection"):
        model.invoke("hi", watch.config)
    assert ended(watch).state == "released"
    assert watch.guard.default_run.remaining_usd == 1


def test_a_time_out_charges_the_prompt_and_holds_the_rest_as_unknown(serve: Serve) -> None:
    gate = threading.Event()
    provider = serve(Reply(text="late", gate=gate))
    watch = Watch(usd=1)
    with pytest.raises(Exception, match=r"(?i)timed out"):
        openai(provider, timeout=0.5).invoke("hi", watch.config)
    gate.set()
    run = watch.guard.default_run
    assert ended(watch).state == "unknown"
    assert run.spent_usd is not None
    assert run.spent_usd > 0
    assert run.unknown_usd > 0
    watch.idle()


def test_a_hang_up_before_the_answer_is_unknown(serve: Serve) -> None:
    provider = serve(Reply(text="never seen", hang_up="before"))
    watch = Watch(usd=1)
    with pytest.raises(Exception, match=r"(?i)connection|disconnect"):
        openai(provider).invoke("hi", watch.config)
    run = watch.guard.default_run
    assert ended(watch).state == "unknown"
    assert run.spent_usd is not None
    assert provider.cost_usd <= run.spent_usd + run.unknown_usd


async def _cancelled(task: asyncio.Task[Any], gate: threading.Event) -> None:
    while not gate.is_set():  # noqa: ASYNC110 - until the request has reached the provider's thread
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _settled() -> None:
    """Let the loop drop the cancelled call's frames."""
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()


class _Arrivals:
    """A script that tells when its first request came, and holds it."""

    def __init__(self) -> None:
        self.arrived, self.gate = threading.Event(), threading.Event()

    def __call__(self, number: int, body: Any) -> Reply:
        self.arrived.set()
        return Reply(text="late", gate=self.gate)


@pytest.mark.parametrize("kind", ["model", "agent", "graph"])
async def test_a_cancelled_call_is_reaped_by_its_task(serve: Serve, kind: str) -> None:
    script = _Arrivals()
    provider = serve(script)
    watch = Watch(usd=1)
    model = openai(provider)

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    task: asyncio.Task[Any]
    if kind == "model":
        task = asyncio.create_task(model.ainvoke("hi", watch.config))
    elif kind == "agent":
        task = asyncio.create_task(create_agent(model, []).ainvoke(USER, watch.config))
    else:
        task = asyncio.create_task(graph.compile().ainvoke(said([HumanMessage("hi")]), watch.config))
    await _cancelled(task, script.arrived)
    script.gate.set()
    watch.idle()
    run = watch.handler.last_run
    assert run is not None
    assert run.unknown_usd > 0
    assert ended(watch).error_type == "CancelledError"
    assert all(span.end_time for span in watch.spans)
    assert not any(span.status.status_code.name == "ERROR" for span in watch.spans)


async def test_forty_cancelled_agents_leave_nothing(serve: Serve) -> None:
    script = _Arrivals()
    provider = serve(script)
    watch = Watch(usd=1)
    agent = create_agent(openai(provider), [LOOK_UP])
    tasks = [asyncio.create_task(agent.ainvoke(USER, watch.config)) for _ in range(40)]
    while provider.received < 40:  # noqa: ASYNC110 - until the provider's threads have them all
        await asyncio.sleep(0.002)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    script.gate.set()
    watch.idle()
    assert len(watch.spans) == 80


async def test_a_call_timed_out_inside_a_task_that_goes_on_is_noticed(serve: Serve) -> None:
    """asyncio.timeout cancels within the task, and no hook tells: the death of the call's run id does."""
    script = _Arrivals()
    provider = serve(script)
    watch = Watch(usd=1)

    async def expire(limit: asyncio.Timeout) -> None:
        while not script.arrived.is_set():  # noqa: ASYNC110 - until the request has reached the provider's thread
            await asyncio.sleep(0.001)
        limit.reschedule(asyncio.get_running_loop().time())

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            expiry = asyncio.create_task(expire(limit))
            await openai(provider).ainvoke("hi", watch.config)
    await expiry
    script.gate.set()
    await _settled()
    watch.idle()
    assert watch.guard.default_run.unknown_usd > 0


async def test_one_task_making_many_calls_gathers_no_callbacks(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    watch = Watch(steps=1000)
    model = openai(provider)
    for _ in range(20):
        await model.ainvoke("hi", watch.config)
    task = asyncio.current_task()
    assert task is not None
    assert len(watch.guard.calls._tasks[task]) <= 1


def test_a_langchain_cache_hit_charges_nothing(serve: Serve) -> None:
    provider = serve(Reply(text="cached", output_tokens=500))
    watch = Watch(usd=1)
    set_llm_cache(InMemoryCache())
    try:
        for _ in range(3):
            openai(provider).invoke("hi", watch.config)
        FakeListChatModel(responses=["x"]).invoke("hi")  # a hit of a model without usage has no input_tokens
    finally:
        set_llm_cache(None)
    assert provider.received == 1
    assert watch.guard.default_run.spent_usd == provider.cost_usd
    assert [end.cached for end in watch.recorder.of(CallEnded)] == [False, True, True]
    watch.idle()


def test_a_cache_hit_without_usage_kills_nothing() -> None:
    watch = Watch(steps=5)
    set_llm_cache(InMemoryCache())
    model = FakeListChatModel(responses=["x", "y"])
    try:
        assert model.invoke("hi", watch.config).content == model.invoke("hi", watch.config).content
    finally:
        set_llm_cache(None)
    assert [end.state for end in watch.recorder.of(CallEnded)] == ["unknown", "released"]


async def test_text_models_are_capped_and_starve_no_other_handler() -> None:
    from langchain_core.callbacks import AsyncCallbackHandler

    heard: list[str] = []

    class Other(AsyncCallbackHandler):
        async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
            heard.append("start")

    watch = Watch(steps=2)
    model = FakeListLLM(responses=["a", "b", "c"])
    config: Any = {"callbacks": [watch.handler, Other()]}
    await model.ainvoke("hi", config)
    model.invoke("hi", watch.config)
    with pytest.raises(BudgetExceeded):
        await model.ainvoke("hi", config)
    assert heard.count("start") >= 1
    watch.idle()


def test_an_end_hook_never_raises(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provider = serve(Reply(text="paid for"))
    watch = Watch(usd=1)

    def broken(*_: object) -> None:
        raise ValueError("secret")

    monkeypatch.setattr("runcap.integrations.langchain.settling.read_response", broken)
    assert openai(provider).invoke("hi", watch.config).content == "paid for"
    assert "on_llm_end failed with ValueError" in caplog.text
    assert "secret" not in caplog.text
    assert watch.guard.default_run.unknown_usd > 0, "a call nobody settled keeps its hold, as unknown"


def test_the_second_call_of_a_loop_is_held_tightly(serve: Serve) -> None:
    """The provider's own count of the prefix replaces the byte bound: the hold nears the cost."""
    provider = serve(looping())
    watch = Watch(steps=3)
    agent = create_agent(openai(provider, max_tokens=10), [LOOK_UP])
    with pytest.raises(BudgetExceeded):
        agent.invoke(said([("user", "find it " * 2_000)]), watch.config)
    from runcap.guardrails.events import CallStarted

    held = [start.held_nano for start in watch.recorder.of(CallStarted)]
    cost = [end.cost_nano or 0 for end in watch.recorder.of(CallEnded)]
    assert held[0] > 3 * cost[0]
    assert cost[1] <= held[1] < 1.25 * cost[1]


def test_a_message_edited_in_place_is_measured_again(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    watch = Watch(usd=1)
    model = openai(provider, max_tokens=1)
    message = HumanMessage("short")
    model.invoke([message], watch.config)
    message.content = "long " * 2_000
    model.invoke([message], watch.config)
    assert provider.cost_usd <= Decimal(1)
    from runcap.guardrails.events import CallStarted

    first, second = (start.held_nano for start in watch.recorder.of(CallStarted))
    assert second > 100 * first
