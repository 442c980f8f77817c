"""What happened beside the calls: as a guard tells a real ledger, and as a report adds it up."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from typer.testing import Result

from runcap.guardrails.ledger import Note

from .conftest import NOON, Place

Command = Callable[..., Result]

SECOND = 10**9


def noted(place: Place, *notes: tuple[str, dict[str, Any]]) -> None:
    for run, more in notes:
        told = {"first_ns": NOON, "last_ns": NOON} | more
        place.ledger.note(Note(run, None, {"task": f"of {run}"}, **told))
    list(place.ledger.notes())  # written by now


def test_added_up_over_runs(place: Place, command: Command) -> None:
    warned = {"kind": "warned", "what": "0.8", "scope": "user", "unit": "usd"}
    noted(
        place,
        ("a", {"kind": "loop", "what": "repeat"}),
        ("a", {"kind": "loop", "what": "repeat"}),
        ("b", {"kind": "loop", "what": "repeat"}),
        ("b", {"kind": "loop", "what": "ping-pong"}),
        ("a", {"kind": "tier", "what": "small"}),
        ("a", warned),
        ("a", warned | {"model": "gpt-4o"}),
        ("a", {"kind": "paused", "unit": "steps"}),
        ("a", {"kind": "prefix", "what": "tools", "tokens": 700, "cost_nano": 3_000}),
        ("b", {"kind": "prefix", "what": "tools", "tokens": 300, "cost_nano": None}),
        ("b", {"kind": "prefix", "what": "system", "tokens": 10}),
    )
    report = json.loads(command("report", place, "--format", "json").stdout)
    plain = {"scope": None, "unit": None}
    assert report["loops"] == [
        {"what": "repeat", **plain, "count": 3, "runs": 2},
        {"what": "ping-pong", **plain, "count": 1, "runs": 1},
    ]
    assert report["tier_switches"] == [{"what": "small", **plain, "count": 1, "runs": 1}]
    assert report["warnings"] == [{"what": "0.8", "scope": "user", "unit": "usd", "count": 2, "runs": 1}]
    assert report["pauses"] == [{"what": None, "scope": None, "unit": "steps", "count": 1, "runs": 1}]
    assert report["cache"]["prefix_breaks"] == [
        {"what": "tools", **plain, "count": 2, "runs": 2, "tokens": 1000, "cost_usd": "0.000003"},
        {"what": "system", **plain, "count": 1, "runs": 1, "tokens": 10, "cost_usd": None},
    ]
    cells = [line.split() for line in command("report", place).stdout.splitlines()]
    assert ["tier", "switches", "small", "-", "-", "1", "1"] in cells
    assert ["tools", "2", "2", "1,000", "$0.000003"] in cells
    assert ["system", "1", "1", "10", "-"] in cells


def test_only_those_asked_for(place: Place, command: Command) -> None:
    late = {"first_ns": NOON + 3600 * SECOND, "last_ns": NOON + 7200 * SECOND}
    noted(place, ("a", {"kind": "loop", "what": "repeat"}), ("b", {"kind": "loop", "what": "repeat", **late}))

    def count(*args: str) -> int:
        report = json.loads(command("report", place, "--format", "json", *args).stdout)
        return sum(one["count"] for one in report["loops"])

    assert count() == 2
    assert count("--task", "of b") == 1
    assert count("--since", "2026-11-26T12:30") == 1
    assert count("--since", "2026-11-26T13:30") == 1  # it went on then
    assert count("--until", "2026-11-26T12:30") == 1
    assert count("--since", "2026-11-26T15:00") == 0


def test_many_runs(place: Place, command: Command) -> None:
    noted(place, *((f"run{n}", {"kind": "loop", "what": "repeat"}) for n in range(1_205)))
    [loops] = json.loads(command("report", place, "--format", "json").stdout)["loops"]
    assert (loops["count"], loops["runs"]) == (1_205, 1_205)


def test_a_trace_shows_them_at_their_run(place: Place, command: Command) -> None:
    noted(place, ("alone", {"kind": "refused", "what": "BudgetExceeded", "scope": "run", "unit": "usd"}))
    noted(place, ("alone", {"kind": "refused", "what": "BudgetExceeded", "scope": "run", "unit": "usd"}))
    done = command("trace", place, "alo")
    assert done.exit_code == 0, done.output
    assert "refused  BudgetExceeded  run  usd  2 times" in done.stdout
    assert "run alone  no verdict  task=of alone" in done.stdout
