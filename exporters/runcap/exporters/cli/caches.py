"""What providers' prompt caches saved, and what writing to them cost, at the prices of then."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from runcap.guardrails.ledger import UsageRecord
from runcap.guardrails.pricing import NoPrice, PriceBook
from runcap.guardrails.ratecard import RateCard

from .asked import began_ns

_MILLION = 1_000_000
_HOUR = 3_600


class Cached(NamedTuple):
    """Of one model, or of all: tokens and nano-dollars against the price of plain input."""

    model: str | None
    read: int
    written: int
    saved_nano: int
    extra_nano: int
    unpriced: int

    @property
    def net_nano(self) -> int:
        """What is left of the saving."""
        return self.saved_nano - self.extra_nano


NOTHING = Cached(None, 0, 0, 0, 0, 0)
"""Of no calls."""


class Caches:
    """Adds up. `unpriced` counts tokens of models without a price: nothing is said of what they saved."""

    def __init__(self, prices: PriceBook) -> None:
        self._prices = prices
        self._cards: dict[tuple[str | None, str, int], RateCard | None] = {}
        self._sums: dict[str | None, list[int]] = {}

    def add(self, record: UsageRecord) -> None:
        """Count a call, if it read from a cache or wrote to one."""
        usage = record.usage
        if usage is None or not (usage.cache_read_tokens or usage.cache_write_tokens):
            return
        read, written = usage.cache_read_tokens, usage.cache_write_tokens
        sums = self._sums.setdefault(record.about.model, [0, 0, 0, 0, 0])
        sums[0] += read
        sums[1] += written
        card = self._card(record)
        if card is None:
            sums[4] += read + written
            return
        rates = card.rates(usage.input_tokens)
        longer, longest = usage.cache_write_1h_tokens, usage.cache_write_12h_tokens
        sums[2] += (rates.plain_input - rates.cache_read) * read
        sums[3] += (rates.cache_write - rates.plain_input) * written
        sums[3] += (rates.cache_write_1h - rates.cache_write) * longer
        sums[3] += (rates.cache_write_12h - rates.cache_write) * longest

    def rows(self) -> list[Cached]:
        """By model, where most was saved first."""
        rows = [_row(model, sums) for model, sums in self._sums.items()]
        return sorted(rows, key=lambda row: (-row.net_nano, -row.read, row.model or ""))

    def total(self) -> Cached:
        """Of all models."""
        return _row(None, [sum(column) for column in zip(*self._sums.values(), strict=True)] or [0] * 5)

    def _card(self, record: UsageRecord) -> RateCard | None:
        about = record.about
        if about.model is None:
            return None
        hour = began_ns(record) // 10**9 // _HOUR
        key = (about.provider, about.model, hour)
        if key not in self._cards:
            at = datetime.fromtimestamp(hour * _HOUR, UTC)
            try:
                self._cards[key] = self._prices.card(about.model, provider=about.provider, at=at)
            except NoPrice:
                self._cards[key] = None
        return self._cards[key]


def _row(model: str | None, sums: list[int]) -> Cached:
    read, written, saved, extra, unpriced = sums
    # Rates are per million tokens; rounded once, at the end.
    return Cached(model, read, written, _nano(saved), _nano(extra), unpriced)


def _nano(millionths: int) -> int:
    whole, rest = divmod(millionths, _MILLION)
    return whole + (rest * 2 >= _MILLION)
