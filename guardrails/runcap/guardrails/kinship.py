"""Models whose token counts bound each other's: a count by one of them is of use when a run goes on with another.

OpenAI's models since gpt-4o share one encoding (o200k, by tiktoken's own map of models); what they add around tools and
messages differs a little. Anthropic says of its newest tokenizer that it makes up to 1.35 times the tokens of the one
before.
"""

from __future__ import annotations

import re
from math import ceil
from typing import NamedTuple

_O200K = re.compile(r"(chatgpt-4o|gpt-4o|gpt-4\.1|gpt-4\.5|gpt-5|o1|o3|o4)([-.]|$)")
_CLAUDE = re.compile(r"claude-")


class Kin(NamedTuple):
    """A family of models: its name, and how many tokens one makes at most of what is one token to another."""

    name: str
    factor: float
    more: int

    def most(self, count: int) -> int:
        """The most tokens any of them makes of what one of them counted."""
        return ceil(count * self.factor) + self.more


_FAMILIES = (
    ("openai", _O200K, Kin("o200k", 1.02, 256)),
    ("anthropic", _CLAUDE, Kin("claude", 1.4, 1_024)),
)


def kin_of(provider: str | None, model: str | None) -> Kin | None:
    """The family of a model; None where none is known."""
    for whose, names, kin in _FAMILIES:
        if provider == whose and names.match(model or ""):
            return kin
    return None
