"""A report as JSON and as CSV. The shapes are documented in docs/report.md, and pinned by a test."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from .attempts import Attempt, Success
from .caches import Cached
from .happenings import KINDS, PREFIX, Happening
from .reporting import Report
from .spending import Row, Spend
from .text import clean, dollars, iso, ratio

SCHEMA = 1
"""The version of a report's shape."""


def to_json(report: Report) -> str:
    """One object. Dollars are decimal strings, tokens and counts integers; what is not known is null."""
    return json.dumps(document(report), indent=2) + "\n"


def document(report: Report) -> dict[str, Any]:
    """The object."""
    asked, total = report.asked, report.total
    return {
        "schema": SCHEMA,
        "ledger": report.ledger,
        "made": iso(report.made_ns),
        "asked": {
            "by": list(asked.by),
            "since": iso(asked.since_ns),
            "until": iso(asked.until_ns),
            "tags": dict(asked.tags),
            "top": asked.top,
        },
        "totals": {
            **_spend(total),
            "runs": report.runs,
            "subruns": report.subruns,
            "first": iso(report.first_ns),
            "last": iso(report.last_ns),
        },
        "spend": {name: [_row(row, total) for row in rows] for name, rows in report.breakdowns.items()},
        "success": {
            "total": _success(report.success),
            "by": {
                name: [{"value": value, **_success(one)} for value, one in rows]
                for name, rows in report.success_by.items()
            },
        },
        "top_runs": [_attempt(one) for one in report.top],
        **{name: [_happening(one) for one in report.happenings.of(kind)] for kind, name in KINDS.items()},
        "cache": {
            **_cached(report.cached),
            "models": [{"model": one.model, **_cached(one)} for one in report.caches],
            "prefix_breaks": [_happening(one) for one in report.happenings.of(PREFIX)],
        },
        "unknown": {
            "calls": report.open_calls,
            "unknown_usd": dollars(report.open_nano),
            "ages": [
                {"age": age.name, "calls": age.calls, "unknown_usd": dollars(age.unknown_nano)} for age in report.ages
            ],
            "oldest": [
                {
                    "call": call.call_id,
                    "run": call.about.run_id,
                    "model": call.about.model,
                    "since": iso(call.since_ns),
                    "charged_usd": dollars(call.charged_nano),
                    "unknown_usd": dollars(call.unknown_nano),
                }
                for call in report.oldest
            ],
        },
    }


def _spend(spend: Spend) -> dict[str, Any]:
    return {
        "cost_usd": dollars(spend.cost_nano),
        "unknown_usd": dollars(spend.unknown_nano),
        "calls": spend.calls,
        "retries": spend.retries,
        "unpriced_calls": spend.unpriced,
        "input_tokens": spend.input,
        "output_tokens": spend.output,
        "cache_read_tokens": spend.cache_read,
        "cache_write_tokens": spend.cache_write,
        "reasoning_tokens": spend.reasoning,
    }


def _row(row: Row, total: Spend) -> dict[str, Any]:
    return {"value": row.value, "share": ratio(row.spend.nano, total.nano), "runs": row.runs, **_spend(row.spend)}


def _success(success: Success) -> dict[str, Any]:
    interval = success.interval
    return {
        "attempts": success.attempts,
        "judged": success.judged,
        "without_verdict": success.unjudged,
        "succeeded": success.succeeded,
        "success_rate": ratio(success.succeeded, success.judged),
        "cost_usd": dollars(success.spend.cost_nano),
        "unknown_usd": dollars(success.spend.unknown_nano),
        "unpriced_calls": success.spend.unpriced,
        "cost_per_success_usd": dollars(success.nano_each),
        "cost_per_success_95": None if interval is None else [dollars(end) for end in interval],
    }


def _attempt(one: Attempt) -> dict[str, Any]:
    return {
        "run": one.run_id,
        "tags": dict(one.tags),
        "verdict": one.verdict,
        "subruns": one.subruns,
        "first": iso(one.first_ns),
        "last": iso(one.last_ns),
        **_spend(one.spend),
    }


def _happening(one: Happening) -> dict[str, Any]:
    told = {"what": one.what, "scope": one.scope, "unit": one.unit, "count": one.count, "runs": one.runs}
    return told | {"tokens": one.tokens, "cost_usd": dollars(one.cost_nano)} if one.kind == PREFIX else told


def _cached(one: Cached) -> dict[str, Any]:
    return {
        "read_tokens": one.read,
        "written_tokens": one.written,
        "unpriced_tokens": one.unpriced,
        "saved_usd": dollars(one.saved_nano),
        "extra_usd": dollars(one.extra_nano),
        "net_usd": dollars(one.net_nano),
    }


_SUCCESS_COLUMNS = ("attempts", "judged", "succeeded", "success_rate", "cost_per_success_usd")

CSV_COLUMNS = ("by", "value", "share", "runs", *_spend(Spend()), *_SUCCESS_COLUMNS)
"""The header of the CSV."""


def to_csv(report: Report) -> str:
    """A row for each value of each dimension. The columns about success are empty where the dimension is no tag."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name, rows in report.breakdowns.items():
        judged = dict(report.success_by.get(name, ()))
        spent = {row.value for row in rows}
        # Where every sub-run goes by another value than the run around it, that one has attempts and no calls.
        silent = [Row(value, Spend(), 0) for value in judged if value not in spent]
        for row in [*rows, *silent]:
            success = _success(judged[row.value]) if row.value in judged else {}
            told = {"by": name, **_row(row, report.total)} | {key: success.get(key) for key in _SUCCESS_COLUMNS}
            writer.writerow(_cells(told))
    return file.getvalue()


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: clean(value) if isinstance(value, str) else value for name, value in row.items()}
