"""A few lines at the bottom of a terminal that are drawn again and again, and give way to what the program prints."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any

from runcap.guardrails import forks

_PATIENCE = 0.5
"""Seconds to wait for a terminal that takes no more right now; what does not fit then is left out."""


class Screen:
    """The live area on `stream`. While it shows, what the program prints on the same terminal is let through above it.

    A line that the program has begun and not ended keeps the area away until it is ended.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._out = Output(stream)
        self._lock = forks.rlock()
        self._height = 0
        self._mid_line = False
        self._standing = forks.rlock()
        self._stood_in: dict[str, Polite] = {}
        self._polite: dict[str, Polite] = {}

    @property
    def is_cleared(self) -> bool:
        """Nothing of the area is on the terminal."""
        return not self._height

    def show(self, above: Sequence[str], area: Sequence[str]) -> None:
        """Print lines for good, and the area below them; without an area, it is taken away.

        Raises:
            OSError, ValueError: the terminal is gone; said once.
        """
        with self._lock:
            if area:
                self.stand_in()
            begin = "\r\n" if self._mid_line and above else self._up()
            self._mid_line = self._mid_line and not above
            if self._mid_line:
                area = ()
            end = "\x1b[J" if self._height else ""
            self._height = len(area)
            self._out.write(begin + "".join(f"{line}\x1b[K\r\n" for line in (*above, *area)) + end)
            if not area and not self._mid_line:
                self._stand_down()

    def aside(self, stream: IO[str], text: str) -> int:
        """Let the program print: the area goes away until it is shown again."""
        with self._lock:
            if self._height:
                with contextlib.suppress(OSError, ValueError):
                    self._out.write(self._up() + "\x1b[J")
                self._height = 0
            written = stream.write(text)
            stream.flush()
            if text:
                self._mid_line = not text.endswith("\n")
            if self._mid_line:
                self.stand_in()  # it may have stood down since the program found the stream; to see the line's end
            return written

    def give_up(self) -> None:
        """Draw no more: the terminal is another process's."""
        self._height = 0
        self._stand_down()

    def _up(self) -> str:
        return f"\r\x1b[{self._height}A" if self._height else ""

    def stand_in(self) -> None:
        """From now on the program prints past the area. Waits for no terminal.

        Best called by the thread that begins a run: it is not in the middle of a line that it prints.
        """
        if self._stood_in:
            return
        with self._standing:
            for name in ("stdout", "stderr"):
                stream = getattr(sys, name)
                if is_terminal(stream) and not isinstance(stream, Polite):
                    self._stood_in[name] = self._polite_of(name, stream)
                    setattr(sys, name, self._stood_in[name])

    def _polite_of(self, name: str, stream: IO[str]) -> Polite:
        known = self._polite.get(name)
        if known is None or known.stream is not stream:
            known = self._polite[name] = Polite(stream, self)
            _kept.append(known)
        return known

    def _stand_down(self) -> None:
        with self._standing:
            for name, polite in self._stood_in.items():
                if getattr(sys, name) is polite:
                    setattr(sys, name, polite.stream)
            self._stood_in.clear()


_kept: list[Any] = []
"""Never freed: CPython's `print`, on another thread, writes to the `sys.stdout` it found without holding on to it."""


class Polite:
    """A standard stream on a terminal with a live area, which it makes go away first."""

    def __init__(self, stream: IO[str], screen: Screen) -> None:
        self.stream = stream
        self._screen = screen

    def write(self, text: str) -> int:
        """Write to the stream."""
        return self._screen.aside(self.stream, text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write to the stream."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __iter__(self) -> Any:
        return iter(self.stream)


class Output:
    """Writes to a stream, past its buffer where it is a file; once that fails, nothing more.

    A thread that a stopped terminal holds up has no lock of the stream then, which the end of the program needs.

    Raises:
        OSError, ValueError: the first time it fails, on writing.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._broken = False

    def write(self, text: str) -> None:
        """Write all of it, what the encoding lacks written out."""
        if self._broken or not text:
            return
        raw = text.encode(self._encoding, "backslashreplace")
        try:
            file = _file_of(self._stream)
            if file is None:
                self._stream.write(raw.decode(self._encoding))
                self._stream.flush()
            else:
                _write_all(file, raw)
        except (OSError, ValueError):  # a broken pipe, a stream that was closed
            self._broken = True
            raise


def is_terminal(stream: object) -> bool:
    """It is a terminal, and open."""
    isatty = getattr(stream, "isatty", None)
    try:
        return isatty is not None and bool(isatty())
    except ValueError:
        return False


def _file_of(stream: IO[str]) -> int | None:
    if os.name == "nt":
        return None  # there, a console takes text, not bytes
    try:
        file = stream.fileno()
        stream.flush()  # what was printed before comes before
    except (OSError, AttributeError):
        return None
    return file if isinstance(file, int) else None


def _write_all(file: int, raw: bytes) -> None:
    while raw:
        try:
            raw = raw[os.write(file, raw) :]
        except BlockingIOError:
            if not select.select([], [file], [], _PATIENCE)[1]:
                return
