"""Notices clocks that jump: on a jump, nobody knows which day's limit a call belongs to."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from .base import LedgerError

TOLERANCE_NS = 300 * 10**9
"""How far a clock may be off against elapsed time before that counts as a jump: five minutes."""


def elapsed_ns() -> int:
    """Time that never jumps, and goes on while the machine sleeps (where the system has such a clock)."""
    return time.clock_gettime_ns(_STEADY) if _STEADY is not None else time.monotonic_ns()


_STEADY = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


class Timekeeper:
    """Holds a clock against elapsed time."""

    def __init__(self) -> None:
        self._anchor: tuple[int, int] | None = None
        self._latest = 0

    def saw(self, time_ns: int) -> None:
        """The books have an entry of this time: it cannot be much earlier now."""
        self._latest = max(self._latest, time_ns)

    def accept(self) -> None:
        """Whatever the clock says next is right."""
        self._anchor, self._latest = None, 0

    def check(self, now_ns: int, steady_ns: int) -> int:
        """The time, where it can be believed. `steady_ns` is a reading of elapsed time.

        Raises:
            LedgerError: it cannot.
        """
        if now_ns < self._latest - TOLERANCE_NS:
            raise LedgerError(
                f"the clock says {_show(now_ns)}, and the ledger has an entry of {_show(self._latest)} already, so "
                "limits per day or month cannot be checked. Set the clock right, or say ledger.accept_clock()"
            )
        then_ns, steady_then_ns = self._anchor or (now_ns, steady_ns)  # read once: another thread may accept a jump
        expected = then_ns + steady_ns - steady_then_ns
        if abs(now_ns - expected) > TOLERANCE_NS:
            raise LedgerError(
                f"the clock jumped: it says {_show(now_ns)}, and should say {_show(expected)}, so limits per day or "
                "month cannot be checked. Set the clock right, or say ledger.accept_clock()"
            )
        # Clocks drift and are corrected little by little; only what happens at once is a jump.
        self._anchor = (now_ns, steady_ns)
        return now_ns


def _show(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
