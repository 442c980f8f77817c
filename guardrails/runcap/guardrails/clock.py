"""Where time and ids come from; tests pass their own."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from typing import Protocol

NewId = Callable[[], str]
"""Makes an id nobody else has."""


class Clock(Protocol):
    """Two readings of time, and ways to let it pass."""

    def monotonic(self) -> float:
        """Seconds that never run backwards, for durations."""
        ...

    def time_ns(self) -> int:
        """Nanoseconds since the epoch, for records and spans."""
        ...

    def wait(self, lock: threading.Lock, seconds: float | None) -> None:
        """Acquire a lock that somebody else releases; give up after so many seconds."""
        ...

    async def await_(self, event: asyncio.Event, seconds: float | None) -> None:
        """Wait for an event; give up after so many seconds."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        ...

    async def asleep(self, seconds: float) -> None:
        """Let time pass without blocking the loop."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        """Seconds, see `time.monotonic`."""
        return time.monotonic()

    def time_ns(self) -> int:
        """Nanoseconds since the epoch, see `time.time_ns`."""
        return time.time_ns()

    def wait(self, lock: threading.Lock, seconds: float | None) -> None:
        """See `Clock`."""
        lock.acquire(timeout=-1 if seconds is None else min(max(seconds, 0), threading.TIMEOUT_MAX))

    async def await_(self, event: asyncio.Event, seconds: float | None) -> None:
        """See `Clock`."""
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass

    def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        time.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        """See `Clock`."""
        await asyncio.sleep(seconds)


def new_id() -> str:
    """A random id of 32 hexadecimal digits."""
    return uuid.uuid4().hex
