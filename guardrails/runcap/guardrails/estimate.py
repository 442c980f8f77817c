"""What a call can cost at most, and what it will likely cost, before it is made.

A byte of UTF-8 is at most one token for every byte-level tokenizer, so bytes bound text; what the provider itself
counted before (an unchanged prefix, a message seen) replaces the bound by the count. Statistics serve only the
expected value. The figures were measured on the o200k and the newest Claude tokenizer.
"""

from __future__ import annotations

from math import ceil
from threading import Lock
from typing import NamedTuple

from .amounts import Amounts
from .ratecard import CacheWrites, RateCard
from .recent import Recent

MESSAGE_FRAMING = 12
"""Tokens around one message or tool schema, at most: role, separators, names of fields."""

EXPECTED_FRAMING = 4
"""Tokens around one message, typically."""

STRICT_OTHERWISE = 2.1
"""Tokens per byte of adversarial, normalised text for the newest Claude (natural text stays below 1); for
`Budget(strict=True)`. Tokenizers that normalise turn one character into many (U+FDFA: 3 bytes, 15 tokens), and whose
tokenizer a reseller runs is not known, so OpenAI's alone, which does not, is taken at a token a byte."""

_BYTE_LEVEL = "openai"

EXPECTED_PER_BYTE = {"openai": 0.30, "azure": 0.30, "anthropic": 0.47}
EXPECTED_PER_BYTE_OTHERWISE = 0.47
EXPECTED_PER_WIDE_BYTE = 0.6
"""For bytes beyond ASCII: CJK and other scripts of several bytes a character."""

IMAGE_BOUND = {"anthropic": 4_005, "google": 1_101}
"""Tokens of the largest image, by provider."""

IMAGE_BOUND_OTHERWISE = 48_169
"""gpt-4o-mini's price for a 768 x 2048 image (2,833 + 8 tiles of 5,667), the dearest published rule."""

TOOL_PROMPT = 1_024
"""Tokens Claude's own instructions for tools can take: twice the largest published figure (530, Claude 3 Opus)."""

TOOL_PROMPT_EXPECTED = 346
_CLAUDE = ("anthropic", "aws", None)

IMAGE_EXPECTED = 1_500
OUTPUT_CAP = 4_096
"""The output cap set on a call that has none, to a model whose ceiling is not known: every model in use takes it."""

OUTPUT_EXPECTED = 1_024
"""Output tokens of a model nothing is known about yet."""

_MEASURED = 16_384
_WEIGHT = 0.2


class Prompt(NamedTuple):
    """What is known of a call's input without sending it.

    `measured` tokens were counted by the provider in an earlier call; the bytes, messages (tool schemas count as one
    each) and images are what is new. `normalised_bytes` is the largest of the raw, NFC and NFKC forms. `tools` says
    that tools are offered and their instructions not yet measured.
    `audio` says that it brings audio, which may have a price of its own.
    `bounded` is False where the request does not bound its input: file ids, URLs, audio, server-side conversation.
    """

    measured: int = 0
    ascii_bytes: int = 0
    wide_bytes: int = 0
    normalised_bytes: int = 0
    messages: int = 0
    images: int = 0
    tools: bool = False
    audio: bool = False
    bounded: bool = True

    def most(self, provider: str | None, *, strict: bool = False) -> int:
        """The most input tokens this can be."""
        size = self.ascii_bytes + self.wide_bytes
        if strict and provider != _BYTE_LEVEL:
            size = ceil(STRICT_OTHERWISE * max(size, self.normalised_bytes))
        most = self.measured + size + MESSAGE_FRAMING * self.messages
        if self.images:
            most += self.images * IMAGE_BOUND.get(provider or "", IMAGE_BOUND_OTHERWISE)
        return most + TOOL_PROMPT if self.tools and provider in _CLAUDE else most

    def expected(self, provider: str | None) -> int:
        """The input tokens this likely is."""
        rate = EXPECTED_PER_BYTE.get(provider or "", EXPECTED_PER_BYTE_OTHERWISE)
        text = ceil(self.ascii_bytes * rate + self.wide_bytes * EXPECTED_PER_WIDE_BYTE)
        known = self.measured + text + EXPECTED_FRAMING * self.messages + IMAGE_EXPECTED * self.images
        return known + TOOL_PROMPT_EXPECTED if self.tools and provider in _CLAUDE else known

    def plus(self, new: Prompt) -> Prompt:
        """This, with `new` after it."""
        return Prompt(
            measured=self.measured + new.measured,
            ascii_bytes=self.ascii_bytes + new.ascii_bytes,
            wide_bytes=self.wide_bytes + new.wide_bytes,
            normalised_bytes=self.normalised_bytes + new.normalised_bytes,
            messages=self.messages + new.messages,
            images=self.images + new.images,
            tools=self.tools or new.tools,
            audio=self.audio or new.audio,
            bounded=self.bounded and new.bounded,
        )


def expected_tokens(size: int, provider: str | None) -> int:
    """The tokens `size` bytes of output likely were."""
    return ceil(size * EXPECTED_PER_BYTE.get(provider or "", EXPECTED_PER_BYTE_OTHERWISE))


class Estimate(NamedTuple):
    """Bound and expected value of a call. `soft_because` says why the bound is no bound; empty when it is one."""

    input_most: int
    input_expected: int
    output_most: int | None
    output_expected: int
    most: Amounts | None
    expected: Amounts
    soft_because: tuple[str, ...] = ()

    @property
    def hard(self) -> bool:
        """The call cannot cost more than `most`."""
        return not self.soft_because

    @property
    def hold(self) -> Amounts:
        """What to reserve: the bound of a hard call, the expected cost of any other."""
        return self.most if self.most is not None and self.hard else self.expected


def estimate(
    prompt: Prompt,
    *,
    provider: str | None,
    card: RateCard | None,
    output_cap: int | None,
    output_ceiling: int | None,
    choices: int = 1,
    typical_output: float | None = None,
    attempts_seen: bool = True,
    cache_writes: CacheWrites = "none",
    audio: bool = False,
    strict: bool = False,
    may_clamp: bool = False,
) -> Estimate:
    """Bound and expected value of one call.

    Args:
        prompt: its input.
        provider: its provider's id in the price data.
        card: its price; None where no cap needs one, and money is then left at zero.
        output_cap: the request's own output cap, tokens a choice.
        output_ceiling: the model's own ceiling, tokens a choice; a larger cap means this.
        choices: how many answers are asked for.
        typical_output: the mean output of the calls seen so far, tokens a call.
        attempts_seen: no client retries behind the call's back.
        cache_writes: the dearest cache write the request can cause.
        audio: it brings audio, or asks for it.
        strict: bound adversarial text too.
        may_clamp: an output cap can be set on the call, so one without gets one.
    """
    if output_cap is None and may_clamp:
        output_cap = output_ceiling or OUTPUT_CAP
    most_each = output_cap if output_ceiling is None else min(output_cap or output_ceiling, output_ceiling)
    output_most = None if most_each is None else most_each * choices
    likely = ceil(typical_output) if typical_output is not None else OUTPUT_EXPECTED * choices
    output_expected = likely if output_most is None else min(likely, output_most)
    input_most = prompt.most(provider, strict=strict)
    input_expected = min(prompt.expected(provider), input_most)
    expected_nano = 0 if card is None else card.expected_nano(input_expected, output_expected)
    most = None
    if output_most is not None:
        nano = 0 if card is None else card.most_nano(input_most, output_most, cache_writes, audio=audio)
        most = Amounts(nano, input_most + output_most, 1)
    return Estimate(
        input_most,
        input_expected,
        output_most,
        output_expected,
        most,
        Amounts(expected_nano, input_expected + output_expected, 1),
        () if output_cap and attempts_seen and prompt.bounded else _soft(prompt, output_cap, attempts_seen),
    )


def _soft(prompt: Prompt, output_cap: int | None, attempts_seen: bool) -> tuple[str, ...]:
    reasons = []
    if output_cap is None:
        reasons.append("no output cap in the request (set max_tokens)")
    if not prompt.bounded:
        reasons.append("input the request does not bound (file ids, URLs, audio or server-side state)")
    if not attempts_seen:
        reasons.append("retries inside the client (set max_retries=0)")
    return tuple(reasons)


class Measured(Recent[int, int]):
    """Token counts the providers gave, by digest of what was counted; the most recent 16,384."""

    def __init__(self) -> None:
        super().__init__(_MEASURED)


class TypicalOutput:
    """A moving mean of each model's output, for the expected value only."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}
        self._lock = Lock()

    def get(self, model: str | None) -> float | None:
        """Mean output tokens of a call to `model`, None before the first."""
        return self._means.get(model or "")

    def add(self, model: str | None, tokens: int) -> None:
        """Count one more call."""
        if not self._lock.acquire(blocking=False):
            return  # a finalizer interrupted add(); one sample more or less is no matter
        try:
            mean = self._means.get(model or "")
            self._means[model or ""] = tokens if mean is None else mean + _WEIGHT * (tokens - mean)
        finally:
            self._lock.release()
