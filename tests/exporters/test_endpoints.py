"""Whatever an endpoint does, the agent's results stand, the process ends in time, and one line is said."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import grpc  # type: ignore[import-untyped]
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from runcap.exporters import setup_otlp
from runcap.exporters.otel.otlp_health import Health
from runcap.guardrails.testing import ManualClock

from .endpoints import Endpoint, down, http, nowhere, over_grpc, over_http, resets, rpc, slow

Make = Callable[[], AbstractContextManager[Endpoint]]
EXIT_S = 3.0
SAID = "the agent is not held up, and this is said once"

AGENT = """
import sys, time
from runcap.exporters import OTelSink, setup_otlp
from runcap.guardrails import Budget, Guard, Usage
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.request import Request

telemetry = setup_otlp(sys.argv[1], protocol=sys.argv[2], headers={"x-key": "S3CRET"})
guard = Guard(Budget(usd=1), sinks=(OTelSink(),))
for number in range(20):
    request = Request(
        call_id=f"c{number}", model="gpt-4o", provider="openai", prompt=Prompt(measured=0), output_cap=1000
    )
    guard.admit(request).settle(Usage(1000, 200))
telemetry.tracer_provider.get_tracer("test").start_span("one").end()
telemetry.meter_provider.get_meter("test").create_counter("one").add(1)
if "flush" in sys.argv:
    print(telemetry.flush(0.2))
print(guard.default_run.spent_usd)
print(time.monotonic(), flush=True)
"""


def run(code: str, *arguments: str) -> tuple[list[str], list[str], float]:
    """Its output, its errors, and the seconds it took to end after the time it printed last."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        code_of_exit = child.wait(timeout=60)
        ended = time.monotonic()
        assert child.stdout is not None
        assert child.stderr is not None
        out, errors = child.stdout.read().splitlines(), child.stderr.read().splitlines()
    assert code_of_exit == 0, errors
    return out[:-1], errors, ended - float(out[-1])


CASES: list[tuple[str, str, Make, str]] = [
    ("grpc", "down", down, "UNAVAILABLE"),
    ("grpc", "slow", slow, "no answer"),
    ("grpc", "resets", resets, "UNAVAILABLE"),
    ("grpc", "no such host", nowhere, "UNAVAILABLE"),
    ("grpc", "400", rpc(grpc.StatusCode.INVALID_ARGUMENT), "INVALID_ARGUMENT"),
    ("grpc", "401", rpc(grpc.StatusCode.UNAUTHENTICATED), "UNAUTHENTICATED"),
    ("grpc", "503", rpc(grpc.StatusCode.UNAVAILABLE), "UNAVAILABLE"),
    ("http/protobuf", "down", down, "ConnectionRefusedError"),
    ("http/protobuf", "slow", slow, "no answer"),
    ("http/protobuf", "resets", resets, "ConnectionResetError|RemoteDisconnected|BrokenPipeError"),
    ("http/protobuf", "no such host", nowhere, "gaierror"),
    ("http/protobuf", "400", http(400), "HTTP 400"),
    ("http/protobuf", "401", http(401), "HTTP 401"),
    ("http/protobuf", "503", http(503), "HTTP 503"),
]


@pytest.mark.parametrize(
    ("protocol", "make", "why"), [(one[0], *one[2:]) for one in CASES], ids=[f"{one[0]} {one[1]}" for one in CASES]
)
def test_one_line_and_an_end_in_time(protocol: str, make: Make, why: str) -> None:
    with make() as endpoint:
        out, errors, seconds = run(AGENT, endpoint.url, protocol)
        if seconds >= EXIT_S:  # other tests may have had the processor: it is shown to be able to
            seconds = min(seconds, run(AGENT, endpoint.url, protocol)[2])
    assert out == ["0.09"]
    assert len(errors) == 1, errors
    assert re.fullmatch(
        rf"telemetry: {endpoint.where} did not take 21 spans and the last metrics( within \d\.\d s)?: ({why})",
        errors[0],
    )
    assert seconds < EXIT_S


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_flush_in_vain_says_no_more(protocol: str) -> None:
    with slow() as endpoint:
        out, errors, _ = run(AGENT, endpoint.url, protocol, "flush")
    assert out == ["False", "0.09"]
    assert len(errors) == 1, errors


@pytest.mark.parametrize(("protocol", "make"), [("grpc", over_grpc), ("http/protobuf", over_http)])
def test_a_healthy_one_has_all_by_the_end(protocol: str, make: Make) -> None:
    with make() as endpoint:
        out, errors, _ = run(AGENT, endpoint.url, protocol)
        assert sum(map(len, endpoint.spans())) == 21
        assert endpoint.of("metrics").headers["x-key"] == "S3CRET"
    assert (out, errors) == (["0.09"], [])


FORKED = """
import os, sys, time
from runcap.exporters import setup_otlp

telemetry = setup_otlp(sys.argv[1], protocol=sys.argv[2], metrics=False)
tracer = telemetry.tracer_provider.get_tracer("test")
tracer.start_span("sent").end()
print(telemetry.flush(60))
tracer.start_span("queued").end()
open_span = tracer.start_span("open")
if (child := os.fork()) == 0:
    tracer.start_span("of the child").end()
    open_span.end()
    os._exit(0 if telemetry.flush(60) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
open_span.end()
print(telemetry.flush(60))
print(time.monotonic(), flush=True)
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
@pytest.mark.parametrize(("protocol", "make"), [("grpc", over_grpc), ("http/protobuf", over_http)])
def test_a_forked_child_sends_what_is_its_own(protocol: str, make: Make) -> None:
    with make() as endpoint:
        out, errors, _ = run(FORKED, endpoint.url, protocol)
        assert endpoint.spans() == [["sent"], ["of the child"], ["open", "queued"]]
    assert (out, errors) == (["True", "0", "True"], [])


def test_what_the_queue_has_no_room_for_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    with slow() as endpoint:
        _, errors, _ = run(AGENT, endpoint.url, "http/protobuf")
    assert "did not take 21 spans" in errors[0]


def test_an_outage_and_its_end_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with over_http(400) as endpoint, caplog.at_level(logging.INFO):
        telemetry = setup_otlp(endpoint.url, protocol="http/protobuf", metrics=False, set_global=False)
        tracer = telemetry.tracer_provider.get_tracer("test")
        taken = []
        for status in (400, 400, 401, 200, 200):
            endpoint.status = status
            tracer.start_span("one").end()
            taken.append(telemetry.flush(60))
        telemetry.shutdown(60)
    assert taken == [False, False, False, True, True]
    assert [(one.name, one.levelname, one.getMessage()) for one in caplog.records] == [
        (
            "runcap",
            "WARNING",
            f"telemetry: {endpoint.where} does not take traces: HTTP 400 (1 spans lost so far); {SAID}",
        ),
        ("runcap", "INFO", f"telemetry: {endpoint.where} takes traces again (3 spans lost so far)"),
        ("runcap", "INFO", f"telemetry: {endpoint.where} did not take 3 spans: the queue was full"),
    ]


def test_what_others_export_is_logged_as_before(caplog: pytest.LogCaptureFixture) -> None:
    with over_http(400) as endpoint:
        telemetry = setup_otlp(endpoint.url, protocol="http/protobuf", metrics=False, set_global=False)
        theirs = TracerProvider(shutdown_on_exit=False)
        theirs.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{endpoint.url}/v1/traces")))
        for provider in (telemetry.tracer_provider, theirs):
            provider.get_tracer("test").start_span("one").end()
            telemetry.flush(60)
        telemetry.shutdown(60)
        theirs.shutdown()
    assert [one.name.partition(".")[0] for one in caplog.records if one.levelno >= logging.WARNING] == [
        "runcap",
        "opentelemetry",
    ]


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(one.levelname, one.getMessage().partition(";")[0]) for one in caplog.records]


def test_one_failed_attempt_is_no_outage_and_two_are(caplog: pytest.LogCaptureFixture) -> None:
    health = Health("host:1")
    health.attempt_failed("traces", "UNAVAILABLE")
    assert not health.is_down("traces")
    assert told(caplog) == []
    health.attempt_failed("traces", None)
    assert health.is_down("traces")
    assert told(caplog) == [("WARNING", "telemetry: host:1 does not take traces: UNAVAILABLE")]


def test_one_that_comes_and_goes_is_a_warning_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = ManualClock()
    health = Health("host:1", clock=clock.monotonic)
    for _ in range(3):
        health.failed("traces", "HTTP 503")
        health.took("traces")
        clock.advance(1000)
    clock.advance(3600)
    health.failed("traces", "HTTP 503")
    assert [level for level, _ in told(caplog)] == ["WARNING", "INFO", "INFO", "INFO", "INFO", "INFO", "WARNING"]


def test_both_signals_of_an_endpoint_share_its_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    health = Health("host:1")
    health.failed("metrics", "HTTP 503")
    health.failed("traces", "HTTP 503", 7)
    health.took("traces")
    health.took("metrics")
    assert [text for _, text in told(caplog)] == [
        "telemetry: host:1 does not take metrics: HTTP 503",
        "telemetry: host:1 takes traces again (7 spans lost so far)",
    ]


def test_an_endpoint_without_metrics_says_what_to_do_and_a_later_outage_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health = Health("host:1")
    health.took("traces")
    health.failed("metrics", "UNIMPLEMENTED")
    health.took("traces")
    health.failed("traces", "UNAVAILABLE")
    assert [text for _, text in told(caplog)] == [
        "telemetry: host:1 does not take metrics: UNIMPLEMENTED",
        "telemetry: host:1 does not take traces: UNAVAILABLE",
    ]
    assert "metrics=False" in caplog.text
