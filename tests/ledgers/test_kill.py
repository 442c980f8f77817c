"""Whoever uses a ledger may be killed at any instant: no settled cent is lost, and no hold."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from runcap.guardrails.amounts import ZERO, Amounts
from runcap.guardrails.ledger import Balance, UsageRecord

from ..effort import examples
from ..waiting import wait_for
from .doomed import DEEDS, NEVER, Deed, Mark, boundaries
from .spec import AnyLedger, Spec, start
from .worker import SHARED, kills, sleeper

CAP = 10**15
KILLS = examples(200)
BOUNDARIES = examples(24)
"""How many of the hundreds of lines of a step; of statements and writes it is every one."""


class End(NamedTuple):
    """How a call stands in its record: state, cost, and what is unknown beyond that."""

    state: str
    cost: int | None
    unknown: int


def _lines_of(process: subprocess.Popen[str]) -> list[list[str]]:
    """What the children of a process said, the kind of each line apart."""
    lines = [line.split(" ", 1) for line in process.communicate()[0].splitlines()]
    assert [line for line in lines if line[0] == "wrong"] == []
    return lines


class TestKilledAtRandom:
    """Several processes of several threads at once; one after the other is killed."""

    def test_every_hold_is_resolved_or_unknown_and_no_settled_cent_is_lost(self, spec: Spec) -> None:
        with spec.open() as ledger:
            ledger.balance(SHARED)
        began = time.monotonic()
        busy = replace(spec, dead_after=0.25)  # so that the living look after the dead, and are killed at that too
        process = start(kills, spec=busy, times=KILLS, seed=1, alive=3, threads=3, cap=CAP)
        lines = _lines_of(process)
        seconds = time.monotonic() - began
        assert sum(kind == "killed" for kind, _ in lines) == KILLS
        told = _told(lines)
        with spec.survivor() as survivor:
            for _ in range(3):  # Redis may have words of the dead yet to read
                before = survivor.balance(SHARED)
            _bury(survivor)
            after, holds = survivor.balance(SHARED), before.in_flight
            assert (after.held, after.expected, after.in_flight) == (ZERO, ZERO, 0)
            assert after.unknown.nano == before.held.nano + before.unknown.nano
            assert after.spent == before.spent

            records = {record.call_id: record for record in survivor.records()}
            _records_are_the_balance(survivor, records)
            _everybody_was_told_the_truth(told, records)
            unknowns = survivor.unknowns()
            assert sum(call.unknown.nano for call in unknowns) == after.unknown.nano
            unknown = {call.call_id for call in unknowns}
            assert unknown == {call for call, record in records.items() if record.unknown_nano}

            assert survivor.resolve_all("expected") == len(unknowns)
            assert survivor.unknowns() == []
            end = survivor.balance(SHARED)
            assert end.used == end.spent
            records = {record.call_id: record for record in survivor.records()}
            _records_are_the_balance(survivor, records)
            assert {record.state for record in records.values()} <= {"settled", "released"}
            died = sum(record.resolved_by == "owner died" for record in survivor.records(all=True))
            _print(
                f"{spec.kind}: {KILLS} kills in {seconds:.1f} s, {len(told)} calls, "
                f"{sum(one.ended is not None for one in told.values())} told to have ended; "
                f"{died} holds of the dead became unknown, {holds} of them at the end; {len(unknowns)} resolved; "
                f"${end.spent.nano / 1e9:.9f} spent = the records' costs"
            )


class Told(NamedTuple):
    """What the process of a call was told last, and what it had asked for since."""

    granted: int | None = None
    ended: End | None = None
    asked: End | None = None


def _told(lines: list[list[str]]) -> dict[str, Told]:
    told: dict[str, Told] = {}
    for kind, rest in lines:
        if kind not in ("will", "did"):
            continue
        call, step, *figures = rest.split(" ")
        one = told.get(call, Told())
        if kind == "will" and step != "reserve":
            one = one._replace(asked=_end(step, *map(int, figures)))
        elif kind == "did" and step == "reserve":
            one = one._replace(granted=int(figures[0]))
        elif kind == "did":
            one = one._replace(ended=one.asked, asked=None)
        told[call] = one
    return told


def _end(step: str, charge: int, rest: int) -> End:
    return End("released" if step == "release" else "unknown" if rest else "settled", charge, rest)


def _records_are_the_balance(ledger: AnyLedger, records: dict[str, UsageRecord]) -> None:
    """Of the shared account, and of each run's; every call that was ever granted has a record."""
    shared = ledger.balance(SHARED)
    assert shared.spent.nano == sum(record.cost_nano or 0 for record in records.values())
    assert shared.unknown.nano == sum(record.unknown_nano for record in records.values())
    assert shared.spent.steps == len(records)
    costs, steps = Counter[str](), Counter[str]()
    for record in records.values():
        costs[record.about.run_id] += record.cost_nano or 0
        steps[record.about.run_id] += 1
    for run, nano in costs.items():
        assert ledger.balance(f"run:{run}").spent == Amounts(nano, steps=steps[run])


def _everybody_was_told_the_truth(told: dict[str, Told], records: dict[str, UsageRecord]) -> None:
    """A call stands as its process was told, or as it had asked for since."""
    assert records.keys() <= told.keys()
    for call, (granted, ended, asked) in told.items():
        record = records.get(call)
        if record is None:
            assert granted is None, f"{call} was granted, and is gone"
            continue
        if ended is not None:
            allowed = [ended]
        elif granted is not None:
            allowed = [End("unknown", None, granted)]
        else:
            allowed = [End("unknown", None, record.unknown_nano)]
        stands = End(record.state, record.cost_nano, record.unknown_nano)
        assert stands in [*allowed, asked], f"{call}: {stands}, not {allowed} or {asked}"


class TestKilledAtEveryBoundary:
    """A step is done or not, with its record; the books balance, whatever point of it was the last."""

    @pytest.mark.parametrize("deed", DEEDS)
    def test_lines_of_code(self, light: Spec, deed: Deed) -> None:
        _kill_at_each(light, deed, "line")

    @pytest.mark.parametrize("deed", DEEDS[1:])
    def test_sql_statements(self, light_file: Spec, deed: Deed) -> None:
        _kill_at_each(light_file, deed, "statement")

    @pytest.mark.parametrize("deed", DEEDS[1:])
    def test_in_the_middle_of_writing(self, light_file: Spec, deed: Deed) -> None:
        """The log of the file ends with half a page, half a head, or a transaction without its end."""
        _kill_at_each(light_file, deed, "write")


def _kill_at_each(spec: Spec, deed: Deed, mark: Mark) -> None:
    with spec.open() as ledger:
        ledger.balance(SHARED)
    process = start(boundaries, spec=spec, deed=deed, mark=mark, at_most=BOUNDARIES if mark == "line" else 1_000)
    lines = _lines_of(process)
    [total] = [int(count) for kind, count in lines if kind == "total"]
    points = [int(at) for kind, at in lines if kind == "dies"]
    done = {int(at) for kind, at in lines if kind == "did"}
    assert NEVER in done
    before, *found, after = [_observe(spec.at(point)) for point in points]
    assert before != after
    for point, each in zip(points[1:-1], found, strict=True):
        assert each == after or (each == before and point not in done), f"killed at {mark} {point}: {each}"
    finished = found.count(after)
    _print(
        f"{spec.kind}, {deed}, killed at {len(found)} {mark}s of {total}: {len(found) - finished} times not done, "
        f"{finished} times done"
    )


def _observe(spec: Spec) -> tuple[Any, ...]:
    """All there is to know of a ledger, apart from times: as it was left, and once the dead are buried."""
    with spec.survivor() as ledger:
        left = _balances(ledger)
        _bury(ledger)
        records = [
            (one.call_id, one.revision, one.state, one.cost_nano, one.unknown_nano, one.resolved_by)
            for one in ledger.records(all=True)
        ]
        unknowns = [(one.call_id, one.charged, one.unknown, one.expected) for one in ledger.unknowns()]
        buried = _balances(ledger)
        latest = {record.call_id: record for record in ledger.records()}
        _records_are_the_balance(ledger, latest)
    if spec.kind == "sqlite":
        connection = sqlite3.connect(spec.where)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
    return left, records, unknowns, buried


def _balances(ledger: AnyLedger) -> list[Balance]:
    return [ledger.balance(SHARED), ledger.balance("run:doomed")]


def test_a_process_that_was_only_asleep_settles_its_calls(spec: Spec) -> None:
    """Its holds become unknown while it is stopped, and are what it says they were once it goes on."""
    process = start(sleeper, spec=spec, cap=CAP)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "holds\n"
        with spec.open() as other:
            other.beat()
            assert other.balance(SHARED).held.nano == 300, "it is alive"
        process.send_signal(signal.SIGSTOP)
        with spec.survivor() as survivor:
            _bury(survivor)
            balance = survivor.balance(SHARED)
            assert (balance.spent.nano, balance.held.nano, balance.unknown.nano) == (0, 0, 300)
            assert [(call.call_id, call.unknown.nano) for call in survivor.unknowns()] == [
                ("a", 100), ("b", 100), ("c", 100),
            ]  # fmt: skip
            process.send_signal(signal.SIGCONT)
            process.stdin.write("go on\n")
            process.stdin.flush()
            assert process.stdout.readline() == "ended\n"
            for account in (SHARED, "run:asleep"):
                balance = survivor.balance(account)
                assert (balance.spent.nano, balance.held.nano, balance.unknown.nano) == (50, 0, 5)
                assert (balance.spent.steps, balance.in_flight, balance.expected) == (3, 0, ZERO)
            assert [(call.call_id, call.charged.nano, call.unknown.nano) for call in survivor.unknowns()] == [
                ("b", 10, 5)
            ]
            latest = [
                (one.call_id, one.revision, one.state, one.cost_nano, one.unknown_nano) for one in survivor.records()
            ]
            assert latest == [("a", 1, "settled", 40, 0), ("b", 1, "unknown", 10, 5), ("c", 1, "released", 0, 0)]
            assert [one.resolved_by for one in survivor.records(all=True)][:3] == ["owner died"] * 3
            _records_are_the_balance(survivor, {one.call_id: one for one in survivor.records()})
    finally:
        process.kill()
        process.communicate()


def _bury(survivor: AnyLedger) -> None:
    """Look after the dead; in Redis the time that makes them dead has to pass."""

    def nothing_held() -> bool:
        survivor.beat()
        return survivor.balance(SHARED).in_flight == 0

    wait_for(nothing_held, "the burial of all the dead")


def _print(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")
