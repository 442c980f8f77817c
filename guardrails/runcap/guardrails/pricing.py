"""Tokens to money, strictly: a model without a price is an error, never $0.

Prices come from the snapshot bundled with genai-prices (MIT; its network updates are never started) or from the
user's own overrides. A price is compiled once into a `RateCard` of integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from genai_prices import data_snapshot
from genai_prices.types import ModelPrice, TieredPrices
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import RuncapError
from .money import to_usd
from .ratecard import OVERRIDE, RateCard, Rates, Tier
from .usage import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

PriceContext = Literal["batch", "flex", "priority", "fast"]
"""How a call was processed, where that changes its price."""

_CONTEXTS: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "batch": ({"processing": "batch"},),
    "flex": ({"service_tier": "flex"},),
    "priority": ({"service_tier": "priority"},),
    "fast": ({"service_tier": "fast"}, {"speed": "fast"}),
}

# LangChain's and OpenTelemetry's names on the left, genai-prices' ids on the right.
_PROVIDERS: Mapping[str, str] = {
    "amazon_bedrock": "aws",
    "aws.bedrock": "aws",
    "azure.ai.openai": "azure",
    "azure_openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "gcp.gemini": "google",
    "gcp.vertex_ai": "google",
    "google_genai": "google",
    "google_vertexai": "google",
    "mistral_ai": "mistral",
    "mistralai": "mistral",
    "x_ai": "x-ai",
    "xai": "x-ai",
}


class NoPrice(RuncapError, LookupError):
    """No price is known for this model; never answered with $0."""


class TokenPrice(BaseModel):
    """A price of one's own, in dollars per million tokens.

    A part left out costs what the whole it belongs to costs: cached input as input, one-hour writes as writes.
    A mapping handed to `PriceBook` may give strings, which a Decimal is made of without rounding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Decimal = Field(ge=0)
    output: Decimal = Field(ge=0)
    cache_read: Decimal | None = Field(default=None, ge=0)
    cache_write: Decimal | None = Field(default=None, ge=0)
    cache_write_1h: Decimal | None = Field(default=None, ge=0)

    def card(self) -> RateCard:
        """The compiled price."""
        rates = Rates.per_million(
            plain_input=self.input,
            output=self.output,
            cache_read=self.cache_read,
            cache_write=self.cache_write,
            cache_write_1h=self.cache_write_1h,
        )
        return RateCard(tiers=(Tier(0, rates),), source=OVERRIDE)


class PriceBook:
    """Prices of models.

    Args:
        overrides: prices of one's own by `"model"` or `"provider:model"`, as `TokenPrice` or a mapping of its fields,
            in dollars per million tokens. They win over the bundled data.

    Raises:
        ValueError: an override that is no price; the message names the model and the field.
    """

    def __init__(self, overrides: Mapping[str, TokenPrice | Mapping[str, object]] | None = None) -> None:
        self._overrides: dict[str, RateCard] = {}
        for name, price in (overrides or {}).items():
            try:
                self._overrides[_override_key(name)] = TokenPrice.model_validate(price).card()
            except ValidationError as error:
                wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
                raise ValueError(f"the price of {name!r} is wrong: {wrong}") from None
        self._models: dict[tuple[str | None, str], ModelInfo] = {}
        self._cards: dict[tuple[int, str | None], RateCard] = {}

    def cost(
        self,
        model: str,
        usage: Usage,
        *,
        provider: str | None = None,
        context: PriceContext | None = None,
    ) -> Decimal:
        """Dollars for `usage` of `model` at today's price.

        Raises:
            NoPrice: the model is unknown, has no price, or no price for this context.
        """
        return to_usd(self.card(model, provider=provider, context=context).nano(usage))

    def card(
        self,
        model: str,
        *,
        provider: str | None = None,
        context: PriceContext | None = None,
        at: datetime | None = None,
    ) -> RateCard:
        """The compiled price of a model, at `at` (default now).

        Raises:
            NoPrice: the model is unknown, has no price, or no price for this context.
        """
        override = self._override(model, provider)
        if override is not None:
            if context is not None:
                raise NoPrice(f"the override for {model!r} has no price for context {context!r}")
            return override
        info = self._find(model, provider)
        if context is None and isinstance(info.prices, ModelPrice):
            card = self._cards.get((id(info), None))
            return card if card is not None else self._compile(info, info.prices, key=(id(info), None))
        price = _price_at(info, model, context, at or datetime.now(tz=UTC))
        return self._compile(info, price, key=None)

    def warm(self) -> None:
        """Load the bundled data now (some 0.3 s once a process), so that no call has to."""
        data_source()

    def overrides(self, model: str, provider: str | None = None) -> bool:
        """The user gave a price for exactly this model."""
        return self._override(model, provider) is not None

    def _override(self, model: str, provider: str | None) -> RateCard | None:
        if not self._overrides:
            return None
        name = _override_key(model)
        of_provider = self._overrides.get(f"{provider_id(provider)}:{name}") if provider else None
        return of_provider or self._overrides.get(name)

    def _find(self, model: str, provider: str | None) -> ModelInfo:
        found = self._models.get((provider, model))
        if found is None:
            found = _lookup(model, provider)
            self._models[provider, model] = found
        return found

    def _compile(self, info: ModelInfo, price: ModelPrice, *, key: tuple[int, str | None] | None) -> RateCard:
        card = _compile(info.id, price)
        if key is not None:
            self._cards[key] = card
        return card


@cache
def data_source() -> str:
    """Name, version and hash of the bundled price data, kept with every cost."""
    digest = hashlib.blake2b(digest_size=6)
    for provider in _snapshot().providers:
        digest.update(repr(provider.models).encode())
    return f"genai-prices/{version('genai-prices')}+{digest.hexdigest()}"


@cache
def _snapshot() -> data_snapshot.DataSnapshot:
    # The bundled data, not get_snapshot(): another library of the process may have started an auto-update.
    from genai_prices.data import providers  # noqa: PLC0415 - a third of a second, paid when the first guard is made

    return data_snapshot.DataSnapshot(providers=providers, from_auto_update=False)


def _lookup(model: str, provider: str | None) -> ModelInfo:
    name = model.removeprefix("models/")
    if not name:
        raise NoPrice('no price: the model gives no name; config metadata {"ls_model_name": "..."} gives it one')
    try:
        owner = _provider(provider) if provider is not None else None
        _, info = _snapshot().find_provider_model(name, owner, None, None)
    except LookupError:
        where = f" of provider {provider!r}" if provider else ""
        raise NoPrice(
            f"no price for model {model!r}{where}. Give one in dollars per million tokens: "
            f'PriceBook(overrides={{"{model}": {{"input": "2.50", "output": "10"}}}})'
        ) from None
    return info


def _override_key(name: str) -> str:
    """`provider:model` in the price data's terms; model ids with colons of their own (ARNs, Bedrock) stay whole."""
    first, colon, rest = name.lower().partition(":")
    known = {provider.id for provider in _snapshot().providers} | _PROVIDERS.keys()
    if colon and first in known:
        return f"{provider_id(first)}:{rest.removeprefix('models/')}"
    return name.lower().removeprefix("models/")


def provider_id(name: str) -> str:
    """A provider as the price data names it, from LangChain's or OpenTelemetry's name."""
    return _PROVIDERS.get(name.lower(), name.lower())


def _provider(name: str) -> Provider:
    wanted = provider_id(name)
    # Exact ids only: genai-prices would take "anthropic-bedrock" for anthropic and lose Bedrock's own price.
    for provider in _snapshot().providers:
        if provider.id == wanted:
            return provider
    raise LookupError(name)


def _price_at(info: ModelInfo, model: str, context: PriceContext | None, at: datetime) -> ModelPrice:
    if context is None:
        return info.get_prices(at)
    if context not in _CONTEXTS:
        raise NoPrice(f"unknown price context {context!r}; one of {', '.join(_CONTEXTS)}")
    for when in _CONTEXTS[context]:
        # get_prices() answers with the standard price when no variant matches, so look before asking.
        if any(v.when == when and (v.constraint is None or v.constraint.active(at)) for v in info.price_variants or ()):
            return info.get_prices(at, dict(when))
    raise NoPrice(f"no {context} price is known for model {model!r}; the standard price would be wrong")


def _compile(name: str, price: ModelPrice) -> RateCard:
    if price.input_mtok is None:
        raise NoPrice(
            f"model {name!r} is known but has no price per input token; give one with PriceBook(overrides=...)"
        )
    keys = {
        "plain_input": price.input_mtok,
        "output": price.output_mtok,
        "cache_read": price.cache_read_mtok,
        "cache_write": price.cache_write_mtok,
        "cache_write_1h": price.cache_write_1h_mtok,
        "reasoning": price.output_reasoning_mtok,
    }
    starts = {tier.start for value in keys.values() if isinstance(value, TieredPrices) for tier in value.tiers}
    per_request = price.requests_kcount
    if isinstance(per_request, TieredPrices):
        per_request = max(per_request.base, *(tier.price for tier in per_request.tiers))
    fixed = Decimal(0) if per_request is None else per_request / 1000
    tiers = tuple(
        Tier(start, Rates.per_million(**{key: _in_tier(value, start) for key, value in keys.items()}))
        for start in sorted({0} | starts)
    )
    return RateCard(tiers=tiers, source=data_source(), per_request=fixed)


def _in_tier(value: Decimal | TieredPrices | None, start: int) -> Decimal | None:
    if not isinstance(value, TieredPrices):
        return value
    reached = [tier.price for tier in value.tiers if tier.start <= start and start > 0]
    return reached[-1] if reached else value.base
