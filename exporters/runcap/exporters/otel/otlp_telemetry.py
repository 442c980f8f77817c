"""`Telemetry`: what was set up, to flush and to shut down."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from functools import partial
from types import TracebackType
from typing import Self

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from runcap.guardrails import forks

from .otlp_health import Health
from .otlp_outlet import Outlet, Reader
from .otlp_settings import Destination, Settings, Signal
from .otlp_worker import SpanQueue, Worker

_EXIT_S = 1.5  # the rest of an interpreter's end takes its time too
_DOWN_S = 0.5  # an endpoint known to be down is tried once more, and not waited for


class Telemetry:
    """The providers, sending in the background; made by `setup_otlp`. Shuts down as the process ends, within 1.5 s.

    A process forked off sends what it makes itself, on connections of its own. (Metrics go on from the totals of
    the process that forked: where those must not be counted again, call `setup_otlp` in the children.)
    """

    tracer_provider: TracerProvider
    meter_provider: MeterProvider | None

    def __init__(self, settings: Settings) -> None:
        self._healths: dict[str, Health] = {}
        self._queue: SpanQueue | None = None
        self._reader: Reader | None = None
        self._closed = False
        self._once = forks.lock()
        # Exporters first: one that cannot be made leaves no thread behind.
        outlets = {to.signal: (Outlet(to, self._health(to.where)), to.where) for to in _destinations(settings)}
        self._outlets = outlets
        self.tracer_provider = TracerProvider(resource=settings.resource, shutdown_on_exit=False)
        if "traces" in outlets:
            outlet, where = outlets["traces"]
            self._queue = SpanQueue(
                lambda batch: outlet.send(batch, len(batch)),
                self._health(where),
                settings.queue,
                settings.batch,
                settings.delay,
            )
            self.tracer_provider.add_span_processor(self._queue)
        self.meter_provider = None
        if "metrics" in outlets:
            self._reader = Reader(outlets["metrics"][0], settings.interval)
            self.meter_provider = MeterProvider([self._reader], settings.resource, shutdown_on_exit=False)
        for signal, worker in self._workers.items():
            self._health(outlets[signal][1]).watch(worker.nudge)
        atexit.register(self.shutdown, _EXIT_S)
        if hasattr(os, "register_at_fork"):
            me = weakref.ref(self)

            def renew() -> None:
                telemetry = me()
                if telemetry is not None:
                    telemetry._renew()  # noqa: SLF001 - itself

            os.register_at_fork(after_in_child=renew)

    def __repr__(self) -> str:
        """Where it sends to; no headers."""
        where = ", ".join(f"{signal} to {where}" for signal, (_, where) in self._outlets.items())
        return f"<Telemetry {where or 'off'}>"

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Shut down."""
        self.shutdown()

    def flush(self, timeout: float = 2.0) -> bool:
        """Whether all that waits to be sent was taken within `timeout` seconds; never takes longer."""
        until = time.monotonic() + timeout
        asked = [(worker, worker.ask()) for worker in self._workers.values()]
        taken = [worker.reached(goal, until) for worker, goal in asked]
        return all(taken)

    def shutdown(self, timeout: float = 2.0) -> None:
        """Send what is left, for `timeout` seconds at most; what was not taken by then is counted and logged.

        Called again, it does nothing. (Span processors that others have added are shut down too, in their own time.)
        """
        with self._once:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.shutdown)
        for health in self._healths.values():
            health.defer()
        ended_before = {signal for signal, worker in self._workers.items() if worker.ending}
        unsent = self._end(timeout)
        if "traces" not in ended_before:
            self.tracer_provider.shutdown()
        if self.meter_provider is not None and "metrics" not in ended_before:
            self.meter_provider.shutdown()
        for signal, (outlet, _) in self._outlets.items():
            if signal not in unsent:
                outlet.close()

    @property
    def _workers(self) -> dict[Signal, Worker]:
        senders: dict[Signal, SpanQueue | Reader | None] = {"traces": self._queue, "metrics": self._reader}
        return {signal: sender.worker for signal, sender in senders.items() if sender is not None}

    def _health(self, where: str) -> Health:
        return self._healths.setdefault(where, Health(where))

    def _is_down(self, signal: Signal) -> bool:
        return self._health(self._outlets[signal][1]).is_down(signal)

    def _end(self, timeout: float) -> set[Signal]:
        """Have the last of all sent; the signals whose last had not been by then."""
        begun = time.monotonic()
        known = {signal for signal in self._workers if self._is_down(signal)}
        for worker in self._workers.values():
            worker.end()
        unsent: set[Signal] = set()
        for signal, worker in self._workers.items():
            if signal in known:
                over = worker.wait(begun + min(timeout, _DOWN_S))
            else:
                over = worker.wait(begun + timeout, unless=partial(self._is_down, signal))
            if not over:
                unsent.add(signal)
        self._give_up(time.monotonic() - begun, unsent)
        return unsent

    def _give_up(self, waited: float, unsent: set[Signal]) -> None:
        if self._reader is not None:
            self._reader.give_up()
        if self._queue is not None:
            left = self._queue.give_up()
            self._health(self._outlets["traces"][1]).drop("traces", left)
        for where, health in self._healths.items():
            health.close(waited, frozenset(one for one in unsent if self._outlets[one][1] == where))

    def _renew(self) -> None:
        """In a forked child."""
        if self._closed:
            return
        for health in self._healths.values():
            health.renew()
        if self._queue is not None:
            self._queue.renew()
        if self._reader is not None:
            self._reader.worker.renew()


def _destinations(settings: Settings) -> list[Destination]:
    return [to for to in (settings.traces, settings.metrics) if to is not None]
