from __future__ import annotations

import io
import json
from typing import Any

import pytest
import structlog
from hypothesis import given
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from runcap.exporters import LogSink
from runcap.guardrails import Budget, BudgetExceeded, CallEnded, Event, Guard, Usage
from runcap.guardrails.events import RunInfo
from runcap.guardrails.testing import Recorder

from ..guardrails.helpers import request
from .test_console import ANY_TEXT, INFO, noisy


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def log_of(**how: Any) -> list[str]:
    """The lines of a run that is warned, stopped and refused."""
    stream = how.setdefault("stream", io.StringIO())
    guard = Guard(Budget(usd="0.02"), sinks=(LogSink(**how),))
    with guard.run(budget=None, run="refund", **{"cost center=": "x"}) as run, pytest.raises(BudgetExceeded):
        for _ in range(3):
            guard.admit(request()).settle(Usage(0, 900))
    run.succeed()
    assert all(run.id in line for line in stream.getvalue().splitlines())
    return list(stream.getvalue().splitlines())


def test_logfmt_lines_for_calls_warnings_refusals_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    lines = log_of(format="logfmt")
    assert any("event=call" in line and "cost=$0.009" in line and "tag.run=refund" in line for line in lines)
    assert any("event=budget" in line and "share=0.8" in line for line in lines)
    assert any("event=refused" in line and "unit=usd" in line and "cap=$0.02" in line for line in lines)
    assert any('event="run ended"' in line and "spent=$0.018" in line for line in lines)
    assert capsys.readouterr().out == ""


def test_json_where_there_is_no_terminal() -> None:
    rows = [json.loads(line) for line in log_of()]
    assert [(row["level"], row["event"]) for row in rows] == [
        ("info", "run started"),
        ("info", "call"),
        ("info", "call"),
        ("warning", "budget"),
        ("warning", "stopped"),
        ("warning", "refused"),
        ("info", "run ended"),
    ]
    assert rows[1]["tag.run"] == "refund"
    assert rows[1]["tag.cost_center_"] == "x"
    assert rows[1]["cost"] == "$0.009"


def test_levels() -> None:
    assert {json.loads(line)["level"] for line in log_of(level="warning")} == {"warning"}
    debug = [json.loads(line) for line in log_of(level="debug")]
    assert sum(row["event"] == "call started" for row in debug) == 2


def test_colours_on_a_terminal_unless_unwanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[" in "".join(log_of(stream=Terminal()))
    monkeypatch.setenv("NO_COLOR", "1")
    plain = log_of(stream=Terminal())
    assert "\x1b" not in "".join(plain)
    assert "[info     ] call" in plain[1]


def test_an_unknown_cost_and_an_error_are_warnings_and_a_cancellation_is_none() -> None:
    stream = io.StringIO()
    guard = Guard(Budget(usd="1"), sinks=(LogSink(stream=stream),))
    with guard.run():
        guard.admit(request()).abandon("TimeoutError")
        guard.admit(request()).release("APIError")
        guard.admit(request()).release("CancelledError")
    rows = [json.loads(line) for line in stream.getvalue().splitlines()][1:4]
    assert [(row["level"], row["state"]) for row in rows] == [
        ("warning", "unknown"),
        ("warning", "released"),
        ("info", "released"),
    ]
    assert rows[0]["unknown"] == "$0.01"


def test_the_first_chunk_of_a_stream() -> None:
    seen = Recorder()
    guard = Guard(Budget(usd="1"), sinks=(seen,))
    guard.admit(request()).settle(Usage(0, 1))
    (ended,) = seen.of(CallEnded)
    stream = io.StringIO()
    sink = LogSink(stream=stream)
    sink(ended)
    sink(ended._replace(first_chunk_s=0.25))
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert "first_chunk_s" not in first
    assert second["first_chunk_s"] == 0.25


class Traces:
    def ids_of(self, event: Event) -> tuple[int, int] | None:
        return (0xABC, 0xDEF) if isinstance(event, CallEnded) else None


def test_trace_ids_of_the_events_span_else_of_the_current_one() -> None:
    stream = io.StringIO()
    guard = Guard(Budget(usd="1"), sinks=(LogSink(stream=stream, traces=Traces()),))
    with TracerProvider().get_tracer("t").start_as_current_span("mine") as span:
        guard.admit(request()).settle(Usage(0, 1))
    guard.default_run.end()
    started, call, ended = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (call["trace_id"], call["span_id"]) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert started["trace_id"] == trace.format_trace_id(span.get_span_context().trace_id)
    assert started["span_id"] == trace.format_span_id(span.get_span_context().span_id)
    assert "trace_id" not in ended


def test_a_logger_of_ones_own() -> None:
    kept = structlog.testing.LogCapture()
    log_of(logger=structlog.wrap_logger(structlog.PrintLogger(io.StringIO()), processors=[kept]))
    assert "refused" in [entry["event"] for entry in kept.entries]


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"format": "xml"}, ValueError, "auto, console, json, logfmt; got 'xml'"),
        ({"level": "loud"}, ValueError, "debug, info, warning; got 'loud'"),
        ({"traces": 1}, TypeError, "must be the guard's OTelSink, got int"),
    ],
)
def test_bad_arguments_are_named(how: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        LogSink(**how)


@given(INFO, ANY_TEXT)
def test_no_text_breaks_a_line(info: RunInfo, text: str) -> None:
    events = noisy(info, text)
    for name in ("json", "logfmt", "console"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        sink: Any = LogSink(stream=stream, format=name, level="debug")
        for event in events:
            sink(event)
        stream.seek(0)
        lines = stream.read().split("\n")
        assert len(lines) == len(events) + 1
        assert all(line.isprintable() for line in lines)
