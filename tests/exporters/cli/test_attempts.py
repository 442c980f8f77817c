"""Runs and what a successful one costs: roll-ups, intervals, money at the edge."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runcap.exporters.cli import as_data, as_table, text
from runcap.exporters.cli.asked import Asked, value_of
from runcap.exporters.cli.attempts import Attempt, Runs, Success
from runcap.exporters.cli.caches import Caches
from runcap.exporters.cli.reporting import Report, report_of
from runcap.exporters.cli.screen import Screen
from runcap.exporters.cli.spending import Spend
from runcap.guardrails import PriceBook, Usage
from runcap.guardrails.ledger import About, UsageRecord
from runcap.guardrails.money import to_usd

from ...effort import examples
from .conftest import NOON


def record(
    n: int = 0, *, run: str = "r", parent: str | None = None, nano: int | None = 0, **more: object
) -> UsageRecord:
    about = {name: more.pop(name) for name in ("tags", "model", "provider", "tier", "attempt") if name in more}
    told = {"state": "settled", "usage": None, "unknown_nano": 0, "ended_ns": NOON + n} | more
    of = About(run, parent, started_ns=NOON + n, **about)  # type: ignore[arg-type]
    return UsageRecord(call_id=f"c{n}", revision=0, about=of, cost_nano=nano, **told)  # type: ignore[arg-type]


def nobody(_: Iterable[str]) -> Mapping[str, str]:
    return {}


def attempts(*records: UsageRecord) -> list[Attempt]:
    runs = Runs()
    for one in records:
        runs.add(one)
    return runs.attempts(nobody)


def test_sub_runs_roll_up_however_deep_and_in_whatever_order() -> None:
    deep = [
        record(0, run="c", parent="b", nano=1),
        record(1, run="b", parent="a", nano=10),
        record(2, run="a", nano=100),
    ]
    for order in (deep, deep[::-1], [deep[1], deep[0], deep[2]]):
        [one] = attempts(*order)
        assert (one.run_id, one.spend.nano, one.subruns) == ("a", 111, 2)


def test_a_parent_without_records_is_an_attempt_with_the_tags_its_sub_runs_share() -> None:
    tags = {"task": "t", "feature": "one"}
    [one] = attempts(
        record(0, run="b", parent="a", nano=1, tags=tags),
        record(1, run="c", parent="a", nano=2, tags=tags | {"feature": "two"}),
    )
    assert (one.run_id, one.spend.nano, one.tags, one.verdict) == ("a", 3, {"task": "t"}, None)


def test_a_verdict_on_a_sub_run_is_none_on_the_attempt() -> None:
    [one] = attempts(record(0, run="a"), record(1, run="b", parent="a", verdict="succeeded"))
    assert not one.succeeded
    assert one.verdict is None


def test_a_circle_is_one_attempt() -> None:
    circle = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "c")]
    found = attempts(*(record(n, run=run, parent=parent, nano=1) for n, (run, parent) in enumerate(circle)))
    assert [(one.run_id, one.spend.nano) for one in found] == [("a", 4)]


def successes(*outcomes: tuple[int, str | None]) -> Success:
    success = Success()
    for n, (nano, verdict) in enumerate(outcomes):
        [one] = attempts(record(n, nano=nano, verdict=verdict))
        success.add(one)
    return success


def test_the_interval_is_the_delta_methods() -> None:
    outcomes = [(1_000 + 37 * n % 400, "succeeded" if n % 3 else "failed") for n in range(30)]
    success = successes(*outcomes)
    cost, done = sum(nano for nano, _ in outcomes), sum(verdict == "succeeded" for _, verdict in outcomes)
    each = cost / done
    residuals = [nano - each * (verdict == "succeeded") for nano, verdict in outcomes]
    deviation = math.sqrt(sum(one * one for one in residuals) / 29 * 30) / cost
    assert success.interval == pytest.approx(
        (each * math.exp(-1.96 * deviation), each * math.exp(1.96 * deviation)), abs=1
    )
    assert success.interval is not None
    assert success.nano_each is not None
    assert success.interval[0] < success.nano_each < success.interval[1]


def test_no_interval_of_few_of_no_success_or_for_nothing() -> None:
    assert successes(*[(1_000, "succeeded")] * 19).interval is None
    assert successes(*[(1_000, "succeeded")] * 20).interval == (1_000, 1_000)
    assert successes(*[(1_000, "failed")] * 30).interval is None
    assert successes(*[(0, "succeeded")] * 30).interval is None


def test_an_interval_holds_what_it_says_it_does() -> None:
    """Bimodal costs, 70 % successes: about 95 of 100 intervals contain the true ratio."""
    import random

    chance, inside = random.Random(7), 0
    truth = (0.8 * 1_000 + 0.2 * 6_000) / 0.7
    for _ in range(200):
        drawn = [
            (1_000 if chance.random() < 0.8 else 6_000, "succeeded" if chance.random() < 0.7 else "failed")
            for _ in range(200)
        ]
        low, high = successes(*drawn).interval or (0, 0)
        inside += low <= truth <= high
    assert 180 <= inside <= 199


def test_cost_per_success_is_rounded_half_even_to_a_nano_dollar() -> None:
    assert successes((5, "succeeded"), (0, "succeeded")).nano_each == 2
    assert successes((7, "succeeded"), (0, "succeeded")).nano_each == 4
    assert successes((1, "succeeded"), (1, None), (0, "succeeded"), (0, "succeeded")).nano_each == 1


class TestCaches:
    prices = PriceBook(
        {"m": {"input": 4, "output": 1, "cache_read": 1, "cache_write": 5, "cache_write_1h": 8, "cache_write_12h": 9}}
    )

    def test_reads_save_and_writes_cost(self) -> None:
        caches = Caches(self.prices)
        written = {"cache_write_tokens": 310, "cache_write_1h_tokens": 100, "cache_write_12h_tokens": 10}
        usage = Usage(1_000, 0, cache_read_tokens=500, **written)
        caches.add(record(model="m", usage=usage))
        caches.add(record(model="m", usage=Usage(1_000, 10)))
        total = caches.total()
        # 500 x ($4 - $1); 200 x ($5 - $4) + 100 x ($8 - $4) + 10 x ($9 - $4), each a million
        assert (total.saved_nano, total.extra_nano, total.net_nano) == (1_500_000, 650_000, 850_000)
        assert (total.read, total.written, total.unpriced) == (500, 310, 0)

    def test_what_has_no_price_is_said(self) -> None:
        caches = Caches(self.prices)
        for model in ("no-such-model", None):
            caches.add(record(model=model, usage=Usage(1_000, 0, cache_read_tokens=500, cache_write_tokens=1)))
        assert caches.total()[1:] == (1_000, 2, 0, 0, 1_002)


@pytest.mark.parametrize(
    ("nano", "places", "shown"),
    [
        (None, 4, "-"),
        (0, 4, "$0.0000"),
        (1_234_567_890_000, 2, "$1,234.57"),
        (50_000, 4, "$0.0000"),
        (49_999, 4, "<$0.0001"),
        (1, 6, "<$0.000001"),
        (150_000, 4, "$0.0002"),
        (-1_500_000_000, 2, "-$1.50"),
    ],
)
def test_money(nano: int | None, places: int, shown: str) -> None:
    assert text.money(nano, places) == shown


TAGS = st.dictionaries(st.sampled_from(["task", "user"]), st.sampled_from(["a", "b", "\x1b[31m"]), max_size=2)
USAGES = st.none() | st.builds(Usage, st.integers(400, 9_000), st.integers(100, 900), st.integers(0, 400))
RECORDS = st.lists(
    st.builds(
        lambda run, parent, nano, unknown, usage, model, day, verdict, tags: (
            *(run, parent if parent != run else None, nano, unknown, usage, model, day, verdict, tags),
        ),
        *(st.sampled_from("abcdef"), st.none() | st.sampled_from("abxy")),
        *(st.none() | st.integers(0, 10**12), st.integers(0, 10**12) | st.just(0), USAGES),
        *(
            st.none() | st.sampled_from(["gpt-4o", "?"]),
            st.integers(0, 3),
            st.sampled_from([None, "succeeded", "failed"]),
        ),
        TAGS,
    ),
    max_size=25,
)


class Given:
    """A source of records that were given."""

    name = "given"

    def __init__(self, records: list[UsageRecord]) -> None:
        self._records = records

    def records(self, *, run_id: str | None = None, since_ns: int = 0) -> list[UsageRecord]:
        return self._records

    def notes(self, *, run_id: str | None = None) -> list[object]:
        return []

    unknowns = notes

    def verdicts(self, run_ids: Iterable[str]) -> Mapping[str, str]:
        return dict.fromkeys(run_ids, "succeeded")


def made(drawn: list[tuple[object, ...]]) -> list[UsageRecord]:
    day = 86_400 * 10**9
    return [
        record(
            n + when * day,  # type: ignore[operator]
            run=run,  # type: ignore[arg-type]
            parent=parent,  # type: ignore[arg-type]
            nano=nano,  # type: ignore[arg-type]
            unknown_nano=unknown,
            usage=usage,
            model=model,
            verdict=verdict,
            tags=tags,
        )
        for n, (run, parent, nano, unknown, usage, model, when, verdict, tags) in enumerate(drawn)
    ]


PRICES = PriceBook()


@settings(max_examples=examples(150), deadline=None)
@given(RECORDS)
def test_every_section_adds_up_to_the_records(drawn: list[tuple[object, ...]]) -> None:
    records = made(drawn)
    by = ("task", "user", "model", "day", "tier")
    report: Report = report_of(Given(records), Asked(by=by, top=1_000), PRICES, NOON)  # type: ignore[arg-type]
    nano, unknown = sum(one.cost_nano or 0 for one in records), sum(one.unknown_nano for one in records)
    tokens = sum(one.usage.total_tokens for one in records if one.usage)
    parts: list[list[Spend]] = [
        [report.total],
        *([row.spend for row in report.breakdowns[name]] for name in by),
        [attempt.spend for attempt in report.top],
        [report.success.spend],
        *([one.spend for _, one in report.success_by[name]] for name in ("task", "user")),
    ]
    for part in parts:
        assert sum(one.nano for one in part) == nano
        assert sum(one.unknown_nano for one in part) == unknown
        assert sum(one.calls for one in part) == len(records)
        assert sum(one.input + one.output for one in part) == tokens
    for name in by:
        values = {value_of(one, name) for one in records}
        assert {row.value for row in report.breakdowns[name]} == values
    success = report.success
    assert success.attempts == len(report.top) == sum(one.attempts for _, one in report.success_by["task"])
    assert success.succeeded <= success.judged <= success.attempts
    if success.nano_each is not None:
        assert abs(Fraction(nano, success.succeeded) - success.nano_each) <= Fraction(1, 2)
    assert json.loads(as_data.to_json(report))["totals"]["calls"] == len(records)
    cells = list(csv.DictReader(io.StringIO(as_data.to_csv(report))))
    for name in by:
        costs = [Decimal(row["cost_usd"] or 0) for row in cells if row["by"] == name]
        assert sum(costs) == to_usd(nano)
    shown = io.StringIO()
    screen = Screen(shown)
    as_table.show(report, screen)
    screen.flush()
    assert all(char.isprintable() or char == "\n" for char in shown.getvalue())


def test_what_is_unknown_is_not_without_a_price() -> None:
    spend = Spend()
    spend.add(record(nano=None, unknown_nano=5))  # its process died
    assert (spend.unpriced, spend.unknown_nano, spend.cost_nano) == (0, 5, None)
    spend.add(record(nano=None))
    spend.add(record(nano=3))
    assert (spend.unpriced, spend.cost_nano, spend.calls) == (1, 3, 3)


def test_a_span_begins_with_its_first_moment_and_ends_before_its_last() -> None:
    asked = Asked(since_ns=NOON, until_ns=NOON + 2)
    assert [asked.is_time(NOON + n) for n in (-1, 0, 1, 2)] == [False, True, True, False]
    # what was written by a clock an hour behind is looked at all the same
    assert asked.written_since_ns == NOON - 3_600 * 10**9
    assert Asked().written_since_ns == 0
