from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import calc_price
from genai_prices.types import Usage as TheirUsage
from hypothesis import given, settings
from hypothesis import strategies as st

from runcap.guardrails import NoPrice, PriceBook, TokenPrice, Usage
from runcap.guardrails.money import to_nano
from runcap.guardrails.pricing import _snapshot, data_source

from .test_usage import usages

BOOK = PriceBook()


@pytest.mark.parametrize(
    ("model", "provider", "usage", "dollars"),
    [
        pytest.param(
            "claude-3-7-sonnet-20250219",
            "anthropic",
            Usage(3 + 12_304, 550, cache_write_tokens=12_304),
            "0.054399",
            id="litellm#9812",
        ),
        pytest.param("gpt-4o", "openai", Usage(2006, 300, cache_read_tokens=1920), "0.005615", id="litellm#6215"),
        pytest.param(
            "claude-opus-5",
            "anthropic",
            Usage(344_139, 0, cache_write_tokens=344_139, cache_write_1h_tokens=344_139),
            "3.44139",
            id="oh-my-pi#6876",
        ),
        pytest.param(
            "claude-opus-4-8",
            "anthropic",
            Usage(1_000_000, 0, cache_write_tokens=1_000_000, cache_write_1h_tokens=400_000),
            "7.75",
            id="pi#5738",
        ),
    ],
)
def test_invoices_to_the_digit(model: str, provider: str, usage: Usage, dollars: str) -> None:
    assert BOOK.cost(model, usage, provider=provider) == Decimal(dollars)


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-nope", "openai"),
        ("gpt-4o", "no-such-provider"),
        ("claude-sonnet-4-5", "anthropic-bedrock"),
        ("arn:aws:bedrock:us-east-1:123:application-inference-profile/abc", "aws"),
        ("", "openai"),
        ("my-deployment", None),
    ],
)
def test_what_is_not_known_is_never_free(model: str, provider: str | None) -> None:
    with pytest.raises(NoPrice, match="no price"):
        BOOK.cost(model, Usage(1000, 10), provider=provider)


def test_no_model_without_a_price_is_priced() -> None:
    now = datetime.now(UTC)
    unpriced = [
        (provider.id, model.id)
        for provider in _snapshot().providers
        for model in provider.models
        if model.get_prices(now).input_mtok is None
    ]
    assert len(unpriced) > 100
    for provider_id, model_id in unpriced:
        with pytest.raises((NoPrice, ValueError)):
            BOOK.cost(model_id, Usage(1000, 10), provider=provider_id)


def test_providers_go_by_langchains_names_too() -> None:
    usage = Usage(1000, 10)
    assert BOOK.cost("models/gemini-2.5-flash", usage, provider="google_genai") == BOOK.cost(
        "gemini-2.5-flash", usage, provider="google"
    )


def test_a_context_is_applied_or_refused() -> None:
    usage = Usage(1_000_000, 0)
    assert BOOK.cost("gpt-4o", usage, provider="openai", context="batch") == Decimal("1.25")
    assert BOOK.cost("gpt-4o", usage, provider="openai", context="priority") == Decimal("4.25")
    with pytest.raises(NoPrice, match="flex"):
        BOOK.cost("gpt-4o", usage, provider="openai", context="flex")
    with pytest.raises(NoPrice, match="prioritty"):
        BOOK.cost("gpt-4o", usage, provider="openai", context="prioritty")  # type: ignore[arg-type]


def test_overrides_win_and_parts_cost_what_their_whole_costs() -> None:
    book = PriceBook(overrides={"mine": {"input": "2", "output": "8"}, "openai:gpt-4o": TokenPrice(input=1, output=1)})  # type: ignore[arg-type]
    assert book.cost("mine", Usage(1_000_000, 0, cache_read_tokens=500_000)) == 2
    assert book.cost("gpt-4o", Usage(1_000_000, 0), provider="openai") == 1
    assert book.cost("gpt-4o", Usage(1_000_000, 0), provider="azure") == Decimal("2.5")
    assert book.card("mine").source == "override"


def test_the_source_of_a_price_is_kept() -> None:
    assert BOOK.card("gpt-4o", provider="openai").source == data_source()
    assert data_source().startswith("genai-prices/")


def test_the_long_context_tier_reprices_the_whole_request() -> None:
    below = BOOK.cost("claude-sonnet-4-5", Usage(200_000, 0), provider="anthropic")
    above = BOOK.cost("claude-sonnet-4-5", Usage(200_001, 0), provider="anthropic")
    assert below == Decimal("0.6")
    assert above == Decimal("1.200006")


MODELS = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-5"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-opus-4-8"),
    ("google", "gemini-2.5-pro"),
    ("mistral", "mistral-large-latest"),
    ("aws", "anthropic.claude-sonnet-4-5-20250929-v1:0"),
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(MODELS), usages())
def test_agrees_with_genai_prices_to_the_nano_dollar(model: tuple[str, str], usage: Usage) -> None:
    provider, name = model
    theirs = calc_price(
        TheirUsage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
        ),
        name,
        provider_id=provider,
    ).total_price
    assert BOOK.card(name, provider=provider).nano(usage) == round(theirs * 1_000_000_000)


@settings(deadline=None)
@given(st.sampled_from(MODELS), usages())
def test_no_usage_within_a_bound_costs_more_than_the_bound(model: tuple[str, str], usage: Usage) -> None:
    card = BOOK.card(model[1], provider=model[0])
    bound = card.most_nano(usage.input_tokens, usage.output_tokens, "1h")
    assert 0 <= card.nano(usage) <= bound
    assert bound <= card.most_nano(usage.input_tokens + 1, usage.output_tokens + 1, "1h")


def test_costs_are_whole_nano_dollars() -> None:
    cost = BOOK.cost("gpt-4o-mini", Usage(1, 1), provider="openai")
    assert to_nano(cost, "cost") == 750
