from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from runcap.guardrails import (
    Budget,
    BudgetExceeded,
    Guard,
    MemoryLedger,
    Usage,
)
from runcap.guardrails.events import CallReconciled, RunEnded
from runcap.guardrails.run import Run
from runcap.guardrails.testing import Recorder

from .helpers import guard, request


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


def test_run_id_is_no_tag() -> None:
    with pytest.raises(ValueError, match="named_run"):
        guard().run(run_id="x")


def test_a_run_ended_by_a_finalizer_inside_the_ledger_keeps_its_balance() -> None:
    g = guard()
    run = g.run().__enter__()
    g.admit(request()).settle(Usage(0, 1000))
    ledger = g.ledger
    assert isinstance(ledger, MemoryLedger)
    ledger._busy = True  # as while the collector runs in the middle of a reserve
    run.__exit__(None, None, None)
    ledger._busy = False
    assert run.spent_usd == Decimal("0.01")
    assert not ledger._accounts


def test_usage_that_comes_late_replaces_the_estimate() -> None:
    g = guard()
    with g.run() as outer, g.run():
        permit = g.admit(request(input_tokens=100))
        permit.abandon()
        permit.settle(Usage(120, 80))
    assert outer.usage == Usage(120, 80)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nested", [False, True])
async def test_a_call_whose_run_ends_while_it_is_granted_is_turned_away(
    monkeypatch: pytest.MonkeyPatch, when: str, nested: bool
) -> None:
    g = guard()
    outer = g.run().__enter__()
    run = g.run().__enter__() if nested else outer
    g.admit(request()).settle(Usage(0, 1000))
    ledger = g.ledger
    assert isinstance(ledger, MemoryLedger)
    reserve = ledger.reserve

    def ending(*args: Any) -> Any:
        answer = reserve(*args) if when == "after" else None
        run.end()  # as another thread may, at this very moment
        outer.end()
        return answer or reserve(*args)

    monkeypatch.setattr(ledger, "reserve", ending)
    with pytest.raises(BudgetExceeded, match="the run is over"):
        g.admit(request(), run)
    assert not ledger._accounts
    assert not ledger._holds
    assert run.spent_usd == Decimal("0.01")


def test_a_tool_call_whose_run_has_ended_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    g = guard(tool_calls=5)
    run = g.run().__enter__()
    ledger = g.ledger
    assert isinstance(ledger, MemoryLedger)
    reserve = ledger.reserve

    def ending(*args: Any) -> Any:
        run.end()
        return reserve(*args)

    monkeypatch.setattr(ledger, "reserve", ending)
    with pytest.raises(BudgetExceeded, match="the run is over"):
        g.admit_tool("t", run)
    assert not ledger._accounts


def test_a_named_run_can_be_begun_again_after_its_end() -> None:
    g = guard()
    for _ in range(2):
        run = g.named_run("job-7")
        g.admit(request(), run).settle(Usage(0, 1000))
        run.end()
        assert run.steps == 1


def test_reading_a_runs_usage_within_its_own_fold_does_not_wait_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    g = guard()
    run = g.default_run
    g.admit(request()).settle(Usage(5, 5))
    counts = Usage.counts
    seen: list[bool] = []

    def reading(usage: Usage) -> tuple[int, ...]:
        if not seen:
            seen.append(True)
            assert run.spent_usd is not None  # as a sink does, told by a finalizer in the middle of the fold
        return counts(usage)

    monkeypatch.setattr(Usage, "counts", reading)
    assert run.usage == Usage(5, 5)
    assert seen
