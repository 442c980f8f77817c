"""Prices of one's own: given in code, or in a YAML, TOML or JSON file."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .catalog import NoPrice, PriceContext, find, split_name
from .ratecard import RateCard, Rates, Tier, nano_each


class TokenPrice(BaseModel):
    """A price of one's own, in dollars per million tokens.

    A part left out costs what the whole it belongs to costs: cached input as input, one-hour writes as writes,
    reasoning as output. Audio has no price unless one is given. `web_search` is dollars per thousand searches,
    `request` dollars a request. `contexts` has prices for batch, flex, priority and fast processing; a context without
    one is refused. A mapping handed to `PriceBook` may give strings, which a Decimal is made of without rounding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Decimal = Field(ge=0, allow_inf_nan=False)
    output: Decimal = Field(ge=0, allow_inf_nan=False)
    cache_read: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    cache_write: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    cache_write_1h: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    cache_write_12h: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    reasoning: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    input_audio: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    output_audio: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    output_image: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    web_search: Decimal | None = Field(default=None, ge=0, allow_inf_nan=False)
    request: Decimal = Field(default=Decimal(0), ge=0, allow_inf_nan=False)
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
            web_search=None if self.web_search is None else nano_each(self.web_search / 1000),
            own=True,
        )


class PriceLike(BaseModel):
    """Another model's price, tiers and contexts and all, times a factor.

    For Azure deployments, Bedrock ARNs and fine-tuned names that stand for a model with a price, and for negotiated
    discounts: `PriceLike(like="openai:gpt-4o", times="0.85")`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    like: str
    times: Decimal = Field(default=Decimal(1), ge=0, allow_inf_nan=False)

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
        return _parse(given)
    except ValidationError as error:
        raise ValueError(f"the price of {name!r} is wrong: {_told(error)}") from None


def read_file(path: str | Path) -> tuple[dict[str, Override], str]:
    """The prices of a file by model, and the file's name with a hash of it.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no prices; the message names the file and the line.
    """
    file = Path(path)
    text = file.read_text(encoding="utf-8")
    prices = _load(file, text)
    if not isinstance(prices, Mapping):
        raise ValueError(f"{file}:1: expected a mapping of model names to prices, got {type(prices).__name__}")  # noqa: TRY004 - of the file, not of an argument
    source = f"{file.name}+{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
    return {str(name): _checked(file, text, str(name), given) for name, given in prices.items()}, source


def _parse(given: object) -> Override:
    if isinstance(given, (TokenPrice, PriceLike)):
        return given
    alike = isinstance(given, Mapping) and "like" in given
    return PriceLike.model_validate(given) if alike else TokenPrice.model_validate(given)


def _checked(file: Path, text: str, name: str, given: object) -> Override:
    try:
        return _parse(given)
    except ValidationError as error:
        paths = [(name, *map(str, one["loc"])) for one in error.errors()]
        line = max(_line(text, file.suffix, path) for path in paths)
        raise ValueError(f"{file}:{line}: the price of {name!r} is wrong: {_told(error)}") from None


def _told(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in error.errors())


def _load(file: Path, text: str) -> Any:
    try:
        match file.suffix.lower():
            case ".json":
                return json.loads(text, parse_float=Decimal)
            case ".toml":
                return tomllib.loads(text, parse_float=Decimal)
            case ".yaml" | ".yml":
                return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno}: no JSON: {error.msg}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: no TOML: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise ValueError(f"{file}:{line}: no YAML: {getattr(error, 'problem', None) or error}") from None
    raise ValueError(
        f"{file}: prices come in a .yaml, .yml, .toml or .json file, not {file.suffix or 'without suffix'}"
    )


class _Loader(yaml.SafeLoader):
    """Reads numbers as they are written: 2.50 is no binary fraction."""


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> object:
    try:
        return Decimal(loader.construct_scalar(node))
    except ArithmeticError:
        return loader.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)


def _line(text: str, suffix: str, path: tuple[str, ...]) -> int:
    """The line of the innermost key of `path` that the file has."""
    at = 0
    for key in path:
        found = _key(suffix, key).search(text, at)
        if found is None:
            break
        at = found.start(1)
    return text.count("\n", 0, at) + 1


def _key(suffix: str, key: str) -> re.Pattern[str]:
    name = re.escape(key)
    if suffix == ".json":
        return re.compile(rf'"({name})"\s*:')
    if suffix == ".toml":
        return re.compile(rf"(?:^|[\[.{{,])\s*[\"']?({name})[\"']?\s*(?:[\].]|=)", re.MULTILINE)
    return re.compile(rf"(?:^|[{{,])\s*[\"']?({name})[\"']?\s*:", re.MULTILINE)
