"""Where time and ids come from; tests pass their own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Protocol

NewId = Callable[[], str]
"""Makes an id nobody else has."""


class Clock(Protocol):
    """Two readings of time."""

    def monotonic(self) -> float:
        """Seconds that never run backwards, for durations."""
        ...

    def time_ns(self) -> int:
        """Nanoseconds since the epoch, for records and spans."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        """Seconds, see `time.monotonic`."""
        return time.monotonic()

    def time_ns(self) -> int:
        """Nanoseconds since the epoch, see `time.time_ns`."""
        return time.time_ns()


def new_id() -> str:
    """A random id of 32 hexadecimal digits."""
    return uuid.uuid4().hex
