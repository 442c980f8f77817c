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
