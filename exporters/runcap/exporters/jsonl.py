"""Events -> a file of JSON, one object a line."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from runcap.guardrails import Budget, Usage, forks
from runcap.guardrails.amounts import UNITS, Amounts, Caps
from runcap.guardrails.checks import storable
from runcap.guardrails.errors import RefusalDetails
from runcap.guardrails.events import Event, RunInfo, RunStarted
from runcap.guardrails.ledger import Balance
from runcap.guardrails.money import to_usd

from .writing import write_line

SCHEMA = 1
"""The version of a line's shape. Keys may be added without another; none changes its meaning."""

_ABOUT = frozenset({"time_ns", "run", "description"})
"""Fields that are written otherwise, or not: what a tool says of itself is the same each time, and long."""

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)

_DOLLARS = frozenset({"usd", "nano"})
_IN_UNIT = ("cap", "spent", "held", "unknown", "needed")


class JSONLSink:
    """Appends every event to a file as one line of JSON, at once. Never any content.

    A line is ASCII and has no line break in it, whatever is in a tag. Every line has

        {"schema": 1, "type": "call_ended", "time": "2026-11-26T22:24:08.123456+00:00", "time_ns": 1795731848123456000,
         "run": "...", "parent_run": null, "conversation": "...", "tags": {"task": "refund"}, ...}

    `type` is the event's name in `runcap.guardrails`, in lower case with underscores; what follows are the event's
    own fields by their names. Dollars are strings with every digit, and end in `_usd`: `cost_nano` is written as
    `cost_usd`, `held_nano` as `held_usd`. Unknown is null, never zero. A `balance` holds `caps`, `spent`, `held`,
    `unknown` and `expected`, each with `usd`, `tokens`, `steps` and `tool_calls`, and `in_flight` and `stopped`;
    `usage` holds the counts of `Usage`; `details` the numbers of a refusal, dollars where its `unit` is `"usd"`. A
    `run_started` has the run's `budget`.

    Several threads and processes may append to one file: each line is a single write to its end, so that none is torn
    on a local file system. Files are not rotated; `copytruncate` of logrotate works, and a file that is moved away is
    written on until the sink is made anew. A disk that fails costs lines, never a call: the log says so once.

    Args:
        target: a path, created with its file mode from the umask, or an open text stream, flushed after every line.

    Raises:
        TypeError: `target` is neither.
        OSError: the file cannot be opened for appending.
    """

    def __init__(self, target: str | os.PathLike[str] | TextIO) -> None:
        self._lock = forks.rlock()
        self._torn = False
        self._file: int | None = None
        self._stream: TextIO | None = None
        if isinstance(target, (str, os.PathLike)):
            self._file = os.open(Path(target), _APPEND, 0o666)
        elif callable(getattr(target, "write", None)) and not isinstance(target, (io.RawIOBase, io.BufferedIOBase)):
            self._stream = target
        else:
            raise TypeError(f"JSONLSink needs a path or an open text stream, got {type(target).__name__}")

    def __call__(self, event: Event) -> None:
        """Write one event. After `close()`, nothing.

        Raises:
            OSError: it could not be written.
        """
        line, stream = _to_json(as_row(event)), self._stream
        if stream is not None:
            write_line(stream, line)
            return
        with self._lock:
            if self._file is not None:
                self._append(self._file, f"{line}\n".encode("ascii"))

    def close(self) -> None:
        """Close the file that it opened; a stream that it was given stays open."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file = self._stream = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

    def _append(self, file: int, line: bytes) -> None:
        line = b"\n" + line if self._torn else line
        written = os.write(file, line)
        self._torn = written < len(line)  # the disk is full: what comes next begins a line of its own
        if self._torn:
            raise OSError(f"wrote {written} of {len(line)} bytes")


def as_row(event: Event) -> dict[str, Any]:
    """An event as `JSONLSink` writes it, ready for `json.dumps`."""
    run = event.run
    row: dict[str, Any] = {
        "schema": SCHEMA,
        "type": _snake(type(event).__name__),
        "time": datetime.fromtimestamp(event.time_ns / 1e9, UTC).isoformat(timespec="microseconds"),
        "time_ns": event.time_ns,
        **_run(run),
    }
    if isinstance(event, RunStarted):
        row["budget"] = None if run.budget is None else _caps(run.budget)
    for name, value in event._asdict().items():
        if name.endswith("_nano"):
            row[f"{name.removesuffix('_nano')}_usd"] = _dollars(value)
        elif name not in _ABOUT:
            row[name] = _plain(value)
    return row


_to_json = json.JSONEncoder(separators=(",", ":")).encode


@lru_cache(64)
def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _run(run: RunInfo) -> dict[str, Any]:
    return {
        "run": storable(run.id),
        "parent_run": _plain(run.parent_id),
        "conversation": _plain(run.conversation_id),
        "tags": _plain(run.tags),
    }


def _caps(budget: Budget) -> dict[str, Any]:
    """Caps without those that are not set."""
    caps = {"usd": None if budget.usd is None else f"{budget.usd:f}"}
    caps |= {name: getattr(budget, name) for name in (*UNITS[1:], "seconds")}
    return {name: value for name, value in caps.items() if value is not None}


def _plain(value: object) -> Any:  # noqa: C901, PLR0911 - a line a type
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, RefusalDetails):
        return _details(value)
    if isinstance(value, (Amounts, Caps)):
        return {name: _dollars(one) if name in _DOLLARS else one for name, one in zip(UNITS, value, strict=True)}
    if isinstance(value, Balance):
        return {name: _plain(one) for name, one in value._asdict().items()}
    if isinstance(value, Usage):
        return {name: getattr(value, name) for name in Usage.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {storable(str(name)): _plain(one) for name, one in value.items()}
    if hasattr(value, "_asdict"):
        return {name: _plain(one) for name, one in value._asdict().items()}
    if isinstance(value, Sequence):
        return [_plain(one) for one in value]
    return type(value).__name__  # what a later version adds is looked at before it is written


def _details(details: RefusalDetails) -> dict[str, Any]:
    told: dict[str, Any] = {"scope": storable(details.scope), "unit": details.unit}
    for name in _IN_UNIT:
        amount = getattr(details, name)
        told[name] = _dollars(int(amount)) if details.unit == "usd" else amount
    return told | {"model": _plain(details.model)}


def _dollars(nano: int | None) -> str | None:
    return None if nano is None else f"{to_usd(nano):f}"
