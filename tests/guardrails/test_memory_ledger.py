from __future__ import annotations

import gc
import os

import pytest
from hypothesis import settings

from runcap.guardrails.amounts import Amounts
from runcap.guardrails.ledger import Grant, Ledger, LedgerError, MemoryLedger

from .ledger_contract import LedgerContract, LedgerMachine, account, offer


class TestMemoryLedger(LedgerContract):
    def make(self) -> Ledger:
        return MemoryLedger()


class _Machine(LedgerMachine):
    def make(self) -> Ledger:
        return MemoryLedger()


TestMachine = _Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_fork_is_refused() -> None:
    ledger = MemoryLedger()
    ledger._pid = os.getpid() + 1
    with pytest.raises(LedgerError, match="does not outlive a fork"):
        ledger.reserve("c", (offer(1),), (account(),))


def test_a_finalizer_inside_an_operation_neither_deadlocks_nor_tears() -> None:
    ledger = MemoryLedger()
    ledger.reserve("old", (offer(10),), (account(),))

    class Abandoned:
        """Settles as it is collected, as an abandoned stream does, in the middle of a reserve."""

        def __del__(self) -> None:
            ledger.settle("old", Amounts(nano=4))

    cycle: list[object] = [Abandoned()]
    cycle.append(cycle)
    del cycle
    original = ledger._reserve

    def collecting(*args: object) -> object:
        gc.collect()
        assert ledger._accounts["run:a"].held.nano == 10, "booked in the middle of another operation"
        return original(*args)  # type: ignore[arg-type]

    ledger._reserve = collecting  # type: ignore[method-assign,assignment]
    assert isinstance(ledger.reserve("new", (offer(20),), (account(),)), Grant)
    balance = ledger.balance("run:a")
    assert (balance.spent.nano, balance.held.nano) == (4, 20)


def test_tombstones_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runcap.guardrails.ledger.memory._REMEMBERED", 10)
    ledger = MemoryLedger()
    for number in range(50):
        ledger.release(f"c{number}")
    assert len(ledger._dead) == 10


def test_a_reserve_inside_another_operation_is_refused_and_never_booked() -> None:
    ledger = MemoryLedger()
    original = ledger._settle
    ledger.reserve("old", (offer(10),), (account(),))

    def reserving(*args: object) -> object:
        with pytest.raises(LedgerError, match="finalizer"):
            ledger.reserve("inner", (offer(10),), (account(),))
        return original(*args)  # type: ignore[arg-type]

    ledger._settle = reserving  # type: ignore[method-assign,assignment]
    ledger.settle("old", Amounts(nano=4))
    assert (ledger.balance("run:a").held.nano, ledger.balance("run:a").in_flight) == (0, 0)


def test_an_interrupt_while_booking_what_came_late_leaves_the_ledger_usable() -> None:
    ledger = MemoryLedger()
    ledger.reserve("old", (offer(10),), (account(),))
    original = ledger._settle

    def interrupted() -> None:
        raise KeyboardInterrupt

    def leaving(*args: object) -> object:
        ledger._late.append(interrupted)
        return original(*args)  # type: ignore[arg-type]

    ledger._settle = leaving  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        ledger.settle("old", Amounts(nano=4))
    assert isinstance(ledger.reserve("new", (offer(1),), (account(),)), Grant)
