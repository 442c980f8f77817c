"""Work that waits for a metric reader: the agent's thread only notes what happened, the reader's thread counts it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from runcap.guardrails import forks

T = TypeVar("T")

_log = logging.getLogger("runcap")

_CATCH_UP = 2
"""Items worked off for each one that comes when too many wait."""


class Backlog(Generic[T]):
    """Items in order, worked off one at a time. Safe across threads, in finalizers, and after a fork.

    Args:
        work: what is done with an item.
        most: so many may wait. Beyond that whoever puts one in works off two of the oldest: nothing is dropped, nobody
            is held up for long, and memory stays bounded although no reader ever comes.
    """

    def __init__(self, work: Callable[[T], None], most: int) -> None:
        self._work = work
        self._most = most
        self._waiting: deque[T] = deque()
        self._lock = forks.lock()
        self._failed: set[str] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: T) -> None:
        """Add an item."""
        self._waiting.append(item)
        if len(self._waiting) > self._most:
            for _ in range(_CATCH_UP):
                # Who works already may be this very thread, interrupted by a finalizer.
                if not self._lock.acquire(blocking=False):
                    return
                try:
                    self._work_off_one()
                finally:
                    self._lock.release()

    def drain(self) -> None:
        """Work off everything that waits by now."""
        for _ in range(len(self._waiting)):
            with self._lock:
                self._work_off_one()

    def forget(self) -> None:
        """Drop what waits: after a fork it is the parent's."""
        self._waiting.clear()

    def _work_off_one(self) -> None:
        try:
            item = self._waiting.popleft()
        except IndexError:
            return
        try:
            self._work(item)
        except Exception as error:  # noqa: BLE001 - telemetry: one item is lost, the others are not
            kind = type(error).__name__
            if kind not in self._failed:
                self._failed.add(kind)
                _log.warning("runcap: a metric could not be recorded (%s); said once", kind)
