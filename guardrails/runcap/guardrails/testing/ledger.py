"""What the scripted provider served, priced by plain arithmetic: the truth that budgets are checked against."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

LIST_PRICES: Mapping[str, tuple[str, str, str, str]] = {
    "gpt-4o": ("2.5", "10", "1.25", "2.5"),
    "gpt-4o-mini": ("0.15", "0.6", "0.075", "0.15"),
    "claude-sonnet-5": ("2", "10", "0.2", "2.5"),
    "claude-haiku-4-5": ("1", "5", "0.1", "1.25"),
}
"""Dollars per million tokens: input, output, cached input, cache write. The vendors' list prices of November 2026."""


@dataclass(frozen=True, slots=True)
class Served:
    """One answer: what it was billed for. `input_tokens` includes cached ones; `complete` is False if cut off."""

    model: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    cost_usd: Decimal
    complete: bool


class Bill:
    """Adds up what was served, across threads."""

    def __init__(self, prices: Mapping[str, tuple[str, str, str, str]] | None = None) -> None:
        self._prices = {**LIST_PRICES, **(prices or {})}
        self._lock = threading.Lock()
        self._served: list[Served] = []
        self._received = 0

    def receive(self) -> int:
        """Count a request; its number, from 0."""
        with self._lock:
            self._received += 1
            return self._received - 1

    def book(
        self, model: str, inputs: int, outputs: int, cached: int = 0, written: int = 0, *, complete: bool = True
    ) -> None:
        """Bill an answer."""
        plain, out, read, write = map(Decimal, self._prices.get(model, ("0", "0", "0", "0")))
        total = plain * (inputs - cached - written) + out * outputs + read * cached + write * written
        with self._lock:
            self._served.append(Served(model, inputs, outputs, cached, written, total / 1_000_000, complete))

    @property
    def served(self) -> list[Served]:
        """Every billed answer."""
        with self._lock:
            return list(self._served)

    @property
    def received(self) -> int:
        """Requests that came in, also those refused or failed."""
        with self._lock:
            return self._received
