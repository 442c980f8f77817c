"""A call that was granted while its run turned out to be the rest of another: it is made there, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from runcap.guardrails import Budget, Guard, LedgerUnavailable, SQLiteLedger
from runcap.guardrails.ledger import LedgerError
from runcap.guardrails.permit import Permit
from runcap.guardrails.run import Run

from .helpers import request
from .test_unknowns import CENT, clock, ledger, path

__all__ = ["clock", "ledger", "path"]

Admit = Callable[[Guard, Run], Permit]


def admit(guard: Guard, run: Run) -> Permit:
    return guard.admit(request(), run)


def aadmit(guard: Guard, run: Run) -> Permit:
    async def main() -> Permit:
        return await guard.aadmit(request(), run)

    return asyncio.run(main())


@pytest.fixture(params=[admit, aadmit], ids=["sync", "async"])
def ask(request: Any) -> Admit:
    made: Admit = request.param
    return made


def goes_on(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Run]:
    """A run that goes on as another in the moment its call was granted."""
    run, other = guard.open_run(), guard.open_run()
    reserve = guard.ledger.reserve

    def granted(*args: Any) -> Any:
        answer = reserve(*args)
        run.went_on_as = other
        run.end()
        return answer

    async def agranted(*args: Any) -> Any:
        return await asyncio.to_thread(granted, *args)

    monkeypatch.setattr(guard.ledger, "reserve", granted)
    monkeypatch.setattr(guard.ledger, "areserve", agranted)
    return run, other


def test_is_made_there(ledger: SQLiteLedger, ask: Admit, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard(Budget(usd=1), ledger=ledger, sinks=())
    run, other = goes_on(guard, monkeypatch)
    permit = ask(guard, run)
    assert permit.run is other
    permit.settle(CENT)
    assert ledger.balance(f"run:{other.id}").spent.nano == 10_000_000


def test_is_refused_where_the_grant_could_not_be_given_back(
    ledger: SQLiteLedger, ask: Admit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be granted once more as it is, and freed by the release that comes late."""
    guard = Guard(Budget(usd=1), ledger=ledger, sinks=())
    run, other = goes_on(guard, monkeypatch)
    write, released = ledger._file.write, list[str]()

    def away(operation: Any, *args: Any) -> Any:
        if operation.__name__ == "_end_call" and not released:
            released.append("no")
            raise LedgerError("away for a moment")
        return write(operation, *args)

    monkeypatch.setattr(ledger._file, "write", away)
    with pytest.raises(LedgerUnavailable, match="away for a moment"):
        ask(guard, run)
    ledger.beat()
    for one in (run, other):
        assert ledger.balance(f"run:{one.id}").in_flight == 0
    assert len(guard.calls) == 0
