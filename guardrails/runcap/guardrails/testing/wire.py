"""What a wire protocol must say: an answer whole, in pieces, or as an error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer before it is put on a wire. `calls` are `(id, name, arguments)`; finish is OpenAI's word.

    `model` is billed, `told_model` is what the answer says.
    """

    id: str
    model: str
    told_model: str
    text: str
    calls: tuple[tuple[str, str, dict[str, Any]], ...]
    finish: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cache_write_tokens: int


class Wire(Protocol):
    """One provider's protocol."""

    def output_cap(self, body: Mapping[str, Any]) -> int | None:
        """The request's cap on output tokens."""
        ...

    def wants_usage(self, body: Mapping[str, Any]) -> bool:
        """Whether a stream is to report its usage."""
        ...

    def whole(self, answer: Answer, *, usage: bool) -> dict[str, Any]:
        """The answer as one JSON body."""
        ...

    def pieces(self, answer: Answer, *, usage: bool) -> Iterator[tuple[bytes, int]]:
        """The answer as server-sent events, each with the output tokens it carries."""
        ...

    def error(self, status: int) -> dict[str, Any]:
        """An error body."""
        ...


def event(data: Mapping[str, Any] | str, name: str | None = None) -> bytes:
    """One server-sent event."""
    body = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {body}\n\n".encode()


def split(text: str, tokens: int, parts: int = 16) -> list[tuple[str, int]]:
    """`text` in some `parts` pieces that carry `tokens` between them."""
    count = max(1, min(parts, tokens, len(text) or 1))
    size, share = -(-len(text) // count), tokens // count
    shares = [share] * (count - 1) + [tokens - share * (count - 1)]
    return [(text[index * size : (index + 1) * size], shares[index]) for index in range(count)]
