"""Surcharges that no price data models, each with its source. Token rates only: what is billed by the piece stays."""

from __future__ import annotations

from decimal import Context, Decimal

_EXACT = Context(prec=60)

REGIONAL = Decimal("1.1")
"""Inference held to one region costs 10 % more.

Anthropic's `inference_geo="us"` (https://platform.claude.com/docs/en/build-with-claude/data-residency): Opus 4.6 and
newer, older models answer 400. OpenAI's regional endpoints (https://developers.openai.com/api/docs/pricing): models
released on or after 5 March 2026, that is from GPT-5.4; older ones at their standard price. Bedrock's regional
profiles are models of their own in the price data.
"""

WRITE_12H = Decimal("2.5")
"""OpenAI's cache writes kept for twelve hours, times the input price (thirty minutes: 1.25, which the data has)."""

# By the price data's ids.
_CLAUDE_WITHOUT_REGIONS = (
    *("claude-v1", "claude-instant", "claude-2", "claude-3", "claude-haiku-4-5"),
    *("claude-opus-4-0", "claude-opus-4-1", "claude-opus-4-5", "claude-sonnet-4-0", "claude-sonnet-4-5"),
)
_OPENAI_BEFORE_UPLIFT = (
    *("ada", "babbage", "chatgpt-", "codex-", "curie", "davinci", "ft:gpt-3", "ft:gpt-4", "gpt-3", "gpt-4", "gpt-5-"),
    *("gpt-5.1", "gpt-5.2", "gpt-5.3", "o1", "o3", "o4", "text-"),
)


def regional_factor(provider: str, model: str) -> Decimal | None:
    """What a regional call of this model costs in terms of the standard price; None where it is not known."""
    if provider == "anthropic":
        return None if model.startswith(_CLAUDE_WITHOUT_REGIONS) else REGIONAL
    if provider == "openai":
        before = model == "gpt-5" or model.startswith(_OPENAI_BEFORE_UPLIFT)
        return Decimal(1) if before else REGIONAL
    return None


def write_12h_price(provider: str, plain_input: Decimal, cache_write: Decimal | None) -> Decimal | None:
    """Dollars per million tokens written for twelve hours; None where writes cost nothing extra or last otherwise."""
    return _EXACT.multiply(plain_input, WRITE_12H) if provider == "openai" and cache_write is not None else None
