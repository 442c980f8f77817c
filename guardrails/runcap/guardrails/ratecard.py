"""A price compiled to integers: nano-dollars per million tokens, by prompt length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context, Decimal
from typing import Literal, NamedTuple

from .money import NANO
from .usage import Usage

_MILLION = 1_000_000
_CEILING = Context(prec=60, rounding=ROUND_CEILING)
_EXACT = Context(prec=60)  # whatever the caller's own is

OVERRIDE = "override"
"""The source of a price the user gave in code; one from a file names the file and its hash."""

BILLED = "provider"
"""The source of a cost that the provider itself gave."""

CacheWrites = Literal["none", "5m", "1h", "12h"]
"""The dearest cache write a request can cause, by how long it lasts. OpenAI's 30 minutes count as the short one."""


class Rates(NamedTuple):
    """Nano-dollars per million tokens. What is None has no known price, and no usage with it can be priced."""

    plain_input: int
    output: int | None
    cache_read: int
    cache_write: int
    cache_write_1h: int
    cache_write_12h: int
    reasoning: int | None
    input_audio: int | None
    output_audio: int | None
    output_image: int | None

    @classmethod
    def per_million(
        cls,
        *,
        plain_input: Decimal | None,
        output: Decimal | None = None,
        cache_read: Decimal | None = None,
        cache_write: Decimal | None = None,
        cache_write_1h: Decimal | None = None,
        cache_write_12h: Decimal | None = None,
        reasoning: Decimal | None = None,
        input_audio: Decimal | None = None,
        output_audio: Decimal | None = None,
        output_image: Decimal | None = None,
    ) -> Rates:
        """From dollars per million tokens; a part without a price costs what its whole costs, but for audio."""
        whole = _nano(plain_input) or 0
        out = _nano(output)
        write = _first(_nano(cache_write), whole)
        write_1h = _first(_nano(cache_write_1h), write)
        return cls(
            plain_input=whole,
            output=out,
            cache_read=_first(_nano(cache_read), whole),
            cache_write=write,
            cache_write_1h=write_1h,
            cache_write_12h=_first(_nano(cache_write_12h), write_1h),
            reasoning=_nano(reasoning) if reasoning is not None else out,
            input_audio=_nano(input_audio),
            output_audio=_nano(output_audio),
            output_image=_nano(output_image) if output_image is not None else out,
        )

    def times(self, factor: Decimal) -> Rates:
        """Every rate times `factor`, rounded up to a nano-dollar per million tokens."""
        return Rates(*(None if rate is None else _whole(_EXACT.multiply(Decimal(rate), factor)) for rate in self))  # type: ignore[arg-type]

    def dearest_input(self, writes: CacheWrites, *, audio: bool = False) -> int:
        """The most one input token can cost."""
        dearest = max(self.plain_input, self.cache_read)
        if writes != "none":
            dearest = max(dearest, self.cache_write)
        if writes == "1h":
            dearest = max(dearest, self.cache_write_1h)
        if writes == "12h":
            dearest = max(dearest, self.cache_write_12h)
        return max(dearest, self.input_audio or 0) if audio else dearest

    def dearest_output(self, *, audio: bool = False) -> int | None:
        """The most one output token can cost; None without a price for output."""
        if self.output is None:
            return None
        dearest = max(self.output, self.reasoning or 0, self.output_image or 0)
        return max(dearest, self.output_audio or 0) if audio else dearest


class Tier(NamedTuple):
    """Rates of a whole request whose input is longer than `start` tokens."""

    start: int
    rates: Rates


class Unpriced(ValueError):
    """The usage has a part that the model has no price for; the message names it."""


@dataclass(frozen=True, slots=True)
class RateCard:
    """A model's price. `source` names the data it came from; `own` is True where the user gave it.

    `per_request` is nano-dollars a request, `web_search` nano-dollars a search (None: no known price).
    """

    tiers: tuple[Tier, ...]
    source: str
    per_request: int = 0
    web_search: int | None = None
    own: bool = False

    @property
    def prices_output(self) -> bool:
        """False for models that are priced by input alone, such as embeddings."""
        return self.tiers[0].rates.output is not None

    @property
    def prices_audio_input(self) -> bool:
        """Audio in the prompt has a price."""
        return self.tiers[0].rates.input_audio is not None

    @property
    def prices_audio_output(self) -> bool:
        """An answer in audio has a price."""
        return self.tiers[0].rates.output_audio is not None

    def nano(self, usage: Usage) -> int:
        """The price of `usage`, rounded half-even to a nano-dollar.

        Raises:
            Unpriced: the usage has a part that has no known price.
        """
        tiers, known = self.tiers, usage.input_tokens
        rates = tiers[0].rates if len(tiers) == 1 else self.rates(known)
        read, written, out = usage.cache_read_tokens, usage.cache_write_tokens, usage.output_tokens
        total = rates.plain_input * (known - read - written) + rates.cache_read * read
        # On every call, so without the call of a function; _of() is for what has no price.
        total += _of(None, out, "output tokens") if rates.output is None else rates.output * out
        if written:
            total += rates.cache_write * written
            longer, longest = usage.cache_write_1h_tokens, usage.cache_write_12h_tokens
            if longer or longest:
                total += (rates.cache_write_1h - rates.cache_write) * longer
                total += (rates.cache_write_12h - rates.cache_write) * longest
        if usage.reasoning_tokens and rates.reasoning != rates.output:
            total += ((rates.reasoning or 0) - (rates.output or 0)) * usage.reasoning_tokens
        if usage.input_audio_tokens or usage.output_audio_tokens or usage.output_image_tokens:
            total += _media(rates, usage)
        whole = _half_even(total) + self.per_request
        return whole + _of(self.web_search, usage.web_searches, "web searches") if usage.web_searches else whole

    def expected_nano(self, input_tokens: int, output_tokens: int) -> int:
        """The price of plain text, uncached, rounded down."""
        rates = self.rates(input_tokens)
        total = rates.plain_input * input_tokens + _of(rates.output, output_tokens, "output tokens")
        return total // _MILLION + self.per_request

    def most_nano(self, input_tokens: int, output_tokens: int, writes: CacheWrites, *, audio: bool = False) -> int:
        """The dearest that at most these tokens can cost, rounded up: no usage within them costs more.

        Args:
            input_tokens: the most input.
            output_tokens: the most output.
            writes: the dearest cache write the request can cause.
            audio: the request brings audio, or asks for it.
        """
        total = 0
        for start, rates in self.tiers:
            if start and start >= input_tokens:
                break
            output = _of(rates.dearest_output(audio=audio), output_tokens, "output tokens")
            total = max(total, rates.dearest_input(writes, audio=audio) * input_tokens + output)
        return -(-total // _MILLION) + self.per_request

    def rates(self, input_tokens: int) -> Rates:
        """The rates of a request with this much input."""
        tiers = self.tiers
        index = len(tiers) - 1
        while index and input_tokens <= tiers[index].start:
            index -= 1
        return tiers[index].rates

    def times(self, factor: Decimal) -> RateCard:
        """Every token rate times `factor`; what is billed by the piece stays."""
        return replace(self, tiers=tuple(Tier(start, rates.times(factor)) for start, rates in self.tiers))


def _media(rates: Rates, usage: Usage) -> int:
    """What audio and images cost beyond the price of as much text."""
    text = rates.output or 0
    return (
        _of(rates.input_audio, usage.input_audio_tokens, "audio input")
        + _of(rates.output_audio, usage.output_audio_tokens, "audio output")
        + _of(rates.output_image, usage.output_image_tokens, "image output")
        - rates.plain_input * usage.input_audio_tokens
        - text * (usage.output_audio_tokens + usage.output_image_tokens)
    )


def _of(rate: int | None, count: int, what: str) -> int:
    if rate is not None:
        return rate * count
    if count:
        raise Unpriced(f"this model has no price for {what}")
    return 0


def nano_each(dollars: Decimal, pieces: int = 1) -> int:
    """Dollars for so many pieces, as nano-dollars apiece, rounded up."""
    return _whole(_EXACT.divide(_EXACT.multiply(dollars, Decimal(NANO)), Decimal(pieces)))


def _nano(dollars: Decimal | None) -> int | None:
    # Finer than a nano-dollar per million tokens exists nowhere; rounded up, so that a bound stays one.
    return None if dollars is None else nano_each(dollars)


def _whole(value: Decimal) -> int:
    return int(_CEILING.to_integral_value(value))


def _half_even(millionths: int) -> int:
    whole, rest = divmod(millionths, _MILLION)
    return whole + (rest * 2 > _MILLION or (rest * 2 == _MILLION and whole % 2 == 1))


def _first(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
