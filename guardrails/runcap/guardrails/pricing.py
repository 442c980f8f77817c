"""Tokens to money, strictly: a model without a price is an error, never $0.

Prices come from the snapshot bundled with genai-prices (MIT; its network updates are never started) or from the
user's own overrides. A price is compiled once into a `RateCard` of integers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from .catalog import (
    Found,
    NoPrice,
    PriceContext,
    compiled,
    data_date,
    data_source,
    find,
    is_timeless,
    model_key,
    provider_id,
    split_name,
)
from .clock import Clock, SystemClock
from .money import to_usd
from .overrides import Override, PriceLike, TokenPrice, read_override
from .pricefile import read_file
from .ratecard import OVERRIDE, RateCard, Unpriced
from .usage import Usage

__all__ = ["NoPrice", "PriceBook", "PriceContext", "PriceLike", "TokenPrice", "data_source", "provider_id"]

STALE_DAYS = 90
"""Price data whose newest price is older is reported once."""

_log = logging.getLogger("runcap")
_told: dict[str, object] = {}
_MINUTE = 60 * 10**9
_ALWAYS = -1


class _Known(NamedTuple):
    """A compiled price and the minute it holds for; prices change on whole minutes."""

    minute: int
    card: RateCard


class PriceBook:
    """Prices of models.

    Args:
        overrides: prices of one's own by `"model"` or `"provider:model"`: a `TokenPrice` or a mapping of its fields, in
            dollars per million tokens, or a `PriceLike` (`{"like": "openai:gpt-4o", "times": "0.85"}`). They win over
            the bundled data. `PriceBook.from_file(path)` reads them from a file.
        clock: tells which of several dated prices holds.

    Raises:
        ValueError: an override that is no price; the message names the model and the field.
    """

    def __init__(
        self,
        overrides: Mapping[str, TokenPrice | PriceLike | Mapping[str, object]] | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        read = {name: read_override(name, given) for name, given in (overrides or {}).items()}
        self._setup(read, OVERRIDE, clock)

    @classmethod
    def from_file(cls, path: str | Path, *, clock: Clock | None = None) -> PriceBook:
        """Prices from a YAML, TOML or JSON file: a mapping as `overrides` is.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no prices; the message names the file and the line.
        """
        book = cls.__new__(cls)
        read, source = read_file(path)
        try:
            book._setup(read, source, clock)  # noqa: SLF001 - its own
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return book

    def _setup(self, overrides: Mapping[str, Override], source: str, clock: Clock | None) -> None:
        self._source = source
        self._clock = clock if clock is not None else SystemClock()
        self._overrides: dict[str, Override] = {}
        for name, one in overrides.items():
            key = _override_key(name)
            if not key or key in self._overrides:
                raise ValueError(f"the price of {name!r} {'has no model' if not key else 'is there twice'}")
            self._overrides[key] = one
        self._found: dict[tuple[str | None, str], Found] = {}
        self._cards: dict[tuple[str, str | None, PriceContext | None, bool], _Known] = {}

    def cost(
        self,
        model: str,
        usage: Usage,
        *,
        provider: str | None = None,
        context: PriceContext | None = None,
        regional: bool = False,
    ) -> Decimal:
        """Dollars for `usage` of `model` at today's price.

        `regional` adds the provider's surcharge for inference held to one region.

        Raises:
            NoPrice: the model is unknown, has no price, or none for this context, region or part of the usage.
        """
        card = self.card(model, provider=provider, context=context, regional=regional)
        try:
            return to_usd(card.nano(usage))
        except Unpriced as error:
            raise NoPrice(f"{model!r}: {error}") from None

    def card(
        self,
        model: str,
        *,
        provider: str | None = None,
        context: PriceContext | None = None,
        regional: bool = False,
        at: datetime | None = None,
    ) -> RateCard:
        """The compiled price of a model, at `at` (default now).

        Raises:
            NoPrice: the model is unknown, has no price, or none for this context or region.
        """
        if at is not None:
            return self._compile(model, provider, context, at, regional=regional).card
        key = (model, provider, context, regional)
        known = self._cards.get(key)
        if known is not None and (known.minute == _ALWAYS or known.minute == self._clock.time_ns() // _MINUTE):
            return known.card
        now = datetime.fromtimestamp(self._clock.time_ns() // 10**9, tz=UTC)
        known = self._cards[key] = self._compile(model, provider, context, now, regional=regional)
        return known.card

    def warm(self) -> None:
        """Load the bundled data now (some 0.3 s once a process), so that no call has to; say so if it is old."""
        source = data_source()
        now = datetime.fromtimestamp(self._clock.time_ns() // 10**9, tz=UTC)
        newest = data_date(now)
        if (now.date() - newest).days > STALE_DAYS and _told.setdefault(source, token := object()) is token:
            _log.warning(
                "runcap: the newest price in %s is of %s, over %d days ago: upgrade it, or give your own",
                *(source, newest, STALE_DAYS),
            )

    def overrides(self, model: str, provider: str | None = None) -> bool:
        """The user gave a price for exactly this model."""
        return self._override(model, provider) is not None

    def _override(self, model: str, provider: str | None) -> Override | None:
        if not self._overrides:
            return None
        name = model_key(model)
        of_provider = self._overrides.get(f"{provider_id(provider)}:{name}") if provider else None
        return of_provider or self._overrides.get(name)

    def _compile(
        self, model: str, provider: str | None, context: PriceContext | None, at: datetime, *, regional: bool
    ) -> _Known:
        override = self._override(model, provider)
        if isinstance(override, PriceLike):
            return self._like(override, context, at, regional=regional)
        if override is not None:
            return _Known(_ALWAYS, self._own(model, override, context, regional=regional))
        found = self._find(model, provider)
        minute = _ALWAYS if is_timeless(found, context) else int(at.timestamp()) // 60
        return _Known(minute, compiled(found, context, at, regional=regional))

    def _like(self, override: PriceLike, context: PriceContext | None, at: datetime, *, regional: bool) -> _Known:
        provider, model = split_name(override.like)
        # The other's bundled price, not an override of it: no chains, no circles.
        found = self._find(model, provider)
        card = compiled(found, context, at, regional=regional).times(override.times)
        own = RateCard(card.tiers, f"{self._source} of {card.source}", card.per_request, card.web_search, own=True)
        return _Known(_ALWAYS if is_timeless(found, context) else int(at.timestamp()) // 60, own)

    def _own(self, model: str, price: TokenPrice, context: PriceContext | None, *, regional: bool) -> RateCard:
        if context is not None and context not in price.contexts:
            raise NoPrice(f"the override for {model!r} has no price for context {context!r}")
        # A price of one's own is what one pays: the region is in it.
        return (price if context is None else price.contexts[context]).card(self._source)

    def _find(self, model: str, provider: str | None) -> Found:
        found = self._found.get((provider, model))
        if found is None:
            found = self._found[provider, model] = find(model, provider)
        return found


def _override_key(name: str) -> str:
    provider, model = split_name(name)
    return f"{provider}:{model_key(model)}" if provider else model_key(model)
