"""`runcap trace`: a run as a tree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from runcap.guardrails import Budget, Guard, Usage
from runcap.guardrails.testing import ManualClock

from ...guardrails.helpers import request as asked
from .conftest import HOUR, Place, tell

Command = Callable[..., Result]


def test_a_run_with_its_sub_run(place: Place, clock: ManualClock, command: Command) -> None:
    story = tell(place.ledger, clock)
    done = command("trace", place, story.refunded)
    assert done.exit_code == 0, done.output
    first, figures, call, below, its_figures, its_call = done.stdout.splitlines()
    assert first == f"run {story.refunded}  succeeded  task=refund user=ada"
    assert figures.startswith("$0.003750  2 calls  2,000 in / 1,100 out  2026-11-26 12:00:00 UTC, ")
    line = "1  gpt-4o        $0.003000  1,000 in (400 cached) / 100 out (30 reasoning)  1.50 s"
    assert call == f"├── {line}"
    assert below == f"└── run {story.looked_up}  feature=lookup"
    assert its_figures.startswith("    $0.000750  1 call  1,000 in / 1,000 out  2026-11-26 12:00:01 UTC, ")
    assert its_call == "    └── 1  gpt-4o-mini   $0.000750  1,000 in / 1,000 out  0.00 s"


def test_how_calls_ended(place: Place, clock: ManualClock, command: Command) -> None:
    story = tell(place.ledger, clock)
    late = command("trace", place, story.late).stdout
    assert "1  gpt-4o   $0.000000  no usage  0.00 s  released  RateLimitError" in late
    assert "2  gpt-4o   $0.007000  2,000 in / 200 out  0.00 s  tier low  attempt 2" in late
    assert "failed: late" in late
    unknown = command("trace", place, story.open).stdout
    assert "1  gpt-4o   $0.001000  0 in / 100 out  0.00 s  unknown  TimeoutError  $0.009000 unknown" in unknown
    odd = command("trace", place, story.odd).stdout
    assert "1  no-such-model           -  10 in / 20 out" in odd
    assert "-  1 call  1 without a price" in odd


def test_a_run_without_calls_of_its_own(place: Place, clock: ManualClock, command: Command) -> None:
    story = tell(place.ledger, clock)
    lines = command("trace", place, story.chat).stdout.splitlines()
    assert lines[0] == f"run {story.chat}  succeeded"
    assert lines[1].startswith("$0.010000  1 call")
    assert lines[2].startswith(f"└── run {story.answered}")


def test_a_sub_run_says_whose_it_is(place: Place, clock: ManualClock, command: Command) -> None:
    story = tell(place.ledger, clock)
    lines = command("trace", place, story.looked_up).stdout.splitlines()
    assert lines[:2] == [
        f"a sub-run of {story.refunded}",
        f"run {story.looked_up}  task=refund user=ada feature=lookup",
    ]


def test_what_was_refused(place: Place, clock: ManualClock, command: Command) -> None:
    story = tell(place.ledger, clock)
    lines = command("trace", place, story.refused).stdout.splitlines()
    assert any(line.endswith("!  refused  BudgetExceeded  run  usd  2 times") for line in lines)


def test_json(place: Place, clock: ManualClock, command: Command) -> None:
    story = tell(place.ledger, clock)
    told: dict[str, Any] = json.loads(command("trace", place, story.refunded, "--format", "json").stdout)
    run = told["run"]
    assert told["schema"] == 1
    assert (run["run"], run["parent"], run["verdict"]) == (story.refunded, None, "succeeded")
    assert (run["cost_usd"], run["own_cost_usd"], run["calls_beneath"]) == ("0.00375", "0.003", 2)
    [call], [sub] = run["calls"], run["subruns"]
    assert (call["model"], call["cost_usd"], call["latency_s"]) == ("gpt-4o", "0.003", 1.5)
    assert (sub["run"], sub["tags"]["feature"], sub["cost_usd"]) == (story.looked_up, "lookup", "0.00075")


def test_of_an_export(file: Place, clock: ManualClock, command: Command, tmp_path: Path) -> None:
    story = tell(file.ledger, clock)
    path = tmp_path / "export.jsonl"
    with path.open("w") as export:
        file.ledger.export(export)
    assert command("trace", str(path), story.late).stdout == command("trace", file, story.late).stdout


def test_calls_and_sub_runs_stand_in_the_order_of_time(file: Place, clock: ManualClock, command: Command) -> None:
    guard = Guard(Budget(usd=1), ledger=file.ledger, clock=clock, sinks=())
    with guard.run() as run:
        for model in ("gpt-4o", "gpt-4o-mini"):
            guard.admit(asked(model=model), run).settle(Usage(0, 10))
            clock.advance(1)
            with guard.run(feature=f"after {model}") as sub:
                guard.admit(asked(), sub).settle(Usage(0, 10))
                clock.advance(1)
    lines = command("trace", file, run.id).stdout.splitlines()
    shown = [line[4:] for line in lines if line[:1] in "├└"]
    kinds = [line.split()[1] if line[0].isdigit() else line.partition("feature=")[2] for line in shown]
    assert kinds == ["gpt-4o", "after gpt-4o", "gpt-4o-mini", "after gpt-4o-mini"]


@pytest.fixture
def named(file: Place, clock: ManualClock) -> Place:
    guard = Guard(Budget(usd=1), ledger=file.ledger, clock=clock, sinks=())
    for name in ("job-1", "job-10", "job-11", "task-1", "task-2", "task-3"):
        run = guard.named_run(name)
        guard.admit(asked(), run).settle(Usage(0, 10))
        clock.advance(HOUR)
        run.end()
    return file


def test_the_beginning_of_an_id(named: Place, command: Command) -> None:
    assert command("trace", named, "job-10").stdout.startswith("run job-10 ")
    assert command("trace", named, "job-1").stdout.startswith("run job-1 ")
    several = command("trace", named, "job")
    assert several.exit_code == 2
    assert several.stderr == "runcap: 3 runs begin with 'job': job-1, job-10, job-11\n"


def test_an_unknown_run(named: Place, command: Command) -> None:
    done = command("trace", named, "nobody")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "runcap: no run 'nobody' in this ledger; the latest are: task-3, task-2, task-1, job-11, job-10\n"
    )


def test_of_a_ledger_without_runs(file: Place, command: Command) -> None:
    done = command("trace", file, "a")
    assert (done.exit_code, done.stderr) == (2, "runcap: this ledger has no runs yet\n")


def test_totals_hold_all_beneath(file: Place, clock: ManualClock, command: Command) -> None:
    guard = Guard(Budget(usd=1), ledger=file.ledger, clock=clock, sinks=())
    with guard.run() as outer:
        guard.admit(asked(), outer).settle(Usage(0, 100))
        with guard.run(feature="plan") as middle:
            guard.admit(asked(), middle).settle(Usage(0, 10))
            with guard.run(feature="search") as inner:
                guard.admit(asked(), inner).settle(Usage(0, 1))
    run = json.loads(command("trace", file, outer.id, "--format", "json").stdout)["run"]
    [below] = run["subruns"]
    [lowest] = below["subruns"]
    costs = [(one["cost_usd"], one["own_cost_usd"], one["calls_beneath"]) for one in (run, below, lowest)]
    assert costs == [("0.00111", "0.001", 3), ("0.00011", "0.0001", 2), ("0.00001", "0.00001", 1)]
