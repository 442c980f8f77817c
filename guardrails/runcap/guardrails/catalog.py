"""The bundled price data: which model is meant, what it costs in which context, compiled to a `RateCard`.

The data is genai-prices' snapshot (MIT). Its own lookups answer leniently (a standard price for a context it has no
price for, $0 for a model without one); here each of those is an error.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from genai_prices import data_snapshot
from genai_prices.types import ModelPrice, StartDateConstraint, TieredPrices

from .errors import RuncapError
from .overlays import regional_factor, write_12h_price
from .ratecard import RateCard, Rates, Tier, nano_each

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
    "anthropic-bedrock": "aws",
    "aws.bedrock": "aws",
    "azure.ai.inference": "azure",
    "azure.ai.openai": "azure",
    "azure_ai": "azure",
    "azure_openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "fireworks_ai": "fireworks",
    "gcp.gemini": "google",
    "gcp.gen_ai": "google",
    "gcp.vertex_ai": "google",
    "google_anthropic_vertex": "google",
    "google_genai": "google",
    "google_vertexai": "google",
    "mistral_ai": "mistral",
    "mistralai": "mistral",
    "moonshot": "moonshotai",
    "together_ai": "together",
    "vertex_ai": "google",
    "vertexai": "google",
    "x_ai": "x-ai",
    "xai": "x-ai",
}

# Resource names end in the model's: `models/m`, `publishers/google/models/m`, `projects/p/locations/l/publishers/...`.
_RESOURCE = re.compile(r"^(?:(?:projects|publishers|locations)/.+/)?models/")


class NoPrice(RuncapError, LookupError):
    """No price is known for this model; never answered with $0."""


class Found(NamedTuple):
    """A model of the price data, and whether the provider asked for is its own or one that resells it."""

    owner: str
    info: ModelInfo
    own: bool


def provider_id(name: str) -> str:
    """A provider as the price data names it, from LangChain's or OpenTelemetry's name."""
    lower = name.lower()
    return "aws" if lower.endswith("-mantle") else _PROVIDERS.get(lower, lower)


def model_key(name: str) -> str:
    """A model's name as given to the provider, without the resource path around it."""
    return _RESOURCE.sub("", name.lower())


def split_name(name: str) -> tuple[str | None, str]:
    """`provider:model` taken apart; model ids with colons of their own (ARNs, Bedrock, fine-tuned names) stay whole."""
    first, colon, rest = name.lower().partition(":")
    known = first in _PROVIDERS or any(provider.id == first for provider in snapshot().providers)
    return (provider_id(first), rest) if colon and known else (None, name.lower())


def find(model: str, provider: str | None) -> Found:
    """The model meant.

    Raises:
        NoPrice: the data has none of this name.
    """
    name = model_key(model)
    if not name:
        raise NoPrice('no price: the model gives no name; config metadata {"ls_model_name": "..."} gives it one')
    try:
        owner = _provider(provider) if provider is not None else None
        seller, info = snapshot().find_provider_model(name, owner, None, None)
    except LookupError:
        raise NoPrice(_unknown(model, provider)) from None
    return Found(seller.id, info, own=any(info is one for one in seller.models))


def compiled(found: Found, context: PriceContext | None, at: datetime, *, regional: bool = False) -> RateCard:
    """What the model costs at this time, in this context.

    Raises:
        NoPrice: it has no price, or none for the context or the region.
    """
    card = _compile(found, _price_at(found, context, at))
    if not regional:
        return card
    factor = regional_factor(found.owner, found.info.id) if found.own else None
    if factor is None:
        raise NoPrice(f"no regional price is known for model {found.info.id!r}; the standard price would be wrong")
    return card.times(factor)


def is_timeless(found: Found, context: PriceContext | None) -> bool:
    """The price is the same at any time."""
    return context is None and isinstance(found.info.prices, ModelPrice)


@cache
def data_source() -> str:
    """Name, version and hash of the bundled price data, kept with every cost."""
    digest = hashlib.blake2b(digest_size=6)
    for provider in snapshot().providers:
        digest.update(repr(provider.models).encode())
    return f"genai-prices/{version('genai-prices')}+{digest.hexdigest()}"


def data_date(now: datetime) -> date:
    """The day of the newest price in the data, leaving out those announced for later.

    The data carries no date of its own; its newest price is at least as old as it is.
    """
    from genai_prices import data  # noqa: PLC0415 - see snapshot()

    known = _start_dates()
    try:
        installed = datetime.fromtimestamp(Path(data.__file__).stat().st_mtime, tz=UTC).date()
    except OSError:
        installed = now.date()  # in an archive
    if sum(day > installed for day in known) > len(known) / 2:
        installed = now.date()  # builds that can be repeated give every file the same old date
    latest = min(now.date(), installed)
    return max((day for day in known if day <= latest), default=latest)


@cache
def snapshot() -> data_snapshot.DataSnapshot:
    """The bundled data; never genai-prices' current one, which another library of the process may be updating."""
    from genai_prices.data import providers  # noqa: PLC0415 - a third of a second, paid when the first guard is made

    return data_snapshot.DataSnapshot(providers=providers, from_auto_update=False)


@cache
def _start_dates() -> frozenset[date]:
    models = [model for provider in snapshot().providers for model in provider.models]
    dated = [price for model in models if not isinstance(model.prices, ModelPrice) for price in model.prices]
    variants = [variant for model in models for variant in model.price_variants or ()]
    constraints = [price.constraint for price in dated] + [variant.constraint for variant in variants]
    return frozenset(one.start_date for one in constraints if isinstance(one, StartDateConstraint))


def _provider(name: str) -> Provider:
    wanted = provider_id(name)
    # Exact ids only: genai-prices would take "anthropic-something" for anthropic.
    for provider in snapshot().providers:
        if provider.id == wanted:
            return provider
    raise LookupError(name)


def _unknown(model: str, provider: str | None) -> str:
    where = f" of provider {provider!r}" if provider else ""
    fix = (
        f"no price for model {model!r}{where}. Give one in dollars per million tokens: "
        f'PriceBook(overrides={{"{model}": {{"input": "2.50", "output": "10"}}}})'
    )
    if provider in ("azure", "aws"):
        fix += f', or name the model behind it: {{"{provider}:{model}": {{"like": "provider:model"}}}}'
    return fix


def _price_at(found: Found, context: PriceContext | None, at: datetime) -> ModelPrice:
    info = found.info
    if context is None:
        return info.get_prices(at)
    if context not in _CONTEXTS:
        raise NoPrice(f"unknown price context {context!r}; one of {', '.join(_CONTEXTS)}")
    for when in _CONTEXTS[context] if found.own else ():  # who resells a model sets contexts of its own
        # get_prices() answers with the standard price when no variant matches, so look before asking.
        if any(v.when == when and (v.constraint is None or v.constraint.active(at)) for v in info.price_variants or ()):
            return info.get_prices(at, dict(when))
    raise NoPrice(f"no {context} price is known for model {info.id!r}; the standard price would be wrong")


def _compile(found: Found, price: ModelPrice) -> RateCard:
    if price.input_mtok is None:
        raise NoPrice(
            f"model {found.info.id!r} is known but has no price per input token; give one with PriceBook(overrides=...)"
        )
    keys = {
        "plain_input": price.input_mtok,
        "output": price.output_mtok,
        "cache_read": price.cache_read_mtok,
        "cache_write": price.cache_write_mtok,
        "cache_write_1h": price.cache_write_1h_mtok,
        "reasoning": price.output_reasoning_mtok,
        "input_audio": price.input_audio_mtok or _audio_as_text(found.info.id, price),
        "output_audio": price.output_audio_mtok,
        "output_image": price.output_image_mtok,
    }
    starts = {tier.start for value in keys.values() if isinstance(value, TieredPrices) for tier in value.tiers}
    searches = _dearest(price.web_searches_kcount)
    return RateCard(
        tiers=tuple(Tier(start, _rates(found.owner, keys, start)) for start in sorted({0} | starts)),
        source=data_source(),
        per_request=nano_each(_dearest(price.requests_kcount) or Decimal(0), 1000),
        web_search=None if searches is None else nano_each(searches, 1000),
    )


def _rates(owner: str, keys: Mapping[str, Decimal | TieredPrices | None], start: int) -> Rates:
    prices = {key: _in_tier(value, start) for key, value in keys.items()}
    whole = prices["plain_input"] or Decimal(0)
    return Rates.per_million(**prices, cache_write_12h=write_12h_price(owner, whole, prices["cache_write"]))


def _audio_as_text(model: str, price: ModelPrice) -> Decimal | TieredPrices | None:
    # Where the data has no price for audio it costs what text does, but for models made for audio: there it is missing.
    return None if "audio" in model or "realtime" in model else price.input_mtok


def _dearest(value: Decimal | TieredPrices | None) -> Decimal | None:
    return max(value.base, *(tier.price for tier in value.tiers)) if isinstance(value, TieredPrices) else value


def _in_tier(value: Decimal | TieredPrices | None, start: int) -> Decimal | None:
    if not isinstance(value, TieredPrices):
        return value
    reached = [tier.price for tier in value.tiers if tier.start <= start and start > 0]
    return reached[-1] if reached else value.base
