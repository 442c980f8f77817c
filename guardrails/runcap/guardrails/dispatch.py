"""Tells the sinks what happened, without ever letting one touch the call."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence

from .events import Event, Sink

_log = logging.getLogger("runcap")


class Dispatcher:
    """Delivers events to sinks, in order, on the thread that emits them."""

    def __init__(self, sinks: Sequence[Sink] | None) -> None:
        self._sinks: tuple[Sink, ...] | None = None if sinks is None else tuple(sinks)
        self._waiting: dict[int, deque[Event]] = {}
        self._reported: set[tuple[int, str]] = set()

    def default(self, sinks: Sequence[Sink]) -> None:
        """Use these, if none were chosen."""
        if self._sinks is None:
            self._sinks = tuple(sinks)

    def emit(self, event: Event) -> None:
        """Deliver an event; one thread's events never overlap, even when a finalizer interrupts a sink."""
        if not self._sinks:
            return
        thread = threading.get_ident()
        waiting = self._waiting.get(thread)
        if waiting is not None:
            waiting.append(event)
            return
        waiting = self._waiting[thread] = deque()
        try:
            self._deliver(event)
            while waiting:
                self._deliver(waiting.popleft())
        finally:
            del self._waiting[thread]

    def _deliver(self, event: Event) -> None:
        for index, sink in enumerate(self._sinks or ()):
            try:
                sink(event)
            except Exception as error:  # noqa: BLE001 - a sink is foreign code and must never touch the call
                key = (index, type(error).__name__)
                if key not in self._reported:
                    self._reported.add(key)
                    _log.warning("runcap: sink %d (%s) failed with %s; said once", index, _name(sink), key[1])


def _name(sink: Sink) -> str:
    return getattr(sink, "__qualname__", type(sink).__qualname__)
