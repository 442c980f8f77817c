"""Where spans go: an OTLP endpoint such as Jaeger, Honeycomb or a collector."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

Protocol = Literal["grpc", "http/protobuf"]


def setup_otlp(
    endpoint: str | None = None,
    *,
    protocol: Protocol | None = None,
    headers: Mapping[str, str] | None = None,
    service_name: str | None = None,
    set_global: bool = True,
) -> TracerProvider:
    """Send spans to an OTLP endpoint, in batches from a background thread.

    What is not given comes from the standard `OTEL_EXPORTER_OTLP_*` and `OTEL_SERVICE_NAME` variables.

    Args:
        endpoint: base URL, e.g. `http://localhost:4317` (gRPC) or `https://api.honeycomb.io` (HTTP).
        protocol: `"grpc"` (the default) or `"http/protobuf"`.
        headers: e.g. `{"x-honeycomb-team": key}`.
        service_name: the service, Honeycomb's dataset.
        set_global: make it the global tracer provider.

    Returns:
        The tracer provider; it flushes at exit, `shutdown()` does so earlier.

    Raises:
        ValueError: an unknown protocol, or an endpoint that is no http(s) URL.
        RuntimeError: a global tracer provider is set already; add a span processor to it, or pass
            `set_global=False` and hand the result to `OTelSink(tracer_provider=...)`.
    """
    chosen = protocol or _told("TRACES_PROTOCOL") or _told("PROTOCOL") or "grpc"
    if chosen not in ("grpc", "http/protobuf"):
        raise ValueError(f'protocol must be "grpc" or "http/protobuf", got {chosen!r}')
    if endpoint is not None and not _is_url(endpoint):
        raise ValueError(f"endpoint must be an http:// or https:// URL such as http://localhost:4317, got {endpoint!r}")
    if set_global and isinstance(trace.get_tracer_provider(), TracerProvider):
        raise RuntimeError(
            "a global tracer provider is set already and is not replaced: add a BatchSpanProcessor to it, or use "
            "OTelSink(tracer_provider=setup_otlp(..., set_global=False))"
        )
    resource = Resource.create({SERVICE_NAME: service_name} if service_name else {})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(_exporter(chosen, endpoint, dict(headers or {}) or None)))
    if set_global:
        trace.set_tracer_provider(provider)
    return provider


def _told(name: str) -> str | None:
    return os.environ.get(f"OTEL_EXPORTER_OTLP_{name}")


def _is_url(endpoint: object) -> bool:
    parts = urlsplit(endpoint) if isinstance(endpoint, str) else None
    return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)


def _exporter(protocol: str, endpoint: str | None, headers: dict[str, str] | None) -> SpanExporter:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(endpoint=endpoint, headers=headers)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    # An endpoint given in code is taken verbatim by the exporter, so the signal's path is ours to add.
    return Http(endpoint=None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces", headers=headers)
