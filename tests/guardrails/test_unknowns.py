"""Unknown calls: listed, resolved, never lost; owners that die; what ends a call while a file cannot be written."""

from __future__ import annotations

import gc
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from runcap.guardrails import Budget, Guard, LedgerUnavailable, Limit, SQLiteLedger, Usage
from runcap.guardrails.amounts import Amounts
from runcap.guardrails.ledger import LedgerError, UnknownCall
from runcap.guardrails.testing import ManualClock

from .helpers import request
from .ledger_contract import account, offer

CENT = Usage(0, 1000)
NOON = 1_795_694_400 * 10**9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "l.db"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


def make(path: Path, clock: ManualClock, **more: Any) -> SQLiteLedger:
    return SQLiteLedger(path, **{"synchronous": "NORMAL", "heartbeat": None, "clock": clock, "timeout": 0.02} | more)


@pytest.fixture
def ledger(path: Path, clock: ManualClock) -> Iterator[SQLiteLedger]:
    with make(path, clock) as made:
        yield made


@pytest.fixture
def guard(ledger: SQLiteLedger, clock: ManualClock) -> Guard:
    return Guard(Budget(usd=1), limits=[Limit("user", usd=1, per="total")], ledger=ledger, clock=clock, sinks=())


LIMIT = "limit:user=ada/total"


def abandoned(guard: Guard) -> str:
    """A call that was cut off after 200 tokens; its run is over."""
    with guard.run(user="ada") as run:
        permit = guard.admit(request(), run)
        permit.abandon("TimeoutError", partial=Usage(0, 200))
    return permit.call_id


def resolved(ledger: SQLiteLedger) -> tuple[int, int]:
    """What is spent, and what is unknown."""
    balance = ledger.balance(LIMIT)
    return balance.spent.nano, balance.unknown.nano


class TestResolving:
    def test_lists_them_oldest_first(self, ledger: SQLiteLedger, guard: Guard, clock: ManualClock) -> None:
        first = abandoned(guard)
        clock.advance(1)
        second = abandoned(guard)
        calls = ledger.unknowns()
        assert [one.call_id for one in calls] == [first, second]
        call = calls[0]
        assert (call.charged_usd, call.unknown_usd, call.since_ns) == (Decimal("0.002"), Decimal("0.008"), NOON)
        assert (call.about.tags, call.about.model) == ({"user": "ada"}, "gpt-4o")
        assert LIMIT in call.accounts
        assert call.record is not None
        assert call.record.state == "unknown"

    @pytest.mark.parametrize(("usd", "nano"), [("0.0075", 7_500_000), (0, 0), ("3", 3_000_000_000)])
    def test_by_hand(self, ledger: SQLiteLedger, guard: Guard, usd: Any, nano: int) -> None:
        call_id = abandoned(guard)
        assert ledger.resolve(call_id, usd=usd, tokens=900) is not None
        assert resolved(ledger) == (nano, 0)
        assert ledger.balance(LIMIT).spent.tokens == 900
        assert not ledger.unknowns()
        assert [(one.revision, one.cost_nano, one.resolved_by) for one in ledger.records()] == [(1, nano, "hand")]
        with pytest.raises(KeyError, match=r"ledger\.unknowns\(\) lists them"):
            ledger.resolve(call_id, usd=1)

    @pytest.mark.parametrize(
        ("rule", "nano"),
        [("seen", 2_000_000), ("expected", 10_000_000), ("all", 10_000_000), (lambda call: "0.004", 4_000_000)],
    )
    def test_by_rule(self, ledger: SQLiteLedger, guard: Guard, rule: Any, nano: int) -> None:
        abandoned(guard)
        assert ledger.resolve_all(rule) == 1
        assert resolved(ledger) == (nano, 0)
        assert sum(one.cost_nano or 0 for one in ledger.records()) == nano
        assert ledger.resolve_all(rule) == 0

    def test_a_rule_leaves_what_it_will(self, ledger: SQLiteLedger, guard: Guard, clock: ManualClock) -> None:
        abandoned(guard)
        clock.advance(100)
        young = abandoned(guard)
        assert ledger.resolve_all(lambda _: None) == 0
        assert ledger.resolve_all("seen", older_than=60) == 1
        assert [one.call_id for one in ledger.unknowns()] == [young]

    def test_a_rule_that_fails_leaves_the_rest(self, ledger: SQLiteLedger, guard: Guard) -> None:
        abandoned(guard)

        def broken(call: UnknownCall) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ledger.resolve_all(broken)
        with pytest.raises(ValueError, match='"seen", "expected", "all"'):
            ledger.resolve_all("cheapest")  # type: ignore[arg-type]
        for wrong in ("-1", "much", float("nan")):
            with pytest.raises(ValueError, match="usd"):
                ledger.resolve(ledger.unknowns()[0].call_id, usd=wrong)
        assert len(ledger.unknowns()) == 1

    def test_usage_that_arrives_late_resolves_it(self, ledger: SQLiteLedger, guard: Guard) -> None:
        with guard.run(user="ada") as run:
            permit = guard.admit(request(), run)
            permit.abandon("TimeoutError")
        permit.settle(Usage(0, 500))
        assert resolved(ledger) == (5_000_000, 0)
        assert (run.spent_usd, run.unknown_usd) == (Decimal("0.005"), Decimal(0))
        assert [one.resolved_by for one in ledger.records()] == ["late"]

    def test_usage_that_arrives_after_it_was_resolved_changes_nothing(self, ledger: SQLiteLedger, guard: Guard) -> None:
        with guard.run(user="ada") as run:
            permit = guard.admit(request(), run)
            permit.abandon("TimeoutError")
            ledger.resolve_all("all")
            permit.settle(Usage(0, 500))
        assert resolved(ledger) == (10_000_000, 0)
        assert [one.cost_nano for one in ledger.records()] == [10_000_000]

    def test_the_end_of_the_run_ends_it_there_and_not_in_the_limit(self, ledger: SQLiteLedger, guard: Guard) -> None:
        abandoned(guard)
        assert resolved(ledger) == (2_000_000, 8_000_000)
        [call] = ledger.unknowns()
        assert not any(ledger.balance(f"run:{call.about.run_id}").used)


class TestOwnersThatDie:
    @pytest.fixture
    def other(self, path: Path, clock: ManualClock) -> Iterator[SQLiteLedger]:
        with make(path, clock) as made:
            yield made

    def test_leave_their_holds_as_unknown(
        self, ledger: SQLiteLedger, guard: Guard, other: SQLiteLedger, clock: ManualClock
    ) -> None:
        with guard.run(user="ada") as run:
            guard.admit(request(), run)
            clock.advance(59)
            other.beat()
            assert not other.unknowns()
            clock.advance(2)
            other.beat()
            [call] = other.unknowns()
            assert (call.charged, call.unknown.nano) == (Amounts(), 10_000_000)
            assert call.about.run_id == run.id
            assert resolved(other) == (0, 10_000_000)
            assert (run.held_usd, run.unknown_usd) == (Decimal(0), Decimal("0.01"))
            [record] = other.records()
            assert (record.state, record.cost_nano, record.resolved_by) == ("unknown", None, "owner died")

    @pytest.mark.parametrize(
        ("end", "nano", "unknown"), [("settle", 5_000_000, 0), ("release", 0, 0), ("abandon", 0, 10_000_000)]
    )
    def test_and_were_only_asleep(
        self,
        ledger: SQLiteLedger,
        guard: Guard,
        other: SQLiteLedger,
        clock: ManualClock,
        end: str,
        nano: int,
        unknown: int,
    ) -> None:
        with guard.run(user="ada") as run:
            permit = guard.admit(request(), run)
            clock.advance(100)
            other.beat()
            if end == "settle":
                permit.settle(Usage(0, 500))
            else:
                getattr(permit, end)("TimeoutError")
        assert resolved(other) == (nano, unknown)
        assert other.balance(LIMIT).in_flight == 0
        assert len(list(other.records(all=True))) == 2
        guard.admit(request(), guard.open_run(tags={"user": "ada"}))
        clock.advance(10)
        other.beat()
        assert other.balance(LIMIT).in_flight == 1, "alive again"

    def test_nobody_buries_himself_or_who_beats(
        self, ledger: SQLiteLedger, guard: Guard, other: SQLiteLedger, clock: ManualClock
    ) -> None:
        with guard.run(user="ada") as run:
            guard.admit(request(), run)
            clock.advance(1000)
            ledger.beat()
            other.beat()
            assert not other.unknowns()
            assert run.held_usd == Decimal("0.01")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process that holds the file."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


class TestWhileTheFileIsLocked:
    def test_calls_are_refused(self, path: Path, guard: Guard) -> None:
        with guard.run(user="ada") as run:
            with locked(path), pytest.raises(LedgerUnavailable, match=r"locked: another process held it for more than"):
                guard.admit(request(), run)
            assert run.stopped is None
            guard.admit(request(), run).settle(CENT)

    @pytest.mark.parametrize("later", ["reserve", "settle", "beat", "dispose"])
    def test_what_ends_a_call_is_written_later(
        self, path: Path, ledger: SQLiteLedger, guard: Guard, later: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with guard.run(user="ada") as run:
            one, two, three, four = (guard.admit(request(), run) for _ in range(4))
            with locked(path):
                one.settle(CENT)
                two.release("ConnectError")
                three.abandon("TimeoutError", partial=Usage(0, 200))
                run.succeed()
            assert "could not be settled yet and keeps its hold" in caplog.text
            assert all(one.name == "runcap" for one in caplog.records)
            if later == "reserve":
                guard.admit(request(), run).release()
            elif later == "settle":
                four.settle(Usage())
            elif later == "beat":
                ledger.beat()
            else:
                ledger.dispose()
            states = [one.state for one in ledger.records()][:3]
            assert states == ["settled", "released", "unknown"], "in order"
            assert resolved(ledger) == (12_000_000, 8_000_000)
            assert all(one.verdict == "succeeded" for one in ledger.records())

    def test_late_usage_and_the_first_end_keep_their_order(
        self, path: Path, ledger: SQLiteLedger, guard: Guard
    ) -> None:
        with guard.run(user="ada") as run:
            permit = guard.admit(request(), run)
            with locked(path):
                permit.abandon("TimeoutError")
                permit.settle(CENT)
            ledger.beat()
            assert resolved(ledger) == (10_000_000, 0)
            assert [one.resolved_by for one in ledger.records(all=True)] == [None, "late"]

    def test_a_run_that_ends_while_nothing_can_be_written(
        self, path: Path, ledger: SQLiteLedger, guard: Guard, caplog: pytest.LogCaptureFixture
    ) -> None:
        with guard.run(user="ada") as run:
            guard.admit(request(), run).settle(CENT)
            with locked(path):
                run.end()
        assert run.spent_usd == Decimal("0.01")
        guard.admit(request(), guard.open_run(tags={"user": "ada"})).release()
        guard.calls.drain()
        assert ledger.balance(f"run:{run.id}").spent == Amounts()

    def test_stops_and_top_ups_say_so(self, path: Path, guard: Guard) -> None:
        with guard.run(user="ada") as run:
            guard.admit(request(), run).settle(CENT)
            with locked(path):
                with pytest.raises((LedgerError, LedgerUnavailable), match="locked"):
                    run.top_up(usd=1, key="k")
                run.stop("enough")
            with pytest.raises(Exception, match="run stopped: enough"):
                guard.admit(request(), run)
            assert run.top_up(usd=1, key="k")
            guard.admit(request(), run).release()

    def test_the_heart_writes_it_soon(self, path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("runcap.guardrails.ledger.heart._HURRY", 0.001)
        with make(path, clock, heartbeat=20) as ledger:
            guard = Guard(Budget(usd=1), ledger=ledger, sinks=())
            with guard.run() as run:
                permit = guard.admit(request(), run)
                with locked(path):
                    permit.settle(CENT)
                written = threading.Event()
                book = ledger._judge
                ledger._judge = lambda *of: (book(*of), written.set())  # type: ignore[method-assign,assignment,func-returns-value]
                with locked(path):
                    run.succeed()
                assert written.wait(5)
                assert [(one.cost_nano, one.verdict) for one in ledger.records()] == [(10_000_000, "succeeded")]


class TestFinalizers:
    def test_inside_an_operation_neither_deadlock_nor_tear(self, ledger: SQLiteLedger) -> None:
        ledger.reserve("old", (offer(10),), (account(),))
        ledger.reserve("sent", (offer(10),), (account(),))
        told: list[object] = []

        class Abandoned:
            def __del__(self) -> None:
                told.append(ledger.settle("old", Amounts(nano=4)))
                told.append(ledger.release("sent"))
                told.append(ledger.balance("run:a").held.nano)
                told.append(ledger.close("run:b"))
                try:
                    ledger.reserve("inner", (offer(1),), (account(),))
                except LedgerError as error:
                    told.append(str(error))

        def collecting() -> int:
            cycle: list[object] = [Abandoned()]
            cycle.append(cycle)
            del cycle
            gc.collect()
            return NOON

        ledger._time_ns = collecting  # type: ignore[method-assign]
        ledger.reserve("new", (offer(20),), (account(),))
        ledger._time_ns = lambda: NOON  # type: ignore[method-assign]
        assert told[:2] == [None, None]
        assert told[2:4] == [20, None]
        assert "finalizer" in str(told[4])
        ledger.beat()
        balance = ledger.balance("run:a")
        assert (balance.spent.nano, balance.held.nano, balance.in_flight) == (4, 20, 1)


def test_the_heart_ends_with_the_ledger(path: Path, clock: ManualClock) -> None:
    ledger = make(path, clock, heartbeat=0.001)
    ledger.reserve("c", (offer(1),), (account(),))
    [heart] = [one for one in threading.enumerate() if one.name == "runcap-heart"]
    alive = weakref.ref(ledger)
    del ledger
    gc.collect()
    heart.join(5)
    assert not heart.is_alive()
    assert alive() is None


def test_dispose_ends_everything_and_it_may_be_used_again(path: Path, clock: ManualClock) -> None:
    with make(path, clock, heartbeat=5) as ledger:
        for number in range(3):
            ledger.reserve(f"c{number}", (offer(1),), (account(),))
            ledger.dispose()
            ledger.dispose()
            assert not [one for one in threading.enumerate() if one.name.startswith(("runcap-heart", "runcap-sqlite"))]
        assert ledger.balance("run:a").held.nano == 3
