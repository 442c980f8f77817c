"""A report: a ledger's records, added up in one pass. Memory grows with runs, not with calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from runcap.guardrails.pricing import PriceBook

from .asked import Asked, began_ns, value_of
from .attempts import Attempt, Runs, Success, by_value
from .caches import NOTHING, Cached, Caches
from .happenings import Happenings
from .sources import Open, Source
from .spending import Breakdown, Row, Spend

HOUR_NS = 3_600 * 10**9

AGES = ((1, "under 1 hour"), (24, "1 to 24 hours"), (24 * 7, "1 to 7 days"), (None, "over 7 days"))
"""How long unknown calls have been open: upper ends in hours."""


@dataclass(slots=True)
class Age:
    """Unknown calls of an age."""

    name: str
    calls: int = 0
    unknown_nano: int = 0


@dataclass(slots=True)
class Report:
    """What there is to tell. Money in nano-dollars, times in nanoseconds since the epoch."""

    ledger: str
    made_ns: int
    asked: Asked
    total: Spend = field(default_factory=Spend)
    runs: int = 0
    subruns: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    breakdowns: dict[str, list[Row]] = field(default_factory=dict)
    success: Success = field(default_factory=Success)
    success_by: dict[str, list[tuple[str | None, Success]]] = field(default_factory=dict)
    top: list[Attempt] = field(default_factory=list)
    happenings: Happenings = field(default_factory=Happenings)
    caches: list[Cached] = field(default_factory=list)
    cached: Cached = NOTHING
    ages: list[Age] = field(default_factory=list)
    oldest: list[Open] = field(default_factory=list)

    @property
    def open_calls(self) -> int:
        """Unknown calls that nobody has resolved."""
        return sum(age.calls for age in self.ages)

    @property
    def open_nano(self) -> int:
        """What they may have cost beyond what was charged."""
        return sum(age.unknown_nano for age in self.ages)


def report_of(source: Source, asked: Asked, prices: PriceBook, now_ns: int) -> Report:
    """Read a ledger, and add it up.

    Raises:
        LedgerError: it cannot be read.
    """
    report = Report(source.name, now_ns, asked)
    runs = Runs()
    _hear(report, source, runs)
    _count(report, source, runs, prices)
    attempts = [one for one in runs.attempts(source.verdicts) if asked.has_tags(one.tags)]
    for attempt in attempts:
        report.success.add(attempt)
    report.success_by = {name: by_value(attempts, name) for name in asked.tag_dimensions}
    report.top = sorted(attempts, key=lambda one: (-one.spend.nano, one.first_ns, one.run_id))[: asked.top]
    _look_at_unknowns(report, source)
    return report


def _hear(report: Report, source: Source, runs: Runs) -> None:
    for note in source.notes():
        runs.hear(note)
        if report.asked.has_tags(note.tags) and report.asked.overlaps(note.first_ns, note.last_ns):
            report.happenings.add(note)


def _count(report: Report, source: Source, runs: Runs, prices: PriceBook) -> None:
    asked = report.asked
    breakdowns = [Breakdown(name) for name in asked.by]
    caches, seen, inner = Caches(prices), set[int](), set[int]()
    for record in source.records(since_ns=asked.written_since_ns):
        began = began_ns(record)
        if not asked.is_time(began):
            continue
        number = runs.add(record)
        if not asked.has_tags(record.about.tags):
            continue
        report.total.add(record)
        (seen if record.about.parent_run_id is None else inner).add(number)
        report.first_ns = began if report.first_ns is None else min(report.first_ns, began)
        report.last_ns = max(report.last_ns or 0, began)
        caches.add(record)
        for breakdown in breakdowns:
            breakdown.add(value_of(record, breakdown.dimension), record, number)
    report.runs, report.subruns = len(seen) + len(inner), len(inner)
    report.breakdowns = {one.dimension: one.rows() for one in breakdowns}
    report.caches, report.cached = caches.rows(), caches.total()


def _look_at_unknowns(report: Report, source: Source) -> None:
    report.ages = [Age(name) for _, name in AGES]
    for call in source.unknowns():
        if not (report.asked.has_tags(call.about.tags) and report.asked.is_time(call.since_ns)):
            continue
        hours = (report.made_ns - call.since_ns) / HOUR_NS
        index = next(n for n, (end, _) in enumerate(AGES) if end is None or hours < end)
        report.ages[index].calls += 1
        report.ages[index].unknown_nano += call.unknown_nano
        if len(report.oldest) < report.asked.top:
            report.oldest.append(call)
