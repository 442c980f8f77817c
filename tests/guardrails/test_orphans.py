"""Holds that nobody will end: their caller never heard of them, for its loop was closed, or the program interrupted."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runcap.guardrails import Budget, Guard, SQLiteLedger
from runcap.guardrails.amounts import ZERO, Amounts
from runcap.guardrails.ledger import Grant, Refusal
from runcap.guardrails.testing import ManualClock

from .helpers import request
from .lasting_contract import ABOUT
from .ledger_contract import account, offer
from .test_unknowns import CENT, clock, make, path

__all__ = ["clock", "path"]


@pytest.fixture
def ledger(path: Path, clock: ManualClock) -> Iterator[SQLiteLedger]:
    with make(path, clock, timeout=5) as made:
        yield made


def after(ledger: SQLiteLedger, name: str, action: Callable[[], Any]) -> None:
    """Something happens right after an operation of this name was committed."""
    write = ledger._file.write

    def interrupted(operation: Any, *args: Any) -> Any:
        result = write(operation, *args)
        if operation.__name__ == name:
            action()
        return result

    file: Any = ledger._file
    file.write = interrupted


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_grant_nobody_heard_of_becomes_unknown(ledger: SQLiteLedger, clock: ManualClock) -> None:
    ledger.reserve("known", (offer(5),), (account(),), ABOUT)
    after(ledger, "_reserve", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ledger.reserve("orphan", (offer(10),), (account(),), ABOUT)
    clock.advance(59)
    ledger.beat()
    assert ledger.balance("run:a").held.nano == 15, "it is young: its caller may not have the answer yet"
    clock.advance(2)
    ledger.beat()
    seen = ledger.peek("run:a")
    assert seen == ledger.balance("run:a")
    assert (seen.held.nano, seen.unknown.nano, seen.in_flight) == (5, 10, 1)
    assert [(one.call_id, one.resolved_by) for one in ledger.records()] == [("orphan", "owner died")]
    with closing(sqlite3.connect(ledger._file.path)) as connection:
        assert connection.execute("SELECT count(*) FROM owners").fetchone() == (1,), "it lives"


def test_what_is_in_flight_is_none_however_long(ledger: SQLiteLedger, clock: ManualClock) -> None:
    ledger.reserve("sync", (offer(5),), (account(),))
    asyncio.run(_areserve(ledger, "async"))
    clock.advance(100_000)
    ledger.beat()
    assert ledger.balance("run:a").held.nano == 10
    for call in ("sync", "async"):
        ledger.settle(call, Amounts(nano=1))
    assert not ledger._open


async def _areserve(ledger: SQLiteLedger, call_id: str) -> Grant | Refusal:
    return await ledger.areserve(call_id, (offer(5),), (account(),), ABOUT)


def test_a_call_whose_loop_was_closed_under_it(ledger: SQLiteLedger, clock: ManualClock) -> None:
    guard = Guard(Budget(usd=1), ledger=ledger, clock=clock, sinks=())
    run = guard.open_run()
    gate, landed = threading.Event(), threading.Event()
    after(ledger, "_reserve", lambda: landed.set() or gate.wait(5))  # type: ignore[func-returns-value]
    loop = asyncio.new_event_loop()
    task = loop.create_task(guard.aadmit(request(), run))
    loop.call_soon(lambda: loop.run_in_executor(None, landed.wait, 5).add_done_callback(lambda _: loop.stop()))
    loop.run_forever()
    loop.run_until_complete(loop.shutdown_default_executor())
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    gate.set()
    assert run.balance.in_flight == 1
    clock.advance(61)
    ledger.beat()
    assert (run.balance.held, run.balance.in_flight) == (ZERO, 0)
    del task


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_a_reservation_whose_caller_is_gone_is_released(ledger: SQLiteLedger, end: str) -> None:
    gate, landed = threading.Event(), threading.Event()
    after(ledger, "_reserve", lambda: landed.set() or gate.wait(5))  # type: ignore[func-returns-value]

    async def main() -> None:
        asking = _areserve(ledger, "c")
        if end == "close":
            asking.send(None)
            await asyncio.to_thread(landed.wait, 5)
            asking.close()
        else:
            task = asyncio.create_task(asking)
            await asyncio.to_thread(landed.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        gate.set()
        assert (await ledger.abalance("run:a")).held.nano in (0, 5)

    asyncio.run(main())
    ledger.beat()
    balance = ledger.balance("run:a")
    assert (balance.held, balance.unknown, balance.in_flight) == (ZERO, ZERO, 0)


def test_a_balance_that_was_not_committed_is_not_seen(ledger: SQLiteLedger, clock: ManualClock) -> None:
    """Else its run, with a call in flight that never was, would not be closed."""
    guard = Guard(Budget(usd=1), ledger=ledger, clock=clock, sinks=())
    with guard.run() as run:
        guard.admit(request(), run).settle(CENT)
        before, file = run.seen, ledger._file

        class Full:
            def __init__(self, connection: Any) -> None:
                self._connection = connection

            def execute(self, statement: str, *args: Any) -> Any:
                if statement == "COMMIT":
                    raise sqlite3.OperationalError("database or disk is full")
                return self._connection.execute(statement, *args)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._connection, name)

        [connection] = file._open_here
        file._open_here[:] = [Full(connection)]  # type: ignore[list-item]
        with pytest.raises(Exception, match="full: make room"):
            guard.admit(request(), run)
        assert run.seen == before
        file._open_here[:] = [connection]
    assert ledger.balance(f"run:{run.id}").caps.nano is None, "closed"
