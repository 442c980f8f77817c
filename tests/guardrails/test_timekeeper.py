"""Clocks that jump: calls under limits per day or month are refused, for nobody knows their window; others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runcap.guardrails import Budget, Guard, LedgerUnavailable, Limit, SQLiteLedger, Usage
from runcap.guardrails.ledger import LedgerError
from runcap.guardrails.ledger.timekeeper import TOLERANCE_NS, Timekeeper, elapsed_ns
from runcap.guardrails.testing import ManualClock

from .helpers import request

SECOND = 10**9
DAY = 86_400
NOON = 1_795_694_400 * SECOND
"""2026-11-26, UTC."""


class TestTimekeeper:
    def test_believes_a_clock_that_goes_as_time_does(self) -> None:
        keeper = Timekeeper()
        for hours in range(100):
            passed = hours * 3_600 * SECOND
            assert keeper.check(NOON + passed, 5 + passed) == NOON + passed

    def test_lets_it_be_corrected_little_by_little(self) -> None:
        keeper, off = Timekeeper(), 0
        for hours in range(100):
            off += TOLERANCE_NS // 10
            keeper.check(NOON + hours * 3_600 * SECOND + off, hours * 3_600 * SECOND)

    @pytest.mark.parametrize("jump", [-DAY, -TOLERANCE_NS // SECOND - 1, TOLERANCE_NS // SECOND + 1, DAY, 30 * DAY])
    def test_notices_a_jump_and_does_not_get_used_to_it(self, jump: int) -> None:
        keeper = Timekeeper()
        keeper.check(NOON, 0)
        for seconds in range(1, 4):
            with pytest.raises(LedgerError, match=r"the clock jumped: it says .*, and should say 2026-11-26 12:00:0"):
                keeper.check(NOON + (jump + seconds) * SECOND, seconds * SECOND)
        assert keeper.check(NOON + 5 * SECOND, 5 * SECOND), "set right, it is believed again"

    def test_goes_by_it_once_it_is_told_to(self) -> None:
        keeper = Timekeeper()
        keeper.check(NOON, 0)
        keeper.accept()
        assert keeper.check(NOON + DAY * SECOND, 1) == NOON + DAY * SECOND
        with pytest.raises(LedgerError):
            keeper.check(NOON, 2)

    def test_knows_that_it_cannot_be_earlier_than_an_entry(self) -> None:
        keeper = Timekeeper()
        keeper.saw(NOON)
        keeper.saw(NOON - DAY * SECOND)
        keeper.check(NOON - TOLERANCE_NS, 0)
        with pytest.raises(LedgerError, match="has an entry of 2026-11-26 12:00:00Z already"):
            keeper.check(NOON - TOLERANCE_NS - 1, 0)
        keeper.accept()
        keeper.check(NOON - DAY * SECOND, 0)

    def test_elapsed_time_never_goes_back(self) -> None:
        assert elapsed_ns() <= elapsed_ns()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SQLiteLedger]:
    with SQLiteLedger(tmp_path / "l.db", synchronous="NORMAL", heartbeat=None, clock=ManualClock(NOON)) as made:
        yield made


def guard(ledger: SQLiteLedger, clock: ManualClock, per: Any, **budget: Any) -> Guard:
    limits = [Limit("user", usd=1, per=per)]
    return Guard(Budget(**(budget or {"usd": 1})), limits=limits, ledger=ledger, clock=clock, sinks=())


def call(held: Guard) -> None:
    with held.run(user="ada") as run:
        held.admit(request(), run).settle(Usage(0, 1000))


async def acall(held: Guard) -> None:
    async with held.run(user="ada") as run:
        permit = await held.aadmit(request(), run)
        permit.settle(Usage(0, 1000))
        await permit.booked()


def either(held: Guard, face: str) -> None:
    if face == "sync":
        call(held)
    else:
        asyncio.run(acall(held))


@pytest.mark.parametrize("face", ["sync", "async"])
@pytest.mark.parametrize("jump", [DAY, -DAY])
@pytest.mark.parametrize("per", ["day", "month"])
def test_windows_are_refused_until_the_clock_is_accepted(ledger: SQLiteLedger, per: str, jump: int, face: str) -> None:
    clock = ManualClock(NOON)
    held = guard(ledger, clock, per)
    either(held, face)
    clock.advance(jump)
    with pytest.raises(LedgerUnavailable, match=r"the clock jumped.*accept_clock"):
        either(held, face)
    with pytest.raises(LedgerError, match="jumped"):
        held.limit_balances(user="ada")
    assert not len(held.calls)
    ledger.accept_clock()
    either(held, face)
    assert held.limit_balances(user="ada")[0].spent.nano == (10_000_000 if per == "day" else 20_000_000)


def test_a_total_does_not_mind(ledger: SQLiteLedger) -> None:
    clock = ManualClock(NOON)
    held = guard(ledger, clock, "total")
    for _ in range(3):
        call(held)
        clock.advance(-DAY)
    assert held.limit_balances(user="ada")[0].spent.nano == 30_000_000


def test_what_is_in_flight_as_it_jumps_settles_into_its_window(ledger: SQLiteLedger) -> None:
    clock = ManualClock(NOON)
    held = guard(ledger, clock, "day")
    with held.run(user="ada") as run:
        permit = held.admit(request(), run)
        clock.advance(DAY)
        permit.settle(Usage(0, 1000))
    assert ledger.balance("limit:user=ada/day/2026-11-26").spent.nano == 10_000_000


def test_a_clock_before_the_last_entry_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with SQLiteLedger(path, heartbeat=None, clock=ManualClock(NOON)) as first:
        call(guard(first, ManualClock(NOON), "day"))
    early = ManualClock(NOON - DAY * SECOND)
    with SQLiteLedger(path, heartbeat=None, clock=early) as second:
        with pytest.raises(LedgerUnavailable, match=r"has an entry of 2026-11-26 12:00:00Z already.*accept_clock"):
            call(guard(second, early, "day"))
        call(guard(second, early, "total"))
        second.accept_clock()
        call(guard(second, early, "day"))
    with SQLiteLedger(path, heartbeat=None, clock=early) as third:
        call(guard(third, early, "day"))
