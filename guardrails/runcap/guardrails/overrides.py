"""Prices of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .catalog import NoPrice, PriceContext, find, split_name
from .ratecard import RateCard, Rates, Tier, nano_each

Dollars = Annotated[Decimal, Field(ge=0, le=1_000_000_000, allow_inf_nan=False)]


class TokenPrice(BaseModel):
    """A price of one's own, in dollars per million tokens.

    A part left out costs what the whole it belongs to costs: cached input as input, one-hour writes as writes,
    reasoning as output. Audio has no price unless one is given. `web_search` is dollars per thousand searches,
    `request` dollars a request. `contexts` has prices for batch, flex, priority and fast processing; a context without
    one is refused. A mapping handed to `PriceBook` may give strings, which a Decimal is made of without rounding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Dollars
    output: Dollars
    cache_read: Dollars | None = None
    cache_write: Dollars | None = None
    cache_write_1h: Dollars | None = None
    cache_write_12h: Dollars | None = None
    reasoning: Dollars | None = None
    input_audio: Dollars | None = None
    output_audio: Dollars | None = None
    output_image: Dollars | None = None
    web_search: Dollars | None = None
    request: Dollars = Decimal(0)
    contexts: Mapping[PriceContext, TokenPrice] = Field(default_factory=dict)

    def card(self, source: str) -> RateCard:
        """The compiled price."""
        rates = Rates.per_million(
            plain_input=self.input,
            output=self.output,
            cache_read=self.cache_read,
            cache_write=self.cache_write,
            cache_write_1h=self.cache_write_1h,
            cache_write_12h=self.cache_write_12h,
            reasoning=self.reasoning,
            input_audio=self.input_audio,
            output_audio=self.output_audio,
            output_image=self.output_image,
        )
        return RateCard(
            tiers=(Tier(0, rates),),
            source=source,
            per_request=nano_each(self.request),
            web_search=None if self.web_search is None else nano_each(self.web_search, 1000),
            own=True,
        )


class PriceLike(BaseModel):
    """Another model's price, tiers and contexts and all, times a factor.

    For Azure deployments, Bedrock ARNs and fine-tuned names that stand for a model with a price, and for negotiated
    discounts: `PriceLike(like="openai:gpt-4o", times="0.85")`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    like: str
    times: Dollars = Decimal(1)

    @field_validator("like")
    @classmethod
    def _is_known(cls, like: str) -> str:
        provider, model = split_name(like)
        try:
            find(model, provider)
        except NoPrice:
            raise ValueError(f'no bundled price for {like!r}; name it as "provider:model", "openai:gpt-4o"') from None
        return like


Override = TokenPrice | PriceLike


def read_override(name: str, given: object) -> Override:
    """One price.

    Raises:
        ValueError: it is none; the message names the model and the field.
    """
    try:
        return parse_override(given)
    except ValidationError as error:
        raise ValueError(f"the price of {name!r} is wrong: {explain(error)}") from None


def parse_override(given: object) -> Override:
    """One price.

    Raises:
        pydantic.ValidationError: it is none.
    """
    if isinstance(given, (TokenPrice, PriceLike)):
        return given
    alike = isinstance(given, Mapping) and "like" in given
    return PriceLike.model_validate(given) if alike else TokenPrice.model_validate(given)


def explain(error: ValidationError) -> str:
    """Every mistake, each with its field."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in error.errors())
