"""`ConsoleSink` on real pseudo-terminals, in processes of their own; what they show is read as a terminal reads it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROWS, COLUMNS = 30, 110

SET_UP = """
import os, sys, time
from runcap.exporters import ConsoleSink
from runcap.guardrails import Budget, Guard, Refused, ToolEnded, ToolStarted, Usage
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.request import Request

def request(number):
    return Request(call_id=str(number), model="gpt-4o", provider="openai", prompt=Prompt(), output_cap=1000,
                   output_ceiling=None)

def until_seen():
    sys.stdin.readline()  # whoever looks at the terminal says when

sink = ConsoleSink(**globals().get("options", {}))
guard = Guard(Budget(usd="0.05", steps=25), sinks=(sink,))
"""


class Screen:
    """A terminal: what stands on it after bytes were written, and whether any were coloured."""

    def __init__(self) -> None:
        self.lines: list[str] = [""]
        self.row = self.column = 0
        self.text = ""
        self.codes: set[str] = set()

    def feed(self, text: str) -> None:
        self.text += text
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b.|[\r\n]|[^\r\n\x1b]", text):
            self._take(part)

    def _take(self, part: str) -> None:
        if part == "\r":
            self.column = 0
        elif part == "\n":
            self.row += 1
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif not part.startswith("\x1b"):
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + part + line[self.column + 1 :]
            self.column += 1
        elif part[-1] == "A":
            self.row -= int(part[2:-1])
            assert self.row >= 0
        elif part in ("\x1b[K", "\x1b[J"):
            self.lines[self.row] = self.lines[self.row][: self.column]
            if part[-1] == "J":
                del self.lines[self.row + 1 :]
        else:
            assert part[-1] == "m", part
            self.codes.update(part[2:-1].split(";"))

    @property
    def shown(self) -> list[str]:
        return [line.rstrip() for line in self.lines if line.strip()]


class Child:
    """A Python program whose standard error, and output too if wanted, is a terminal."""

    def __init__(self, code: str, *, stdout: bool = True, env: Mapping[str, str] | None = None) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        path = os.pathsep.join(str(ROOT / part) for part in ("guardrails", "exporters", "integrations"))
        own = {"TERM": "xterm-256color", "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"} | dict(env or {})
        unwanted = ("NO_COLOR", "CI", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES", "TERM")
        environ = {name: value for name, value in os.environ.items() if name not in unwanted}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=slave if stdout else subprocess.PIPE,
            stderr=slave,
            env=environ | own,
            text=True,
        )
        os.close(slave)
        self.screen = Screen()
        self._raw = b""

    def read(self, *until: str) -> None:
        """Read what is written, until lines with all these texts stand on the screen at once; to the end without."""
        while not until or not all(any(one in line for line in self.screen.shown) for one in until):
            assert select.select([self.master], [], [], 60)[0], f"nothing more came: {self.screen.text!r}"
            try:
                raw = os.read(self.master, 65_536)
            except OSError:  # the other side is closed
                raw = b""
            if not raw:
                assert not until, f"{until!r} never came: {self.screen.text!r}"
                return
            self._raw += raw
            whole = self._raw.decode(errors="ignore")
            self.screen.feed(whole[len(self.screen.text) :])

    def go_on(self) -> None:
        """It was seen."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """Its standard output, where that is none of the terminal; it has ended well."""
        self.read()
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, self.screen.text
        return out or ""


@pytest.fixture
def start() -> Iterator[Any]:
    children: list[Child] = []

    def run(code: str, **how: Any) -> Child:
        children.append(Child(SET_UP + code if not how.pop("bare", False) else code, **how))
        return children[-1]

    yield run
    for child in children:
        child.process.kill()
        child.process.communicate()
        with contextlib.suppress(OSError):
            os.close(child.master)


ONE_RUN = """
with guard.run(task="refund", user="ada [red]") as run:
    guard.emit(ToolStarted(time.time_ns(), run.info, "t", None, "look_up"))
    guard.admit(request(0)).settle(Usage(100, 900))
    print("first answer")
    permit = guard.admit(request(1))
    until_seen()
    print("second ", end="", flush=True)
    print("answer")
    permit.abandon("TimeoutError")
    permit = guard.admit(request(2))
    until_seen()
    permit.settle(Usage(0, 900))
    guard.emit(ToolEnded(time.time_ns(), run.info, "t", "completed"))
print("done")
"""


def test_a_run_is_seen_as_it_goes_and_leaves_a_line(start: Any) -> None:
    child = start(ONE_RUN)
    child.read("held")
    head, figures = child.screen.shown[-2:]
    assert "1,000 tokens  gpt-4o  look_up  task=refund user=ada [red]" in head
    assert figures.startswith("  ████▓▓▓▓▓··············· $0.00925 of $0.05 38%  ▓ $0.01 held")
    assert child.screen.shown[0] == "first answer"
    child.go_on()
    child.read("its cost is unknown")
    assert "step 3/25" in child.screen.shown[-3]
    assert child.screen.shown[-2].startswith("  ████▓▓▓▓▓░░░░░·········· $0.00925 of $0.05 58%")
    assert "░ $0.01 unknown" in child.screen.shown[-2]
    assert child.screen.shown[-1] == "  ! a call ended without usage: its cost is unknown"
    child.go_on()
    child.end()
    said = child.screen.shown
    assert [line for line in said if line.startswith(("first", "second", "done"))] == [
        "first answer",
        "second answer",
        "done",
    ]
    (summary,) = (line for line in said if "ended" in line)
    assert "task=refund user=ada [red]: ended, 3 of 25 steps, 1,900 tokens, $0.01825 of $0.05" in summary
    assert not any("▓" in line or "█" in line for line in said)
    assert "32" in child.screen.codes  # green


def test_standard_output_elsewhere_is_not_touched(start: Any) -> None:
    code = ONE_RUN + "print(type(sys.stdout).__name__)\n"
    child = start(code, stdout=False)
    child.read("step 2/25")
    child.go_on()
    child.read("step 3/25")
    child.go_on()
    child.read()
    assert child.end() == "first answer\nsecond answer\ndone\nTextIOWrapper\n"
    assert len(child.screen.shown) == 1


def test_no_color_is_respected(start: Any) -> None:
    child = start(ONE_RUN, env={"NO_COLOR": "1"})
    child.read("step 2/25")
    child.go_on()
    child.read("step 3/25")
    child.go_on()
    child.end()
    assert not [code for code in child.screen.codes if re.fullmatch(r"[349]\d|10\d|38|48", code)]


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_terminal_that_cannot_draw_gets_plain_lines(start: Any, env: Mapping[str, str]) -> None:
    child = start(ONE_RUN, env=env)
    child.go_on()
    child.go_on()
    child.end()
    assert "\x1b" not in child.screen.text
    assert any("step 3 of 25: gpt-4o, 900 tokens, $0.009" in line for line in child.screen.shown)


def test_the_default_run_is_shown_until_the_program_ends(start: Any) -> None:
    child = start("permit = guard.admit(request(0))\nuntil_seen()\npermit.settle(Usage(0, 900))\nprint('over')\n")
    child.read("step 1/25")
    child.go_on()
    child.end()
    assert child.screen.shown[0] == "over"
    assert "not ended, 1 of 25 steps" in child.screen.shown[1]
    assert len(child.screen.shown) == 2


def test_several_runs_stand_side_by_side_and_no_more_than_fit(start: Any) -> None:
    code = """
runs = [guard.named_run(f"{n:08}") for n in range(40)]
permits = [guard.admit(request(n), run) for n, run in enumerate(runs)]
until_seen()
for permit in permits:
    permit.settle(Usage(0, 1))
for run in runs:
    run.end()
"""
    child = start(code)
    child.read(*(f"run {n:08}" for n in range(32, 40)), "and 32 more runs")  # all: of a frame half may be drawn
    assert len(child.screen.shown) == 8 * 2 + 1
    child.go_on()
    child.end()
    assert len(child.screen.shown) == 40
    assert all("ended, 1 of 25 steps" in line for line in child.screen.shown)


def test_a_run_that_waits_for_a_person_leaves_the_terminal_to_him(start: Any) -> None:
    code = """
from runcap.guardrails import RunPaused, RefusalDetails
with guard.run() as run:
    permit = guard.admit(request(0))
    until_seen()
    permit.settle(Usage(0, 900))
    guard.emit(RunPaused(time.time_ns(), run.info, None, RefusalDetails(reason="", way_out="", run_id=run.id)))
    while not sink._screen.is_cleared: pass
    print("more? ", end="", flush=True)
    until_seen()
    print()
    permit = guard.admit(request(1))
    until_seen()
    permit.settle(Usage(0, 900))
"""
    child = start(code)
    child.read("step 1/25")
    child.go_on()
    child.read("more?")
    assert child.screen.shown == ["more?"]
    child.go_on()
    child.read("step 2/25")
    child.go_on()
    child.end()
    assert child.screen.shown[0] == "more?"
    assert len(child.screen.shown) == 2


def test_a_terminal_that_takes_nothing_holds_up_neither_the_run_nor_the_exit(start: Any) -> None:
    code = """
for number in range(2_000):
    with guard.run(task="x" * 80):
        guard.admit(request(number)).settle(Usage(0, 9))
os.write(1, b"done")
"""
    child = start(code, stdout=False)
    out, _ = child.process.communicate(timeout=60)  # nobody reads the terminal
    assert (out, child.process.returncode) == ("done", 0)


def test_a_terminal_that_is_gone_is_said_once_and_breaks_nothing(start: Any) -> None:
    code = """
import logging
logging.basicConfig(stream=sys.stdout, format="%(message)s")
permit = guard.admit(request(0))
until_seen()
permit.settle(Usage(0, 900))
for number in range(1, 20):
    guard.admit(request(number)).settle(Usage(0, 9))
sink.close(60)
"""
    child = start(code, stdout=False)
    child.read("step 1/25")
    os.close(child.master)
    child.go_on()
    out, _ = child.process.communicate(timeout=60)
    assert child.process.returncode in (0, -1)  # or hung up
    if child.process.returncode == 0:
        assert out == "runcap: console failed with OSError; said once\n"


def test_a_forked_child_does_not_draw(start: Any) -> None:
    code = """
import warnings
from runcap.guardrails import RunStarted
warnings.simplefilter("ignore")  # Python 3.12 on: a fork of a process with threads
with guard.run() as run:
    permit = guard.admit(request(0))
    until_seen()
    pid = os.fork()
    if pid == 0:
        print("child", flush=True)
        for _ in range(100):
            sink(RunStarted(time.time_ns(), run.info))
        sink.close(60)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    permit.settle(Usage(0, 900))
"""
    child = start(code, stdout=False)
    child.read("step 1/25")
    child.go_on()
    assert child.end() == "child\n"
    assert len(child.screen.shown) == 1


WITHOUT_RICH = "import sys\nfor name in ('rich', 'rich.console', 'rich.traceback'): sys.modules[name] = None\n"


def test_without_rich_a_terminal_says_what_to_install(start: Any) -> None:
    code = WITHOUT_RICH + (
        "from runcap.exporters import ConsoleSink\n"
        "try: ConsoleSink()\n"
        "except ImportError as error: print(error)\n"
        "print(ConsoleSink(sys.stdin).is_live)\n"
    )
    child = start(code, bare=True)
    child.end()
    assert child.screen.shown == [
        "ConsoleSink draws on a terminal with rich, which is not installed: pip install 'runcap[cli]'",
        "False",
    ]


def test_without_rich_plain_lines_are_written_to_a_pipe() -> None:
    path = os.pathsep.join(str(ROOT / part) for part in ("guardrails", "exporters", "integrations"))
    code = WITHOUT_RICH + SET_UP + ONE_RUN
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="\n\n",
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "first answer\nsecond answer\ndone\n"
    assert "ended, 3 of 25 steps" in done.stderr.splitlines()[-1]


def test_a_pipe_that_is_closed_breaks_nothing() -> None:
    path = os.pathsep.join(str(ROOT / part) for part in ("guardrails", "exporters", "integrations"))
    reader, writer = os.pipe()
    os.close(reader)
    child = subprocess.Popen(
        [sys.executable, "-c", SET_UP + ONE_RUN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writer,
        env=os.environ | {"PYTHONPATH": path},
        text=True,
    )
    os.close(writer)
    out, _ = child.communicate("\n\n", timeout=60)
    assert out == "first answer\nsecond answer\ndone\n"
    assert child.returncode in (0, 120)  # Python's own word for a standard error that cannot be flushed
