"""The command as a process, and what it is told wrongly."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import sysconfig
import termios
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import Result

from runcap.exporters.cli.asked import tags_of, time_ns_of
from runcap.guardrails import Budget, Guard, SQLiteLedger, Usage
from runcap.guardrails.testing import ManualClock

from ...guardrails.helpers import request as asked
from .conftest import NOON, Place, Story, tell

Command = Callable[..., Result]

SCRIPT = str(Path(sysconfig.get_path("scripts")) / "runcap")
DAY = 86_400 * 10**9


def process(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")} | environment
    return subprocess.run(args, capture_output=True, text=True, timeout=120, env=env, check=False)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Story]]:
    path, clock = tmp_path_factory.mktemp("told") / "budget.db", ManualClock(NOON)
    with SQLiteLedger(path, synchronous="NORMAL", heartbeat=None, clock=clock) as ledger:
        yield str(path), tell(ledger, clock)


class TestAsAProcess:
    def test_table(self, told: tuple[str, Story]) -> None:
        done = process(SCRIPT, "report", told[0], COLUMNS="40")
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        assert any(told[1].refunded in line and "succeeded" in line for line in done.stdout.splitlines())  # not cut

    def test_json(self, told: tuple[str, Story]) -> None:
        done = process(SCRIPT, "report", told[0], "--format", "json")
        assert json.loads(done.stdout)["totals"]["cost_usd"] == "0.02175"

    def test_csv(self, told: tuple[str, Story]) -> None:
        done = process(SCRIPT, "report", told[0], "--format", "csv")
        assert {row["by"] for row in csv.DictReader(io.StringIO(done.stdout))} == {"task", "model", "day"}

    def test_trace(self, told: tuple[str, Story]) -> None:
        done = process(SCRIPT, "trace", told[0], told[1].late[:16])
        assert done.stdout.startswith(f"run {told[1].late}  failed: late")

    def test_as_a_module(self, told: tuple[str, Story]) -> None:
        done = process(sys.executable, "-m", "runcap.exporters.cli", "trace", told[0], told[1].odd, "--format", "json")
        assert json.loads(done.stdout)["run"]["cost_usd"] is None

    def test_where_the_terminal_knows_ascii_only(self, told: tuple[str, Story]) -> None:
        done = process(SCRIPT, "trace", told[0], told[1].late, PYTHONIOENCODING="ascii")
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize(
        ("args", "code"),
        [(("report", "no.db"), 1), (("report",), 2), (("report", "x", "--format", "xml"), 2), (("reports",), 2)],
    )
    def test_exit_codes(self, args: tuple[str, ...], code: int) -> None:
        done = process(SCRIPT, *args)
        assert (done.returncode, done.stdout) == (code, "")
        assert "Traceback" not in done.stderr

    def test_version(self) -> None:
        assert process(SCRIPT, "--version").stdout == f"runcap {version('runcap')}\n"

    @pytest.mark.parametrize("missing", ["typer", "rich"])
    def test_without_the_extra(self, missing: str) -> None:
        code = f"import sys; sys.modules[{missing!r}] = None;from runcap.exporters.cli import main; sys.exit(main())"
        done = process(sys.executable, "-c", code)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "runcap: this command needs typer and rich: pip install 'runcap[cli]'\n"

    def test_whoever_reads_it_goes_away(self, told: tuple[str, Story]) -> None:
        command = f"'{SCRIPT}' report '{told[0]}' --format json | head -n 1"
        done = process("bash", "-c", command)
        assert done.stdout == "{\n"
        assert "Traceback" not in done.stderr


def at_a_terminal(columns: int, *args: str) -> str:
    """What a terminal of this width is sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "CI")}
    shown = b""
    with subprocess.Popen(args, stdin=theirs, stdout=theirs, stderr=theirs, env=env | {"TERM": "xterm-256color"}):
        os.close(theirs)
        with contextlib.suppress(OSError):  # how a terminal says that all are gone
            while part := os.read(ours, 65_536):
                shown += part
    os.close(ours)
    return shown.decode()


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_at_a_terminal(told: tuple[str, Story], columns: int) -> None:
    shown = at_a_terminal(columns, SCRIPT, "report", told[0])
    assert "\x1b[1m" in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert max(map(len, lines)) <= columns
    cells = [line.split() for line in lines]
    assert any(row[:1] == ["refund"] and row[-1] == "$0.011750" for row in cells)  # no figure is cut
    assert [told[1].refunded in line for line in lines].count(True) == (columns == 140)


NASTY = 'ev\x1b[31mil\x07\n\r\u202e[bold]"x"[/bold] \ud800 \x9b2J =1+1'


class TestWhatATagMayHold:
    @pytest.fixture
    def nasty(self, file: Place, clock: ManualClock) -> Place:
        name = NASTY.replace("\ud800", "")
        guard = Guard(Budget(usd=1), ledger=file.ledger, clock=clock, sinks=())
        with guard.run(task=name, user=name) as run:
            guard.admit(asked(), run).settle(Usage(0, 10), error_type=name)
            run.fail(name)
        named = guard.named_run(name)
        guard.admit(asked(), named).settle(Usage(0, 10))
        named.end()
        return file

    @pytest.mark.parametrize(
        "args", [("report",), ("report", "--by", "user", "--format", "csv"), ("report", "--format", "json")]
    )
    def test_a_report_steers_no_terminal(self, nasty: Place, command: Command, args: tuple[str, ...]) -> None:
        shown = command(args[0], nasty, *args[1:]).stdout
        assert all(char.isprintable() or char == "\n" for char in shown)
        assert "[bold]" in shown

    def test_nor_does_a_trace(self, nasty: Place, command: Command) -> None:
        for run in {record.about.run_id for record in nasty.ledger.records()}:
            for shape in ("tree", "json"):
                shown = command("trace", nasty, run, "--format", shape).stdout
                assert shown
                assert all(char.isprintable() or char == "\n" for char in shown)

    def test_nor_does_an_error(self, nasty: Place, command: Command) -> None:
        done = command("trace", nasty, "no\x1b[31mbody")
        assert done.exit_code == 2
        assert all(char.isprintable() or char == "\n" for char in done.stderr)
        assert all(char.isprintable() or char == "\n" for char in command("report", "no\x1b[31m.db").stderr)

    def test_json_has_it_as_it_is(self, nasty: Place, command: Command) -> None:
        report = json.loads(command("report", nasty, "--format", "json").stdout)
        assert NASTY.replace("\ud800", "") in [row["value"] for row in report["spend"]["task"]]


class TestArguments:
    @pytest.mark.parametrize(
        ("args", "told"),
        [
            (("--since", "yesterday"), "--since takes 90m, 24h, 7d, 2w, 2026-11-01 or"),
            (("--until", "7"), "--until takes"),
            (("--since", "1d", "--until", "2d"), "--since must lie before --until"),
            (("--tag", "user"), "--tag takes name=value, got 'user'"),
            (("--tag", "=ada"), "--tag takes name=value"),
            (("--task", "a", "--tag", "task=b"), "task is given twice: 'a' and 'b'"),
            (("--by", ""), "--by takes the name of a dimension"),
            (("--prices", "nowhere.yaml"), "nowhere.yaml"),
        ],
    )
    def test_wrong_ones(self, file: Place, command: Command, args: tuple[str, ...], told: str) -> None:
        done = command("report", file, *args)
        assert (done.exit_code, done.stdout) == (2, "")
        assert told in done.stderr
        assert done.stderr.count("\n") == 1

    def test_top_is_a_count(self, file: Place, command: Command) -> None:
        assert command("report", file, "--top", "0").exit_code == 2

    @pytest.mark.parametrize(
        ("text", "time_ns"),
        [
            ("90m", NOON - 5_400 * 10**9),
            ("24h", NOON - DAY),
            ("7d", NOON - 7 * DAY),
            ("2w", NOON - 14 * DAY),
            ("2026-11-26", NOON - DAY // 2),
            ("2026-11-26T12:00", NOON),
            ("2026-11-26 12:00:00.5", NOON + 500_000_000),
            ("2026-11-26T13:00:00+01:00", NOON),
            ("2026-11-26T12:00:00Z", NOON),
        ],
    )
    def test_times(self, text: str, time_ns: int) -> None:
        assert time_ns_of(text, NOON, "--since") == time_ns

    def test_tags(self) -> None:
        assert tags_of("a", ["user=x=y", "task=a", "empty="]) == {"task": "a", "user": "x=y", "empty": ""}
        assert tags_of(None, ()) == {}

    def test_nothing_asked_is_a_question_for_help(self, command: Command) -> None:
        done = command()
        assert done.exit_code == 2
        assert "report" in done.output
