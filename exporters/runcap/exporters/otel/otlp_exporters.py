"""OpenTelemetry's own OTLP exporters, imported where they are asked for."""
# ruff: noqa: PLC0415

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from .otlp_health import note_failure, type_of
from .otlp_settings import Destination

if TYPE_CHECKING:
    from requests import Session


def exporter_to(to: Destination) -> SpanExporter | MetricExporter:
    """The exporter; certificates and an insecure channel are read from their variables by itself."""
    return _over_grpc(to) if to.protocol == "grpc" else _over_http(to)


def _over_grpc(to: Destination) -> SpanExporter | MetricExporter:
    from grpc import Compression  # type: ignore[import-untyped]

    packed = Compression.Gzip if to.compression == "gzip" else Compression.NoCompression
    options: dict[str, Any] = {
        "endpoint": to.endpoint,
        "headers": tuple(to.headers.items()) or None,
        "timeout": to.timeout,
        "compression": packed,
    }
    if to.signal == "traces":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(**options)
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter(**options)


def _over_http(to: Destination) -> SpanExporter | MetricExporter:
    from opentelemetry.exporter.otlp.proto.http import Compression

    options: dict[str, Any] = {
        "endpoint": to.endpoint,
        "headers": dict(to.headers) or None,
        "timeout": to.timeout,
        "compression": Compression(to.compression),
        "session": None if _has_credential_provider(to.signal) else _session(),
    }
    if to.signal == "traces":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(**options)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter(**options)


def _has_credential_provider(signal: str) -> bool:
    names = ("HTTP_CREDENTIAL_PROVIDER", f"HTTP_{signal.upper()}_CREDENTIAL_PROVIDER")
    return any(os.environ.get(f"OTEL_PYTHON_EXPORTER_OTLP_{name}") for name in names)


def _session() -> Session:
    """A session that tells the type of a failure: the exporter logs its text and passes on neither."""
    from requests import PreparedRequest, Response, Session

    class Telling(Session):
        def send(self, request: PreparedRequest, **kwargs: Any) -> Response:
            try:
                response = super().send(request, **kwargs)
            except Exception as error:
                note_failure(type_of(error))
                raise
            if not response.ok:
                note_failure(f"HTTP {response.status_code}")
            return response

    return Telling()
