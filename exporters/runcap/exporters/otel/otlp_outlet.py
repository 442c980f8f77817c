"""OpenTelemetry's exporters: made for one destination, with their failures told to `Health` and not to the log."""

from __future__ import annotations

import os
import time
from typing import Any

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value
from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader, MetricsData
from opentelemetry.sdk.trace.export import SpanExporter

from .otlp_exporters import exporter_to
from .otlp_health import Health, keep_quiet, sending, type_of
from .otlp_settings import Destination
from .otlp_worker import Worker


class Outlet:
    """An exporter of one signal. `send` raises nothing and logs nothing but through `health`."""

    def __init__(self, to: Destination, health: Health) -> None:
        self._to, self._health = to, health
        self._pid = os.getpid()
        self._inherited: list[object] = []
        self.exporter = self._make()

    def send(self, data: Any, spans: int = 0) -> bool:
        """Whether it was taken; `spans` of it are lost where not."""
        signal, why = self._to.signal, None
        # An instrumented HTTP or gRPC client would make spans of sending spans.
        token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, value=True))
        try:
            with sending(self._health, signal):
                self._own()
                taken = self.exporter.export(data).name == "SUCCESS"
        except Exception as error:  # noqa: BLE001 - telemetry never crashes the process; the type is told
            taken, why = False, type_of(error)
        finally:
            detach(token)
        if taken:
            self._health.took(signal)
        else:
            self._health.failed(signal, why, spans)
        return taken

    def close(self) -> None:
        """Let go of connections. Only after the last `send` has ended: an old gRPC exporter waits for it."""
        with sending(self._health, self._to.signal):
            self.exporter.shutdown()

    def _make(self) -> SpanExporter | MetricExporter:
        exporter = exporter_to(self._to)
        keep_quiet()
        return exporter

    def _own(self) -> None:
        """A forked child makes its own: a gRPC channel and a TLS connection are of the process that opened them."""
        if self._pid != os.getpid():
            self._inherited.append(self.exporter)  # not to be closed here
            self.exporter, self._pid = self._make(), os.getpid()


class Reader(MetricReader):
    """Metrics read and sent each `interval` seconds from a thread; the SDK's own reader does not bound its waits."""

    def __init__(self, outlet: Outlet, interval: float) -> None:
        exporter = outlet.exporter
        super().__init__(
            preferred_temporality=exporter._preferred_temporality,  # type: ignore[union-attr]  # noqa: SLF001 - no other way
            preferred_aggregation=exporter._preferred_aggregation,  # type: ignore[union-attr]  # noqa: SLF001
        )
        self._outlet = outlet
        self._taken = True
        self._given_up = False
        self.worker = Worker("runcap-metrics", self._round, interval)

    def force_flush(self, timeout_millis: float = 2000) -> bool:
        """Whether all was taken within the time."""
        return self.worker.reached(self.worker.ask(), time.monotonic() + timeout_millis / 1e3)

    def shutdown(self, timeout_millis: float = 2000, **kwargs: Any) -> None:
        """Read and send once more, for the time given and 2 s at most."""
        self.worker.end()
        if not self._given_up:
            self.worker.wait(time.monotonic() + min(timeout_millis / 1e3, 2.0))

    def give_up(self) -> None:
        """Wait for nothing any more."""
        self._given_up = True

    def _round(self) -> bool:
        self._taken = True
        self.collect()
        return self._taken

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        self._taken = self._outlet.send(metrics_data)
