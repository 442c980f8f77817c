"""OTLP endpoints as they are met: healthy ones that keep what they take, and each way of failing."""

from __future__ import annotations

import contextlib
import gzip
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import grpc  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Taken(NamedTuple):
    """One export, as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Endpoint:
    """Where it is, what it has taken, and what it answers: 200 or OK unless told otherwise."""

    url: str = ""
    taken: list[Taken] = field(default_factory=list)
    status: int = 200
    code: grpc.StatusCode = grpc.StatusCode.OK

    @property
    def where(self) -> str:
        return self.url.removeprefix("http://")

    def of(self, signal: str) -> Taken:
        """The first export of a signal."""
        (one, *_) = [one for one in self.taken if one.path in (f"/v1/{signal}", _METHODS[signal])]
        return one

    def spans(self) -> list[list[str]]:
        """The names of the spans, by export."""
        requests = [ExportTraceServiceRequest.FromString(one.body) for one in self.taken if "trace" in one.path]
        return [
            sorted(
                span.name
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            )
            for request in requests
        ]

    def resource(self) -> dict[str, str]:
        """The attributes of the first export's resource."""
        (resource, *_) = ExportTraceServiceRequest.FromString(self.of("traces").body).resource_spans
        return {one.key: one.value.string_value for one in resource.resource.attributes}


_METHODS = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}


@contextmanager
def over_http(status: int = 200) -> Iterator[Endpoint]:
    endpoint = Endpoint(status=status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(raw) if self.headers["Content-Encoding"] == "gzip" else raw
            if endpoint.status == 200:
                endpoint.taken.append(Taken(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(endpoint.status)
            if endpoint.status == 503:
                self.send_header("Retry-After", "30")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        endpoint.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def over_grpc(code: grpc.StatusCode = grpc.StatusCode.OK) -> Iterator[Endpoint]:
    endpoint = Endpoint(code=code)

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            def export(request: bytes, context: Any) -> bytes:
                if endpoint.code is not grpc.StatusCode.OK:
                    context.abort(endpoint.code, "S3CRET of the server")
                endpoint.taken.append(Taken(details.method, dict(details.invocation_metadata), request))
                return b""

            return grpc.unary_unary_rpc_method_handler(export)

    server = grpc.server(ThreadPoolExecutor(4), handlers=[Handler()])
    endpoint.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield endpoint
    finally:
        server.stop(None).wait()


@contextmanager
def down() -> Iterator[Endpoint]:
    """A port that is taken, and nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        yield Endpoint(f"http://127.0.0.1:{nobody.getsockname()[1]}")


@contextmanager
def slow() -> Iterator[Endpoint]:
    """Connections are made, by the system, and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        yield Endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}")


@contextmanager
def resets() -> Iterator[Endpoint]:
    """Each connection is taken and reset."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Endpoint(f"http://127.0.0.1:{server.getsockname()[1]}")
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def nowhere() -> Iterator[Endpoint]:
    """A name that no server of names knows (RFC 6761)."""
    yield Endpoint("http://no-such-host.invalid:4317")


def http(status: int) -> Callable[[], contextlib.AbstractContextManager[Endpoint]]:
    return lambda: over_http(status)


def rpc(code: grpc.StatusCode) -> Callable[[], contextlib.AbstractContextManager[Endpoint]]:
    return lambda: over_grpc(code)
