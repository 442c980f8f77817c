from __future__ import annotations

import asyncio
import pickle
import threading
from decimal import Decimal
from typing import Any

import pytest

from runcap.guardrails import (
    Budget,
    BudgetBusy,
    BudgetExceeded,
    Guard,
    LedgerUnavailable,
    MemoryLedger,
    PriceBook,
    Refused,
    UnboundedCall,
    UnpricedModel,
    Usage,
)
from runcap.guardrails.events import BudgetWarned, CallEnded, CallRefused, Event, RunEnded, RunStarted
from runcap.guardrails.ledger import LedgerError
from runcap.guardrails.testing import ManualClock, Recorder

from .helpers import guard, request


def test_reserves_at_the_bound_and_settles_at_the_bill() -> None:
    g = guard()
    permit = g.admit(request())
    assert g.default_run.held_usd == Decimal("0.01")
    assert permit.settle(Usage(1000, 200))
    assert g.default_run.held_usd == 0
    assert g.default_run.spent_usd == Decimal("0.0045")
    assert g.default_run.remaining_usd == Decimal("0.0455")
    assert g.default_run.usage == Usage(1000, 200)


def test_settles_exactly_once_from_many_threads() -> None:
    g = guard()
    permit = g.admit(request())
    barrier = threading.Barrier(16)

    def settle() -> None:
        barrier.wait()
        permit.settle(Usage(0, 1000))
        permit.release()
        permit.abandon()

    threads = [threading.Thread(target=settle) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert g.default_run.spent_usd in (Decimal("0.01"), Decimal(0), Decimal("0.00001"))
    balance = g.default_run.balance
    assert balance.in_flight == 0
    assert balance.used.nano <= 10_000_000


def test_at_the_cap_the_run_stops_with_its_numbers() -> None:
    g = guard(steps=2, usd="1")
    for _ in range(2):
        g.admit(request()).settle(Usage(0, 1000))
    with pytest.raises(BudgetExceeded) as caught:
        g.admit(request())
    refused = caught.value
    assert (refused.unit, refused.cap, refused.spent, refused.needed) == ("steps", Decimal(2), Decimal(2), Decimal(1))
    assert refused.run_id == g.default_run.id
    assert g.default_run.stopped == "cap:steps"
    assert "top_up(steps=" in str(refused)
    with pytest.raises(BudgetExceeded, match="exceeded before"):
        g.admit(request())


def test_busy_is_told_apart_from_exceeded_and_stops_nothing() -> None:
    g = guard(usd="0.015")
    first = g.admit(request())  # holds 0.01, expected 0.01024 clamped to 0.01
    g.typical_output.add("gpt-4o", 100)
    with pytest.raises(BudgetExceeded):
        g.admit(request())
    assert g.default_run.stopped is None
    first.settle(Usage(0, 100))
    second = g.admit(request())  # expected cost now a tenth of its hold
    with pytest.raises(BudgetBusy, match="Calls in flight"):
        g.admit(request())
    second.settle(Usage(0, 100))
    g.admit(request()).settle(Usage(0, 100))


def test_nothing_spent_and_too_dear_says_so() -> None:
    with pytest.raises(BudgetExceeded, match="its max_tokens is 1,000"):
        guard(usd="0.005").admit(request())


def test_tokens_and_seconds_are_caps_too() -> None:
    g = guard(tokens=1500)
    g.admit(request(input_tokens=400)).settle(Usage(400, 100))
    g.admit(request(input_tokens=0)).settle(Usage(0, 10))
    with pytest.raises(BudgetExceeded) as caught:
        g.admit(request(input_tokens=0))
    assert caught.value.unit == "tokens"
    clock = ManualClock()
    timed = Guard(Budget(seconds=60), sinks=(), clock=clock)
    timed.admit(request())
    clock.advance(61)
    with pytest.raises(BudgetExceeded) as late:
        timed.admit(request())
    assert (late.value.unit, late.value.cap, late.value.spent) == ("seconds", Decimal(60), Decimal(61))


def test_tool_calls_are_counted_when_admitted() -> None:
    g = guard(tool_calls=2)
    g.admit_tool("t1")
    g.admit_tool("t2")
    with pytest.raises(BudgetExceeded) as caught:
        g.admit_tool("t3")
    assert caught.value.unit == "tool_calls"
    assert g.default_run.tool_calls == 2


def test_an_unpriced_model_is_refused_under_dollars_and_costs_none_without() -> None:
    unknown: Any = {"model": "gpt-nope", "provider": "openai"}
    with pytest.raises(UnpricedModel, match="PriceBook"):
        guard().admit(request(**unknown))
    seen = Recorder()
    g = guard(seen, steps=5)
    g.admit(request(**unknown)).settle(Usage(10, 10))
    assert seen.of(CallEnded)[0].cost_nano is None
    assert g.default_run.spent_usd is None
    assert g.default_run.usage.total_tokens == 20


def test_strict_refuses_what_bounds_itself_no_further() -> None:
    g = Guard(Budget(usd=1, strict=True), sinks=())
    g.admit(request())
    with pytest.raises(UnboundedCall, match="max_tokens"):
        g.admit(request(output_cap=None))
    with pytest.raises(UnboundedCall, match="max_retries=0"):
        g.admit(request(attempts_seen=False))


def test_an_overrun_of_an_expected_call_is_recorded_and_the_next_refused() -> None:
    g = guard(usd="0.02")
    g.admit(request(output_cap=None)).settle(Usage(0, 5000))
    assert g.default_run.spent_usd == Decimal("0.05")
    with pytest.raises(BudgetExceeded):
        g.admit(request(output_cap=None))


def test_abandoned_calls_charge_what_was_seen_and_keep_the_rest_as_unknown() -> None:
    g = guard()
    permit = g.admit(request(input_tokens=1000))
    permit.seen(1000)  # 300 tokens, likely
    permit.abandon("ReadTimeout")
    run = g.default_run
    assert run.spent_usd == Decimal("0.0025") + Decimal("0.003")
    assert run.unknown_usd == Decimal("0.0125") - Decimal("0.0055")
    assert run.held_usd == 0


async def test_the_async_driver_takes_the_same_way() -> None:
    g = guard(steps=1, usd="0.05")
    (await g.aadmit(request())).settle(Usage(0, 100))
    with pytest.raises(BudgetExceeded, match="steps cap 1"):
        await g.aadmit(request())
    assert await g.default_run.atop_up(steps=1, key="k")
    (await g.aadmit(request())).release()


async def test_a_call_is_reaped_by_its_task() -> None:
    g = guard()
    started = asyncio.Event()

    async def call() -> None:
        g.calls.reap_with_task(await g.aadmit(request()))
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await started.wait()
    assert g.default_run.held_usd == Decimal("0.01")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert g.default_run.held_usd == 0
    assert g.default_run.unknown_usd == Decimal("0.01")


def test_warnings_come_once_a_share() -> None:
    seen = Recorder()
    g = Guard(Budget(usd="0.05", warn_at=(0.5, 0.8)), sinks=(seen,))
    for _ in range(4):
        g.admit(request()).settle(Usage(0, 1000))
    assert [(warned.unit, warned.share) for warned in seen.of(BudgetWarned)] == [("usd", 0.5), ("usd", 0.8)]


def test_a_ledger_that_does_not_answer_fails_closed() -> None:
    class Broken(MemoryLedger):
        def reserve(self, *args: Any) -> Any:
            raise LedgerError("connection lost")

    with pytest.raises(LedgerUnavailable, match="connection lost"):
        Guard(Budget(usd=1), sinks=(), ledger=Broken()).admit(request())


def test_a_ledger_that_fails_at_settling_keeps_the_hold_and_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryLedger):
        def settle(self, *args: Any) -> Any:
            raise LedgerError("connection lost")

    g = Guard(Budget(usd=1), sinks=(), ledger=Broken())
    g.admit(request()).settle(Usage(0, 10))
    assert g.default_run.held_usd == Decimal("0.01")
    assert "keeps its hold" in caplog.text


def test_a_failing_sink_is_said_once_and_touches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Event) -> None:
        raise KeyError("secret prompt")

    g = Guard(Budget(usd=1), sinks=(broken,))
    for _ in range(3):
        g.admit(request()).settle(Usage(0, 10))
    assert caplog.text.count("failed with KeyError") == 1
    assert "secret" not in caplog.text


def test_an_event_emitted_while_a_sink_runs_waits_for_it() -> None:
    order: list[str] = []
    g: Guard

    def sink(event: Event) -> None:
        if isinstance(event, RunStarted):
            order.append("started begins")
            g.emit(RunEnded(time_ns=0, run=event.run, balance=g.ledger.balance("x")))
            order.append("started ends")
        else:
            order.append("ended")

    g = Guard(Budget(usd=1), sinks=(sink,))
    _ = g.default_run
    assert order == ["started begins", "started ends", "ended"]


def test_refusals_are_events_and_survive_pickling() -> None:
    seen = Recorder()
    g = guard(seen, steps=1)
    g.admit(request())
    with pytest.raises(BudgetExceeded) as caught:
        g.admit(request())
    assert seen.of(CallRefused)[0].details == caught.value.details
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, Refused)
    assert str(again) == str(caught.value)


def test_100_threads_spend_the_cap_and_no_more() -> None:
    g = guard(usd="0.5")
    barrier = threading.Barrier(100)
    admitted: list[int] = []

    def work() -> None:
        barrier.wait()
        try:
            g.admit(request()).settle(Usage(0, 1000))
        except BudgetExceeded:
            return
        except BudgetBusy:
            return
        admitted.append(1)

    threads = [threading.Thread(target=work) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) <= 50
    assert g.default_run.spent_usd == Decimal("0.01") * len(admitted)


def test_missing_usage_is_said_once_and_explains_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    g = guard(usd="0.05")
    for _ in range(4):
        g.admit(request()).abandon()
    assert caplog.text.count("reported no usage") == 1
    with pytest.raises(BudgetExceeded, match="Most of it is unknown"):
        for _ in range(9):
            g.admit(request()).abandon()


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"sinks": Recorder()}, "sequence of callables"),
        ({"sinks": ("x",)}, "sequence of callables"),
        ({"prices": {"m": {"input": 1, "output": 1}}}, "must be a PriceBook"),
    ],
)
def test_wrong_parts_are_named_at_construction(kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        Guard(Budget(usd=1), **kwargs)


def test_an_estimate_never_charges_a_hard_call_more_than_it_can_cost() -> None:
    g = guard(usd="0.0101")
    permit = g.admit(request())
    permit.seen(100_000)
    permit.abandon()
    run = g.default_run
    assert run.spent_usd == Decimal("0.01")
    assert run.usage.output_tokens == 1000


@pytest.mark.parametrize(
    ("name", "model", "provider"),
    [
        ("azure_openai:my-dep", "my-dep", "azure"),
        ("google_genai:gemini-x", "models/gemini-x", "google"),
        ("models/gemini-y", "models/gemini-y", "google"),
        ("arn:aws:bedrock:x:1:profile/p", "arn:aws:bedrock:x:1:profile/p", "aws"),
    ],
)
def test_overrides_go_by_any_name_of_the_provider(name: str, model: str, provider: str) -> None:
    book = PriceBook({name: {"input": "1", "output": "2"}})
    assert book.cost(model, Usage(1_000_000, 0), provider=provider) == 1


async def test_a_reservation_cancelled_on_its_way_is_freed_wherever_it_was() -> None:
    class Far(MemoryLedger):
        """Answers only when told to, as over a slow network; the reservation has landed by then."""

        def __init__(self) -> None:
            super().__init__()
            self.landed, self.answer = asyncio.Event(), asyncio.Event()

        async def areserve(self, *args: Any) -> Any:
            grant = self.reserve(*args)
            self.landed.set()
            await self.answer.wait()
            return grant

    ledger = Far()
    g = Guard(Budget(usd=1), sinks=(), ledger=ledger)
    task = asyncio.create_task(g.aadmit(request()))
    await ledger.landed.wait()
    assert g.default_run.held_usd == Decimal("0.01")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert g.default_run.held_usd == 0
    assert len(g.calls) == 0
