"""The windows of limits: which day or month a call belongs to, and which account that is."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from runcap.guardrails import BudgetExceeded, Limit
from runcap.guardrails.testing import ManualClock

from .helpers import request
from .test_limits import CENT, guard, spend, spent


def at(text: str, zone: str = "UTC") -> int:
    """A moment, nanoseconds since the epoch."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 10**9


class TestWindows:
    @pytest.mark.parametrize(
        ("per", "zone", "moment", "window"),
        [
            ("day", "UTC", at("2026-11-26T23:59:59"), "2026-11-26"),
            ("day", "UTC", at("2026-11-27T00:00:00"), "2026-11-27"),
            ("month", "UTC", at("2026-11-30T23:59:59"), "2026-11"),
            ("month", "UTC", at("2026-12-01T00:00:00"), "2026-12"),
            ("month", "UTC", at("2024-02-29T12:00:00"), "2024-02"),
            ("day", "Europe/Berlin", at("2026-11-26T23:00:00"), "2026-11-27"),
            ("day", "America/New_York", at("2026-11-27T04:59:59"), "2026-11-26"),
            ("month", "Pacific/Kiritimati", at("2026-11-30T10:00:00"), "2026-12"),
            ("day", "Asia/Kathmandu", at("2026-11-26T18:15:00"), "2026-11-27"),
            ("day", "Asia/Kathmandu", at("2026-11-26T18:14:59"), "2026-11-26"),
            ("total", "UTC", at("2026-11-26T12:00:00"), ""),
        ],
    )
    def test_of_a_moment(self, per: Any, zone: str, moment: int, window: str) -> None:
        assert Limit("user", usd=1, per=per, zone=zone).window(moment) == window

    @pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)])
    def test_a_day_is_as_long_as_the_zone_says(self, day: str, hours: int) -> None:
        limit, begin = Limit("user", usd=1, per="day", zone="Europe/Berlin"), at(f"{day}T00:00:00", "Europe/Berlin")
        hour = 3_600 * 10**9
        assert limit.window(begin) == limit.window(begin + hours * hour - 1) == day
        assert day not in (limit.window(begin - 1), limit.window(begin + hours * hour))

    def test_a_midnight_that_does_not_exist_ends_the_day_all_the_same(self) -> None:
        limit = Limit("user", usd=1, per="day", zone="America/Sao_Paulo")
        begin = int(datetime(2018, 11, 4, 3, tzinfo=UTC).timestamp()) * 10**9  # 23:59:59 is followed by 01:00
        assert (limit.window(begin - 1), limit.window(begin)) == ("2018-11-03", "2018-11-04")

    def test_the_accounts_are_told_apart(self) -> None:
        moment = at("2026-11-26T12:00:00")
        names = [
            Limit("user", usd=1, per="day").account("ada", moment).id,
            Limit("user", usd=1, per="month").account("ada", moment).id,
            Limit("user", usd=1, per="total").account("ada", moment).id,
            Limit("user", usd=1, per="day", zone="Asia/Tokyo").account("ada", moment).id,
            Limit("user", usd=1, per="day").account("ada/day", moment).id,
            Limit("user", usd=1, per="day").account("", moment).id,
            Limit("team", usd=1, per="day").account("ada", moment).id,
        ]
        assert len(set(names)) == len(names)
        assert names[0] == "limit:user=ada/day/2026-11-26"

    def test_a_call_belongs_to_the_window_it_was_reserved_in(self) -> None:
        clock = ManualClock(at("2026-11-26T23:59:59"))
        held = guard(Limit("user", usd="0.02", per="day"), clock=clock)
        with held.run(user="ada") as run:
            before = held.admit(request(), run)
            clock.advance(2)
            after = held.admit(request(), run)
            before.settle(CENT)
            after.settle(CENT)
        assert spent(held, "limit:user=ada/day/2026-11-26") == 10_000_000
        assert spent(held, "limit:user=ada/day/2026-11-27") == 10_000_000

    def test_usage_that_arrives_after_midnight_corrects_the_window_it_was_reserved_in(self) -> None:
        clock = ManualClock(at("2026-11-26T23:59:59"))
        held = guard(Limit("user", usd="0.02", per="day"), clock=clock)
        with held.run(user="ada") as run:
            permit = held.admit(request(), run)
            permit.abandon("TimeoutError")
            clock.advance(2)
            permit.settle(CENT)
        balance = held.ledger.balance("limit:user=ada/day/2026-11-26")
        assert (balance.spent.nano, balance.unknown.nano) == (10_000_000, 0)
        assert not any(held.ledger.balance("limit:user=ada/day/2026-11-27").used)

    def test_the_next_window_has_the_whole_cap(self) -> None:
        clock = ManualClock(at("2026-11-26T12:00:00"))
        held = guard(Limit("user", usd="0.01", per="day"), clock=clock)
        spend(held, user="ada")
        with pytest.raises(BudgetExceeded):
            spend(held, user="ada")
        clock.advance(86_400)
        spend(held, user="ada")

    def test_one_that_waits_across_midnight_takes_the_next_window(self) -> None:
        clock = ManualClock(at("2026-11-26T23:59:58"))
        held = guard(Limit("user", usd="0.01", per="day"), clock=clock)
        got: list[str] = []
        with held.run(user="ada") as run:
            first = held.admit(request(), run)

            def wait() -> None:
                permit = held.admit(request(), run, wait=True)
                got.append(permit.accounts[-1].id)
                permit.settle(CENT)

            thread = threading.Thread(target=run.bind(wait))
            thread.start()
            while not clock.waiting:
                thread.join(0.001)
            clock.advance(3)
            thread.join(5)
            first.settle(CENT)
        assert got == ["limit:user=ada/day/2026-11-27"]
