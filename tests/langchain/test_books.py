"""Ways an adversarial reading found out of the books: calls charged wrongly, lost, or told to the wrong run."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult
from langchain_core.tools import tool

from runcap.guardrails import (
    Budget,
    BudgetExceeded,
    CallEnded,
    CallStarted,
    Guard,
    PriceBook,
    RunStopped,
)
from runcap.guardrails.testing import Reply
from runcap.integrations.langchain import BudgetCallbackHandler

from .conftest import LOOK_UP, USER, Serve, Watch, looping, openai, said


def test_a_price_of_ones_own_stands_for_the_dated_name_too(serve: Serve) -> None:
    provider = serve(Reply(input_tokens=100, output_tokens=100, model="gpt-4o-2024-08-06"))
    book = PriceBook({"gpt-4o": {"input": "10", "output": "40"}})
    guard = Guard(Budget(usd=1), prices=book, sinks=())
    openai(provider).invoke("hi", {"callbacks": [BudgetCallbackHandler(guard)]})
    assert guard.default_run.spent_usd == Decimal("0.005")


def test_a_time_out_in_a_fallback_is_not_taken_for_the_first_models_refused_connection(serve: Serve) -> None:
    down = serve(Reply())
    primary = openai(down)
    down.__exit__(None, None, None)
    provider = serve(Reply(output_tokens=100, hang_up="before"))
    watch = Watch(usd=1)
    with pytest.raises(Exception, match=r"(?i)connection|disconnect"):
        try:
            primary.invoke("hi", watch.config)
        except Exception:  # noqa: BLE001 - as hand-written fallbacks do
            openai(provider).invoke("hi", watch.config)
    assert [end.state for end in watch.recorder.of(CallEnded)] == ["released", "unknown"]


def _told(watch: Watch, message: AIMessage, *, prompt: Any = "hi", provider: str = "anthropic") -> UUID:
    """Tell the handler of one call that ended with this message."""
    call = uuid4()
    model = "claude-sonnet-5" if provider == "anthropic" else "gpt-4o"
    watch.handler.on_chat_model_start(
        {"kwargs": {"max_retries": 0}},
        [[HumanMessage(prompt)]],
        run_id=call,
        metadata={"ls_provider": provider},
        invocation_params={"model": model, "max_tokens": 100},
    )
    watch.handler.on_llm_end(LLMResult(generations=[[ChatGeneration(message=message)]]), run_id=call)
    return call


def test_a_stream_that_reports_output_alone_is_charged_for_its_prompt() -> None:
    watch = Watch(usd=1)
    usage: Any = {"input_tokens": 0, "output_tokens": 10, "total_tokens": 10}
    _told(watch, AIMessageChunk(content="ok", usage_metadata=usage), prompt="word " * 2_000)
    end = watch.recorder.of(CallEnded)[0]
    assert end.state == "unknown"
    assert end.usage is not None
    assert (end.usage.input_tokens > 2_000, end.usage.output_tokens) == (True, 10)


@pytest.mark.parametrize(
    ("details", "one_hour"), [({}, 900), ({"ephemeral_5m_input_tokens": 900, "cache_creation": 0}, 0)]
)
def test_one_hour_writes_are_inferred_from_the_request_where_the_answer_does_not_say(
    details: Any, one_hour: int
) -> None:
    watch = Watch(usd=1)
    block = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    usage: Any = {"input_tokens": 1000, "output_tokens": 5, "total_tokens": 1005}
    usage["input_token_details"] = {"cache_creation": 900} | details
    _told(watch, AIMessage("ok", usage_metadata=usage), prompt=[block])
    assert watch.guard.default_run.usage.cache_write_1h_tokens == one_hour


@pytest.mark.parametrize(
    ("asked", "served", "cost"), [("priority", "default", "0.0025"), ("flex", "default", "0.0025")]
)
def test_a_call_is_charged_at_the_tier_it_was_served_at(asked: str, served: str, cost: str) -> None:
    watch = Watch(usd=1)
    usage: Any = {"input_tokens": 1000, "output_tokens": 0, "total_tokens": 1000}
    message = AIMessage("", usage_metadata=usage, response_metadata={"service_tier": served})
    call = uuid4()
    params = {"model": "gpt-4o", "max_tokens": 100, "service_tier": asked}
    start = watch.handler.on_chat_model_start
    start({}, [[HumanMessage("hi")]], run_id=call, metadata={"ls_provider": "openai"}, invocation_params=params)
    watch.handler.on_llm_end(LLMResult(generations=[[ChatGeneration(message=message)]]), run_id=call)
    assert watch.guard.default_run.spent_usd == Decimal(cost)


def test_text_models_report_their_usage_beside_the_answer() -> None:
    watch = Watch(usd=1)
    call = uuid4()
    params = {"model": "gpt-3.5-turbo-instruct", "max_tokens": 10}
    watch.handler.on_llm_start({}, ["hi"], run_id=call, metadata={"ls_provider": "openai"}, invocation_params=params)
    told = {"token_usage": {"prompt_tokens": 5, "completion_tokens": 7}}
    watch.handler.on_llm_end(LLMResult(generations=[[Generation(text="ok")]], llm_output=told), run_id=call)
    assert watch.guard.default_run.usage.total_tokens == 12


def test_a_run_made_inside_a_tool_spends_from_the_agent_around_it(serve: Serve) -> None:
    provider = serve(looping())
    watch = Watch(steps=5)
    model = openai(provider)

    @tool("look_up")
    def inner(query: str) -> str:
        """Ask a model for ever, in a run of its own."""
        with watch.guard.run(task="inner"):
            while True:
                model.invoke(query, watch.config)

    with pytest.raises(BudgetExceeded):
        create_agent(model, [inner]).invoke(USER, watch.config)
    assert provider.received == 5
    watch.idle()


async def test_a_stream_read_by_one_task_a_chunk_is_not_reaped(serve: Serve) -> None:
    provider = serve(Reply(text="word " * 50, output_tokens=50))
    watch = Watch(usd=1)
    stream = openai(provider).astream("hi", watch.config)
    while True:
        try:
            await asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        except StopAsyncIteration:
            break
    assert [end.state for end in watch.recorder.of(CallEnded)] == ["settled"]
    assert watch.guard.default_run.spent_usd == provider.cost_usd
    assert watch.guard.default_run.usage.output_tokens == 50


def test_a_loop_closed_under_its_calls_leaves_no_hold() -> None:
    watch = Watch(usd=1)
    kept: list[Any] = []

    async def call() -> None:
        kept.append(uuid4())
        watch.handler.on_chat_model_start(
            {},
            [[HumanMessage("hi")]],
            run_id=kept[0],
            metadata={"ls_provider": "openai"},
            invocation_params={"model": "gpt-4o", "max_tokens": 10},
        )
        await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    task = loop.create_task(call())
    loop.call_later(0, loop.stop)
    loop.run_forever()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    assert watch.guard.default_run.held_usd == 0
    assert watch.guard.default_run.unknown_usd > 0
    gc.collect()


def test_a_call_that_another_guard_refuses_charges_nothing(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    team, own = Watch(usd=1), Watch(steps=1)
    config: Any = {"callbacks": [team.handler, own.handler]}
    openai(provider).invoke("hi", config)
    for _ in range(3):
        with pytest.raises(BudgetExceeded):
            openai(provider).invoke("hi", config)
    assert team.guard.default_run.spent_usd == provider.cost_usd
    assert team.guard.default_run.unknown_usd == 0
    team.idle()


def test_a_default_run_that_was_ended_is_followed_by_another(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    watch = Watch(steps=2)
    openai(provider).invoke("hi", watch.config)
    first = watch.handler.last_run
    first.end()
    openai(provider).invoke("hi", watch.config)
    assert watch.handler.last_run is not first
    assert (first.steps, watch.handler.last_run.steps) == (1, 1)


def test_a_run_stopped_by_its_cap_says_so_once(serve: Serve) -> None:
    provider = serve(looping())
    watch = Watch(steps=2)
    with watch.guard.run() as run:
        for _ in range(2):
            with pytest.raises(BudgetExceeded):
                create_agent(openai(provider), [LOOK_UP]).invoke(said([("user", "x")]), watch.config)
    assert [(event.run.id, event.reason) for event in watch.recorder.of(RunStopped)] == [(run.id, "cap:steps")]


def test_a_run_id_given_twice_is_two_calls(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    watch = Watch(steps=5)
    config = watch.config | {"run_id": uuid4()}
    for _ in range(2):
        again: Any = dict(config)
        openai(provider).invoke("hi", again)
    assert watch.guard.default_run.steps == len(watch.recorder.of(CallStarted)) == 2


@pytest.mark.parametrize(("finish", "state"), [({}, "unknown"), ({"finish_reason": "stop"}, "settled")])
def test_usage_of_a_stream_cut_off_midway_is_not_its_whole_bill(finish: Any, state: str) -> None:
    """Some providers report running totals with every chunk."""
    watch = Watch(usd=1)
    call = uuid4()
    watch.handler.on_chat_model_start(
        {},
        [[HumanMessage("hi")]],
        run_id=call,
        metadata={"ls_provider": "openai"},
        invocation_params={"model": "gpt-4o", "max_tokens": 100},
    )
    usage: Any = {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110}
    message = AIMessageChunk(content="so far", usage_metadata=usage, response_metadata=finish)
    result = LLMResult(generations=[[ChatGeneration(message=message)]])
    watch.handler.on_llm_error(GeneratorExit(), run_id=call, response=result)
    end = watch.recorder.of(CallEnded)[0]
    assert (end.state, end.cost_usd) == (state, Decimal("0.00035"))
    assert (end.unknown_nano > 0) == (state == "unknown")


def test_a_run_made_in_a_tool_outside_any_agent_is_a_run_of_its_own(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    watch = Watch(steps=1)

    @tool
    def alone(query: str) -> str:
        """Ask in a run of its own."""
        with watch.guard.run() as run:
            openai(provider).invoke(query, watch.config)
            assert run.parent is None
        return "done"

    for _ in range(2):
        assert alone.invoke({"query": "x"}, watch.config) == "done"


def test_handlers_come_and_go_without_a_trace() -> None:
    guard = Guard(Budget(steps=1), sinks=())
    for _ in range(50):
        BudgetCallbackHandler(guard)
    gc.collect()
    BudgetCallbackHandler(guard)
    gc.collect()
    assert len(guard._locators) <= 2


def test_deployments_are_priced_by_the_name_in_the_answer_where_no_price_is_needed(serve: Serve) -> None:
    provider = serve(Reply(input_tokens=1000, output_tokens=0, text="x", model="gpt-4o-2024-08-06"))
    watch = Watch(steps=5)
    openai(provider, model="my-deployment").invoke("hi", watch.config)
    assert watch.guard.default_run.spent_usd == Decimal("0.0025")


def test_partial_usage_never_hides_what_was_seen() -> None:
    watch = Watch(usd=1)
    call = uuid4()
    params = {"model": "gpt-4o", "max_tokens": 1000}
    start = watch.handler.on_chat_model_start
    start({}, [[HumanMessage("hi")]], run_id=call, metadata={"ls_provider": "openai"}, invocation_params=params)
    watch.handler.on_llm_new_token("word " * 200, run_id=call)
    usage: Any = {"input_tokens": 20, "output_tokens": 1, "total_tokens": 21}
    message = AIMessageChunk(content="so far", usage_metadata=usage)
    result = LLMResult(generations=[[ChatGeneration(message=message)]])
    watch.handler.on_llm_error(GeneratorExit(), run_id=call, response=result)
    assert watch.guard.default_run.usage.output_tokens == 300


async def test_a_refusal_inside_another_handlers_hook_leaves_the_outer_call_alone(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    watch = Watch(steps=1)
    watch.guard.admit_tool("t")
    heard: list[str] = []

    class Audit(AsyncCallbackHandler):
        async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            heard.append("audit")

    class Moderation(BaseCallbackHandler):
        run_inline = True

        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            for _ in range(2):
                try:
                    openai(provider).invoke("is this fine?", watch.config)
                except BudgetExceeded:
                    heard.append("refused")

    answer = await openai(provider).ainvoke("hi", {"callbacks": [Audit(), Moderation(), Audit()]})
    assert answer.content == "ok"
    assert heard == ["refused", "audit", "audit"]


def test_threads_with_loops_of_their_own_share_a_handler() -> None:
    """Weak collections that grew while another thread walked them raised RuntimeError into the call."""
    watch = Watch(steps=10**6)
    model = FakeListChatModel(responses=["x"])
    switch = sys.getswitchinterval()
    failed: list[BaseException] = []

    def work() -> None:
        for _ in range(15):
            try:
                asyncio.run(model.ainvoke("hi", watch.config))
            except Exception as error:  # noqa: BLE001 - whatever it is
                failed.append(error)

    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert not failed
