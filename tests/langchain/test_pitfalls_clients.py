"""What clients, providers and callers do to a guarded model's calls: retries, refusals, time-outs, cancellation, exits.

After each: nothing open, held or waiting, and the books cover the provider's own bill. The numbers are those of
"Pitfalls met while trying the hard ceiling".
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import lru_cache
from importlib import import_module
from typing import Any

import openai as sdk
import pytest
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI

from runcap.guardrails import BudgetExceeded, CallEnded, CallStarted, Guard
from runcap.guardrails.budget import Budget
from runcap.guardrails.inflight import calls_around
from runcap.guardrails.testing import ManualClock, Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetCallbackHandler, BudgetMiddleware, guard_model
from runcap.integrations.langchain.clients import take_over_retries

from . import conftest
from .conftest import USER, Serve, Watch


@pytest.fixture(autouse=True)
def own_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages share their async clients by URL in caches of 128, beyond the loops they were used on (13)."""
    for name in (
        "langchain_openai.chat_models._client_utils._cached_async_httpx_client",
        "langchain_anthropic.chat_models._get_default_async_httpx_client",
    ):
        module, _, function = name.rpartition(".")
        monkeypatch.setattr(name, lru_cache(getattr(import_module(module), function).__wrapped__))


def openai(provider: ScriptedProvider, **more: Any) -> ChatOpenAI:
    return conftest.openai(provider, default_headers={"Connection": "close"}, **more)


def claude(provider: ScriptedProvider, **more: Any) -> ChatAnthropic:
    return conftest.claude(provider, default_headers={"Connection": "close"}, **more)


MAKES = pytest.mark.parametrize("make", [openai, claude])
STYLES = pytest.mark.parametrize("style", ["invoke", "stream", "ainvoke", "astream", "agent", "aagent"])
LIMIT = 20
"""Seconds after which a test has hung."""


class Guarded(Watch):
    """A guard on a clock of its own, so that no retry sleeps, with everything it tells."""

    def __init__(self, *sinks: Callable[[Any], None], **budget: Any) -> None:
        super().__init__(**budget)
        self.clock = ManualClock()
        self.guard = Guard(Budget(**budget), sinks=(*sinks, self.sink, self.recorder), clock=self.clock)
        self.handler = BudgetCallbackHandler(self.guard)
        self.cap = Decimal(budget["usd"]) if "usd" in budget else None

    def model(self, bare: Any) -> Any:
        return guard_model(bare, self.guard)

    def call(self, bare: Any, style: str) -> None:
        """Make one call, through a guarded model or in an agent with the middleware."""
        asked: Any = {
            "invoke": lambda: self.model(bare).invoke("hi"),
            "stream": lambda: list(self.model(bare).stream("hi")),
            "ainvoke": lambda: asyncio.run(self.model(bare).ainvoke("hi")),
            "astream": lambda: asyncio.run(read(self.model(bare))),
            "agent": lambda: self.agent(bare).invoke(USER),
            "aagent": lambda: asyncio.run(self.agent(bare).ainvoke(USER)),
        }
        asked[style]()

    def agent(self, bare: Any) -> Any:
        return create_agent(bare, [], middleware=[BudgetMiddleware(self.guard)])

    @property
    def ends(self) -> list[str]:
        return [end.state for end in self.recorder.of(CallEnded)]

    def clean(self, provider: ScriptedProvider | None = None) -> None:
        """Nothing is open, held or waiting, and what was billed is spent or unknown, within the cap."""
        self.idle()
        assert len(self.guard.room) == 0
        run = self.handler.last_run
        assert (run.balance.held.nano, run.balance.in_flight) == (0, 0)
        assert len(self.recorder.of(CallStarted)) == len(self.recorder.of(CallEnded))
        assert run.spent_usd is not None
        if self.cap is not None:
            assert run.spent_usd + run.unknown_usd <= self.cap
        if provider is not None:
            assert provider.cost_usd <= run.spent_usd + run.unknown_usd


async def read(model: Any, prompt: str = "hi") -> list[Any]:
    return [chunk async for chunk in model.astream(prompt)]


def within(work: Callable[[], Any]) -> Any:
    """Do it on a thread of its own; a hang is a failure."""
    done: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive(), "it hangs"
    if failed:
        raise failed[0]
    return done[0]


async def until(true: Callable[[], bool]) -> None:
    """Let the loop run until it is so: what it waits for happens on the provider's threads."""
    async with asyncio.timeout(LIMIT):
        while not true():  # noqa: ASYNC110 - threads set no asyncio events
            await asyncio.sleep(0.001)


# 6: the SDKs' own retries


@MAKES
@STYLES
def test_pitfall_06_default_retries_are_permits_and_steps(serve: Serve, make: Any, style: str) -> None:
    """With the client's own retries, one permit would cover three attempts."""
    provider = serve(Reply(status=503))
    watch = Guarded(usd="0.05")
    with pytest.raises(Exception, match="503"):
        watch.call(make(provider, max_retries=2), style)
    run = watch.handler.last_run
    assert provider.received == run.steps == len(watch.recorder.of(CallStarted)) == 3
    assert watch.ends == ["unknown"] * 3
    watch.clean(provider)


@MAKES
@pytest.mark.parametrize("style", ["invoke", "ainvoke"])
def test_pitfall_06_no_number_of_lost_answers_passes_the_cap(serve: Serve, make: Any, style: str) -> None:
    provider = serve(Reply(output_tokens=1000, input_tokens=10, hang_up="before"))
    watch = Guarded(usd="0.05")
    model = make(provider, max_retries=2)
    for _ in range(7):
        with pytest.raises(Exception, match=r"(?i)connection|disconnect|budget"):
            watch.call(model, style)
    assert provider.cost_usd <= Decimal("0.05")
    assert provider.received == watch.guard.default_run.steps
    assert provider.received >= 4
    watch.clean(provider)


@MAKES
@pytest.mark.parametrize("style", ["invoke", "ainvoke"])
def test_pitfall_06_a_time_out_is_tried_again_as_a_call_of_its_own(serve: Serve, make: Any, style: str) -> None:
    gate = threading.Event()
    provider = serve([Reply(output_tokens=1000, gate=gate), Reply(text="at last")])
    watch = Guarded(usd="0.05")
    try:
        watch.call(make(provider, max_retries=1, timeout=1.0), style)
    finally:
        gate.set()
    assert (provider.received, watch.guard.default_run.steps) == (2, 2)
    assert watch.ends == ["unknown", "settled"]
    watch.clean()


@MAKES
def test_pitfall_06_a_copy_of_a_guarded_model_keeps_no_client_that_retries(serve: Serve, make: Any) -> None:
    provider = serve(Reply(status=500))
    watch = Guarded(steps=20)
    guarded = watch.model(make(provider, max_retries=2))
    for model, attempts in ((guarded, 3), (guarded.model_copy(update={"max_retries": 1}), 2)):
        before = provider.received
        with pytest.raises(Exception, match="500"):
            model.invoke("hi")
        assert provider.received - before == attempts
        assert watch.guard.default_run.steps == provider.received


@MAKES
def test_pitfall_06_the_bare_model_retries_as_before(serve: Serve, make: Any) -> None:
    provider = serve(Reply(text="ok"))
    bare = make(provider, max_retries=2)
    Guarded(usd=1).model(bare).invoke("hi")
    client = bare.root_client if make is openai else bare._client
    assert client.max_retries == 2


@pytest.mark.parametrize("style", ["invoke", "stream"])
def test_pitfall_06_a_client_given_to_the_model_is_taken_over_or_the_call_is_not_hard(serve: Serve, style: str) -> None:
    provider = serve(Reply(status=503))
    watch = Guarded(usd=1)
    client = sdk.OpenAI(base_url=provider.openai_url, api_key="none", max_retries=2)
    with pytest.raises(Exception, match="503"):
        watch.call(openai(provider, client=client.chat.completions), style)
    started = watch.recorder.of(CallStarted)
    assert started[0].guarantee == "expected" or provider.received == len(started)


class Interleaved(sdk.OpenAI):
    """Lets another thread work while its completions are asked for, once its retries are off."""

    meanwhile: Callable[[], object] | None = None

    @property
    def chat(self) -> Any:
        meanwhile, kind = type(self).meanwhile, type(self)
        if self.max_retries == 0 and meanwhile is not None:
            kind.meanwhile = None
            meanwhile()
        return super().chat


def test_pitfall_06_a_thread_that_comes_while_retries_are_taken_over_does_not_retry_unseen(serve: Serve) -> None:
    provider = serve(Reply(status=503))
    watch = Guarded(usd=1)
    bare = openai(provider, max_retries=2)
    bare.root_client = Interleaved(base_url=provider.openai_url, api_key="none", max_retries=2)
    bare.client = bare.root_client.chat.completions
    model = watch.model(bare)

    def ask() -> None:
        with pytest.raises(Exception, match="503"):
            model.invoke("hi")

    Interleaved.meanwhile = lambda: within(ask)
    ask()
    assert provider.received == watch.guard.default_run.steps == 6


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("package", "name", "settings", "retries"),
    [
        ("langchain_google_genai", "ChatGoogleGenerativeAI", {"model": "gemini-2.5-flash"}, None),
        ("langchain_openrouter", "ChatOpenRouter", {"model": "openai/gpt-4o"}, None),
        ("langchain_mistralai", "ChatMistralAI", {"model": "mistral-small"}, None),
        ("langchain_groq", "ChatGroq", {"model": "llama-3.3-70b-versatile", "max_retries": 4}, 4),
    ],
)
def test_pitfall_06_clients_of_other_packages_are_known_for_what_they_are(
    package: str, name: str, settings: Any, retries: int | None, asynchronous: bool
) -> None:
    """They are also kept in a field named `client`; of some there is no async one."""
    model = Guarded(steps=1).model(getattr(import_module(package), name)(api_key="none", **settings))
    assert take_over_retries(model, asynchronous=asynchronous) in (None, retries)


@MAKES
@pytest.mark.parametrize("asynchronous", [False, True])
def test_pitfall_06_a_429_waits_as_told_and_is_charged_once(serve: Serve, make: Any, asynchronous: bool) -> None:
    provider = serve([Reply(status=429), Reply(text="ok", output_tokens=50)])
    watch = Guarded(usd=1)
    bare = make(provider, max_retries=2)

    def told(response: Any) -> None:
        response.headers["retry-after"] = "7"

    async def atold(response: Any) -> None:
        told(response)

    clients = ("root_client", "root_async_client") if make is openai else ("_client", "_async_client")
    getattr(bare, clients[asynchronous])._client.event_hooks = {"response": [atold if asynchronous else told]}
    before = watch.clock.monotonic()
    watch.call(bare, "ainvoke" if asynchronous else "invoke")
    assert watch.clock.monotonic() - before == 7
    assert watch.ends == ["released", "settled"]
    assert watch.guard.default_run.spent_usd == provider.cost_usd
    assert watch.guard.default_run.unknown_usd == 0
    watch.clean(provider)


@MAKES
@STYLES
def test_pitfall_06_a_retry_that_does_not_fit_is_refused(serve: Serve, make: Any, style: str) -> None:
    provider = serve(Reply(status=500))
    watch = Guarded(usd=1, steps=2)
    with pytest.raises(BudgetExceeded) as refused:
        watch.call(make(provider, max_retries=5), style)
    assert provider.received == 2
    assert "500" in str(refused.value.__cause__), "it says what was being tried again"
    watch.clean(provider)


# 7: what was never billed


@MAKES
@STYLES
@pytest.mark.parametrize("status", [400, 429])
def test_pitfall_07_refusals_of_the_provider_are_released(serve: Serve, make: Any, style: str, status: int) -> None:
    provider = serve(Reply(status=status))
    watch = Guarded(usd=1)
    with pytest.raises(Exception, match=str(status)):
        watch.call(make(provider), style)
    assert watch.ends == ["released"]
    assert watch.handler.last_run.balance.spent.nano == watch.handler.last_run.unknown_usd == 0
    watch.clean(provider)


@MAKES
@STYLES
def test_pitfall_07_refused_connections_leave_the_whole_dollar(serve: Serve, make: Any, style: str) -> None:
    provider = serve(Reply())
    bare = make(provider, max_retries=6)
    provider.__exit__(None, None, None)
    watch = Guarded(usd=1)
    with pytest.raises(Exception, match=r"(?i)connection"):
        watch.call(bare, style)
    assert watch.ends == ["released"] * 7
    assert watch.handler.last_run.remaining_usd == 1
    watch.clean()


# What may have been billed


@MAKES
@STYLES
@pytest.mark.parametrize("how", ["failed", "timed out"])
def test_what_may_have_been_billed_is_unknown(serve: Serve, make: Any, style: str, how: str) -> None:
    gate = threading.Event()
    provider = serve(Reply(status=503) if how == "failed" else Reply(output_tokens=100, gate=gate))
    watch = Guarded(usd=1)
    with pytest.raises(Exception, match=r"(?i)503|timed out"):
        watch.call(make(provider, timeout=1.0 if how == "timed out" else 10), style)
    gate.set()
    run = watch.handler.last_run
    assert watch.ends == ["unknown"]
    assert run.unknown_usd > 0
    assert (run.balance.spent.nano == 0) == (how == "failed")
    watch.clean(provider)


@MAKES
@pytest.mark.parametrize("style", ["stream", "astream"])
@pytest.mark.parametrize("how", ["cut off", "stalled"])
def test_a_stream_that_breaks_midway_is_charged_what_came_and_not_tried_again(
    serve: Serve, make: Any, style: str, how: str
) -> None:
    gate = threading.Event()
    stalled = how == "stalled"
    provider = serve(
        Reply(text="word " * 100, output_tokens=100, chunk_gate=gate if stalled else None, hang_up="middle")
    )
    watch = Guarded(usd=1)
    bare = make(provider, max_retries=2, timeout=1.0 if stalled else 10)
    if stalled:
        with pytest.raises(Exception, match=r"(?i)^$|timed out") as timed_out:
            watch.call(bare, style)
        gate.set()
        assert "Timeout" in timed_out.type.__name__
    else:
        watch.call(bare, style)  # to both clients, a connection that closes is the end of a stream
        watch.clean(provider)
    assert (provider.received, watch.ends) == (1, ["unknown"])
    watch.clean()


# Callers that go away


class Held:
    """A script that holds its first answer back until it is let go, and says that the request has come."""

    def __init__(self, reply: Reply | None = None) -> None:
        self.arrived, self.gate = threading.Event(), threading.Event()
        self.reply = reply

    def __call__(self, number: int, body: Any) -> Reply:
        self.arrived.set()
        if self.reply is not None:
            return self.reply
        return Reply(text="late", gate=self.gate) if number == 0 else Reply(text="ok")


@MAKES
@pytest.mark.parametrize("agent", [False, True])
async def test_a_call_cancelled_in_its_queue_leaves_it(serve: Serve, make: Any, agent: bool) -> None:
    script = Held()
    provider = serve(script)
    watch = Guarded(usd="0.012")
    with watch.guard.run() as run:
        model = watch.model(make(provider))
        other: Any = watch.agent(make(provider)) if agent else model
        first = asyncio.create_task(model.ainvoke("hi"))
        await until(script.arrived.is_set)
        waiting = [asyncio.create_task(other.ainvoke(USER if agent else "hi")) for _ in range(3)]
        await until(lambda: len(watch.guard.room) == 3)
        for task in waiting[:2]:
            task.cancel()
        assert [type(one) for one in await asyncio.gather(*waiting[:2], return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 2
        assert len(watch.guard.room) == 1
        script.gate.set()
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(first, waiting[2])
        assert (provider.received, run.steps) == (2, 2)
        assert run.spent_usd == provider.cost_usd
        watch.clean(provider)


@MAKES
@pytest.mark.parametrize("agent", [False, True])
async def test_a_call_cancelled_in_flight_is_unknown(serve: Serve, make: Any, agent: bool) -> None:
    script = Held()
    provider = serve(script)
    watch = Guarded(usd=1)
    called: Any = watch.agent(make(provider)) if agent else watch.model(make(provider))
    task = asyncio.create_task(called.ainvoke(USER if agent else "hi"))
    await until(script.arrived.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert watch.ends == ["unknown"]
    assert watch.handler.last_run.unknown_usd > 0
    script.gate.set()
    await until(lambda: len(provider.served) == 1)
    watch.clean(provider)


@MAKES
async def test_a_stream_cancelled_midway_is_charged_what_came(serve: Serve, make: Any) -> None:
    gate = threading.Event()
    provider = serve(Reply(text="word " * 400, output_tokens=400, chunk_gate=gate))
    watch = Guarded(usd=1)
    # Else langchain-openai reads with asyncio.wait_for, which on Python 3.11 may swallow a cancellation, guard or none.
    more: Any = {"stream_chunk_timeout": 0} if make is openai else {}
    model = watch.model(make(provider, **more))
    began = asyncio.Event()

    async def consume() -> None:
        async for _ in model.astream("hi"):
            began.set()

    task = asyncio.create_task(consume())
    async with asyncio.timeout(LIMIT):
        await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert watch.ends == ["unknown"]
    watch.clean()


@MAKES
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_stream_dropped_without_close_is_ended(serve: Serve, make: Any, asynchronous: bool) -> None:
    gate = threading.Event()
    provider = serve(Reply(text="word " * 400, output_tokens=400, chunk_gate=gate))
    watch = Guarded(usd=1)
    model = watch.model(make(provider))
    if asynchronous:
        async for _ in model.astream("hi"):
            break
        await until(lambda: watch.ends != [])  # the loop closes what nobody holds any more
    else:
        for _ in model.stream("hi"):
            break
    gc.collect()
    gate.set()
    assert watch.ends == ["unknown"]
    assert calls_around() == ()
    watch.clean()


@MAKES
@pytest.mark.parametrize("where", ["sending", "reading"])
def test_a_thread_that_exits_in_the_middle_of_a_call_leaves_nothing(
    serve: Serve, make: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = serve(Reply(text="word " * 100, output_tokens=100))
    watch = Guarded(usd=1)
    bare = make(provider)
    model = watch.model(bare)

    def leave(_: object) -> None:
        raise SystemExit

    def read_and_leave() -> None:
        for _ in model.stream("hi"):
            raise SystemExit

    if where == "sending":
        client = bare.root_client if make is openai else bare._client
        # LangChain keeps clients by their address, and another test may come by this port again.
        monkeypatch.setattr(client._client, "event_hooks", {"response": [leave]})
    with pytest.raises(SystemExit):
        within(read_and_leave if where == "reading" else lambda: model.invoke("hi"))
    gc.collect()
    assert watch.ends == ["unknown"]
    watch.clean()


def _fail(event: object) -> None:
    raise ValueError("broken")


@STYLES
def test_a_sink_that_fails_touches_no_call(serve: Serve, style: str, caplog: pytest.LogCaptureFixture) -> None:
    provider = serve(Reply(text="ok"))
    watch = Guarded(_fail, usd=1)
    watch.call(openai(provider), style)
    assert watch.handler.last_run.spent_usd == provider.cost_usd
    assert caplog.text.count("failed with ValueError; said once") == 1
    watch.clean(provider)


@pytest.mark.parametrize("event", [CallStarted, CallEnded])
def test_a_sink_that_exits_the_program_leaves_no_hold(serve: Serve, event: type[Any]) -> None:
    provider = serve(Reply(text="ok"))

    def leave(told: object) -> None:
        if isinstance(told, event):
            raise KeyboardInterrupt

    watch = Guarded(leave, usd=1)
    with pytest.raises(KeyboardInterrupt):
        watch.call(openai(provider), "invoke")
    gc.collect()
    watch.guard.calls.drain()
    assert len(watch.guard.calls) == watch.guard.default_run.held_usd == 0


# Models that fail in places of their own


class Own(BaseChatModel):
    """A model of one's own, priced as gpt-4o."""

    model: str = "gpt-4o"
    max_tokens: int = 100

    @property
    def _llm_type(self) -> str:
        return "own"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {"ls_provider": "openai", "ls_model_name": self.model, "ls_max_tokens": self.max_tokens}

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("ok"))])


class Eager(Own):
    """Its streams are no generators: they fail when they are asked for, not when they are read."""

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        raise ConnectionRefusedError("nobody there")

    def _astream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        raise ConnectionRefusedError("nobody there")


@pytest.mark.parametrize("style", ["stream", "astream"])
def test_a_stream_that_fails_before_it_is_read_is_ended(style: str) -> None:
    watch = Guarded(usd=1)
    with pytest.raises(ConnectionRefusedError):
        watch.call(Eager(), style)
    gc.collect()
    assert watch.ends == ["released"]
    watch.clean()


class Exits(Own):
    """Leaves the program in the middle of a stream."""

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        yield ChatGenerationChunk(message=AIMessageChunk(content="some words "))
        raise SystemExit


def test_a_stream_that_exits_midway_is_charged_what_came() -> None:
    watch = Guarded(usd=1)
    with pytest.raises(SystemExit):
        within(lambda: list(watch.model(Exits()).stream("hi")))
    assert watch.ends == ["unknown"]
    watch.clean()


# Forks

_FORK = """
import os, sys
from langchain_openai import ChatOpenAI
from runcap.guardrails import Budget, Guard, LedgerUnavailable
from runcap.integrations.langchain import guard_model
guard = Guard(Budget(steps=5), sinks=())
model = guard_model(ChatOpenAI(model="gpt-4o", base_url=sys.argv[1], api_key="none", max_retries=2), guard)
model.invoke("hi")
child = os.fork()
if child == 0:
    code = 3
    try:
        model.invoke("hi")
    except LedgerUnavailable:
        code = 7
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
model.invoke("hi")
print(guard.default_run.steps, len(guard.calls), len(guard.room))
"""


def test_a_forked_child_is_refused_and_its_parent_goes_on(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    ran = subprocess.run(
        [sys.executable, "-c", _FORK, provider.openai_url], check=False, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.split() == ["2", "0", "0"], ran.stderr
    assert provider.received == 2
