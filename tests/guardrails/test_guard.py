from __future__ import annotations

import asyncio
import pickle
import threading
from decimal import Decimal
from itertools import count
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
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.events import BudgetWarned, CallEnded, CallReconciled, CallRefused, Event, RunEnded, RunStarted
from runcap.guardrails.ledger import LedgerError
from runcap.guardrails.request import Request
from runcap.guardrails.run import Run
from runcap.guardrails.testing import ManualClock, Recorder

_ids = count()


def request(*, output_cap: int | None = 1000, input_tokens: int = 0, **more: Any) -> Request:
    """gpt-4o: $2.5 and $10 a million, so 1,000 tokens out cost a cent at most."""
    defaults: dict[str, Any] = {"model": "gpt-4o", "provider": "openai", "output_ceiling": 16_384}
    prompt = more.pop("prompt", Prompt(measured=input_tokens))
    return Request(call_id=f"c{next(_ids)}", prompt=prompt, output_cap=output_cap, **(defaults | more))


def guard(seen: Recorder | None = None, **caps: Any) -> Guard:
    return Guard(Budget(**(caps or {"usd": "0.05"})), sinks=(seen,) if seen else ())


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


def test_a_top_up_unstops_once_a_key() -> None:
    g = guard(steps=1)
    g.admit(request()).settle(Usage(0, 1))
    with pytest.raises(BudgetExceeded):
        g.admit(request())
    assert g.default_run.top_up(steps=1, key="k")
    g.admit(request()).settle(Usage(0, 1))
    assert not g.default_run.top_up(steps=1, key="k")
    with pytest.raises(BudgetExceeded):
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


def test_usage_that_comes_late_reconciles_even_after_the_run() -> None:
    seen = Recorder()
    g = guard(seen)
    with g.run() as run:
        permit = g.admit(request())
        permit.abandon("CancelledError")
    assert run.unknown_usd > 0
    permit.settle(Usage(0, 500))
    assert run.unknown_usd == 0
    assert run.spent_usd == Decimal("0.005")
    assert len(seen.of(CallReconciled)) == 1
    assert g.calls.get_ended(permit.call_id) is permit


def test_a_run_waits_with_closing_its_books_for_calls_in_flight() -> None:
    g = guard()
    with g.run() as run:
        permit = g.admit(request())
    assert run.held_usd == Decimal("0.01")
    permit.settle(Usage(0, 100))
    assert (run.held_usd, run.spent_usd) == (Decimal(0), Decimal("0.001"))
    assert isinstance(g.ledger, MemoryLedger)
    assert not g.ledger._accounts
    assert not g.ledger._holds


def test_nested_runs_spend_from_the_outer_one() -> None:
    g = guard(usd="0.03")
    with g.run(task="outer", user="ada") as outer:
        with g.run(budget=Budget(usd="0.015"), task="inner") as inner:
            g.admit(request()).settle(Usage(0, 1000))
            with pytest.raises(BudgetExceeded) as caught:
                g.admit(request())
            assert caught.value.run_id == inner.id
            assert inner.tags == {"task": "inner", "user": "ada"}
        assert outer.spent_usd == Decimal("0.01")
        with g.run() as plain:
            assert plain.remaining_usd is None
            g.admit(request()).settle(Usage(0, 1000))
        assert outer.usage == Usage(0, 2000)
        g.admit(request()).settle(Usage(0, 900))
        with g.run(), pytest.raises(BudgetExceeded) as of_outer:
            g.admit(request())
        assert of_outer.value.run_id == outer.id
        assert outer.steps == 3


def test_the_ambient_run_is_per_guard_and_ends_with_its_block() -> None:
    a, b = guard(), guard()
    with a.run() as outer:
        assert b.current_run() is None
        with b.run() as inner:
            assert a.current_run() is outer
            assert b.current_run() is inner
    assert a.current_run() is None
    with pytest.raises(RuntimeError, match="entered before"):
        outer.__enter__()


async def test_tasks_and_bound_threads_carry_the_run() -> None:
    g = guard()

    def in_thread() -> Run | None:
        return g.current_run()

    async with g.run() as run:
        assert await asyncio.create_task(asyncio.to_thread(in_thread)) is run
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, in_thread) is None
        assert await loop.run_in_executor(None, run.bind(in_thread)) is run


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


def test_stop_refuses_the_rest_and_says_why() -> None:
    g = guard()
    with g.run() as run:
        run.stop("the user pressed stop")
        with pytest.raises(BudgetExceeded, match="the user pressed stop"):
            g.admit(request())


def test_unscoped_calls_can_be_refused() -> None:
    g = Guard(Budget(usd=1), sinks=(), unscoped="refuse")
    with pytest.raises(BudgetExceeded, match=r"guard\.run\(\)"):
        g.admit(request())
    with g.run():
        g.admit(request()).settle(Usage(0, 1))


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


def test_verdicts_are_kept_with_the_run() -> None:
    seen = Recorder()
    g = guard(seen)
    with g.run() as run:
        run.fail("wrong refund")
    with g.run() as other:
        other.succeed()
    assert [ended.verdict for ended in seen.of(RunEnded)] == ["failed: wrong refund", "succeeded"]


def test_named_runs_last_until_they_are_ended() -> None:
    g = guard()
    run = g.named_run("job-7", {"user": "ada"})
    assert g.named_run("job-7") is run
    run.end()
    assert g.named_run("job-7") is not run


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


def test_ten_thousand_runs_leave_nothing_behind() -> None:
    g = guard()
    for number in range(10_000):
        with g.run():
            permit = g.admit(request())
            if number % 2:
                permit.settle(Usage(0, 10))
            else:
                permit.abandon()
    ledger = g.ledger
    assert isinstance(ledger, MemoryLedger)
    assert (len(ledger._accounts), len(ledger._holds)) == (0, 0)
    assert len(g.calls) == len(g._named) == 0
    assert len(g.calls._unsure) <= 1024


def test_a_run_that_is_over_cannot_be_topped_up() -> None:
    g = guard()
    with g.run() as run:
        assert run.top_up(steps=1)
        assert run.top_up(steps=1)
        with pytest.raises(ValueError, match="something to add"):
            run.top_up()
        with pytest.raises(ValueError, match="whole number"):
            run.top_up(steps=-1)
    with pytest.raises(RuntimeError, match="is over"):
        run.top_up(steps=1)


def test_the_default_run_says_that_it_is_shared() -> None:
    g = guard(steps=1)
    g.admit(request())
    with pytest.raises(BudgetExceeded, match="shared by every call outside an agent"):
        g.admit(request())
    with g.run() as run:
        g.admit(request())
        with pytest.raises(BudgetExceeded) as caught:
            g.admit(request())
        assert "shared" not in str(caught.value)
        assert caught.value.run_id == run.id


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


def test_run_id_is_no_tag() -> None:
    with pytest.raises(ValueError, match="named_run"):
        guard().run(run_id="x")


def test_an_estimate_never_charges_a_hard_call_more_than_it_can_cost() -> None:
    g = guard(usd="0.0101")
    permit = g.admit(request())
    permit.seen(100_000)
    permit.abandon()
    run = g.default_run
    assert run.spent_usd == Decimal("0.01")
    assert run.usage.output_tokens == 1000


def test_a_run_ended_by_a_finalizer_inside_the_ledger_keeps_its_balance() -> None:
    g = guard()
    run = g.run().__enter__()
    g.admit(request()).settle(Usage(0, 1000))
    ledger = g.ledger
    assert isinstance(ledger, MemoryLedger)
    ledger._local.inside = True  # as while the collector runs in the middle of a reserve
    run.__exit__(None, None, None)
    ledger._local.inside = False
    assert run.spent_usd == Decimal("0.01")
    assert not ledger._accounts


def test_usage_that_comes_late_replaces_the_estimate() -> None:
    g = guard()
    with g.run() as outer, g.run():
        permit = g.admit(request(input_tokens=100))
        permit.abandon()
        permit.settle(Usage(120, 80))
    assert outer.usage == Usage(120, 80)


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
