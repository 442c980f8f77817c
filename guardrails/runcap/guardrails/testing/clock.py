"""A clock that moves only when told."""

from __future__ import annotations


class ManualClock:
    """See `Clock`. Starts at `start_ns`; `advance` moves both readings."""

    def __init__(self, start_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = start_ns

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ns += round(seconds * 1_000_000_000)

    def monotonic(self) -> float:
        """Seconds."""
        return self._now_ns / 1_000_000_000

    def time_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return self._now_ns
