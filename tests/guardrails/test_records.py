"""Usage records: one a call and a revision for what is learnt of it later; read back, and exported."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runcap.guardrails import Budget, Guard, Limit, SQLiteLedger, Usage
from runcap.guardrails.amounts import Amounts
from runcap.guardrails.course import Purpose
from runcap.guardrails.ledger import About, UsageRecord
from runcap.guardrails.ledger.records import COLUMNS, SCHEMA
from runcap.guardrails.request import Response
from runcap.guardrails.testing import ManualClock

from .helpers import request

NOON = 1_795_694_400 * 10**9
CENT = Usage(0, 1000)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


@pytest.fixture
def ledger(tmp_path: Path, clock: ManualClock) -> Iterator[SQLiteLedger]:
    with SQLiteLedger(tmp_path / "l.db", synchronous="NORMAL", heartbeat=None, clock=clock) as made:
        yield made


@pytest.fixture
def guard(ledger: SQLiteLedger, clock: ManualClock) -> Guard:
    return Guard(Budget(usd=1), ledger=ledger, clock=clock, sinks=())


def told(ledger: SQLiteLedger, **of: Any) -> list[tuple[int, str, int | None, int, str | None]]:
    return [(one.revision, one.state, one.cost_nano, one.unknown_nano, one.resolved_by) for one in ledger.records(**of)]


def test_a_record_tells_everything(ledger: SQLiteLedger, guard: Guard, clock: ManualClock) -> None:
    usage = Usage(100, 50, cache_read_tokens=40, cache_write_tokens=8, cache_write_1h_tokens=4, reasoning_tokens=9)
    with guard.run(task="refund", user="ada") as outer, guard.run(feature="chat") as run:
        asked = request(purpose=Purpose(tier="low"))
        asked.attempt = 2
        permit = guard.admit(asked, run)
        clock.advance(1.5)
        permit.settle(usage, error_type="ValueError")
        spent = run.balance.spent.nano
        run.succeed()
    [record] = ledger.records()
    about = record.about
    assert (about.run_id, about.parent_run_id) == (run.id, outer.id)
    assert dict(about.tags) == {"task": "refund", "user": "ada", "feature": "chat"}
    assert (about.provider, about.model, about.tier, about.attempt) == ("openai", "gpt-4o", "low", 2)
    assert (about.started_ns, record.ended_ns, record.latency_ns) == (NOON, NOON + 1_500_000_000, 1_500_000_000)
    assert (record.call_id, record.revision, record.state, record.usage) == (asked.call_id, 0, "settled", usage)
    assert record.cost_nano == spent > 0
    assert (record.unknown_nano, record.error_type, record.resolved_by) == (0, "ValueError", None)
    assert record.price_source
    assert record.verdict == "succeeded"


@pytest.mark.parametrize("end", ["settle", "release", "free", "abandon"])
def test_one_record_however_often_a_call_is_ended(ledger: SQLiteLedger, guard: Guard, end: str) -> None:
    with guard.run() as run:
        permit = guard.admit(request(), run)
        if end == "settle":
            permit.settle(CENT)
        else:
            getattr(permit, end)()
        permit.settle(CENT)
        permit.release()
        permit.abandon("TimeoutError")
        permit.free()
        balance = run.balance
    revisions = list(ledger.records(all=True))
    assert len(revisions) == (2 if end == "abandon" else 1)
    assert sum(one.cost_nano or 0 for one in ledger.records()) == balance.spent.nano
    assert balance.held == balance.unknown == Amounts()


def test_revisions(ledger: SQLiteLedger, guard: Guard) -> None:
    with guard.run() as run:
        other = guard.admit(request(), run)
        permit = guard.admit(request(), run)
        permit.abandon("TimeoutError", partial=Usage(0, 200))
        other.settle(CENT)
        assert told(ledger) == [(0, "unknown", 2_000_000, 8_000_000, None), (0, "settled", 10_000_000, 0, None)]
        permit.settle(CENT)
    assert told(ledger) == [(0, "settled", 10_000_000, 0, None), (1, "settled", 10_000_000, 0, "late")]
    assert told(ledger, all=True) == [
        (0, "unknown", 2_000_000, 8_000_000, None),
        (0, "settled", 10_000_000, 0, None),
        (1, "settled", 10_000_000, 0, "late"),
    ]


def test_unknown_cost_is_none_never_zero(ledger: SQLiteLedger) -> None:
    guard = Guard(Budget(steps=5), ledger=ledger, sinks=())
    with guard.run() as run:
        guard.admit(request(model="no-such-model"), run).settle(CENT)
        guard.admit(request(model="no-such-model"), run).abandon("TimeoutError")
        guard.admit(request(model="no-such-model"), run).release()
    assert [(one.state, one.cost_nano, one.usage) for one in ledger.records()][::2] == [
        ("settled", None, CENT),
        ("released", 0, None),
    ]
    assert all(one.price_source is None for one in ledger.records())
    assert [one.cost_usd for one in ledger.records()][:2] == [None, None]


def test_what_the_provider_says_it_billed(ledger: SQLiteLedger, guard: Guard) -> None:
    with guard.run() as run:
        guard.admit(request(), run).settle(CENT, Response(billed_nano=7))
    [record] = ledger.records()
    assert (record.cost_nano, record.price_source) == (7, "provider")


def test_refused_and_counted_calls_leave_none(ledger: SQLiteLedger) -> None:
    guard = Guard(Budget(usd="0.001", tool_calls=3), ledger=ledger, sinks=())
    with guard.run() as run:
        guard.admit_tool("t", run)
        with pytest.raises(Exception, match="budget exceeded"):
            guard.admit(request(), run)
    assert not list(ledger.records())


def test_look_ups(ledger: SQLiteLedger, guard: Guard, clock: ManualClock) -> None:
    runs = []
    for _ in range(3):
        with guard.run() as run:
            guard.admit(request(), run).settle(CENT)
            clock.advance(10)
            guard.admit(request(), run).settle(CENT)
        runs.append(run.id)
    assert [one.about.run_id for one in ledger.records(run_id=runs[1])] == [runs[1]] * 2
    second = 10**9
    ends = [one.ended_ns for one in ledger.records(since_ns=NOON + 10 * second, until_ns=NOON + 20 * second)]
    assert ends == [NOON + 10 * second] * 2
    assert not list(ledger.records(run_id="nobody"))
    assert not list(ledger.records(until_ns=NOON))


def test_a_verdict_is_joined_and_the_latest_stands(ledger: SQLiteLedger, guard: Guard) -> None:
    with guard.run() as run:
        run.fail("early")
        guard.admit(request(), run).settle(CENT)
        assert [one.verdict for one in ledger.records()] == ["failed: early"]
        run.succeed()
    run.fail("looked at again")
    assert [one.verdict for one in ledger.records()] == ["failed: looked at again"]


def test_pages(ledger: SQLiteLedger, guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runcap.guardrails.ledger.sqlite._PAGE", 2)
    with guard.run() as run:
        permits = [guard.admit(request(), run) for _ in range(7)]
        for one in permits[:5]:
            one.abandon("TimeoutError")
        for one in permits:
            one.settle(CENT)
    records = ledger.records()
    first = next(records)
    with guard.run() as run:  # nobody waits for whoever reads
        guard.admit(request(), run).settle(CENT)
    calls = [first.call_id, *(one.call_id for one in records)]
    assert len(calls) == len(set(calls)) == 8
    assert len(list(ledger.records(all=True))) == 13


class TestExport:
    @pytest.fixture(autouse=True)
    def calls(self, guard: Guard, clock: ManualClock) -> str:
        with guard.run(task="re;fund", user='a"d\na', note="ä, b") as run:
            guard.admit(request(), run).settle(Usage(1000, 1000))
            clock.advance(0.25)
            guard.admit(request(), run).abandon("TimeoutError", partial=Usage(0, 100))
            run.fail("late")
        return run.id

    def test_as_json_lines(self, ledger: SQLiteLedger, calls: str) -> None:
        file = io.StringIO()
        assert ledger.export(file) == 2
        lines = file.getvalue().splitlines()
        first, second = map(json.loads, lines)
        assert list(first) == list(COLUMNS)
        assert (first["schema"], first["run"], first["parent"], first["task"]) == (SCHEMA, calls, None, "re;fund")
        assert first["tags"] == {"user": 'a"d\na', "note": "ä, b"}
        assert (first["cost_usd"], first["unknown_usd"], first["latency_s"]) == ("0.0125", "0", 0.0)
        assert (first["start"], first["input_tokens"]) == ("2026-11-26T12:00:00.000000+00:00", 1000)
        assert (second["state"], second["error"], second["verdict"]) == ("unknown", "TimeoutError", "failed: late")
        assert second["end"] == "2026-11-26T12:00:00.250000+00:00"

    def test_as_csv(self, ledger: SQLiteLedger, calls: str) -> None:
        file = io.StringIO()
        assert ledger.export(file, "csv", run_id=calls) == 2
        first, second = csv.DictReader(io.StringIO(file.getvalue()))
        assert tuple(first) == COLUMNS
        assert json.loads(first["tags"]) == {"user": 'a"d\na', "note": "ä, b"}
        assert (first["cost_usd"], first["error"], second["unknown_usd"]) == ("0.0125", "", "0.009")

    def test_of_nothing(self, ledger: SQLiteLedger) -> None:
        for form, text in (("jsonl", ""), ("csv", ",".join(COLUMNS) + "\n")):
            file = io.StringIO()
            assert ledger.export(file, form, run_id="nobody") == 0  # type: ignore[arg-type]
            assert file.getvalue() == text

    def test_in_no_other_format(self, ledger: SQLiteLedger) -> None:
        with pytest.raises(ValueError, match='"jsonl" or "csv"'):
            ledger.export(io.StringIO(), "xml")  # type: ignore[arg-type]


def test_money_is_written_in_full_and_exact() -> None:
    figures = (1, 10, 999_999_999, 1_000_000_000, 123_456_789_012_345_678)
    rows = [_record(nano).row()["cost_usd"] for nano in figures]
    assert rows == ["0.000000001", "0.00000001", "0.999999999", "1", "123456789.012345678"]


def test_no_content_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with SQLiteLedger(path, heartbeat=None) as ledger:
        guard = Guard(Budget(usd=1), limits=[Limit("user", usd=1, per="day")], ledger=ledger, sinks=())
        with guard.run(user="ada") as run:
            permit = guard.admit(request(), run)
            permit.note = "the prompt"
            permit.settle(CENT, Response(id="answer-17"))
    assert b"the prompt" not in path.read_bytes()
    assert b"answer-17" not in path.read_bytes()


def _record(nano: int) -> UsageRecord:
    return UsageRecord(
        call_id="c",
        revision=0,
        ended_ns=1,
        about=About("r"),
        state="settled",
        usage=None,
        cost_nano=nano,
        unknown_nano=0,
    )
