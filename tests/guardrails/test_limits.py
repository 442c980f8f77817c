"""Limits: caps on a tag, for a day, a month or for good, over runs and guards that share a ledger."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import Any

import pytest

from runcap.guardrails import (
    Budget,
    BudgetBusy,
    BudgetExceeded,
    BudgetWarned,
    CallRefused,
    Guard,
    Limit,
    MemoryLedger,
    RunStopped,
    UnpricedModel,
    Usage,
)
from runcap.guardrails.errors import MissingTag, Refused, UnboundedCall
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.testing import ManualClock, Recorder

from .helpers import request

CENT = Usage(0, 1000)
NOON = 1_795_694_400_000_000_000
"""2026-11-26, UTC."""


def guard(*limits: Limit, ledger: MemoryLedger | None = None, **more: Any) -> Guard:
    budget = more.pop("budget", None) or Budget(usd=1)
    more.setdefault("sinks", ())
    return Guard(budget, limits=limits, ledger=ledger or MemoryLedger(), **more)


def spend(held: Guard, **tags: str) -> None:
    """A call of a cent, in a run of its own."""
    with held.run(budget=None, **tags) as run:
        held.admit(request(), run).settle(CENT)


def spent(held: Guard, account_id: str) -> int:
    return held.ledger.balance(account_id).spent.nano


class TestTags:
    def test_each_value_has_the_cap_to_itself(self) -> None:
        held = guard(Limit("user", usd="0.01", per="total"))
        spend(held, user="ada")
        spend(held, user="bob")
        with pytest.raises(BudgetExceeded, match=r"user ada/total"):
            spend(held, user="ada")

    def test_several_limits_hold_at_once_and_the_tightest_refuses(self) -> None:
        held = guard(Limit("user", usd="0.02", per="total"), Limit("team", usd="0.03", per="total"))
        spend(held, user="ada", team="x")
        spend(held, user="ada", team="x")
        with pytest.raises(BudgetExceeded) as info:
            spend(held, user="ada", team="x")
        assert info.value.scope == "user"
        spend(held, user="bob", team="x")
        with pytest.raises(BudgetExceeded) as info:
            spend(held, user="bob", team="x")
        assert info.value.scope == "team"
        assert spent(held, "limit:user=bob/total") == 10_000_000, "what one limit refuses, no other counts"

    def test_a_run_without_the_tag_is_refused_early(self) -> None:
        held = guard(Limit("user", usd=1, per="day"))
        with pytest.raises(ValueError, match=r'there is a limit on user, .*guard\.run\(user="\.\.\."\)'):
            held.run(team="x")

    def test_calls_of_runs_without_the_tag_are_refused(self) -> None:
        seen = Recorder()
        held = guard(Limit("user", usd=1, per="day"), sinks=(seen,))
        for run in (None, held.open_run(), held.named_run("r")):
            with pytest.raises(MissingTag, match=r'missing="skip"') as info:
                held.admit(request(), run)
            assert info.value.unit is None
        assert [event.kind for event in seen.of(CallRefused)] == ["MissingTag"] * 3
        assert not seen.of(RunStopped)
        assert not len(held.calls)

    def test_or_not_limited_by_choice(self) -> None:
        held = guard(Limit("user", usd="0.01", per="day", missing="skip"))
        for _ in range(3):
            spend(held)
            held.admit(request()).settle(CENT)
        spend(held, user="ada")
        with pytest.raises(BudgetExceeded):
            spend(held, user="ada")

    def test_a_nested_run_with_another_value_is_another_users(self) -> None:
        held = guard(Limit("user", usd="0.01", per="total"))
        with held.run(user="ada"):
            with held.run(user="bob") as inner:
                held.admit(request(), inner).settle(CENT)
                assert inner.tags == {"user": "bob"}
            held.admit(request()).settle(CENT)
        assert spent(held, "limit:user=ada/total") == spent(held, "limit:user=bob/total") == 10_000_000

    def test_a_nested_run_inherits_the_tag_and_is_charged_once(self) -> None:
        held = guard(Limit("user", usd="0.05", per="total"))
        with held.run(user="ada"), held.run(task="refund"), held.run(budget=Budget(usd=1)) as run:
            permit = held.admit(request(), run)
            permit.settle(CENT)
        assert [one.id for one in permit.accounts].count("limit:user=ada/total") == 1
        assert spent(held, "limit:user=ada/total") == 10_000_000

    def test_odd_values_are_told_apart(self) -> None:
        held = guard(Limit("user", usd="0.01", per="total"))
        for value in ("", "a/b", "a=b", "a@b", "ä", "%2F", "/", "a\x00b", "x" * 10_000):
            spend(held, user=value)

    def test_text_that_no_store_can_keep_is_refused_where_it_is_said(self) -> None:
        held = guard(Limit("user", usd=1, per="total"))
        with pytest.raises(ValueError, match="tag 'user'"):
            held.run(user="\ud800")


class TestRefusals:
    def refusal(self, held: Guard, **tags: str) -> Refused:
        with pytest.raises(Refused) as info:
            spend(held, **tags)
        return info.value

    def test_say_which_limit_the_numbers_and_the_way_out(self) -> None:
        seen, clock = Recorder(), ManualClock(NOON)
        held = guard(Limit("user", usd="0.015", per="day"), clock=clock, sinks=(seen,))
        spend(held, user="ada")
        refused = self.refusal(held, user="ada")
        assert type(refused) is BudgetExceeded
        assert (refused.scope, refused.run_id, refused.unit) == ("user", "ada/day/2026-11-26", "usd")
        assert (refused.cap, refused.spent, refused.held, refused.needed) == tuple(
            map(Decimal, ("0.015", "0.01", "0", "0.01"))
        )
        assert str(refused).startswith("budget exceeded (user ada/day/2026-11-26): usd cap $0.015, spent $0.01")
        assert 'a larger Limit("user", usd=...), or wait for the next day' in str(refused)
        assert [event.details.scope for event in seen.of(CallRefused)] == ["user"]

    @pytest.mark.parametrize(
        ("limit", "unit", "hint"),
        [
            (Limit("user", steps=1, per="month"), "steps", "wait for the next month"),
            (Limit("user", tokens=1500, per="total"), "tokens", 'a larger Limit("user", tokens=...)'),
        ],
    )
    def test_of_steps_and_tokens(self, limit: Limit, unit: str, hint: str) -> None:
        held = guard(limit)
        spend(held, user="ada")
        refused = self.refusal(held, user="ada")
        assert (refused.unit, refused.scope, type(refused)) == (unit, "user", BudgetExceeded)
        assert hint in str(refused)
        assert ("wait for" in str(refused)) == (limit.per != "total")

    def test_are_busy_while_calls_in_flight_hold_the_rest(self) -> None:
        held = guard(Limit("user", usd="0.015", per="total"))
        with held.run(user="ada") as run:
            held.admit(request(), run).settle(Usage(0, 100))
            held.admit(request(), run)
            assert isinstance(self.refusal(held, user="ada"), BudgetBusy)

    def test_stop_neither_the_run_nor_the_limit(self) -> None:
        seen, ledger = Recorder(), MemoryLedger()
        held = guard(Limit("user", usd="0.01", per="total"), ledger=ledger, sinks=(seen,))
        with held.run(user="ada") as run:
            held.admit(request(), run).settle(CENT)
            for _ in range(2):
                with pytest.raises(BudgetExceeded, match="budget exceeded "):
                    held.admit(request(), run)
            assert run.stopped is None
            assert not run.halted
        assert ledger.balance("limit:user=ada/total").stopped is None
        assert not seen.of(RunStopped)
        spend(guard(Limit("user", usd="0.02", per="total"), ledger=ledger), user="ada")

    def test_of_the_run_come_first(self) -> None:
        held = guard(Limit("user", usd="0.01", per="total"), budget=Budget(usd="0.01"))
        with held.run(user="ada") as run:
            held.admit(request(), run).settle(CENT)
            with pytest.raises(BudgetExceeded) as info:
                held.admit(request(), run)
            assert info.value.scope == "run"
            assert run.stopped == "cap:usd"

    def test_of_a_limit_in_dollars_without_a_price(self) -> None:
        held = guard(Limit("user", usd=1, per="total"), budget=Budget(steps=5))
        with held.run(user="ada") as run, pytest.raises(UnpricedModel, match="no-such-model"):
            held.admit(request(model="no-such-model"), run)
        free = guard(Limit("user", steps=5, per="total"), budget=Budget(steps=5))
        with free.run(user="ada") as run:
            free.admit(request(model="no-such-model"), run).settle(CENT)
            assert run.spent_usd is None
        skipped = guard(Limit("user", usd=1, per="total", missing="skip"), budget=Budget(steps=5))
        with skipped.run() as run:
            skipped.admit(request(model="no-such-model"), run)

    def test_of_a_strict_budget_under_a_limit(self) -> None:
        held = guard(Limit("user", usd=1, per="total"), budget=Budget(usd=1, strict=True))
        with held.run(user="ada") as run, pytest.raises(UnboundedCall):
            held.admit(request(prompt=Prompt(measured=1, bounded=False)), run)
        assert not any(held.ledger.balance("limit:user=ada/total").used)


class TestShared:
    def test_guards_with_other_caps_share_the_spend_and_each_holds_its_own_cap(self) -> None:
        ledger = MemoryLedger()
        small = guard(Limit("team", usd="0.02", per="total"), ledger=ledger)
        large = guard(Limit("team", usd="0.04", per="total"), ledger=ledger)
        for _ in range(3):
            spend(large, team="x")
        with pytest.raises(BudgetExceeded) as info:
            spend(small, team="x")
        assert (info.value.cap, info.value.spent) == (Decimal("0.02"), Decimal("0.03"))
        spend(large, team="x")
        with pytest.raises(BudgetExceeded) as info:
            spend(large, team="x")
        assert info.value.cap == Decimal("0.04")

    def test_threads_never_pass_it(self) -> None:
        held = guard(Limit("team", usd="0.1", per="day"))
        highest: list[int] = []

        def work() -> None:
            for _ in range(5):
                try:
                    with held.run(team="x") as run:
                        permit = held.admit(request(), run, wait=True)
                        highest.append(held.ledger.balance(permit.accounts[-1].id).used.nano)
                        permit.settle(Usage(0, 400))
                except BudgetExceeded:
                    return

        threads = [threading.Thread(target=work) for _ in range(12)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(10)
        [balance] = held.limit_balances(team="x")
        assert max(highest) <= 100_000_000
        assert balance.held.nano == 0
        assert 90_000_000 < balance.spent.nano <= 100_000_000, "all that could be afforded was"

    def test_a_clamped_call_takes_what_the_limit_has_left(self) -> None:
        held = guard(Limit("user", usd="0.005", per="total"))
        with held.run(user="ada") as run:
            permit = held.admit(request(may_clamp=True), run)
            assert permit.output_cap == 500

    def test_warnings(self) -> None:
        seen = Recorder()
        held = guard(Limit("user", usd="0.02", per="total", warn_at=(0.5, 0.9)), sinks=(seen,))
        for _ in range(2):
            spend(held, user="ada")
        spend(held, user="bob")
        told = [(one.scope, one.share, one.balance.account_id) for one in seen.of(BudgetWarned)]
        ada = "limit:user=ada/total"
        assert told == [("user", 0.5, ada), ("user", 0.9, ada), ("user", 0.5, "limit:user=bob/total")]


def test_balances_of_now() -> None:
    clock = ManualClock(NOON)
    held = guard(Limit("user", usd="0.02", per="day"), Limit("user", steps=9, per="month"), clock=clock)
    spend(held, user="ada")
    day, month = held.limit_balances(user="ada")
    assert (day.account_id, month.account_id) == ("limit:user=ada/day/2026-11-26", "limit:user=ada/month/2026-11")
    assert (day.spent.nano, day.caps.nano, month.spent.steps) == (10_000_000, 20_000_000, 1)
    clock.advance(86_400)
    assert held.limit_balances(user="ada")[0].spent.nano == 0
    with pytest.raises(MissingTag):
        held.limit_balances(team="x")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"usd": None}, ValueError, "needs a cap"),
        ({"scope": "run"}, ValueError, "must name a tag"),
        ({"scope": "two words"}, ValueError, "must name a tag"),
        ({"scope": 3}, ValueError, "must name a tag"),
        ({"per": "week"}, ValueError, '"day", "month" or "total"'),
        ({"missing": "ignore"}, ValueError, '"refuse" or "skip"'),
        ({"zone": "Mars/Olympus"}, ValueError, "name of a time zone"),
        ({"zone": "../etc/passwd"}, ValueError, "name of a time zone"),
        ({"zone": ""}, ValueError, "name of a time zone"),
        ({"zone": 1}, TypeError, "name of a time zone"),
        ({"usd": "-1"}, ValueError, "Limit.usd"),
        ({"steps": 0}, ValueError, "Limit.steps"),
        ({"tokens": 1.5}, TypeError, "Limit.tokens"),
    ],
)
def test_bad_limits(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Limit(**({"scope": "user", "usd": 1, "per": "day"} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pair",
    [
        (Limit("user", usd=1, per="day"), Limit("user", steps=1, per="day")),
        (Limit("user", usd=1, per="total"), Limit("user", steps=1, per="total", zone="Asia/Tokyo")),
    ],
)
def test_two_limits_on_one_window(pair: tuple[Limit, Limit]) -> None:
    with pytest.raises(ValueError, match="two limits on user"):
        guard(*pair)


def test_limits_that_a_guard_does_not_take() -> None:
    with pytest.raises(ValueError, match="need a ledger of their own"):
        Guard(Budget(usd=1), limits=[Limit("user", usd=1, per="day")], sinks=())
    for wrong in (Limit("user", usd=1, per="day"), "user", 3):
        with pytest.raises(TypeError, match=r"Guard\.limits"):
            Guard(Budget(usd=1), limits=wrong, ledger=MemoryLedger(), sinks=())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hold Limit"):
        Guard(Budget(usd=1), limits=["user"], ledger=MemoryLedger(), sinks=())  # type: ignore[list-item]
