"""Real receivers, each a process of its own."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that the system gives to nobody by itself: tests at once ask it for many before a receiver has its own."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(ready: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Poll until `ready` gives something; these are other processes, so real time is all there is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = ready()
        if answer:
            return answer
        time.sleep(0.05)
    raise TimeoutError(f"{what} not within {seconds} s")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class OtelTap:
    """oteltap, which prints every span it receives over HTTP as a line of JSON."""

    def __init__(self, output: Path) -> None:
        self.port = free_port()
        self._output = output
        command = [sys.executable, "-m", "oteltap", "--port", str(self.port)]
        with output.open("w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONUNBUFFERED": "1"}
            )
        wait_for(lambda: listens(self.port), "oteltap")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def spans(self) -> list[dict[str, Any]]:
        """What it has received so far, attributes as a plain dict."""
        lines = [line for line in self._output.read_text().splitlines() if line.startswith("{")]
        return [_plain(json.loads(line)) for line in lines]


class Downstream:
    """What a collector passes on: OTLP over HTTP, decoded with OpenTelemetry's own messages.

    (oteltap answers rotel's chunked requests with 400.)
    """

    def __init__(self) -> None:
        received: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = _body(self)
                request = ExportTraceServiceRequest.FromString(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        received.extend(_plain(_json(span)) for span in scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._received = received
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def spans(self) -> list[dict[str, Any]]:
        return list(self._received)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    chunks = []
    while size := int(request.rfile.readline(), 16):
        chunks.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(chunks)


def _json(span: Any) -> dict[str, Any]:
    told: dict[str, Any] = MessageToDict(span)
    return told | {
        "traceId": span.trace_id.hex(),
        "spanId": span.span_id.hex(),
        "parentSpanId": span.parent_span_id.hex(),
        "kind": span.kind,
        "status": {"code": span.status.code},
    }


class Rotel:
    """rotel, a collector: takes gRPC and HTTP, and passes on to `target` over HTTP."""

    def __init__(self, target: str, log: Path) -> None:
        self.grpc_port, self.http_port = free_port(), free_port()
        spec = importlib.util.find_spec("rotel")
        if spec is None or spec.origin is None:
            _cannot_be_had("rotel is not installed (pip install rotel)")
        command = [
            str(Path(str(spec and spec.origin)).with_name("rotel-agent")),
            *("start", "--otlp-grpc-endpoint", f"127.0.0.1:{self.grpc_port}"),
            *("--otlp-http-endpoint", f"127.0.0.1:{self.http_port}", "--exporter", "otlp"),
            *("--otlp-exporter-endpoint", target, "--otlp-exporter-protocol", "http"),
            *("--batch-timeout", "100ms"),
        ]
        # The agent embeds Python and wants its shared library, which is not always where the loader looks.
        env = os.environ | {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
        wait_for(self._ready, "rotel")
        if self.process.poll() is not None:
            _cannot_be_had(f"rotel does not start here: {log.read_text()[-300:]}")

    def _ready(self) -> bool:
        return self.process.poll() is not None or (listens(self.grpc_port) and listens(self.http_port))


def _cannot_be_had(why: str) -> None:
    if os.environ.get("RUNCAP_REQUIRE_RECEIVERS"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture
def oteltap(tmp_path: Path) -> Iterator[OtelTap]:
    tap = OtelTap(tmp_path / "oteltap.jsonl")
    yield tap
    _stop(tap.process)


@pytest.fixture
def downstream() -> Iterator[Downstream]:
    taker = Downstream()
    yield taker
    taker.close()


@pytest.fixture
def rotel(downstream: Downstream, tmp_path: Path) -> Iterator[Rotel]:
    collector = Rotel(downstream.endpoint, tmp_path / "rotel.log")
    yield collector
    _stop(collector.process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=20)


def _plain(span: dict[str, Any]) -> dict[str, Any]:
    def value(raw: dict[str, Any]) -> Any:
        kind, content = next(iter(raw.items()))
        if kind == "arrayValue":
            return [value(one) for one in content.get("values", [])]
        return int(content) if kind == "intValue" else content

    def attributes(holder: dict[str, Any]) -> dict[str, Any]:
        return {one["key"]: value(one["value"]) for one in holder.get("attributes", [])}

    events = [{"name": event["name"], **attributes(event)} for event in span.get("events", [])]
    return {**span, "attributes": attributes(span), "events": events}
