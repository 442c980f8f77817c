"""Token counts of one model call, in one meaning for every provider."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, or of several added up with `+` or `sum()`.

    The totals include their parts. `input_tokens` includes every cached token (read or written) and audio, read,
    written and audio input being apart from each other; `cache_write_tokens` includes the one-hour and the twelve-hour
    part; `output_tokens` includes reasoning, audio and images. This is LangChain's meaning, not Anthropic's.
    `web_searches` are searches the provider made, which it bills by the piece.

    Raises:
        TypeError: a count is no int.
        ValueError: a count is negative, or the parts are larger than their whole.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_12h_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    output_image_tokens: int = 0
    web_searches: int = 0

    def __post_init__(self) -> None:
        counts = self.counts()
        if set(map(type, counts)) != _INT or min(counts) < 0:
            _refuse(counts)
        if self.cache_read_tokens + self.cache_write_tokens + self.input_audio_tokens > self.input_tokens:
            raise ValueError(
                f"cached tokens exceed the input they are part of: {self.cache_read_tokens} read + "
                f"{self.cache_write_tokens} written + {self.input_audio_tokens} audio > {self.input_tokens} "
                "input_tokens. input_tokens includes cached tokens; add them if your provider reports them apart"
            )
        if self.cache_write_1h_tokens + self.cache_write_12h_tokens > self.cache_write_tokens:
            raise ValueError(
                f"cache_write_1h_tokens ({self.cache_write_1h_tokens}) and cache_write_12h_tokens "
                f"({self.cache_write_12h_tokens}) are part of cache_write_tokens ({self.cache_write_tokens}) "
                "and cannot exceed it"
            )
        if self.reasoning_tokens + self.output_audio_tokens + self.output_image_tokens > self.output_tokens:
            raise ValueError(
                f"reasoning_tokens ({self.reasoning_tokens}), output_audio_tokens ({self.output_audio_tokens}) and "
                f"output_image_tokens ({self.output_image_tokens}) are part of output_tokens ({self.output_tokens}) "
                "and cannot exceed it"
            )

    @property
    def total_tokens(self) -> int:
        """Input plus output."""
        return self.input_tokens + self.output_tokens

    @property
    def plain_input_tokens(self) -> int:
        """Text input that was neither read from a cache nor written to one."""
        return self.input_tokens - self.cache_read_tokens - self.cache_write_tokens - self.input_audio_tokens

    @property
    def plain_output_tokens(self) -> int:
        """Text output that is the answer, not the reasoning."""
        return self.output_tokens - self.reasoning_tokens - self.output_audio_tokens - self.output_image_tokens

    def counts(self) -> tuple[int, ...]:
        """Every count, in the order of the fields."""
        return (
            self.input_tokens,
            self.output_tokens,
            self.cache_read_tokens,
            self.cache_write_tokens,
            self.cache_write_1h_tokens,
            self.reasoning_tokens,
            self.cache_write_12h_tokens,
            self.input_audio_tokens,
            self.output_audio_tokens,
            self.output_image_tokens,
            self.web_searches,
        )

    def __add__(self, other: object) -> Usage:
        if not isinstance(other, Usage):
            return NotImplemented
        return Usage(*(one + more for one, more in zip(self.counts(), other.counts(), strict=True)))

    def __radd__(self, other: object) -> Usage:
        return self if other == 0 else NotImplemented


_INT = {int}
_FIELDS = tuple(field.name for field in fields(Usage))


def _refuse(counts: tuple[object, ...]) -> None:
    for name, value in zip(_FIELDS, counts, strict=True):
        if type(value) is not int:
            raise TypeError(f"Usage.{name} must be an int of tokens, got {value!r} ({type(value).__name__})")
        if value < 0:
            raise ValueError(f"Usage.{name} must not be negative, got {value}")
