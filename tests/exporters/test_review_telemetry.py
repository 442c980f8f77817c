"""What a review of the telemetry found broken, each as it was provoked."""

from __future__ import annotations

import contextvars
import copy
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager
from io import StringIO
from types import coroutine
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from runcap.exporters import LogSink, OTelSink
from runcap.exporters.otel.current import here, inside_tool
from runcap.guardrails import Budget, Guard
from runcap.guardrails.dispatch import Dispatcher
from runcap.guardrails.events import AgentEnded, AgentStarted, Event
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware

USER: Any = {"messages": [("user", "hi")]}


class _Baggage(SpanProcessor):
    """As `opentelemetry-processor-baggage` has it: each entry of baggage is an attribute of each span."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for name, value in baggage.get_all(parent_context).items():
            span.set_attribute(name, str(value))


@tool
def query(table: str) -> str:
    """Query a table."""
    return f"rows of {table}"


def test_baggage_reaches_every_span() -> None:
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(_Baggage())
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    guard = Guard(Budget(usd=1), sinks=(OTelSink(tracers),))
    token = attach(baggage.set_baggage("tenant", "acme"))
    try:
        with ScriptedProvider([Reply(tool_calls=[("query", {"table": "a"})]), Reply(text="done")]) as provider:
            model = ChatOpenAI(
                model="gpt-4o", base_url=provider.openai_url, api_key=SecretStr("none"), max_completion_tokens=50
            )
            agent = create_agent(model, [query], middleware=[BudgetMiddleware(guard)], name="helper")
            agent.invoke(USER)
    finally:
        detach(token)
    told = [(span.name, (span.attributes or {}).get("tenant")) for span in exporter.get_finished_spans()]
    assert told == [
        ("chat gpt-4o", "acme"),
        ("execute_tool query", "acme"),
        ("chat gpt-4o", "acme"),
        ("invoke_agent helper", "acme"),
    ]


@coroutine
def _forever() -> Generator[None]:
    while True:
        yield


def test_a_coroutine_finished_in_a_copy_of_its_context_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    copies: list[contextvars.Context] = []

    async def run_tool() -> None:
        with inside_tool("1"):
            copies.append(contextvars.copy_context())
            await _forever()

    started = run_tool()
    contextvars.copy_context().run(started.send, None)  # and never again, as one whose loop was closed
    with caplog.at_level(logging.DEBUG):
        copies[0].run(started.close)
    assert caplog.records == []


def test_the_current_span_inside_a_tool_can_be_copied() -> None:
    with inside_tool("1"):
        assert not copy.copy(trace.get_current_span()).is_recording()


def test_an_interrupt_while_sinks_are_entered_leaves_no_span_current() -> None:
    class Interrupted:
        def __call__(self, event: Event) -> None:
            """Events do not matter."""

        def around_call(self, call_id: str) -> AbstractContextManager[object]:
            raise KeyboardInterrupt

        def around_tool(self, tool_call_id: str) -> AbstractContextManager[object]:
            raise KeyboardInterrupt

    sinks: Any = (OTelSink(TracerProvider()), Interrupted())
    with pytest.raises(KeyboardInterrupt), Dispatcher(sinks).around_tool("1"):
        """Never reached."""
    assert here() is None
    assert not trace.get_current_span().get_span_context().is_valid


_FORKED = """
import os, signal, threading
from runcap.exporters import LogSink
from runcap.guardrails import Budget, Guard

class Stream:
    "A buffered file: whoever writes holds a lock meanwhile, which is not opened in a forked child."
    lock, begun, gone_on = threading.Lock(), threading.Event(), threading.Event()

    def write(self, text):
        with self.lock:
            self.begun.set()
            self.gone_on.wait(0.5)

    def flush(self):
        with self.lock:
            pass

guard = Guard(Budget(usd=1), sinks=(LogSink(stream=Stream()),))

def run():
    with guard.run():
        pass

thread = threading.Thread(target=run)
thread.start()
Stream.begun.wait()
child = os.fork()
Stream.gone_on.set()
if not child:
    signal.alarm(10)
    run()
    os._exit(0)
thread.join()
raise SystemExit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_while_a_line_is_written_logs_on() -> None:
    given = [sys.executable, "-W", "ignore", "-c", _FORKED]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run(given, check=False, timeout=60, env=env).returncode == 0


def test_a_line_in_the_middle_of_a_line_does_not_hang() -> None:
    """A finalizer may end a call of one guard while the thread writes a line of another's."""
    written: list[str] = []

    class Stream(StringIO):
        def write(self, text: str) -> int:
            if not written:
                written.append(text)
                with Guard(Budget(usd=1), sinks=(LogSink(stream=self),)).run():
                    """Its lines come in the middle."""
            else:
                written.append(text)
            return len(text)

    def run() -> None:
        with Guard(Budget(usd=1), sinks=(LogSink(stream=Stream()),)).run():
            """One line at its start, one at its end."""

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert len(written) == 4


def test_what_befalls_a_run_stands_on_the_agent_that_is_left_of_it() -> None:
    """Two agents side by side in one run; the one that began first is done when the run stops."""
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    sink = OTelSink(tracers)
    guard = Guard(Budget(usd=1), sinks=(sink,))
    with guard.run() as run:
        for name in ("first", "second"):
            sink(AgentStarted(1, run.info, name, None, name, resumed=False))
        sink(AgentEnded(2, run.info, "first", "completed", run.seen))
        assert sink.trace_of(run.id) is not None
        run.stop("enough")
        sink(AgentEnded(3, run.info, "second", "completed", run.seen))
    told = {span.name: [event.name for event in span.events] for span in exporter.get_finished_spans()}
    assert told == {"invoke_agent first": [], "invoke_agent second": ["runcap.run.stopped"]}
    assert sink.trace_of(run.id) is None


APART = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from runcap.exporters import OTelSink
from runcap.guardrails import Budget, Guard, Usage
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.request import Request

exporter, ours = InMemorySpanExporter(), TracerProvider()
app = TracerProvider()
app.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(app)
for provider in (ours, None):
    guard = Guard(Budget(usd=1), sinks=(OTelSink(provider),))
    permit = guard.admit(Request(call_id="c", model="gpt-4o", provider="openai", prompt=Prompt(), output_cap=9))
    with guard.sinks.around_call("c"), guard.sinks.around_tool("t"):
        trace.get_tracer("app").start_span("GET").end()
    permit.settle(Usage(1, 1))
print([(span.name, span.parent is not None) for span in exporter.get_finished_spans()])
"""


def test_a_span_of_another_provider_is_no_parent_of_the_programs_own() -> None:
    done = subprocess.run([sys.executable, "-c", APART], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[('GET', False), ('GET', True), ('chat gpt-4o', False)]\n", done.stderr


def test_a_sink_that_fails_when_asked_for_content_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Odd:
        def __call__(self, event: Event) -> None: ...

        @property
        def takes_content(self) -> bool:
            raise RuntimeError

        def take_content(self, content: object) -> None: ...

    assert not Guard(Budget(usd=1), sinks=(Odd(),)).sinks.take_content
    assert "Odd failed with RuntimeError" in caplog.text
