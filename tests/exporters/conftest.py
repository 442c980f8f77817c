"""Real receivers, each a process of its own."""

from __future__ import annotations

import gzip
import importlib.util
import os
import subprocess
import sys
import sysconfig
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ..waiting import free_port, listens, wait_for
from .readback import Point, Read, read_line, read_metric, read_span

ROOT = Path(__file__).parents[2]


class OtelTap:
    """oteltap, which prints every span and metric it receives over HTTP as a line of JSON."""

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

    @property
    def size(self) -> int:
        """How much it has printed; what comes later is read from there."""
        return self._output.stat().st_size

    def spans(self, since: int = 0) -> list[Read]:
        """What it has received so far. It does not say from which service."""
        return [one for one in self._read(since) if isinstance(one, Read)]

    def points(self, since: int = 0) -> list[Point]:
        return [point for one in self._read(since) if not isinstance(one, Read) for point in one]

    def _read(self, since: int) -> list[Read | list[Point]]:
        whole, _, _ = self._output.read_bytes()[since:].rpartition(b"\n")
        return [read_line(line) for line in whole.decode().splitlines() if line.startswith("{")]


class Downstream:
    """What a collector passes on: OTLP over HTTP, decoded with OpenTelemetry's own messages, by service.

    (oteltap answers rotel's chunked requests with 400.)
    """

    def __init__(self) -> None:
        self._spans: defaultdict[str, list[Read]] = defaultdict(list)
        self._points: defaultdict[str, list[Point]] = defaultdict(list)
        take = {"/v1/traces": self._take_spans, "/v1/metrics": self._take_metrics}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = _body(self)
                take[self.path](gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def _take_spans(self, raw: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
            for scope in resource.scope_spans:
                self._spans[_service(resource)].extend(map(read_span, scope.spans))

    def _take_metrics(self, raw: bytes) -> None:
        for resource in ExportMetricsServiceRequest.FromString(raw).resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    self._points[_service(resource)].extend(read_metric(metric))

    def spans(self, service: str) -> list[Read]:
        """What it has received of a service so far."""
        return list(self._spans[service])

    def points(self, service: str) -> list[Point]:
        return list(self._points[service])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _service(resource: Any) -> str:
    return str(next(one.value.string_value for one in resource.resource.attributes if one.key == "service.name"))


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    chunks = []
    while size := int(request.rfile.readline(), 16):
        chunks.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(chunks)


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


@pytest.fixture(scope="module")
def oteltap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtelTap]:
    tap = OtelTap(tmp_path_factory.mktemp("oteltap") / "oteltap.jsonl")
    yield tap
    stop(tap.process)


@pytest.fixture(scope="module")
def downstream() -> Iterator[Downstream]:
    taker = Downstream()
    yield taker
    taker.close()


@pytest.fixture(scope="module")
def rotel(downstream: Downstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rotel]:
    collector = Rotel(downstream.endpoint, tmp_path_factory.mktemp("rotel") / "rotel.log")
    yield collector
    stop(collector.process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it as a shell would, and wait until it is gone."""
    process.terminate()
    process.wait(timeout=20)
