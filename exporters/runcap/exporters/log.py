"""Events -> structured log lines on stderr; standard output belongs to the program."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, Protocol, TextIO, get_args

import structlog
from opentelemetry import trace

from runcap.guardrails.events import Event

from .log_fields import printable, told
from .writing import write_line

Format = Literal["auto", "console", "json", "logfmt"]
"""How a line looks: `"auto"` is `"console"` on a terminal and `"json"` elsewhere."""

Level = Literal["debug", "info", "warning"]
"""The least important lines that are written."""

_LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30}

_COLOURLESS = frozenset({"", "dumb", "unknown"})


class Traces(Protocol):
    """Who knows the span of an event, as `OTelSink` does."""

    def ids_of(self, event: Event) -> tuple[int, int] | None:
        """Trace id and span id; None where the event has no span."""
        ...  # pragma: no cover


class LogSink:
    """One line an event that matters: calls, tools, refusals, warnings, the end of a run. Never any content.

    Each line has the run's id as `run`, its tags as keys such as `tag.task`, and `trace_id` and `span_id` in hex where
    there is a span. Refusals, warnings, loops, broken prefixes, unknown costs and errors are warnings; that a call, an
    agent or a tool began or ended well is said at level debug, but for the end of a call and the start of a tool.

    Args:
        logger: a structlog logger of your own set-up, in place of `format`, `level` and `stream`.
        stream: where lines go, standard error if not given.
        format: `"console"` to be read by people, in colours on a terminal (`NO_COLOR` is respected); `"json"`, one
            object a line, for production; `"logfmt"`, `key=value` pairs; `"auto"`, console on a terminal, else JSON.
        level: `"info"` leaves out the lines of level debug, `"warning"` those of info too.
        traces: the guard's `OTelSink`, for the ids of the spans it makes; it stands before this sink in
            `Guard(sinks=...)`. Without it, or where it knows no span, the current span's of OpenTelemetry.

    Raises:
        ValueError: an unknown format or level.
        TypeError: `traces` has no `ids_of`.
    """

    def __init__(
        self,
        *,
        logger: structlog.typing.FilteringBoundLogger | None = None,
        stream: TextIO | None = None,
        format: Format = "auto",
        level: Level = "info",
        traces: Traces | None = None,
    ) -> None:
        if format not in get_args(Format):
            raise ValueError(f"LogSink.format must be one of {', '.join(get_args(Format))}; got {format!r}")
        if level not in _LEVELS:
            raise ValueError(f"LogSink.level must be one of {', '.join(_LEVELS)}; got {level!r}")
        if traces is not None and not callable(getattr(traces, "ids_of", None)):
            raise TypeError(f"LogSink.traces must be the guard's OTelSink, got {type(traces).__name__}")
        self._traces = traces
        self._log = logger if logger is not None else _default_logger(stream or sys.stderr, format, _LEVELS[level])

    def __call__(self, event: Event) -> None:
        """Log one event."""
        level, text, fields = told(event)
        about = {"run": event.run.id} | {f"tag.{_key(name)}": value for name, value in event.run.tags.items()}
        getattr(self._log, level)(text, **{**about, **fields, **self._ids(event)})

    def _ids(self, event: Event) -> Mapping[str, str]:
        ids = self._traces.ids_of(event) if self._traces is not None else None
        if ids is None:
            context = trace.get_current_span().get_span_context()
            if not context.is_valid:
                return {}
            ids = (context.trace_id, context.span_id)
        return {"trace_id": trace.format_trace_id(ids[0]), "span_id": trace.format_span_id(ids[1])}


class _Lines:
    """Writes lines. structlog's own loggers have locks that a forked child, and a finalizer, may find shut for good."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def info(self, line: str) -> None:
        """Write a line, whole."""
        write_line(self._stream, line)

    debug = warning = info


def _key(name: str) -> str:
    """A tag's name as a key of a log line, which has no spaces, quotes, equals signs or control characters."""
    name = re.sub(r"[\s=\"]", "_", name)
    return name if name.isprintable() else "".join(one if one.isprintable() else "_" for one in name)


def _one_line(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in line.items():
        if isinstance(value, str):
            line[name] = printable(value)
    return line


def _default_logger(stream: TextIO, format: Format, level: int) -> structlog.typing.FilteringBoundLogger:
    isatty = getattr(stream, "isatty", None)
    tty = isatty is not None and isatty()
    chosen = format if format != "auto" else "console" if tty else "json"
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if chosen == "console" else "iso", utc=chosen != "console"),
        *([] if chosen == "json" else [_one_line]),
        _renderer(chosen, colours=tty and _takes_colours()),
    ]
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        _Lines(stream), processors=processors, wrapper_class=structlog.make_filtering_bound_logger(level)
    )
    return logger


def _renderer(format: str, *, colours: bool) -> structlog.typing.Processor:
    if format == "console":
        return structlog.dev.ConsoleRenderer(14, colors=colours, sort_keys=False)
    if format == "logfmt":
        return structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event", "run"], bool_as_flag=False)
    return structlog.processors.JSONRenderer()


def _takes_colours() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "-") in _COLOURLESS
    return not plain and sys.platform != "win32"  # there, structlog wants another package
