"""Runs that wait for a person's answer, by the thread of the graph that asked."""

from __future__ import annotations

from . import forks
from .run import Run

_KEPT = 4_096


class PausedRuns:
    """The paused runs of one guard. The oldest end where there are too many: a checkpoint still has their record."""

    def __init__(self) -> None:
        self._by_thread: dict[str, Run] = {}
        self._lock = forks.lock()

    def __len__(self) -> int:
        return len(self._by_thread)

    def put(self, thread: str, run: Run) -> None:
        """This run waits on this thread. One that waited there before ends."""
        with self._lock:
            gone = self._by_thread.pop(thread, None)
            self._by_thread[thread] = run
            if len(self._by_thread) > _KEPT:
                gone = self._by_thread.pop(next(iter(self._by_thread)))
        if gone is not None and gone is not run:
            gone.end()

    def take(self, thread: str) -> Run | None:
        """The run that waits on this thread, which waits no longer; None where none does."""
        with self._lock:
            run = self._by_thread.pop(thread, None)
        return None if run is None or run.ended else run
