"""A clock that moves only when told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable


class ManualClock:
    """See `Clock`. Starts at `start_ns`; `advance` moves both readings, and ends the waits whose time has come.

    Whoever sleeps by it moves it himself.
    """

    def __init__(self, start_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = start_ns
        self._waits: dict[object, tuple[int, Callable[[], object]]] = {}

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ns += round(seconds * 1_000_000_000)
        for key, (deadline, end) in list(self._waits.items()):
            if deadline <= self._now_ns and self._waits.pop(key, None) is not None:
                end()

    @property
    def waiting(self) -> int:
        """Waits that will end by themselves."""
        return len(self._waits)

    def monotonic(self) -> float:
        """Seconds."""
        return self._now_ns / 1_000_000_000

    def time_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return self._now_ns

    def wait(self, lock: threading.Lock, seconds: float | None) -> None:
        """See `Clock`."""
        key = self._until(seconds, lambda: lock.release() if lock.locked() else None)
        try:
            lock.acquire()
        finally:
            self._waits.pop(key, None)

    async def await_(self, event: asyncio.Event, seconds: float | None) -> None:
        """See `Clock`."""
        loop = asyncio.get_running_loop()
        key = self._until(seconds, lambda: loop.call_soon_threadsafe(event.set))
        try:
            await event.wait()
        finally:
            self._waits.pop(key, None)

    def sleep(self, seconds: float) -> None:
        """Move the clock."""
        self.advance(seconds)

    async def asleep(self, seconds: float) -> None:
        """Move the clock, and let others run."""
        self.advance(seconds)
        await asyncio.sleep(0)

    def _until(self, seconds: float | None, end: Callable[[], object]) -> object:
        key = object()
        if seconds is not None:
            self._waits[key] = (self._now_ns + round(seconds * 1_000_000_000), end)
        return key
