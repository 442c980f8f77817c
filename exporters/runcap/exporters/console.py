"""Events -> a run live in the terminal; plain lines where there is none."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from runcap.guardrails import forks
from runcap.guardrails.events import Event, RunEnded

from .console_lines import lines, summary
from .console_runs import Row, Runs
from .console_screen import Output, Screen, is_terminal
from .worker import Worker

if TYPE_CHECKING:
    from rich.console import Console

    from .console_view import View

_SHOWN = 8
_WAITING = 10_000
"""Lines that wait for a pipe that nobody reads; the oldest are dropped beyond that."""

_CLOCK = 1.0
"""Seconds after which the area is drawn again though nothing but time has passed."""


class ConsoleSink:
    """Shows each run as it goes: step, tokens, dollars against the cap, tier, last tool, warnings. Never any content.

    On a terminal: a live area for the eight runs that did something last, in colours (`NO_COLOR` is respected), with
    `pip install 'runcap[cli]'`. The bar is what is spent, held by calls in flight, and unknown. A run that ends leaves
    one line. What the program prints meanwhile stands above the area; the area goes away while all runs wait for a
    person's answer, and for a line that the program has not ended. (Who kept the terminal's stream from before, such
    as a logging handler, writes over it.)

    Without a terminal - a pipe, `TERM=dumb`, or `CI` in the environment - and in a notebook: plain lines, one for each
    thing that matters.

    An event is only noted; a thread draws. A terminal or pipe that takes nothing holds up no call. A forked child
    shows nothing on a terminal, and plain lines elsewhere.

    Args:
        stream: where to write, standard error if not given: standard output belongs to the program.
        console: a rich console of your own instead, which decides whether it is a terminal.
        refresh: how often a second the live area may be drawn.

    Raises:
        ImportError: there is a terminal and rich is not installed.
        TypeError: both a stream and a console.
        ValueError: `refresh` is not between 0.1 and 60.
    """

    def __init__(self, stream: IO[str] | None = None, *, console: Console | None = None, refresh: float = 8.0) -> None:
        if stream is not None and console is not None:
            raise TypeError("ConsoleSink takes a stream or a console, not both")
        if isinstance(refresh, bool) or not isinstance(refresh, (int, float)) or not 0.1 <= refresh <= 60:  # noqa: PLR2004
            raise ValueError(f"ConsoleSink.refresh must be from 0.1 to 60 times a second, got {refresh!r}")
        file: IO[str] = stream or (console.file if console is not None else sys.stderr)
        self._view = _view(file, console)
        self._screen = Screen(file) if self._view is not None else None
        self._out = Output(file)
        self._every = 1 / refresh
        self._lock = forks.rlock()
        self._runs = Runs()
        self._lines: deque[str] = deque(maxlen=_WAITING)
        self._dirty = False
        self._drawn = 0.0
        self._worker = Worker(self._step, "console", self._after_fork)

    @property
    def is_live(self) -> bool:
        """It draws on a terminal, rather than writing plain lines."""
        return self._view is not None

    def __call__(self, event: Event) -> None:
        """Note one event."""
        if self._worker.closed:
            return
        now = time.monotonic()
        with self._lock:
            state = self._runs.take(event, now)
            if state is None:
                return
            if not self.is_live:
                at = time.strftime("%H:%M:%S", time.localtime(event.time_ns / 1e9))
                self._lines.extend(f"{at} {line}" for line in lines(state, event, now))
            elif isinstance(event, RunEnded):
                self._lines.append(summary(state, now))
            self._dirty = True
        if self._screen is not None:
            self._screen.stand_in()
        self._worker.wake()

    def close(self, timeout: float = 1.5) -> None:
        """Write what is left, for `timeout` seconds at most, and take the live area away; then nothing more.

        Runs under way leave their line too. The end of the program does the same.
        """
        self._worker.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _step(self, last: bool) -> float | None:
        """Write what there is to write; on the worker's thread."""
        now = time.monotonic()
        with self._lock:
            if last:
                self._lines.extend(summary(state, now, ended=False) for state in self._runs.states())
                self._runs.clear()
            said = list(self._lines)
            self._lines.clear()
            busy = self._runs.are_busy
        if self._view is not None and self._screen is not None:
            self._draw(self._view, self._screen, said, now)
        else:
            self._out.write("".join(f"{line}\n" for line in said))
        return self._every if busy and self.is_live else None

    def _draw(self, view: View, screen: Screen, said: list[str], now: float) -> None:
        """The lines, and the area where it has changed, or went away for what the program printed."""
        with self._lock:
            if not (self._dirty or said or screen.is_cleared or now - self._drawn >= _CLOCK):
                return
            self._dirty, self._drawn = False, now
            rows: list[Row] = [] if self._runs.all_wait else self._runs.rows(now, _SHOWN)
            more = len(self._runs) - len(rows)
        screen.show(said, view.area(rows, more) if rows else ())

    def _after_fork(self) -> None:
        self._lines.clear()
        self._runs.clear()
        if self._screen is not None:
            self._screen.give_up()
            self._worker.close(0)


def _view(file: IO[str], console: Console | None) -> View | None:
    """The live view, None where there is no terminal to draw on."""
    if console is not None:
        if not console.is_terminal or console.is_dumb_terminal:
            return None
    elif not is_terminal(file) or _is_plain(os.environ.get("TERM", "-"), os.environ.get("CI", "")):
        return None
    try:
        import rich.console  # noqa: PLC0415 - an extra

        from .console_view import View  # noqa: PLC0415 - needs it
    except ImportError:
        raise ImportError(
            "ConsoleSink draws on a terminal with rich, which is not installed: pip install 'runcap[cli]'"
        ) from None
    console = console or rich.console.Console(file=file)
    return None if console.legacy_windows or console.is_jupyter else View(console)


def _is_plain(term: str, ci: str) -> bool:
    return term.lower() in ("dumb", "unknown") or ci.lower() not in ("", "0", "false")
