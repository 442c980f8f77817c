"""LangChain's agents and models under a `SQLiteLedger`: the file says what the provider bills, and no loop blocks."""

from __future__ import annotations

import asyncio
import gc
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from langchain.agents import create_agent
from langchain_core.runnables import RunnableLambda

from runcap.guardrails import Budget, BudgetExceeded, Guard, Limit, LoopPolicy, SQLiteLedger
from runcap.guardrails.errors import LoopHalted, MissingTag, Refused
from runcap.guardrails.events import AgentEnded, CallEnded, RunEnded
from runcap.guardrails.money import to_usd
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetCallbackHandler, BudgetMiddleware, auto_attach, guard_model

from .conftest import LOOK_UP, USER, Caller, Serve, Watch, called, claude, looping, openai

TAGS: Any = {"metadata": {"runcap": {"user": "ada"}}}
PER_USER = Limit("user", usd=5, per="day")


@pytest.fixture(autouse=True)
def never_blocks() -> Iterator[BlockBuster]:
    """What would block a loop raises, in code of ours and in whatever it calls."""
    platform.freedesktop_os_release()  # the providers' clients read it from a file once, at their first call
    with blockbuster_ctx(scanned_modules=["runcap.guardrails", "runcap.integrations", "runcap.exporters"]) as buster:
        yield buster


class Lasting(Watch):
    """A guard with a file, and everything it tells."""

    def __init__(self, ledger: SQLiteLedger, *limits: Limit, loops: LoopPolicy | None = None, **budget: Any) -> None:
        super().__init__(**(budget or {"usd": 1}))  # outside of loops: prices are looked up in files
        sinks = (self.sink, self.recorder)
        self.ledger = ledger
        self.guard = Guard(self.guard.budget, limits=limits, loops=loops, ledger=ledger, sinks=sinks)
        self.handler = BudgetCallbackHandler(self.guard)

    def limit(self, **tags: str) -> Any:
        """What is spent of the limit."""
        [balance] = self.guard.limit_balances(**tags)
        assert (balance.held.nano, balance.unknown.nano, balance.in_flight) == (0, 0, 0)
        return to_usd(balance.spent.nano)

    def books(self, provider: ScriptedProvider, run: Any = None) -> None:
        """Bill, records, run and spans agree, to the nano-dollar; nothing is left behind."""
        self.idle()
        records = list(self.ledger.records(all=True))
        assert len(records) == len(provider.served) == provider.received
        assert sum(one.cost_nano or 0 for one in records) == sum(int(one.cost_usd * 10**9) for one in provider.served)
        run = run or self.handler.last_run
        assert (run.spent_usd, run.steps, run.held_usd) == (provider.cost_usd, provider.received, 0)
        assert len([span for span in self.spans if span.name.startswith("chat ")]) == provider.received
        assert not self.ledger.unknowns()
        assert not len(self.guard.calls)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SQLiteLedger]:
    with SQLiteLedger(tmp_path / "l.db", synchronous="NORMAL", heartbeat=None) as made:
        yield made


both = pytest.mark.parametrize("make", [openai, claude], ids=["openai", "anthropic"])
attach = pytest.mark.parametrize("how", ["config", "constructor", "guard_model", "auto_attach", "both"])


def attached(how: str, watch: Lasting, provider: ScriptedProvider, make: Any) -> tuple[Any, Any, Any]:
    """A model, the config to call it with, and what to call it in."""
    if how == "constructor":
        return make(provider, callbacks=[watch.handler]), None, nullcontext()
    if how == "auto_attach":
        return make(provider), None, auto_attach(watch.guard)
    if how == "config":
        return make(provider), watch.config, nullcontext()
    model = guard_model(make(provider), watch.guard)
    return model, watch.config if how == "both" else None, nullcontext()


@both
@attach
@pytest.mark.parametrize("style", ["invoke", "stream", "batch"])
def test_every_call_of_a_model(
    serve: Serve, caller: Caller, ledger: SQLiteLedger, make: Any, how: str, style: str
) -> None:
    provider, watch = serve(Reply(output_tokens=20)), Lasting(ledger, PER_USER)
    model, config, inside = attached(how, watch, provider, make)
    with watch.guard.run(user="ada", task="t") as run, inside:
        for number in range(2):
            if style == "batch":
                caller.batch(model, [f"{number} {one}" for one in range(3)], config)
            else:
                getattr(caller, style)(model, f"hi {number}", config)
            if caller.asynchronous:
                assert run.spent_usd == provider.cost_usd, "in the books when the call is over"
    watch.books(provider, run)
    assert watch.limit(user="ada") == provider.cost_usd
    assert {dict(one.about.tags)["task"] for one in ledger.records(run_id=run.id)} == {"t"}


@both
@pytest.mark.parametrize("how", ["config", "middleware", "auto_attach", "both"])
@pytest.mark.parametrize("style", ["invoke", "stream"])
def test_every_call_of_an_agent(
    serve: Serve, caller: Caller, ledger: SQLiteLedger, make: Any, how: str, style: str
) -> None:
    provider, watch = serve(looping(20)), Lasting(ledger, PER_USER, usd=1, steps=3)
    stack: Any = [BudgetMiddleware(watch.guard)] if how in ("middleware", "both") else []
    agent: Any = create_agent(make(provider), [LOOK_UP], middleware=stack)
    config = {**TAGS, **(watch.config if how in ("config", "both") else {})}
    for number in range(1, 3):
        with auto_attach(watch.guard) if how == "auto_attach" else nullcontext(), pytest.raises(BudgetExceeded):
            getattr(caller, style)(agent, USER, config)
        assert provider.received == 3 * number
        assert watch.limit(user="ada") == provider.cost_usd
    records = list(ledger.records())
    assert len({one.about.run_id for one in records}) == 2
    assert to_usd(sum(one.cost_nano or 0 for one in records)) == provider.cost_usd
    agents, runs = watch.recorder.of(AgentEnded), watch.recorder.of(RunEnded)
    ended = [*(one.balance for one in agents), *(one.balance for one in runs)]
    assert [(one.held.nano, one.spent.steps) for one in ended] == [(0, 3)] * 4
    assert to_usd(sum(one.balance.spent.nano for one in runs)) == provider.cost_usd
    assert len(watch.recorder.of(CallEnded)) == 6
    watch.idle()


@attach
def test_a_limit_over_several_runs_and_users(serve: Serve, caller: Caller, ledger: SQLiteLedger, how: str) -> None:
    provider = serve(Reply(output_tokens=1000))
    watch = Lasting(ledger, Limit("user", usd="0.0215", per="total"))
    model, config, inside = attached(how, watch, provider, openai)
    with inside:
        for _ in range(2):
            for user in ("ada", "bob"):
                with watch.guard.run(user=user):
                    caller.invoke(model, "hi", config)
        for user in ("ada", "bob"):
            with watch.guard.run(user=user) as run, pytest.raises(BudgetExceeded) as info:
                caller.invoke(model, "hi", config)
            assert (info.value.scope, info.value.run_id) == ("user", f"{user}/total")
            assert run.stopped is None
    assert provider.received == 4
    assert watch.limit(user="ada") == watch.limit(user="bob") == provider.cost_usd / 2


def test_a_run_without_the_tag_is_told_how_to_carry_it(serve: Serve, caller: Caller, ledger: SQLiteLedger) -> None:
    provider, watch = serve(Reply()), Lasting(ledger, PER_USER)
    agent: Any = create_agent(openai(provider), [LOOK_UP], middleware=[BudgetMiddleware(watch.guard)])
    for runnable, config in ((agent, None), (openai(provider), watch.config), (agent, watch.config)):
        with pytest.raises(MissingTag, match=r'metadata=\{"runcap": \{"user": "\.\.\."\}\}'):
            caller.invoke(runnable, USER if runnable is agent else "hi", config)
    assert provider.received == 0
    named: Any = {"metadata": {"runcap": {"user": "ada", "run_id": "r"}}, **watch.config}
    caller.invoke(openai(provider), "hi", named)
    watch.books(provider)


@pytest.mark.parametrize("how", ["guard_model", "config"])
def test_a_hundred_at_once_under_a_limit(serve: Serve, ledger: SQLiteLedger, how: str) -> None:
    provider = serve(Reply(output_tokens=1000, input_tokens=1))
    watch = Lasting(ledger, Limit("team", usd="0.3", per="day"))
    model, config, _ = attached(how, watch, provider, openai)

    async def main() -> None:
        async def call() -> bool:
            async with watch.guard.run(team="x"):
                try:
                    await model.ainvoke("hi", config)
                except Refused:
                    return False
                return True

        done = await asyncio.gather(*(call() for _ in range(100)))
        spent = await asyncio.to_thread(watch.limit, team="x")
        assert spent == provider.cost_usd <= Decimal("0.3")
        assert sum(done) == provider.received
        if how == "guard_model":
            assert sum(done) >= 29, "the limit is used up"
        records = await asyncio.to_thread(lambda: list(ledger.records()))
        assert to_usd(sum(one.cost_nano or 0 for one in records)) == spent

    asyncio.run(main())


@pytest.mark.parametrize("how", ["guard_model", "config", "auto_attach"])
@pytest.mark.parametrize("stop", ["cancel", "timeout"])
def test_what_is_cut_off_is_unknown_and_holds_nothing(serve: Serve, ledger: SQLiteLedger, how: str, stop: str) -> None:
    gate = threading.Event()
    provider, watch = serve(Reply(gate=gate)), Lasting(ledger, PER_USER)
    model, config, inside = attached(how, watch, provider, openai)

    async def main() -> None:
        async def call() -> None:
            with inside:
                await model.ainvoke("hi", config)

        async with watch.guard.run(user="ada") as run:
            task = asyncio.create_task(call())
            while not provider.received:  # noqa: ASYNC110 - until the request has reached the provider's thread
                await asyncio.sleep(0.001)
            if stop == "cancel":
                task.cancel()
            with pytest.raises((asyncio.CancelledError, TimeoutError)):
                await asyncio.wait_for(task, 0.001)
            gate.set()
        watch.guard.calls.drain()
        await run.account.closed()
        balance = run.balance
        assert (balance.held.nano, balance.in_flight) == (0, 0)
        assert balance.unknown.nano > 0
        [call_left] = await asyncio.to_thread(ledger.unknowns)
        assert call_left.unknown.nano == balance.unknown.nano
        assert call_left.record is not None
        assert call_left.record.cost_nano == balance.spent.nano
        [ended] = watch.recorder.of(RunEnded)
        assert ended.balance.held.nano == 0
        watch.idle()

    asyncio.run(main())


def test_a_stream_dropped_half_way(serve: Serve, caller: Caller, ledger: SQLiteLedger) -> None:
    provider, watch = serve(Reply(output_tokens=300)), Lasting(ledger, PER_USER)
    model = guard_model(openai(provider), watch.guard)

    async def drop() -> None:
        stream: Any = model.astream("hi")
        await anext(stream)
        await stream.aclose()

    with watch.guard.run(user="ada") as run:
        if caller.asynchronous:
            caller.run(drop())
        else:
            stream = model.stream("hi")
            next(stream)
            del stream
            gc.collect()
        watch.guard.calls.drain()
        assert run.balance.in_flight == 0
        assert len(ledger.unknowns()) == 1
    assert ledger.resolve_all("all") == 1
    assert watch.limit(user="ada") >= provider.cost_usd


@pytest.mark.parametrize("on_breach", ["finish", "ask"])
def test_breaches_of_a_limit(serve: Serve, caller: Caller, ledger: SQLiteLedger, on_breach: Any) -> None:
    """The last answer is given under a limit too; nobody is asked for more, which would not help."""
    provider = serve(
        lambda number, body: (
            Reply(text="bye", output_tokens=5)
            if body.get("tool_choice") == "none"
            else Reply(tool_calls=[("look_up", {"query": f"try {number}"})], output_tokens=100)
        )
    )
    limit = Limit("user", usd="0.03", per="day")
    watch = Lasting(ledger, limit, usd=1, on_breach=on_breach)
    agent: Any = create_agent(openai(provider), [LOOK_UP], middleware=[BudgetMiddleware(watch.guard)])
    if on_breach == "finish":
        messages = caller.invoke(agent, USER, TAGS)["messages"]
        called(messages)
        assert messages[-1].text == "bye"
    else:
        with pytest.raises(BudgetExceeded) as info:
            caller.invoke(agent, USER, TAGS)
        assert info.value.scope == "user"
    assert watch.limit(user="ada") == provider.cost_usd <= Decimal("0.03")
    [ended] = watch.recorder.of(RunEnded)
    assert ended.balance.stopped is None
    watch.books(provider, _run_of(watch))


def _run_of(watch: Lasting) -> Any:
    return watch.handler.last_run


def test_a_loop_is_halted(serve: Serve, caller: Caller, ledger: SQLiteLedger) -> None:
    provider = serve(Reply(tool_calls=[("look_up", {"query": "same"})], output_tokens=20))
    watch = Lasting(ledger, PER_USER, loops=LoopPolicy(warn=2, halt=3))
    agent: Any = create_agent(openai(provider), [LOOK_UP], middleware=[BudgetMiddleware(watch.guard)])
    with pytest.raises(LoopHalted):
        caller.invoke(agent, USER, TAGS)
    watch.books(provider)
    assert str(watch.handler.last_run.stopped).startswith("loop:")


def test_nested_runs_and_sub_agents(serve: Serve, caller: Caller, ledger: SQLiteLedger) -> None:
    provider, watch = serve(Reply(output_tokens=20)), Lasting(ledger, PER_USER)
    model = guard_model(openai(provider), watch.guard)

    def work(given: str) -> Any:
        with watch.guard.run(task="part"):
            return model.invoke(given)

    async def awork(given: str) -> Any:
        async with watch.guard.run(user="bob"):
            return await model.ainvoke(given)

    chain = RunnableLambda(work, awork)
    with watch.guard.run(user="ada") as run:
        caller.batch(chain, ["a", "b", "c"])
        caller.invoke(model, "d")
    watch.books(provider, run)
    ada = watch.limit(user="ada")
    bob = watch.limit(user="bob")
    assert ada + bob == provider.cost_usd == run.spent_usd
    assert (bob > 0) == caller.asynchronous
    assert len({one.about.run_id for one in ledger.records()}) == 4
    assert {one.about.parent_run_id for one in ledger.records()} == {run.id, None}


def test_two_guards_of_one_call_are_both_in_the_books(serve: Serve, caller: Caller, tmp_path: Path) -> None:
    provider = serve(Reply(output_tokens=20))
    with SQLiteLedger(tmp_path / "a.db", heartbeat=None) as one, SQLiteLedger(tmp_path / "b.db", heartbeat=None) as two:
        watches = [Lasting(one), Lasting(two)]
        callbacks: Any = {"callbacks": [watch.handler for watch in watches]}

        async def main() -> None:
            for _ in range(5):
                await openai(provider).ainvoke("hi", callbacks)
                assert [watch.handler.last_run.spent_usd for watch in watches] == [provider.cost_usd] * 2

        if caller.asynchronous:
            caller.run(main())
        else:
            openai(provider).invoke("hi", callbacks)
        for watch in watches:
            watch.books(provider)


def test_a_named_run_of_two_guards_on_one_file(serve: Serve, caller: Caller, ledger: SQLiteLedger) -> None:
    provider = serve(Reply(output_tokens=1000, input_tokens=1))
    watches = [Lasting(ledger, usd="0.05"), Lasting(ledger, usd="0.05")]
    made: Callable[[Lasting], Any] = lambda watch: {"metadata": {"runcap": {"run_id": "r"}}, **watch.config}  # noqa: E731
    for number in range(4):
        caller.invoke(openai(provider), "hi", made(watches[number % 2]))
    for watch in watches:
        with pytest.raises(BudgetExceeded) as info:
            caller.invoke(openai(provider), "hi", made(watch))
        assert info.value.spent == provider.cost_usd
        assert watch.guard.named_run("r").spent_usd == provider.cost_usd
    assert provider.received == 4


def test_hooks_and_properties_never_touch_the_file_on_the_loop(serve: Serve, ledger: SQLiteLedger) -> None:
    provider, watch = serve(looping(20)), Lasting(ledger, PER_USER, usd=1, steps=4)
    agent: Any = create_agent(openai(provider), [LOOK_UP], middleware=[BudgetMiddleware(watch.guard)])

    async def main() -> None:
        with auto_attach(watch.guard):
            for _ in range(2):
                with pytest.raises(BudgetExceeded):
                    await agent.ainvoke(USER, TAGS)
                run = watch.handler.last_run
                assert (run.steps, run.spent_usd) == (4, to_usd(run.balance.spent.nano))
                assert run.stopped == "cap:steps"
                repr(run)
                run.succeed()
                await run.account.closed()
        watch.idle()
        verdicts = await asyncio.to_thread(lambda: [one.verdict for one in ledger.records()])
        assert verdicts == ["succeeded"] * 8

    asyncio.run(main())


def test_budget_alone_needs_no_limit() -> None:
    with pytest.raises(ValueError, match="need a ledger"):
        Guard(Budget(usd=1), limits=[PER_USER], sinks=())
