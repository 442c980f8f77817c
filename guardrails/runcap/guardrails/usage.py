"""Token counts of one model call, in one meaning for every provider."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, or of several added up with `+` or `sum()`.

    The totals include their parts: `input_tokens` includes every cached token (read or written), `cache_write_tokens`
    includes the one-hour part, `output_tokens` includes reasoning. This is LangChain's meaning, not Anthropic's.

    Raises:
        TypeError: a count is no int.
        ValueError: a count is negative, or a part is larger than its whole.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0

    def __post_init__(self) -> None:
        for name in _FIELDS:
            value = getattr(self, name)
            if type(value) is not int:
                raise TypeError(f"Usage.{name} must be an int of tokens, got {value!r} ({type(value).__name__})")
            if value < 0:
                raise ValueError(f"Usage.{name} must not be negative, got {value}")
        if self.cache_read_tokens + self.cache_write_tokens > self.input_tokens:
            raise ValueError(
                f"cached tokens exceed the input they are part of: {self.cache_read_tokens} read + "
                f"{self.cache_write_tokens} written > {self.input_tokens} input_tokens. "
                "input_tokens includes cached tokens; add them if your provider reports them apart"
            )
        if self.cache_write_1h_tokens > self.cache_write_tokens:
            raise ValueError(
                f"cache_write_1h_tokens ({self.cache_write_1h_tokens}) is part of cache_write_tokens "
                f"({self.cache_write_tokens}) and cannot exceed it"
            )
        if self.reasoning_tokens > self.output_tokens:
            raise ValueError(
                f"reasoning_tokens ({self.reasoning_tokens}) is part of output_tokens ({self.output_tokens}) "
                "and cannot exceed it"
            )

    @property
    def total_tokens(self) -> int:
        """Input plus output."""
        return self.input_tokens + self.output_tokens

    @property
    def plain_input_tokens(self) -> int:
        """Input that was neither read from a cache nor written to one."""
        return self.input_tokens - self.cache_read_tokens - self.cache_write_tokens

    def replacing(self, before: Usage, after: Usage) -> Usage:
        """This sum with one of its terms, `before`, replaced by `after`."""
        return Usage(*(getattr(self, name) - getattr(before, name) + getattr(after, name) for name in _FIELDS))

    def __add__(self, other: object) -> Usage:
        if not isinstance(other, Usage):
            return NotImplemented
        return Usage(*(getattr(self, name) + getattr(other, name) for name in _FIELDS))

    def __radd__(self, other: object) -> Usage:
        return self if other == 0 else NotImplemented


_FIELDS = tuple(field.name for field in fields(Usage))
