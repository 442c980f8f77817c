"""Async code under a ledger that does I/O: what ends a call is written on other threads, in order, and never lost."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from runcap.guardrails import (
    Budget,
    BudgetExceeded,
    CallEnded,
    Guard,
    LedgerUnavailable,
    Limit,
    RunEnded,
    RunStopped,
    SQLiteLedger,
    Usage,
    offload,
)
from runcap.guardrails.amounts import ZERO, Amounts
from runcap.guardrails.events import Event
from runcap.guardrails.ledger import Balance
from runcap.guardrails.testing import Recorder

from .helpers import request
from .test_unknowns import locked

CENT = Usage(0, 1000)


@pytest.fixture(autouse=True)
def never_blocks() -> Iterator[BlockBuster]:
    """Whatever would block a loop raises."""
    with blockbuster_ctx() as buster:
        yield buster


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "l.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[SQLiteLedger]:
    with SQLiteLedger(path, synchronous="NORMAL", heartbeat=None, timeout=0.02) as made:
        yield made


@pytest.fixture
def patient(path: Path) -> Iterator[SQLiteLedger]:
    """A ledger that many calls may wait for."""
    with SQLiteLedger(path, synchronous="NORMAL", heartbeat=None) as made:
        yield made


@pytest.fixture
def seen() -> Recorder:
    return Recorder()


@pytest.fixture
def guard(ledger: SQLiteLedger, seen: Recorder) -> Guard:
    return Guard(Budget(usd=1), ledger=ledger, sinks=(seen,))


class TestAsyncFace:
    def test_a_call_blocks_no_loop(self, guard: Guard, ledger: SQLiteLedger) -> None:
        async def main() -> None:
            async with guard.run() as run:
                for _ in range(3):
                    permit = await guard.aadmit(request(), run)
                    permit.settle(CENT)
                    await permit.booked()
                    await guard.aadmit_tool(request().call_id, run)
                assert run.spent_usd == Decimal("0.03")
                assert (run.steps, run.tool_calls) == (3, 3)
                assert await run.atop_up(usd=1, key="k")
                assert not await run.atop_up(usd=1, key="k")
                run.succeed()
            assert run.spent_usd == Decimal("0.03")
            assert not any(ledger.peek(f"run:{run.id}").used), "closed"

        asyncio.run(main())
        assert [one.verdict for one in ledger.records()] == ["succeeded"] * 3

    def test_a_hundred_at_once_under_a_limit(self, patient: SQLiteLedger) -> None:
        ledger = patient
        guard = Guard(Budget(usd=1), limits=[Limit("team", usd="0.5", per="day")], ledger=ledger, sinks=())

        async def call() -> bool:
            async with guard.run(team="x") as run:
                try:
                    permit = await guard.aadmit(request(), run, wait=True)
                except BudgetExceeded:
                    return False
                await asyncio.sleep(0)
                permit.settle(CENT)
                await permit.booked()
                return True

        async def main() -> list[bool]:
            return await asyncio.gather(*(call() for _ in range(100)))

        assert sum(asyncio.run(main())) == 50
        [balance] = guard.limit_balances(team="x")
        assert (balance.spent.nano, balance.held, balance.in_flight) == (500_000_000, Amounts(), 0)
        assert len(list(ledger.records())) == 50

    def test_a_cancelled_admission_leaves_nothing(self, guard: Guard, ledger: SQLiteLedger) -> None:
        async def main() -> None:
            async with guard.run() as run:
                tasks = [asyncio.create_task(guard.aadmit(request(), run)) for _ in range(20)]
                for turn in range(5):
                    await asyncio.sleep(0)
                    for one in tasks[turn::5]:
                        one.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                for permit in done:
                    if not isinstance(permit, BaseException):
                        permit.release()
                        await permit.booked()
                assert (await ledger.abalance(f"run:{run.id}")).in_flight == 0

        asyncio.run(main())

    def test_while_the_file_is_locked(self, path: Path, guard: Guard, ledger: SQLiteLedger, never_blocks: Any) -> None:
        async def main() -> None:
            async with guard.run() as run:
                permit = await guard.aadmit(request(), run)
                never_blocks.deactivate()
                with locked(path):
                    never_blocks.activate()
                    permit.settle(CENT)
                    await permit.booked()
                    with pytest.raises(LedgerUnavailable, match="locked"):
                        await guard.aadmit(request(), run)
                    with pytest.raises(LedgerUnavailable, match="locked"):
                        await run.atop_up(usd=1)
                    never_blocks.deactivate()
                never_blocks.activate()
                (await guard.aadmit(request(), run)).release()

        asyncio.run(main())
        assert sum(one.cost_nano or 0 for one in ledger.records()) == 10_000_000


class TestOrder:
    def test_a_stop_reaches_the_ledger_before_the_next_call(self, guard: Guard, seen: Recorder) -> None:
        async def main() -> None:
            async with guard.run() as outer:
                async with guard.run() as run:
                    outer.stop("enough")
                    with pytest.raises(BudgetExceeded, match="run stopped: enough"):
                        await guard.aadmit(request(), run)
                outer.stop("again")
                await outer.atop_up(usd=1)
                (await guard.aadmit(request(), outer)).release()
                assert not outer.stopping

        asyncio.run(main())
        assert [one.reason for one in seen.of(RunStopped)] == ["enough"], "the first reason stays"

    def test_a_stop_that_could_not_be_told_is_not_forgotten(
        self, path: Path, guard: Guard, never_blocks: BlockBuster
    ) -> None:
        async def main() -> None:
            async with guard.run() as run:
                never_blocks.deactivate()
                with locked(path):
                    never_blocks.activate()
                    run.stop("enough")
                    with pytest.raises(LedgerUnavailable):
                        await guard.aadmit(request(), run)
                    never_blocks.deactivate()
                never_blocks.activate()
                with pytest.raises(BudgetExceeded, match="run stopped: enough"):
                    await guard.aadmit(request(), run)

        asyncio.run(main())

    def test_a_sync_call_on_a_loops_thread_comes_after_what_was_handed_over(
        self, guard: Guard, never_blocks: BlockBuster
    ) -> None:
        never_blocks.deactivate()  # as in a notebook

        async def main() -> None:
            with guard.run() as run:
                run.stop("enough")
                with pytest.raises(BudgetExceeded, match="run stopped: enough"):
                    guard.admit(request(), run)

        asyncio.run(main())

    def test_late_usage_never_overtakes_the_first_end(
        self, guard: Guard, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settle, overtaken = ledger.settle, threading.Event()

        def slow(call_id: str, charge: Amounts, unknown: Amounts = ZERO, outcome: Any = None) -> Any:
            if any(unknown):
                overtaken.wait(0.05)
            else:
                overtaken.set()
            return settle(call_id, charge, unknown, outcome)

        monkeypatch.setattr(ledger, "settle", slow)

        async def main() -> None:
            async with guard.run() as run:
                permit = await guard.aadmit(request(), run)
                permit.abandon("TimeoutError")
                permit.settle(CENT)
                await permit.booked()
                assert run.spent_usd == Decimal("0.01")
                assert run.unknown_usd == 0

        asyncio.run(main())
        told = [(one.revision, one.state) for one in ledger.records(all=True)]
        assert told == [(0, "unknown"), (1, "settled")]

    def test_a_run_ends_after_its_calls_for_whoever_is_told(self, guard: Guard, seen: Recorder) -> None:
        async def main() -> None:
            async with guard.run() as run:
                permit = await guard.aadmit(request(), run)
                permit.settle(CENT)

        asyncio.run(main())
        ended = [event for event in seen.events if isinstance(event, (CallEnded, RunEnded))]
        assert [type(one) for one in ended] == [CallEnded, RunEnded]
        assert all(one.balance is not None and one.balance.spent.nano == 10_000_000 for one in ended)

    def test_a_balance_read_elsewhere_knows_what_was_handed_over(self, guard: Guard) -> None:
        async def main() -> Any:
            run = guard.open_run()
            permit = await guard.aadmit(request(), run)
            permit.settle(CENT)
            return run

        assert asyncio.run(main()).spent_usd == Decimal("0.01")

    def test_an_account_is_closed_once_however_many_end_the_run(
        self, guard: Guard, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed: list[str] = []
        close = ledger.close

        def counted(account_id: str) -> Balance | None:
            closed.append(account_id)
            return close(account_id)

        monkeypatch.setattr(ledger, "close", counted)

        async def main() -> None:
            for _ in range(10):
                run = guard.open_run()
                permits = [await guard.aadmit(request(), run) for _ in range(3)]
                ends: list[Callable[[], object]] = [*(one.release for one in permits), run.end, run.end]
                await asyncio.gather(*(asyncio.to_thread(one) for one in ends))

        asyncio.run(main())
        assert len(closed) == len(set(closed)) == 10


class TestWorkers:
    def hand_over(self, action: Callable[[], None]) -> None:
        async def main() -> None:
            await asyncio.wait_for(offload.until(offload.hand_over(action)), 5)

        asyncio.run(main())

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_outlive_whatever_is_raised(self, error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
        def fail() -> None:
            raise error("secret")

        for _ in range(6):
            self.hand_over(fail)
        assert error.__name__ in caplog.text
        assert "secret" not in caplog.text
        done: list[int] = []
        self.hand_over(lambda: done.append(1))
        assert done == [1]

    def test_a_sink_may_look_at_the_run(self, ledger: SQLiteLedger) -> None:
        told: list[Decimal | None] = []

        def sink(event: Event) -> None:
            if isinstance(event, CallEnded):
                told.append(run.spent_usd)
                raise ZeroDivisionError

        guard = Guard(Budget(usd=1), ledger=ledger, sinks=(sink,))
        run = guard.open_run()

        async def main() -> None:
            for _ in range(3):
                permit = await guard.aadmit(request(), run)
                permit.settle(CENT)
                await asyncio.wait_for(permit.booked(), 5)

        asyncio.run(main())
        assert told == [Decimal("0.01"), Decimal("0.02"), Decimal("0.03")]

    def test_a_closed_loop_loses_nothing(
        self, guard: Guard, ledger: SQLiteLedger, caplog: pytest.LogCaptureFixture
    ) -> None:
        loop = asyncio.new_event_loop()
        run = guard.open_run()

        async def main() -> None:
            permit = await guard.aadmit(request(), run)
            permit.settle(CENT)
            task = asyncio.ensure_future(permit.booked())
            await asyncio.sleep(0)
            task.cancel()

        loop.run_until_complete(main())
        loop.close()
        assert run.spent_usd == Decimal("0.01")
        gc.collect()
        assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


PROGRAM = """
import asyncio, sys
from runcap.guardrails import Budget, Guard, SQLiteLedger, Usage
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.request import Request
guard = Guard(Budget(usd=1), ledger=SQLiteLedger(sys.argv[1], heartbeat=None), sinks=())
async def main():
    run = guard.open_run()
    for number in range(5):
        call = Request(call_id=str(number), model="gpt-4o", provider="openai", prompt=Prompt(), output_cap=1000)
        (await guard.aadmit(call, run)).settle(Usage(0, 1000))
    run.succeed()
asyncio.run(main())
"""


def test_a_program_that_ends_at_once_has_written_everything(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    made = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (made.returncode, made.stderr) == (0, "")
    with SQLiteLedger(path, heartbeat=None) as ledger:
        assert [(one.cost_nano, one.verdict) for one in ledger.records()] == [(10_000_000, "succeeded")] * 5
