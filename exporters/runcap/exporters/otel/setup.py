"""Where telemetry goes: an OTLP endpoint such as Jaeger, Honeycomb or a collector."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from opentelemetry import metrics as metrics_api
from opentelemetry import trace
from opentelemetry.metrics._internal import _ProxyMeterProvider  # what stands there while none is set

from .otlp_settings import Preset, Protocol, settings_of
from .otlp_telemetry import Telemetry

__all__ = ["Preset", "Protocol", "Telemetry", "setup_otlp"]

_SETTING = threading.Lock()


def setup_otlp(
    endpoint: str | None = None,
    *,
    preset: Preset | None = None,
    protocol: Protocol | None = None,
    headers: Mapping[str, str] | None = None,
    api_key: str | None = None,
    service_name: str | None = None,
    metrics: bool | None = None,
    set_global: bool = True,
) -> Telemetry:
    """Send spans and metrics to an OTLP endpoint, from background threads the agent never waits for.

    What is not given comes from the preset, then from the standard variables: `OTEL_EXPORTER_OTLP_*` with their
    `_TRACES_` and `_METRICS_` forms (a timeout is in seconds), `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
    `OTEL_BSP_*`, `OTEL_METRIC_EXPORT_INTERVAL`; `OTEL_TRACES_EXPORTER=none`, `OTEL_METRICS_EXPORTER=none` and
    `OTEL_SDK_DISABLED=true` turn off. An endpoint that is down is said once, on the logger "runcap".

    Args:
        endpoint: base URL, e.g. `http://localhost:4317` (gRPC) or `https://api.honeycomb.io` (HTTP).
        preset: `"jaeger"` (gRPC to localhost, traces only), `"honeycomb"`, `"honeycomb-eu"`.
        protocol: `"grpc"` (the default) or `"http/protobuf"`.
        headers: sent with each export, beside those of the variables.
        api_key: Honeycomb's, else `HONEYCOMB_API_KEY` or the header `x-honeycomb-team` is taken.
        service_name: the service, Honeycomb's dataset (metrics go to `{service_name}-metrics`, unless a header
            `x-honeycomb-dataset` is given).
        metrics: send metrics too; on unless the preset or `OTEL_METRICS_EXPORTER` says no.
        set_global: make the providers the global ones.

    Returns:
        The providers, with `flush` and `shutdown`. It shuts down by itself as the process ends, within 1.5 s.

    Raises:
        ValueError: what cannot be, in an argument or a variable; headers and keys are never shown.
        RuntimeError: a global provider is set already. Nothing is set up then.
    """
    settings = settings_of(endpoint, preset, protocol, headers, api_key, service_name, metrics)
    if not set_global:
        return Telemetry(settings)
    with _SETTING:
        _refuse_if_set(with_metrics=settings.metrics is not None)
        telemetry = Telemetry(settings)
        trace.set_tracer_provider(telemetry.tracer_provider)
        if telemetry.meter_provider is not None:
            metrics_api.set_meter_provider(telemetry.meter_provider)
    return telemetry


def _refuse_if_set(*, with_metrics: bool) -> None:
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        raise RuntimeError(  # noqa: TRY004 - no type of an argument
            "a global tracer provider is set already and is not replaced: OTelSink() uses that one as it is; for one "
            "of its own, telemetry = setup_otlp(..., set_global=False) and OTelSink(telemetry.tracer_provider, "
            "telemetry.meter_provider)"
        )
    if with_metrics and not isinstance(metrics_api.get_meter_provider(), _ProxyMeterProvider):
        raise RuntimeError(
            "a global meter provider is set already and is not replaced: pass metrics=False, and OTelSink() uses that "
            "one as it is; for one of its own, telemetry = setup_otlp(..., set_global=False) and "
            "OTelSink(telemetry.tracer_provider, telemetry.meter_provider)"
        )
