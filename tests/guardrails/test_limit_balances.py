"""`Guard.limit_balances`: what is used of the guard's limits, beside its own caps; an error rather than a guess."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from runcap.guardrails import Budget, Guard, Limit, SQLiteLedger
from runcap.guardrails.ledger import Balance, LedgerError
from runcap.guardrails.testing import ManualClock

from .helpers import request
from .test_unknowns import CENT, clock, ledger, path

__all__ = ["clock", "ledger", "path"]


def guard(ledger: SQLiteLedger, clock: ManualClock, usd: str = "0.05") -> Guard:
    limits = [Limit("user", usd=usd, per="day"), Limit("team", steps=9, per="total", missing="skip")]
    return Guard(Budget(usd=1), limits=limits, ledger=ledger, clock=clock, sinks=())


def asked(guard: Guard, **tags: Any) -> list[tuple[Balance, ...]]:
    """In each way: sync; in async code; the sync face there, as this process saw it last."""

    async def main() -> list[tuple[Balance, ...]]:
        fresh = await guard.alimit_balances(**tags)
        with blockbuster_ctx():
            return [fresh, guard.limit_balances(**tags)]

    return [guard.limit_balances(**tags), *asyncio.run(main())]


def test_what_was_never_used_has_its_caps(ledger: SQLiteLedger, clock: ManualClock) -> None:
    for user, team in asked(guard(ledger, clock), user="ada", team="x"):
        assert (user.caps.nano, user.free(0), user.spent.nano) == (50_000_000, 50_000_000, 0)
        assert (team.caps.steps, team.free(2)) == (9, 9)


def test_the_caps_are_those_of_the_guard_that_is_asked(ledger: SQLiteLedger, clock: ManualClock) -> None:
    mine, other = guard(ledger, clock), guard(ledger, clock, "0.02")
    for one in (mine, other):
        with one.run(user="ada") as run:
            one.admit(request(), run).settle(CENT)
    for [user] in asked(mine, user="ada"):
        assert (user.caps.nano, user.spent.nano, user.free(0)) == (50_000_000, 20_000_000, 30_000_000)


@pytest.mark.parametrize(
    ("tags", "error", "says"),
    [
        ({"user": 1}, TypeError, "tag user must be a string"),
        ({"user": None}, TypeError, "tag user must be a string"),
        ({"user": "\ud800"}, ValueError, "lone surrogate"),
        ({"run_id": "x"}, ValueError, "run_id is no tag"),
    ],
)
def test_wrong_tags_are_named(
    ledger: SQLiteLedger, clock: ManualClock, tags: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        guard(ledger, clock).limit_balances(**tags)
    with pytest.raises(error, match=says):
        asyncio.run(guard(ledger, clock).alimit_balances(**tags))


def test_no_answer_is_no_zero(ledger: SQLiteLedger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    held = guard(ledger, clock)

    def away(*args: object) -> Any:
        raise LedgerError("away")

    monkeypatch.setattr(ledger, "balance", away)
    with pytest.raises(LedgerError, match="away"):
        held.limit_balances(user="ada")
    with pytest.raises(LedgerError, match="away"):
        asyncio.run(held.alimit_balances(user="ada"))


def test_on_a_loop_it_asks_nobody_for_the_time_either(
    ledger: SQLiteLedger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = guard(ledger, clock)

    def asks(clock: object) -> int:
        raise AssertionError("Redis was asked")

    monkeypatch.setattr(ledger, "now_ns", asks)

    async def main() -> None:
        assert held.limit_balances(user="ada")[0].caps.nano == 50_000_000

    asyncio.run(main())
