"""Runs that go on elsewhere: what they have spent is booked, whatever became of them meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runcap.guardrails import Budget, BudgetExceeded, Guard, LedgerUnavailable, MemoryLedger, SQLiteLedger
from runcap.guardrails.amounts import ZERO, Amounts, Caps
from runcap.guardrails.ledger import Account, Refusal
from runcap.guardrails.saved import SavedRun, carry_over, catch_up, restore

from .helpers import request
from .ledger_contract import account, offer
from .test_unknowns import CENT

SPENT = Amounts(50_000_000, 10, 2, 1)
SAVED = SavedRun("r", SPENT, Amounts(nano=3), {})


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: Any, tmp_path: Path) -> Iterator[MemoryLedger | SQLiteLedger]:
    if request.param == "memory":
        yield MemoryLedger()
        return
    with SQLiteLedger(tmp_path / "l.db", synchronous="NORMAL", heartbeat=None) as made:
        yield made


@pytest.mark.parametrize("reason", ["a person said so", "cap:steps", "loop:again and again"])
def test_is_booked_to_a_run_that_was_stopped(ledger: Any, reason: str) -> None:
    guard = Guard(Budget(usd=1), ledger=ledger, sinks=())
    with guard.run() as blank:
        guard.admit(request(), blank).settle(CENT)
        for run_id, book in (("restored", restore), ("caught", catch_up), ("carried", carry_over)):
            ledger.reserve(f"c{run_id}", (offer(5),), (account(f"run:{run_id}"),))
            ledger.settle(f"c{run_id}", Amounts(nano=5))
            ledger.stop(f"run:{run_id}", reason)
            book(SAVED._replace(run_id=run_id), blank, ledger)
        carried, caught, restored = (ledger.balance(f"run:{name}") for name in ("carried", "caught", "restored"))
    assert carried.spent == Amounts(10_000_005, 1000, 2)
    assert caught.spent == SPENT.plus(Amounts(nano=5, steps=1))
    assert restored.spent == SPENT
    assert {one.stopped for one in (carried, caught, restored)} == {reason}


def test_leaves_the_caps_alone_and_is_not_held_to_them(ledger: Any) -> None:
    caps = Caps(nano=100, tokens=1, steps=1, tool_calls=0)
    ledger.reserve("c", (offer(5),), (Account("run:r", caps),))
    ledger.settle("c", Amounts(nano=5))
    blank = Guard(Budget(usd=1), ledger=ledger, sinks=()).open_run()
    catch_up(SAVED, blank, ledger)
    balance = ledger.balance("run:r")
    assert balance.caps == caps
    assert (balance.spent, balance.unknown) == (SPENT.plus(Amounts(nano=5, steps=1)), Amounts(nano=3))
    assert (balance.held, balance.in_flight) == (ZERO, 0)


class _NeverBooks(MemoryLedger):
    def reserve(self, call_id: str, offers: Any, accounts: Any, about: Any = None) -> Any:
        if call_id.startswith("restored"):
            return Refusal(call_id, accounts[0], self.balance(accounts[0].id), None, ZERO)
        return super().reserve(call_id, offers, accounts, about)


def test_where_it_cannot_be_the_next_call_is_refused() -> None:
    guard = Guard(Budget(usd=1), ledger=_NeverBooks(), sinks=())
    run = guard.open_run(saved=SAVED)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match="what the run has spent elsewhere cannot be booked"):
            guard.admit(request(), run)


def test_a_run_that_was_stopped_stays_so(ledger: Any) -> None:
    ledger.stop("run:r", "a person said so")
    guard = Guard(Budget(usd=1), ledger=ledger, sinks=())
    run = guard.open_run(saved=SAVED)
    with pytest.raises(BudgetExceeded, match="a person said so"):
        guard.admit(request(), run)
    assert run.balance.spent == SPENT
