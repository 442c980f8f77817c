"""`runcap report`: the figures of a story that was worked out by hand, in every store and format."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from runcap.guardrails import Budget, Guard, Usage
from runcap.guardrails.testing import ManualClock

from ...guardrails.helpers import request as asked
from .conftest import Place, tell

Command = Callable[..., Result]


@pytest.fixture
def told(place: Place, clock: ManualClock, command: Command) -> Callable[..., dict[str, Any]]:
    """The report on the story, as JSON."""
    tell(place.ledger, clock)

    def report(*args: str) -> dict[str, Any]:
        done = command("report", place, "--format", "json", *args)
        assert done.exit_code == 0, done.output
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return report


Told = Callable[..., dict[str, Any]]


def pick(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def test_totals(told: Told) -> None:
    totals = told()["totals"]
    assert pick(totals, "cost_usd", "unknown_usd") == ("0.02175", "0.009")
    assert pick(totals, "calls", "retries", "unpriced_calls", "runs", "subruns") == (7, 1, 1, 6, 2)
    # 1000 + 1000 + 2000 + 10; 100 + 1000 + 200 + 100 seen + 1000 + 20
    assert pick(totals, "input_tokens", "output_tokens") == (4010, 2420)
    assert pick(totals, "cache_read_tokens", "cache_write_tokens", "reasoning_tokens") == (400, 0, 30)
    assert totals["first"] == "2026-11-26T12:00:00.000000+00:00"
    assert totals["last"] == "2026-11-27T09:00:03.500000+00:00"


def test_spend_by_each_dimension(told: Told) -> None:
    spend = told()["spend"]
    assert list(spend) == ["task", "model", "day"]
    rows = {by: [pick(row, "value", "cost_usd", "calls", "runs") for row in spend[by]] for by in spend}
    assert rows["task"] == [("refund", "0.01175", 5, 4), ("chat", "0.01", 1, 1), ("odd", None, 1, 1)]
    assert rows["model"] == [
        ("gpt-4o", "0.021", 5, 4),
        ("gpt-4o-mini", "0.00075", 1, 1),
        ("no-such-model", None, 1, 1),
    ]
    assert rows["day"] == [("2026-11-26", "0.00375", 2, 2), ("2026-11-27", "0.018", 5, 4)]
    assert [row["share"] for row in spend["day"]] == [0.172414, 0.827586]


@pytest.mark.parametrize(
    ("by", "rows"),
    [
        ("user", [("ada", "0.01375"), ("bob", "0.008"), (None, None)]),
        ("feature", [("answer", "0.01"), (None, "0.011"), ("lookup", "0.00075")]),
        ("tier", [(None, "0.01475"), ("low", "0.007")]),
        ("provider", [("openai", "0.02175")]),
        ("no-such-tag", [(None, "0.02175")]),
    ],
)
def test_other_dimensions(told: Told, by: str, rows: list[tuple[str | None, str | None]]) -> None:
    found = [pick(row, "value", "cost_usd") for row in told("--by", by)["spend"][by]]
    assert sorted(found, key=str) == sorted(rows, key=str)


def test_cost_per_successful_task(told: Told) -> None:
    success = told()["success"]
    columns = ("value", "attempts", "judged", "without_verdict", "succeeded", "success_rate", "cost_usd")
    by_task = success["by"]["task"]
    assert [pick(row, *columns) for row in by_task] == [
        ("refund", 3, 2, 1, 1, 0.5, "0.01175"),
        ("chat", 1, 1, 0, 1, 1.0, "0.01"),
        ("odd", 1, 0, 1, 0, None, None),
    ]
    assert [row["cost_per_success_usd"] for row in by_task] == ["0.01175", "0.01", None]
    assert [row["unknown_usd"] for row in by_task] == ["0.009", "0", "0"]
    total = success["total"]
    assert pick(total, *columns[1:]) == (5, 3, 2, 2, 0.666667, "0.02175")
    assert pick(total, "cost_per_success_usd", "unpriced_calls", "cost_per_success_95") == ("0.010875", 1, None)


def test_runs_are_judged_by_the_tags_that_are_asked_for(told: Told) -> None:
    by = told("--by", "user", "--by", "model")["success"]["by"]
    assert list(by) == ["user"]
    rows = [pick(row, "value", "attempts", "succeeded", "cost_per_success_usd") for row in by["user"]]
    # ada: $0.00375 and $0.01 for two; bob: $0.008 for none
    assert rows == [("ada", 2, 2, "0.006875"), ("bob", 2, 0, None), (None, 1, 0, None)]


def test_the_dearest_runs_with_all_beneath_them(told: Told) -> None:
    runs = told("--top", "3")["top_runs"]
    assert [pick(run, "cost_usd", "calls", "subruns", "verdict") for run in runs] == [
        ("0.01", 1, 1, "succeeded"),
        ("0.007", 2, 0, "failed: late"),
        ("0.00375", 2, 1, "succeeded"),
    ]
    assert runs[0]["tags"]["task"] == "chat"


def test_refusals(told: Told) -> None:
    report = told()
    [refusal] = report["refusals"]
    assert refusal == {"what": "BudgetExceeded", "scope": "run", "unit": "usd", "count": 2, "runs": 1}
    assert report["stops"] == [{"what": "cap:usd", "scope": None, "unit": None, "count": 1, "runs": 1}]
    assert all(report[name] == [] for name in ("loops", "tier_switches", "warnings", "pauses"))


def test_cache_savings(told: Told) -> None:
    cache = told()["cache"]
    assert pick(cache, "read_tokens", "written_tokens", "unpriced_tokens") == (400, 0, 0)
    assert pick(cache, "saved_usd", "extra_usd", "net_usd") == ("0.0005", "0", "0.0005")  # 400 x ($2.5 - $1.25) / M
    assert cache["prefix_breaks"] == []


def test_unknown_calls(told: Told) -> None:
    unknown = told()["unknown"]
    assert pick(unknown, "calls", "unknown_usd") == (1, "0.009")
    assert sum(age["calls"] for age in unknown["ages"]) == 1
    [oldest] = unknown["oldest"]
    assert pick(oldest, "model", "charged_usd", "unknown_usd") == ("gpt-4o", "0.001", "0.009")


def test_what_was_resolved_is_no_longer_unknown(told: Told, place: Place) -> None:
    [call] = place.ledger.unknowns()
    place.ledger.resolve(call.call_id, usd="0.004")
    report = told()
    assert pick(report["totals"], "cost_usd", "unknown_usd", "calls") == ("0.02475", "0", 7)
    assert report["unknown"]["calls"] == 0


def test_only_a_task(told: Told) -> None:
    report = told("--task", "refund")
    assert pick(report["totals"], "cost_usd", "calls") == ("0.01175", 5)
    assert [row["value"] for row in report["success"]["by"]["task"]] == ["refund"]
    assert report["refusals"] == []
    assert told("--task", "chat")["unknown"]["calls"] == 0


def test_only_a_tag(told: Told) -> None:
    totals = told("--tag", "user=ada", "--tag", "feature=lookup")["totals"]
    assert pick(totals, "cost_usd", "calls", "runs", "subruns") == ("0.00075", 1, 1, 1)


def test_an_outermost_run_is_filtered_with_all_beneath_it(told: Told) -> None:
    """Spend goes by the tags of the calls' own runs, success by those of the outermost: nothing beneath is left out."""
    report = told("--tag", "feature=lookup")
    assert report["totals"]["cost_usd"] == "0.00075"
    assert report["success"]["total"]["attempts"] == 0


@pytest.mark.parametrize(
    ("args", "calls"),
    [
        (["--since", "2026-11-27"], 5),
        (["--until", "2026-11-27"], 2),
        (["--since", "2026-11-26T12:00:01", "--until", "2026-11-27T09:00"], 4),
        (["--since", "2026-11-27T10:00:00+01:00"], 2),
        (["--since", "2026-11-28"], 0),
    ],
)
def test_a_span_of_time(file: Place, clock: ManualClock, command: Command, args: list[str], calls: int) -> None:
    tell(file.ledger, clock)
    done = command("report", file.where, "--format", "json", *args)
    report = json.loads(done.stdout)
    assert report["totals"]["calls"] == calls
    # the one that is unknown began at eight on the second day
    assert report["unknown"]["calls"] == (calls in (4, 5))


def test_a_call_that_is_resolved_later_stays_in_its_day(file: Place, clock: ManualClock, command: Command) -> None:
    tell(file.ledger, clock)
    clock.advance(5 * 86_400)
    file.ledger.resolve_all("all")
    done = command("report", file.where, "--format", "json", "--until", "2026-11-28")
    assert pick(json.loads(done.stdout)["totals"], "calls", "cost_usd") == (7, "0.03075")


def test_an_export_says_the_same(file: Place, clock: ManualClock, command: Command, tmp_path: Path) -> None:
    tell(file.ledger, clock)
    latest, every = tmp_path / "latest.jsonl", tmp_path / "every.jsonl"
    [call] = file.ledger.unknowns()
    file.ledger.resolve(call.call_id, usd="0.002")
    with latest.open("w") as one, every.open("w") as two:
        assert file.ledger.export(one) == 7
        assert file.ledger.export(two, all=True) == 8
    reports = [
        json.loads(command("report", str(path), "--format", "json").stdout) for path in (file.where, latest, every)
    ]
    whole = reports[0]
    assert whole["totals"]["cost_usd"] == "0.02275"
    for report in reports[1:]:
        for section in ("totals", "spend", "cache", "unknown"):
            assert report[section] == whole[section]
        assert report["refusals"] == []  # an export has no notes
    # nor has it the verdict on a run that made no call of its own
    assert reports[1]["success"]["total"]["judged"] == whole["success"]["total"]["judged"] - 1


def test_csv(place: Place, clock: ManualClock, command: Command) -> None:
    tell(place.ledger, clock)
    done = command("report", place, "--format", "csv", "--by", "task", "--by", "model")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["by"], row["value"]) for row in rows] == [
        ("task", "refund"),
        ("task", "chat"),
        ("task", "odd"),
        ("model", "gpt-4o"),
        ("model", "gpt-4o-mini"),
        ("model", "no-such-model"),
    ]
    refund, odd, model = rows[0], rows[2], rows[3]
    assert pick(refund, "cost_usd", "attempts", "success_rate", "cost_per_success_usd") == (
        *("0.01175", "3", "0.5", "0.01175"),
    )
    assert pick(odd, "cost_usd", "unpriced_calls", "cost_per_success_usd") == ("", "1", "")
    assert pick(model, "cost_usd", "attempts") == ("0.021", "")


def test_table(place: Place, clock: ManualClock, command: Command) -> None:
    story = tell(place.ledger, clock)
    done = command("report", place)
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout
    assert all(line == line.rstrip() for line in lines)
    cells = [line.split() for line in lines]
    assert ["refund", "3", "2", "1", "50.0", "%", "$0.011750", "$0.011750"] in cells
    assert ["odd", "1", "0", "0", "-", "-", "-"] in cells  # no verdict, no price: neither a zero nor an infinity
    assert ["total", "5", "3", "2", "66.7", "%", ">=$0.021750", ">=$0.010875"] in cells
    assert ["refusals", "BudgetExceeded", "run", "usd", "2", "1"] in cells
    assert "2 attempts have no verdict: what was spent counts, and the rate leaves it out." in lines
    assert any(story.chat in line for line in lines)
    assert "ledger.resolve(" in done.stdout
    assert "$0.009000   may have been billed; not in what was spent" in done.stdout


def test_top_says_what_it_leaves_out(file: Place, clock: ManualClock, command: Command) -> None:
    tell(file.ledger, clock)
    done = command("report", file.where, "--top", "1")
    assert "... and 2 more, $0.010000 together (--top shows more)" in done.stdout
    assert "... and 1 earlier, $0.003750 together (--top shows more)" in done.stdout


def test_of_a_ledger_without_calls(place: Place, command: Command) -> None:
    place.ledger.judge("nobody", "succeeded")
    assert "No calls." in command("report", place).stdout
    report = json.loads(command("report", place, "--format", "json").stdout)
    assert pick(report["totals"], "calls", "cost_usd", "first") == (0, "0", None)
    assert report["success"]["total"]["success_rate"] is None
    assert len(command("report", place, "--format", "csv").stdout.splitlines()) == 1


def test_prices_of_ones_own(file: Place, clock: ManualClock, command: Command, tmp_path: Path) -> None:
    tell(file.ledger, clock)
    prices = tmp_path / "prices.yaml"
    prices.write_text("gpt-4o: {input: 10, cache_read: 1, output: 20}\n")
    done = command("report", file.where, "--format", "json", "--prices", str(prices))
    assert json.loads(done.stdout)["cache"]["saved_usd"] == "0.0036"  # 400 x ($10 - $1) / M


def names_in(told: object) -> set[str]:
    if isinstance(told, list):
        return {name for one in told for name in names_in(one)}
    if not isinstance(told, dict):
        return set()
    free = {name: value for name, value in told.items() if name != "tags"}
    return set(told) | {name for value in free.values() for name in names_in(value)}


def test_every_name_is_documented(told: Told, command: Command, place: Place) -> None:
    page = (Path(__file__).parents[3] / "docs" / "report.md").read_text()
    report = told("--by", "task", "--by", "day")
    names = names_in(report) - {"task", "day"}
    assert len(names) > 60
    assert {name for name in names if f"`{name}`" not in page} == set()
    run = report["top_runs"][0]["run"]
    trace = json.loads(command("trace", place, run, "--format", "json").stdout)
    told_of_runs = set(trace) | set(trace["run"])
    assert {name for name in told_of_runs if f"`{name}`" not in page} == set()


def test_a_sub_run_that_goes_by_another_task(file: Place, clock: ManualClock, command: Command) -> None:
    guard = Guard(Budget(usd=1), ledger=file.ledger, clock=clock, sinks=())
    with guard.run(task="refund") as run:
        with guard.run(task="look up") as inner:
            guard.admit(asked(), inner).settle(Usage(0, 100))  # $0.001
        run.succeed()
    done = command("report", file, "--format", "csv", "--by", "task")
    names = ("value", "cost_usd", "attempts", "cost_per_success_usd")
    rows = [pick(row, *names) for row in csv.DictReader(done.stdout.splitlines())]
    # The outer run made no call, so all that is known of its tags is what its sub-run was given.
    assert rows == [("look up", "0.001", "1", "0.001")]
    with guard.run(task="refund") as run:
        guard.admit(asked(), run).settle(Usage(0, 100))
        with guard.run(task="look up") as inner:
            guard.admit(asked(), inner).settle(Usage(0, 100))
    done = command("report", file, "--format", "csv", "--by", "task", "--since", "2026-11-26")
    rows = [pick(row, "value", "cost_usd", "attempts") for row in csv.DictReader(done.stdout.splitlines())]
    assert rows == [("look up", "0.002", "1"), ("refund", "0.001", "1")]


def test_a_run_between_that_made_no_call_is_known_by_what_was_noted_of_it(
    file: Place, clock: ManualClock, command: Command
) -> None:
    guard = Guard(Budget(usd=1), ledger=file.ledger, clock=clock, sinks=())
    with guard.run(task="refund") as outer:
        guard.admit(asked(), outer).settle(Usage(0, 100))
        with guard.run(feature="plan") as between, guard.run(feature="search") as inner:
            guard.admit(asked(), inner).settle(Usage(0, 100))
            between.stop("enough")
    report = json.loads(command("report", file, "--format", "json").stdout)
    [one] = report["top_runs"]
    assert pick(one, "run", "cost_usd", "subruns") == (outer.id, "0.002", 1)
    assert f"run {between.id}" in command("trace", file, outer.id).stdout
