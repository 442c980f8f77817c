"""A price compiled to integers: nano-dollars per million tokens, by prompt length."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Literal, NamedTuple

from .money import NANO
from .usage import Usage

_MILLION = 1_000_000
_CEILING = Context(prec=60, rounding=ROUND_CEILING)

OVERRIDE = "override"
"""The source of a price the user gave."""

CacheWrites = Literal["none", "5m", "1h"]
"""The dearest cache write a request can cause."""


class Rates(NamedTuple):
    """Nano-dollars per million tokens. A None output cannot be priced."""

    plain_input: int
    output: int | None
    cache_read: int
    cache_write: int
    cache_write_1h: int
    reasoning: int | None

    @classmethod
    def per_million(
        cls,
        *,
        plain_input: Decimal | None,
        output: Decimal | None = None,
        cache_read: Decimal | None = None,
        cache_write: Decimal | None = None,
        cache_write_1h: Decimal | None = None,
        reasoning: Decimal | None = None,
    ) -> Rates:
        """From dollars per million tokens; a part without a price costs what its whole costs."""
        whole = _nano(plain_input) or 0
        write = _first(_nano(cache_write), whole)
        out = _nano(output)
        return cls(
            plain_input=whole,
            output=out,
            cache_read=_first(_nano(cache_read), whole),
            cache_write=write,
            cache_write_1h=_first(_nano(cache_write_1h), write),
            reasoning=_nano(reasoning) if reasoning is not None else out,
        )

    def dearest_input(self, writes: CacheWrites) -> int:
        """The most one input token can cost."""
        rates = [self.plain_input, self.cache_read]
        if writes != "none":
            rates.append(self.cache_write)
        if writes == "1h":
            rates.append(self.cache_write_1h)
        return max(rates)


class Tier(NamedTuple):
    """Rates of a whole request whose input is longer than `start` tokens."""

    start: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class RateCard:
    """A model's price. `source` names the data it came from; `per_request` is dollars a request."""

    tiers: tuple[Tier, ...]
    source: str
    per_request: Decimal = Decimal(0)

    @property
    def prices_output(self) -> bool:
        """False for models that are priced by input alone, such as embeddings."""
        return self.tiers[0].rates.output is not None

    def nano(self, usage: Usage) -> int:
        """The price of `usage`, rounded half-even to a nano-dollar.

        Raises:
            ValueError: the usage has output and the model has no price for output.
        """
        rates = self._rates(usage.input_tokens)
        answer = usage.output_tokens - usage.reasoning_tokens
        total = (
            rates.plain_input * usage.plain_input_tokens
            + rates.cache_read * usage.cache_read_tokens
            + rates.cache_write * (usage.cache_write_tokens - usage.cache_write_1h_tokens)
            + rates.cache_write_1h * usage.cache_write_1h_tokens
            + _rate(rates.output, answer) * answer
            + _rate(rates.reasoning, usage.reasoning_tokens) * usage.reasoning_tokens
        )
        return _half_even(total) + self._fixed()

    def most_nano(self, input_tokens: int, output_tokens: int, writes: CacheWrites) -> int:
        """The dearest that at most these tokens can cost, rounded up: no usage within them costs more."""
        total = max(
            tier.rates.dearest_input(writes) * input_tokens + _dearest_output(tier.rates, output_tokens) * output_tokens
            for tier in self.tiers
            if tier.start == 0 or tier.start < input_tokens
        )
        return -(-total // _MILLION) + self._fixed()

    def _rates(self, input_tokens: int) -> Rates:
        for tier in reversed(self.tiers):
            if tier.start == 0 or input_tokens > tier.start:
                return tier.rates
        raise AssertionError("the first tier starts at 0")

    def _fixed(self) -> int:
        return _whole(self.per_request * NANO) if self.per_request else 0


def _nano(dollars: Decimal | None) -> int | None:
    # Finer than a nano-dollar per million tokens exists nowhere; rounded up, so that a bound stays one.
    return None if dollars is None else _whole(dollars * NANO)


def _whole(value: Decimal) -> int:
    return int(_CEILING.to_integral_value(value))


def _half_even(millionths: int) -> int:
    whole, rest = divmod(millionths, _MILLION)
    return whole + (rest * 2 > _MILLION or (rest * 2 == _MILLION and whole % 2 == 1))


def _first(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _rate(rate: int | None, tokens: int) -> int:
    if rate is not None:
        return rate
    if tokens:
        raise ValueError("this model has no price for output tokens")
    return 0


def _dearest_output(rates: Rates, tokens: int) -> int:
    answer = _rate(rates.output, tokens)
    return answer if rates.reasoning is None else max(answer, rates.reasoning)
