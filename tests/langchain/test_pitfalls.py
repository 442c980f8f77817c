"""Pitfalls met while trying a hard ceiling on the real packages, each with its number in reference/langchain.md.

6 and 7, and whatever else clients, providers and callers do to a call, are in test_pitfalls_clients.py.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import threading
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)

from runcap.guardrails import BudgetBusy, BudgetExceeded, CallStarted, RunStarted
from runcap.guardrails.inflight import calls_around
from runcap.guardrails.testing import Reply
from runcap.integrations.langchain import BudgetMiddleware, auto_attach, guard_model

from .conftest import LOOK_UP, USER, Serve, looping, said
from .test_pitfalls_clients import (
    LIMIT,
    Guarded,
    Held,
    Own,
    claude,
    openai,
    own_clients,  # noqa: F401 - a fixture for all tests here
    read,
    until,
    within,
)

MAKES = pytest.mark.parametrize("make", [openai, claude])


# 1: one inline handler starves all others of async on_llm_start


async def test_pitfall_01_the_hook_starves_no_other_handler_of_a_text_model() -> None:
    heard: list[str] = []

    class Other(AsyncCallbackHandler):
        async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
            heard.append("start")

    watch, model = Guarded(steps=2), FakeListLLM(responses=["a"])
    async with auto_attach(watch.guard):
        for _ in range(2):
            await model.ainvoke("hi", {"callbacks": [Other()]})
        with pytest.raises(BudgetExceeded):
            await model.ainvoke("hi", {"callbacks": [Other()]})
    assert heard[:2] == ["start", "start"]


# 2: cache hits


@pytest.mark.parametrize("style", ["invoke", "ainvoke"])
def test_pitfall_02_a_cache_hit_of_a_guarded_model_is_no_call(serve: Serve, style: str) -> None:
    provider = serve(Reply(text="cached", output_tokens=500))
    watch = Guarded(usd=1, steps=1)
    set_llm_cache(InMemoryCache())
    try:
        for _ in range(3):
            watch.call(openai(provider), style)
    finally:
        set_llm_cache(None)
    assert (provider.received, watch.guard.default_run.steps) == (1, 1)
    assert watch.guard.default_run.spent_usd == provider.cost_usd
    watch.clean(provider)


# 3: _stream and _astream are given no run_manager


@MAKES
@pytest.mark.parametrize("style", ["invoke", "ainvoke", "stream", "astream", "v3", "av3"])
async def test_pitfall_03_the_run_named_in_metadata_is_found(serve: Serve, make: Any, style: str) -> None:
    provider = serve(Reply(text="a fine answer", output_tokens=20))
    watch = Guarded(usd=1)
    model = watch.model(make(provider))
    config: Any = {"metadata": {"runcap": {"run_id": "job-7", "user": "ada"}}}
    if style == "invoke":
        model.invoke("hi", config)
    elif style == "ainvoke":
        await model.ainvoke("hi", config)
    elif style == "stream":
        list(model.stream("hi", config))
    elif style == "astream":
        async for _ in model.astream("hi", config):
            pass
    elif style == "v3":
        list(model.stream_events("hi", config, version="v3"))
    else:
        async for _ in await model.astream_events("hi", config, version="v3"):
            pass
    run = watch.guard.named_run("job-7")
    assert run.tags == {"user": "ada"}
    assert (run.steps, run.spent_usd) == (1, provider.cost_usd)
    assert [started.run.id for started in watch.recorder.of(CallStarted)] == ["job-7"]
    watch.clean(provider)


async def test_pitfall_03_two_streams_read_in_turns_keep_their_runs(serve: Serve) -> None:
    provider = serve(Reply(text="word " * 20, output_tokens=20))
    watch = Guarded(usd=1)
    model = watch.model(openai(provider))

    def config(name: str) -> Any:
        return {"metadata": {"runcap": {"run_id": name}}}

    one, other = model.astream("hi", config("one")), model.astream("hi", config("other"))
    await anext(one), await anext(other)
    for stream in (one, other):
        async for _ in stream:
            pass
    runs = [watch.guard.named_run(name) for name in ("one", "other")]
    assert [run.steps for run in runs] == [1, 1]
    assert sum(run.spent_usd or 0 for run in runs) == provider.cost_usd
    watch.clean()


@pytest.mark.parametrize("attach", ["middleware", "model and handler", "model and auto_attach"])
@pytest.mark.parametrize("style", ["invoke", "ainvoke", "stream", "astream"])
async def test_pitfall_03_in_an_agent_the_agents_run_is_found(serve: Serve, attach: str, style: str) -> None:
    provider = serve(looping())
    watch = Guarded(usd=1, steps=3)
    config: Any = {"metadata": {"runcap": {"user": "ada"}}}
    if attach == "middleware":
        agent: Any = create_agent(openai(provider), [LOOK_UP], middleware=[BudgetMiddleware(watch.guard)])
    else:
        agent = create_agent(watch.model(openai(provider)), [LOOK_UP])
    if attach == "model and handler":
        config["callbacks"] = [watch.handler]

    async def run() -> None:
        if style == "invoke":
            agent.invoke(USER, config)
        elif style == "ainvoke":
            await agent.ainvoke(USER, config)
        elif style == "stream":  # tokens: the model's _stream is read, without a run manager
            list(agent.stream(USER, config, stream_mode="messages"))
        else:
            async for _ in agent.astream(USER, config, stream_mode="messages"):
                pass

    for _ in range(2):  # each invocation a run of its own
        with pytest.raises(BudgetExceeded):
            if attach == "model and auto_attach":
                async with auto_attach(watch.guard):
                    await run()
            else:
                await run()
    assert provider.received == 6
    runs = watch.recorder.of(RunStarted)
    assert [started.run.tags for started in runs] == [{"user": "ada"}] * 2
    assert len({started.run.id for started in watch.recorder.of(CallStarted)}) == 2
    watch.clean()


# 4: configurable_fields rebuilds the model from its class


def test_pitfall_04_a_model_rebuilt_by_configurable_fields_is_guarded(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    watch = Guarded(steps=4)
    field = ConfigurableField(id="temperature")
    bare = openai(provider, temperature=0.0)
    for model in (
        watch.model(bare).configurable_fields(temperature=field),
        watch.model(bare.configurable_fields(temperature=field)),
        watch.model(bare.configurable_fields(temperature=field).with_config(configurable={"temperature": 0.7})),
    ):
        model.invoke("hi", {"configurable": {"temperature": 0.5}})
    watch.model(bare).configurable_fields(temperature=field).invoke("hi")
    assert watch.guard.default_run.steps == provider.received == 4
    with pytest.raises(BudgetExceeded):
        model.invoke("hi", {"configurable": {"temperature": 0.9}})
    assert provider.received == 4
    watch.clean()


# 5: core's with_fallbacks catches everything


@pytest.mark.parametrize("style", ["invoke", "stream", "ainvoke", "astream"])
@pytest.mark.parametrize("order", ["guard the whole", "guard each"])
async def test_pitfall_05_every_member_of_fallbacks_is_guarded(serve: Serve, style: str, order: str) -> None:
    down, up = serve(Reply(status=500)), serve(Reply(text="ok"))
    watch = Guarded(usd=1, steps=3)
    first, second = openai(down), claude(up)
    if order == "guard the whole":
        model = watch.model(first.with_fallbacks([second]))
    else:
        model = watch.model(first).with_fallbacks([watch.model(second)])

    async def ask() -> Any:
        if style in ("invoke", "stream"):
            return model.invoke("hi") if style == "invoke" else list(model.stream("hi"))
        return await (model.ainvoke("hi") if style == "ainvoke" else read(model))

    await ask()
    for _ in range(3):
        with pytest.raises(Exception, match=r"500|budget"):
            await ask()
    assert (down.received, up.received, watch.guard.default_run.steps) == (2, 1, 3)
    watch.clean()


# 8: a cyclic, abandoned stream is collected anywhere


@pytest.mark.parametrize("inside", ["ledger", "queue", "books"])
def test_pitfall_08_a_stream_collected_inside_a_lock_is_booked_and_hangs_nothing(serve: Serve, inside: str) -> None:
    gate = threading.Event()
    provider = serve(Reply(text="word " * 100, output_tokens=100, chunk_gate=gate))
    watch = Guarded(usd=1)
    run = watch.guard.default_run
    model = watch.model(openai(provider))

    def abandon() -> None:
        box: list[Any] = [model.stream("hi")]
        next(box[0])
        box.append(box)

    def collect() -> None:
        gc.disable()
        try:
            abandon()
            assert len(watch.guard.calls) == 1
            if inside == "ledger":
                watch.guard.ledger._locked(gc.collect)  # type: ignore[attr-defined]
            else:
                with watch.guard.room._lock if inside == "queue" else run._tally._counting:
                    gc.collect()
        finally:
            gc.enable()
        gate.set()

    within(collect)
    assert watch.ends == ["unknown"]
    assert run.unknown_usd > 0
    watch.clean()
    model.invoke("hi")
    watch.clean()


# 9: a call made inside the loop over a stream of the same model


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("max_tokens", "answered"), [(1000, True), (200, False)])
def test_pitfall_09_a_call_inside_a_stream_does_not_wait_for_its_hold(
    serve: Serve, asynchronous: bool, max_tokens: int, answered: bool
) -> None:
    """The stream holds nearly all: the call inside is clamped to what is left, or refused as busy, at once."""
    provider = serve(Reply(text="word " * 10, output_tokens=10))
    watch = Guarded(usd="0.0145" if answered else "0.003")
    model = watch.model(openai(provider, max_tokens=max_tokens))
    model.invoke("what an answer is likely to cost")
    outcomes: list[str] = []

    def ask() -> None:
        for _ in model.stream("outer"):
            if not outcomes:
                try:
                    model.invoke("inner")
                    outcomes.append("answered")
                except BudgetBusy:
                    outcomes.append("busy")

    async def aask() -> None:
        async for _ in model.astream("outer"):
            if not outcomes:
                try:
                    await model.ainvoke("inner")
                    outcomes.append("answered")
                except BudgetBusy:
                    outcomes.append("busy")

    within((lambda: asyncio.run(aask())) if asynchronous else ask)
    assert outcomes == ["answered" if answered else "busy"]
    assert [started.clamped for started in watch.recorder.of(CallStarted)] == [False, False, True][
        : 3 if answered else 2
    ]
    assert watch.guard.default_run.stopped is None
    watch.clean(provider)


async def test_pitfall_09_the_mark_of_an_abandoned_stream_does_not_stick(serve: Serve) -> None:
    """Once the stream is closed, a call made after it waits for what others hold like any other call."""
    script = Held()
    streams, provider = serve(Reply(text="word " * 10, output_tokens=10)), serve(script)
    watch = Guarded(usd="0.0205")
    stream = watch.model(openai(streams)).astream("hi")
    async for _ in stream:
        break
    assert len(calls_around()) == 1
    await stream.aclose()
    assert calls_around() == ()
    watch.guard.default_run.top_up(usd=watch.guard.default_run.unknown_usd)
    model = watch.model(openai(provider))
    first = asyncio.create_task(model.ainvoke("hi"))
    await until(script.arrived.is_set)
    second = asyncio.create_task(model.ainvoke("hi", max_tokens=1900))
    await until(lambda: len(watch.guard.room) == 1)
    script.gate.set()
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(first, second)
    assert watch.recorder.of(CallStarted)[-1].clamped is False


# 10: a model that calls another guarded model


class Router(Own):
    """Asks another model."""

    inner: Any

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        answer = AIMessage(self.inner.invoke(messages).content)
        return ChatResult(generations=[ChatGeneration(message=answer)])

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        answer = AIMessage((await self.inner.ainvoke(messages)).content)
        return ChatResult(generations=[ChatGeneration(message=answer)])


@pytest.mark.parametrize("style", ["invoke", "ainvoke"])
@pytest.mark.parametrize("depth", [1, 3])
def test_pitfall_10_the_model_inside_a_router_is_guarded_too(serve: Serve, style: str, depth: int) -> None:
    provider = serve(Reply(text="ok"))
    watch = Guarded(steps=2 * (depth + 1) - 1)
    model = watch.model(openai(provider))
    for _ in range(depth):
        model = watch.model(Router(inner=model))
    watch.call(model, style)
    with pytest.raises(BudgetExceeded):
        watch.call(model, style)
    assert provider.received == 1
    assert watch.guard.default_run.steps == 2 * (depth + 1) - 1
    watch.clean()


# 11: a loop closed without cancelling its tasks


class Stuck(Own):
    """Answers threads; keeps tasks waiting for ever, without a socket."""

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        await asyncio.Event().wait()


def test_pitfall_11_holds_and_waiters_of_a_closed_loop_are_passed_over() -> None:
    watch = Guarded(usd="0.0025")
    model = watch.model(Stuck())
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(model.ainvoke("hi")) for _ in range(4)]

    def look() -> None:
        everyone = len(watch.guard.room) + len(watch.guard.calls) == 4
        (loop.stop if everyone else lambda: loop.call_soon(look))()

    loop.call_soon(look)
    loop.run_forever()
    assert len(watch.guard.room) > 0
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    watch.guard.default_run.top_up(usd="0.01")
    watch.cap = Decimal("0.0125")
    assert within(lambda: model.invoke("hi")).content == "ok"
    assert set(watch.ends) == {"unknown"}
    watch.clean()
    tasks.clear()
    del task
    gc.collect()
    watch.clean()


# 12: the first price costs a second, and lazy state is shared by threads

_COLD = """
import json, sys, threading
from langchain_openai import ChatOpenAI
from runcap.guardrails import Budget, Guard
from runcap.integrations.langchain import guard_model
guard = Guard(Budget(usd=1, steps=100), sinks=())
bare = ChatOpenAI(model="gpt-4o", base_url=sys.argv[1], api_key="none", max_tokens=10)
priced = {name for name in sys.modules if name.startswith("genai_prices")}
failed, start = [], threading.Barrier(100)
sys.setswitchinterval(1e-5)
def work():
    start.wait()
    try:
        guard_model(bare, guard).invoke("hi")
    except BaseException as error:
        failed.append(repr(error))
threads = [threading.Thread(target=work) for _ in range(100)]
for thread in threads: thread.start()
for thread in threads: thread.join()
late = sorted({name for name in sys.modules if name.startswith("genai_prices")} - priced)
run = guard.default_run
print(json.dumps([failed[:3], late, run.steps, str(run.spent_usd), str(run.unknown_usd), len(priced) > 0]))
"""


def _python(code: str, *args: str) -> Any:
    # openai builds its answers' classes on first use, where 100 cold threads race, guard or no guard: build them early.
    ran = subprocess.run(
        [sys.executable, "-c", code, *args],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "DEFER_PYDANTIC_BUILD": "false"},
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_pitfall_12_100_cold_threads_all_work_and_find_the_prices_loaded(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    failed, late, steps, spent, unknown, loaded = _python(_COLD, provider.openai_url)
    assert (failed, late, loaded) == ([], [], True)
    assert (steps, provider.received) == (100, 100)
    assert (Decimal(spent), Decimal(unknown)) == (provider.cost_usd, Decimal(0))


# 13: langchain-openai shares its default async client


def test_pitfall_13_a_guarded_model_makes_no_connections_of_its_own(serve: Serve) -> None:
    """Whatever holds of the bare model's client, which loops it may be used on and who closes it, goes on to hold."""
    provider = serve(Reply(text="ok"))
    watch = Guarded(usd=1)
    for bare in (openai(provider, max_retries=2), claude(provider, max_retries=2)):
        model = watch.model(bare)
        model.invoke("hi")
        asyncio.run(model.ainvoke("hi"))
        for name in (
            ("root_client", "root_async_client") if hasattr(bare, "root_client") else ("_client", "_async_client")
        ):
            assert getattr(model, name)._client is getattr(bare, name)._client
    watch.clean(provider)


# 14: ChatAnthropic always sends max_tokens


@pytest.mark.parametrize("style", ["invoke", "stream", "ainvoke", "astream", "agent", "aagent"])
def test_pitfall_14_claude_s_default_output_cap_is_lowered_to_what_is_affordable(serve: Serve, style: str) -> None:
    sent: list[int] = []

    def script(number: int, body: Any) -> Reply:
        sent.append(body["max_tokens"])
        return Reply(output_tokens=1_000_000)

    provider = serve(script)
    watch = Guarded(usd="0.05")
    bare = claude(provider, max_tokens=None)
    assert bare.max_tokens is not None
    assert bare.max_tokens >= 64_000
    watch.call(bare, style)
    assert 4_900 <= sent[0] <= 5_000, "five cents, at ten dollars a million"
    assert Decimal("0.049") <= provider.cost_usd <= Decimal("0.05")
    assert watch.handler.last_run.spent_usd == provider.cost_usd
    watch.clean(provider)


# 15: what may be handed to guard_model

FIELD = ConfigurableField(id="which")
PROMPT: Any = ChatPromptTemplate.from_messages([("user", "{it}")])


GIVEN: dict[str, Any] = {
    "model": lambda bare: bare,
    "bind": lambda bare: bare.bind(stop=["x"]),
    "bind_tools": lambda bare: bare.bind_tools([LOOK_UP]),
    "bound twice": lambda bare: bare.bind_tools([LOOK_UP]).bind(stop=["x"]).with_config(tags=["t"]),
    "with_retry": lambda bare: bare.with_retry(retry_if_exception_type=(ValueError,)),
    "with_fallbacks": lambda bare: bare.with_fallbacks([bare]),
    "bound fallbacks": lambda bare: bare.with_fallbacks([bare.bind(stop=["x"])]).with_config(tags=["t"]),
    "chain": lambda bare: PROMPT | bare | StrOutputParser(),
    "chain of chains": lambda bare: PROMPT | (bare.bind(stop=["x"]) | StrOutputParser()),
    "configurable": lambda bare: bare.configurable_fields(temperature=FIELD),
    "alternatives": lambda bare: bare.configurable_alternatives(FIELD, other=bare),
    "structured": lambda bare: bare.with_structured_output({"title": "it", "type": "object", "properties": {}}),
}


@pytest.mark.parametrize("what", GIVEN)
def test_pitfall_15_what_a_model_was_bound_into_is_guarded(serve: Serve, what: str) -> None:
    provider = serve(Reply(text='{"a": 1}'))
    watch = Guarded(steps=1)
    given = GIVEN[what](openai(provider))
    asked: Any = {"it": "hi"} if what.startswith("chain") else "hi"
    guarded = watch.model(given)
    assert isinstance(guarded, type(given))
    guarded.invoke(asked)
    with pytest.raises(BudgetExceeded):
        guarded.invoke(asked)
    given.invoke(asked)
    assert provider.received == 2, "what was given stays as it is"
    assert watch.guard.default_run.steps == 1


def _fails(_: object) -> None:
    raise ValueError


_FAILS: Any = RunnableLambda(_fails)


HIDDEN: dict[str, Any] = {
    "mapping": lambda bare: {"it": bare} | PROMPT | bare,
    "assign": lambda bare: RunnablePassthrough.assign(it=RunnableLambda(str) | bare) | PROMPT | bare,
    "branch": lambda bare: RunnableBranch((lambda _: True, bare), bare) | StrOutputParser() | bare,
    "map": lambda bare: RunnableLambda(lambda it: [it]) | bare.map() | RunnableLambda(str) | bare,
    "fallback of a function": lambda bare: _FAILS.with_fallbacks([bare]) | StrOutputParser() | bare,
    "retry": lambda bare: bare.with_retry() | StrOutputParser() | bare,
    "raw and structured": lambda bare: bare.with_structured_output(
        {"title": "it", "type": "object", "properties": {}}, include_raw=True
    ),
    "alternative made when it is asked for": lambda bare: bare.configurable_alternatives(FIELD, other=lambda: bare),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_pitfall_15_no_model_in_it_is_passed_over_in_silence(serve: Serve, what: str) -> None:
    """Every model in it is guarded, or all of it is refused."""
    provider = serve(Reply(text='{"a": 1}'))
    watch = Guarded(steps=100)
    given = HIDDEN[what](openai(provider))
    config: Any = {"configurable": {"which": "other"}}
    asked: Any = {"it": "hi"} if what == "assign" else "hi"
    given.invoke(asked, config)
    sent = provider.received
    try:
        guarded = watch.model(given)
    except TypeError as error:
        assert "guard_model needs" in str(error)  # noqa: PT017 - either is well
        return
    guarded.invoke(asked, config)
    assert watch.guard.default_run.steps == provider.received - sent == sent


@pytest.mark.parametrize(
    "given",
    [
        None,
        "openai:gpt-4o",
        Own,
        FakeListLLM(responses=["a"]),
        RunnableLambda(str),
        RunnableParallel(a=RunnableLambda(str)),
        PROMPT,
        PROMPT | StrOutputParser(),
        init_chat_model(configurable_fields=("model",)),
        RunnableLambda(str).with_fallbacks([RunnableLambda(str)]),
        RunnableLambda(str).bind(a=1),
    ],
    ids=lambda given: type(given).__name__,
)
def test_pitfall_15_anything_else_is_one_clear_type_error(given: Any) -> None:
    with pytest.raises(TypeError, match=r"guard_model needs a chat model, or a binding or chain of one; got \w+\. "):
        Guarded(steps=1).model(given)


def test_pitfall_15_a_guard_that_is_none_says_so() -> None:
    with pytest.raises(TypeError, match="guard_model needs a Budget or a Guard"):
        guard_model(Own(), "0.50")  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["pickle", "copy", "model_copy", "guarded twice"])
def test_pitfall_15_copies_of_a_guarded_claude_are_guarded(serve: Serve, how: str) -> None:
    provider = serve(Reply(text="ok"))
    watch = Guarded(usd=1, steps=2)
    model = watch.model(claude(provider))
    if how != "pickle":
        model.invoke("hi")  # clients that were made already
    copies: dict[str, Any] = {
        "pickle": lambda: pickle.loads(pickle.dumps(model)),
        "copy": lambda: copy.copy(model),
        "model_copy": lambda: model.model_copy(update={"temperature": 0.5}),
        "guarded twice": lambda: watch.model(model),
    }
    other = copies[how]()
    assert type(other).__name__ == "ChatAnthropic"
    for _ in range(2 - provider.received):
        assert other.invoke("hi").content == "ok"
    with pytest.raises(BudgetExceeded):
        other.invoke("hi")
    assert (provider.received, watch.guard.default_run.steps) == (2, 2)
    watch.clean(provider)


# 16: a span is live while its call is


@pytest.mark.parametrize("style", ["invoke", "stream"])
def test_pitfall_16_one_live_span_a_call(serve: Serve, style: str) -> None:
    script = Held()
    provider = serve(script)
    watch = Guarded(usd=1)
    thread = threading.Thread(target=lambda: watch.call(openai(provider), style))
    thread.start()
    assert script.arrived.wait(LIMIT)
    assert (watch.sink.open_spans, watch.spans) == (1, [])
    script.gate.set()
    thread.join(LIMIT)
    assert [span.name for span in watch.spans] == ["chat gpt-4o"]
    watch.clean(provider)


# 17: nothing grows with the history


@pytest.mark.parametrize("attach", ["guarded model", "middleware"])
def test_pitfall_17_only_new_messages_are_measured(serve: Serve, monkeypatch: pytest.MonkeyPatch, attach: str) -> None:
    from runcap.integrations.langchain import messages

    provider = serve(looping())
    measured: list[object] = []
    measure: Any = messages.__dict__["measure"]

    def counting(message: object) -> object:
        measured.append(message)
        return measure(message)

    monkeypatch.setattr(messages, "measure", counting)
    work: list[list[int]] = []
    for length in (10, 400):
        watch = Guarded(steps=4)
        history = [HumanMessage(f"message {number}") for number in range(length)]
        bare = openai(provider)
        if attach == "middleware":
            agent: Any = create_agent(bare, [LOOK_UP], middleware=[BudgetMiddleware(watch.guard)])
        else:
            agent = create_agent(watch.model(bare), [LOOK_UP])
        steps: list[int] = []
        emit = watch.guard.emit

        def noted(event: Any, steps: list[int] = steps, emit: Any = emit) -> None:
            if isinstance(event, CallStarted):
                steps.append(len(measured))
            emit(event)

        monkeypatch.setattr(watch.guard, "emit", noted)
        with pytest.raises(BudgetExceeded):
            agent.invoke(said(list(history)))
        work.append([later - before for before, later in pairwise(steps)])
    assert work[0] == work[1]
    assert max(work[1]) <= 4, "the answer and what the tool said, each looked at twice at the most"


# 18: a configure hook is counted among the handlers of every manager

_IMPORTED = """
import json
import os
from langchain_core.callbacks import CallbackManager, BaseCallbackHandler
import runcap.integrations.langchain as integration
from runcap.guardrails import Budget, Guard
def handlers():
    mine = CallbackManager(handlers=[BaseCallbackHandler()])
    return [len(CallbackManager.configure(given).handlers) for given in (None, [BaseCallbackHandler()], mine)]
seen = [handlers()]
guard = Guard(Budget(steps=1), sinks=())
integration.BudgetCallbackHandler(guard)
seen.append(handlers())
with integration.auto_attach(guard):
    seen.append(handlers())
seen.append(handlers())
integration.BudgetMiddleware(guard)
seen.append(handlers())
print(json.dumps(seen))
"""


def test_pitfall_18_importing_runcap_adds_no_handler_anywhere() -> None:
    none, attached = [0, 1, 1], [1, 2, 2]
    assert _python(_IMPORTED) == [none, none, attached, none, attached]
