"""Content in telemetry: whether, how much, and what becomes of it; with the real OpenTelemetry SDK."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider

from runcap.exporters.otel import content as module
from runcap.exporters.otel.content import Contents
from runcap.exporters.otel.sink import OTelSink
from runcap.guardrails.sinks import Content, TakesContent

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
SAID = [{"role": "user", "parts": [{"type": "text", "content": "secret"}]}]


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(CAPTURE, raising=False)
    module._unknown.clear()
    yield
    module._unknown.clear()


@pytest.mark.parametrize(
    ("told", "mode"),
    [
        (None, "none"),
        ("", "none"),
        ("NO_CONTENT", "none"),
        ("false", "none"),
        ("SPAN_ONLY", "span"),
        (" span_only ", "span"),
        ("EVENT_ONLY", "event"),
        ("SPAN_AND_EVENT", "both"),
        ("true", "span"),
        ("True", "span"),
    ],
)
def test_the_variable_says_where_content_goes(monkeypatch: pytest.MonkeyPatch, told: str | None, mode: str) -> None:
    if told is not None:
        monkeypatch.setenv(CAPTURE, told)
    contents = Contents()
    assert (contents.mode, contents.enabled) == (mode, mode != "none")
    assert OTelSink().takes_content is (mode != "none")


def test_the_argument_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAPTURE, "SPAN_AND_EVENT")
    assert not Contents("none").enabled
    assert not OTelSink(content="none").takes_content
    monkeypatch.setenv(CAPTURE, "NO_CONTENT")
    assert Contents("span").enabled


def test_an_unknown_variable_records_nothing_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CAPTURE, "everything")
    assert [Contents().mode, Contents().mode] == ["none", "none"]
    (said,) = caplog.records
    assert said.getMessage() == (
        f"runcap: {CAPTURE} must be NO_CONTENT, SPAN_ONLY, EVENT_ONLY or SPAN_AND_EVENT, got 'everything'; no content "
        "is recorded"
    )


@pytest.mark.parametrize(
    ("arguments", "kind", "named"),
    [
        ({"content": "all"}, ValueError, '"span"'),
        ({"content": True}, ValueError, "True"),
        ({"content_limit": 255}, ValueError, "256"),
        ({"content_limit": 1e6}, TypeError, "float"),
        ({"redact": "no"}, TypeError, "redact"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], kind: type[Exception], named: str) -> None:
    with pytest.raises(kind, match=named):
        OTelSink(**arguments)


def test_a_coroutine_function_cannot_redact() -> None:
    async def redact(content: Content) -> Any:
        return content.value

    with pytest.raises(TypeError, match="plain function"):
        OTelSink(content="span", redact=redact)


def test_the_sink_is_seen_to_take_content() -> None:
    assert isinstance(OTelSink(), TakesContent)


def test_what_redact_returns_is_recorded_and_none_is_dropped() -> None:
    seen: list[Content] = []

    def redact(content: Content) -> Any:
        seen.append(content)
        return None if content.kind == "output" else "[redacted]"

    contents = Contents("span", redact)
    contents.take(Content("c", "input", SAID))
    contents.take(Content("c", "output", SAID))
    assert [one.kind for one in seen] == ["input", "output"]
    assert seen[0].value == SAID
    assert contents.pop_attributes("c") == {"gen_ai.input.messages": '"[redacted]"'}


def test_redact_sees_the_whole_before_it_is_shortened() -> None:
    whole: list[int] = []

    def redact(content: Content) -> Any:
        whole.append(len(content.value))
        return content.value.replace("key-123", "***")

    contents = Contents("span", redact, 256)
    contents.take(Content("c", "result", "key-123 " + "x " * 1_000 + "key-123"))
    assert whole == [2_015]
    assert "key-123" not in json.dumps(contents.pop_attributes("c"))


def test_where_redact_raises_nothing_is_recorded_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def redact(content: Content) -> Any:
        raise KeyError("secret")

    contents = Contents("both", redact)
    for _ in range(3):
        contents.take(Content("c", "input", SAID))
    assert contents.pop_attributes("c") == {}
    assert len(contents) == 0
    assert [one.getMessage() for one in caplog.records] == [
        "runcap: redact failed with KeyError: that content is not recorded; said once"
    ]


def test_what_redact_returns_may_be_anything() -> None:
    class Odd:
        pass

    contents = Contents("span", lambda content: {1: Odd(), "b": b"bytes", "s": {1}})
    contents.take(Content("c", "input", SAID))
    (text,) = contents.pop_attributes("c").values()
    assert json.loads(text) == {"1": "[Odd]", "b": "[5 bytes left out]", "s": [1]}


def test_nothing_is_kept_while_nobody_asks() -> None:
    contents = Contents()
    contents.take(Content("c", "input", SAID))
    assert len(contents) == 0


class Spans:
    """A span and what its log events say."""

    def __init__(self) -> None:
        self.exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
        self.loggers = LoggerProvider()
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self.exporter))
        self.span: Any = TracerProvider().get_tracer("t").start_span("chat")

    @property
    def events(self) -> list[Any]:
        return [one.log_record for one in self.exporter.get_finished_logs()]


@pytest.mark.parametrize(("mode", "on_span", "on_event"), [("span", 1, 0), ("event", 0, 1), ("both", 1, 1)])
def test_where_content_goes(mode: Any, on_span: int, on_event: int) -> None:
    spans = Spans()
    contents = Contents(mode, logger_provider=spans.loggers)
    contents.take(Content("c", "input", SAID))
    contents.end("c", spans.span, {"gen_ai.request.model": "m"}, 1_000)
    assert list(spans.span.attributes or ()).count("gen_ai.input.messages") == on_span
    assert len(spans.events) == on_event
    for event in spans.events:
        assert event.event_name == "gen_ai.client.inference.operation.details"
        assert event.timestamp == 1_000
        assert dict(event.attributes) == {
            "gen_ai.request.model": "m",
            "gen_ai.input.messages": json.dumps(SAID, separators=(",", ":")),
        }
        assert event.span_id == spans.span.get_span_context().span_id
        assert event.trace_id == spans.span.get_span_context().trace_id
    assert len(contents) == 0


def test_tools_have_no_event_of_their_own() -> None:
    spans = Spans()
    both = Contents("both", logger_provider=spans.loggers)
    both.take(Content("t", "arguments", {"a": 1}))
    both.end("t", spans.span, {}, 1)
    events_only = Contents("event", logger_provider=spans.loggers)
    events_only.take(Content("t", "arguments", {"a": 1}))
    assert spans.events == []
    assert len(events_only) == 0
    assert spans.span.attributes["gen_ai.tool.call.arguments"] == '{"a":1}'


def test_events_that_nobody_takes_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    spans = Spans()
    contents = Contents("event", logger_provider=LoggerProvider())
    for name in "ab":
        contents.take(Content(name, "input", SAID))
        contents.end(name, spans.span, {}, 1)
    (said,) = caplog.records
    assert "no logger provider takes any" in said.getMessage()


def test_a_log_processor_that_raises_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SimpleLogRecordProcessor):
        def on_emit(self, log_record: Any) -> None:
            raise OSError("secret")

    spans = Spans()
    loggers = LoggerProvider()
    loggers.add_log_record_processor(Broken(spans.exporter))
    contents = Contents("both", logger_provider=loggers)
    contents.take(Content("c", "input", SAID))
    contents.end("c", spans.span, {}, 1)
    assert "gen_ai.input.messages" in spans.span.attributes
    assert "secret" not in caplog.text


def test_calls_that_never_end_are_dropped_oldest_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PENDING_SIZE", 1_000)
    contents = Contents("span")
    for number in range(50):
        contents.take(Content(f"c{number}", "input", "x" * 98))
    assert len(contents) == 10
    assert contents.pop_attributes("c39") == {}
    assert contents.pop_attributes("c49") != {}
    monkeypatch.setattr(module, "_PENDING", 3)
    contents.take(Content("more", "input", ""))
    assert len(contents) == 3
    assert len(caplog.records) == 1


def test_the_count_of_what_is_pending_comes_back_to_nothing() -> None:
    contents = Contents("span")
    contents.take(Content("c", "input", "long " * 100))
    contents.take(Content("c", "input", "short"))
    contents.take(Content("c", "output", "answer"))
    assert contents.pop_attributes("c") == {"gen_ai.input.messages": '"short"', "gen_ai.output.messages": '"answer"'}
    assert contents._size == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_keeps_nothing() -> None:
    sink = OTelSink(content="span")
    sink.take_content(Content("c", "input", SAID))
    child = os.fork()
    if child == 0:
        os._exit(len(sink._contents))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(sink._contents) == 1


def test_nothing_is_logged_of_content(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    contents = Contents("span", limit=256)
    contents.take(Content("c", "input", "secret " * 1_000))
    contents.pop_attributes("c")
    assert caplog.records == []


def test_an_opentelemetry_without_log_events_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runcap.exporters.otel.content._EVENTS", False)
    with pytest.raises(ValueError, match="pip install -U opentelemetry-sdk"):
        OTelSink(content="both")
    for told, enabled in (("SPAN_AND_EVENT", True), ("EVENT_ONLY", False)):
        caplog.clear()
        monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", told)
        assert OTelSink().takes_content is enabled
        assert told in caplog.text
