"""A report as tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .attempts import Attempt, Success
from .happenings import KINDS, PREFIX
from .reporting import Report
from .screen import Screen
from .spending import Row, Spend
from .text import NONE, count, decimals, lasted, moment, money, percent, plural

_NO_VALUE = "(none)"
_RANDOM, _SHORT = re.compile("[0-9a-f]{32}"), 12
_LABELS = {"tier_switches": "tier switches"}


def show(report: Report, screen: Screen) -> None:
    """Every section that has something to tell."""
    _head(report, screen)
    if not report.total.calls:
        screen.line("No calls.")
    else:
        _totals(report, screen)
        for name, rows in report.breakdowns.items():
            _breakdown(name, rows, report, screen)
    if report.success.attempts:
        _success(report, screen)
        _top(report.top, screen)
    _happenings(report, screen)
    _cache(report, screen)
    _unknown(report, screen)


class _Dollars:
    """Dollars with as many decimals as the largest of some figures needs, so that they stand in a column."""

    def __init__(self, *figures: int | None) -> None:
        self._places = decimals(max((abs(nano) for nano in figures if nano is not None), default=0))

    def __call__(self, nano: int | None) -> str:
        return money(nano, self._places)

    def most(self, spend: Spend) -> str:
        """A cost; `>=` where calls without a price are not in it."""
        return self.least(spend.cost_nano, spend)

    def least(self, nano: int | None, spend: Spend) -> str:
        """A figure made of a cost."""
        return f">={self(nano)}" if spend.unpriced and nano is not None else self(nano)


def _head(report: Report, screen: Screen) -> None:
    screen.line(f"runcap report: {report.ledger}", "bold")
    asked, told = report.asked, []
    if asked.since_ns is not None:
        told.append(f"since {moment(asked.since_ns)} UTC")
    if asked.until_ns is not None:
        told.append(f"until {moment(asked.until_ns)} UTC")
    told += [f"{name}={value}" for name, value in asked.tags.items()]
    if told:
        screen.line("only " + ", ".join(told))
    if report.first_ns is not None and report.last_ns is not None:
        screen.line(f"calls from {moment(report.first_ns)} to {moment(report.last_ns)} UTC")


def _totals(report: Report, screen: Screen) -> None:
    total = report.total
    usd = _Dollars(total.nano, total.unknown_nano)
    screen.heading("Totals")
    rows = [
        ("spent", usd(total.cost_nano), _beside(_if(total.unpriced, "calls without a price are not in it"))),
        ("unknown", usd(total.unknown_nano), "may have been billed; not in what was spent"),
        ("calls", count(total.calls), _beside(_if(total.retries, "retries"), _if(total.unpriced, "without a price"))),
        ("runs", count(report.runs), _beside(_if(report.subruns, "of them sub-runs"))),
        (
            "tokens in",
            count(total.input),
            _beside(_if(total.cache_read, "read from caches"), _if(total.cache_write, "written to caches")),
        ),
        ("tokens out", count(total.output), _beside(_if(total.reasoning, "of them reasoning"))),
    ]
    shown = [row for row in rows if row[0] != "unknown" or total.unknown_nano]
    wide = max(len(row[1]) for row in shown)
    for name, figure, more in shown:
        screen.line(f"{name:<11} {figure:>{wide}}   {more}".rstrip())


def _breakdown(name: str, rows: Sequence[Row], report: Report, screen: Screen) -> None:
    screen.heading(f"Spend by {name}")
    top = report.asked.top
    shown = rows[-top:] if name == "day" else rows[:top]
    unknown = any(row.spend.unknown_nano for row in rows)
    usd = _Dollars(*(nano for row in shown for nano in (row.spend.nano, row.spend.unknown_nano)))
    columns = [name, "spent", "share", "calls", "runs", "tokens in", "cached", "tokens out"]
    table = [_figures(row, report.total, usd, unknown=unknown) for row in shown]
    screen.table(columns + (["unknown"] if unknown else []), table, spare=("cached", "runs"))
    _rest(len(rows) - len(shown), report.total.nano - sum(row.spend.nano for row in shown), name, screen, usd)


def _figures(row: Row, total: Spend, usd: _Dollars, *, unknown: bool) -> list[str]:
    spend = row.spend
    figures = (spend.calls, row.runs, spend.input, spend.cache_read, spend.output)
    share = NONE if spend.cost_nano is None else percent(spend.nano, total.nano)
    told = [_value(row.value), usd.most(spend), share, *map(count, figures)]
    return [*told, usd(spend.unknown_nano)] if unknown else told


def _rest(left: int, nano: int, name: str, screen: Screen, usd: _Dollars) -> None:
    if left > 0:
        what = "earlier" if name == "day" else "more"
        screen.line(f"... and {left:,} {what}, {usd(nano)} together (--top shows more)", "dim")


def _success(report: Report, screen: Screen) -> None:
    success = report.success
    every = [success, *(one for rows in report.success_by.values() for _, one in rows)]
    usd = _Dollars(success.spend.nano)
    each = _Dollars(*(one.nano_each for one in every))
    interval = any(one.interval for one in every)
    for name, rows in report.success_by.items():
        screen.heading(f"Cost per successful task, by {name}")
        shown = rows[: report.asked.top]
        columns = [name, "attempts", "judged", "done", "rate", "spent", "per success"]
        table = [_judged(_value(value), one, usd, each, interval=interval) for value, one in shown]
        table.append(_judged("total", success, usd, each, interval=interval))
        screen.table(columns + (["95 %"] if interval else []), table, spare=("spent",))
        left = sum(one.spend.nano for _, one in rows[len(shown) :])
        _rest(len(rows) - len(shown), left, name, screen, usd)
    silent = plural(success.unjudged, "attempt has", "attempts have")
    said = f"{silent} no verdict: what was spent counts, and the rate leaves it out."
    screen.line(said if success.unjudged else "Every attempt has a verdict.", "dim")
    if success.spend.unknown_nano:
        screen.line(f"{usd(success.spend.unknown_nano)} that may have been billed is not in it.", "dim")


def _judged(name: str, one: Success, usd: _Dollars, each: _Dollars, *, interval: bool) -> list[str]:
    figures = [name, *map(count, (one.attempts, one.judged, one.succeeded)), percent(one.succeeded, one.judged)]
    figures += [usd.most(one.spend), each.least(one.nano_each, one.spend)]
    ends = one.interval
    return [*figures, f"{each(ends[0])}-{each(ends[1])[1:]}" if ends else NONE] if interval else figures


def _top(attempts: Sequence[Attempt], screen: Screen) -> None:
    usd = _Dollars(*(one.spend.nano for one in attempts))
    screen.heading("Dearest runs")
    rows = [
        (
            _shortened(one.run_id) if screen.narrow else one.run_id,
            _value(one.tags.get("task")),
            one.verdict or NONE,
            usd.most(one.spend),
            count(one.spend.calls),
            count(one.subruns),
        )
        for one in attempts
    ]
    screen.table(("run", "task", "verdict", "spent", "calls", "sub-runs"), rows, names=3, spare=("sub-runs",))


def _happenings(report: Report, screen: Screen) -> None:
    found = [(name, one) for kind, name in KINDS.items() for one in report.happenings.of(kind)[: report.asked.top]]
    if found:
        screen.heading("Refusals, loops, switches, warnings")
        rows = [
            (_LABELS.get(name, name), *(text or NONE for text in one[1:4]), count(one.count), count(one.runs))
            for name, one in found
        ]
        screen.table(("", "what", "scope", "unit", "times", "runs"), rows, names=4)


def _cache(report: Report, screen: Screen) -> None:
    breaks = report.happenings.of(PREFIX)
    if report.caches or breaks:
        screen.heading("Prompt caches")
    if report.caches:
        named = [(_value(one.model), one) for one in report.caches[: report.asked.top]]
        every = [*named, ("total", report.cached)] if len(report.caches) > 1 else named
        usd = _Dollars(*(nano for _, one in every for nano in (one.saved_nano, one.extra_nano)))
        rows = [
            (name, count(one.read), count(one.written), usd(one.saved_nano), usd(one.extra_nano), usd(one.net_nano))
            for name, one in every
        ]
        screen.table(("model", "tokens read", "written", "reads saved", "writes cost", "net"), rows)
        if report.cached.unpriced:
            screen.line(f"{plural(report.cached.unpriced, 'token')} of models without a price not counted.", "dim")
    if breaks:
        usd = _Dollars(*(one.cost_nano for one in breaks))
        broken = [
            (one.what or NONE, count(one.count), count(one.runs), count(one.tokens), usd(one.cost_nano))
            for one in breaks[: report.asked.top]
        ]
        screen.line("")
        screen.table(("prefix broken at", "times", "runs", "tokens", "cost"), broken)


def _unknown(report: Report, screen: Screen) -> None:
    if not report.open_calls:
        return
    usd = _Dollars(report.open_nano)
    screen.heading("Unknown calls, still open")
    rows = [(age.name, count(age.calls), usd(age.unknown_nano)) for age in report.ages if age.calls]
    screen.table(("open for", "calls", "unknown"), rows)
    first = report.oldest[0]
    since = lasted(max(0, report.made_ns - first.since_ns) / 1e9)
    screen.line(
        f"Oldest: {first.call_id}, for {since}. With the bill at hand: ledger.resolve(call_id, usd=...), "
        'or all by a rule: ledger.resolve_all("expected", older_than=3600)',
        "dim",
    )


def _shortened(run_id: str) -> str:
    """As much of an id that chance made as `runcap trace` needs; ids that somebody gave are left alone."""
    return run_id[:_SHORT] if _RANDOM.fullmatch(run_id) else run_id


def _value(value: str | None) -> str:
    return _NO_VALUE if value is None else value


def _if(number: int, what: str) -> str | None:
    return f"{number:,} {what}" if number else None


def _beside(*parts: str | None) -> str:
    told = ", ".join(part for part in parts if part)
    return told and f"({told})"
