from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Context, Decimal, Inexact, localcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from genai_prices.types import ModelInfo, Provider
from genai_prices.types import Usage as TheirUsage
from hypothesis import given, settings
from hypothesis import strategies as st

from runcap.guardrails import NoPrice, PriceBook, PriceLike, TokenPrice, Usage, pricing
from runcap.guardrails.catalog import Found, compiled, data_date, data_source, snapshot
from runcap.guardrails.money import to_nano
from runcap.guardrails.testing import ManualClock

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
        ("claude-sonnet-4-5", "anthropic-something"),
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
        for provider in snapshot().providers
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


@pytest.mark.parametrize(
    ("name", "provider", "means", "theirs"),
    [
        ("models/gemini-2.5-flash", "google_genai", "gemini-2.5-flash", "google"),
        ("publishers/google/models/gemini-2.5-flash", "google_vertexai", "gemini-2.5-flash", "google"),
        (
            "projects/p/locations/us-east5/publishers/google/models/gemini-2.5-pro",
            "vertexai",
            "gemini-2.5-pro",
            "google",
        ),
        ("publishers/anthropic/models/claude-opus-4-8", "google_anthropic_vertex", "claude-opus-4-8", "anthropic"),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", "openai", "ft:gpt-4o-mini-2024-07-18:other::x", "openai"),
        ("gpt-4o-2024-08-06", "azure", "gpt-4o", "openai"),
        ("grok-4", "xai", "grok-4-0709", "x-ai"),
        ("us.anthropic.claude-opus-4-8-v1:0", "bedrock_converse", "anthropic.claude-opus-4-8-v1:0", "aws"),
        ("anthropic.claude-opus-4-8-v1:0", "anthropic-mantle", "anthropic.claude-opus-4-8-v1:0", "aws"),
        ("mistral-large-latest", "mistral_ai", "mistral-large-latest", "mistral"),
    ],
)
def test_models_go_by_every_name_they_are_given(name: str, provider: str, means: str, theirs: str) -> None:
    usage = Usage(1_000_000, 1_000_000)
    assert BOOK.cost(name, usage, provider=provider) == BOOK.cost(means, usage, provider=theirs)


def test_bedrocks_regions_cost_a_tenth_more_than_its_global_profile() -> None:
    usage = Usage(1_000_000, 1_000_000, cache_read_tokens=500_000)
    regional = BOOK.cost("us.anthropic.claude-sonnet-4-5-20250929-v1:0", usage, provider="aws")
    everywhere = BOOK.cost("global.anthropic.claude-sonnet-4-5-20250929-v1:0", usage, provider="aws")
    assert regional == everywhere * Decimal("1.1")
    # genai-prices would have matched this provider to anthropic and lost the difference.
    assert BOOK.cost("us.anthropic.claude-sonnet-4-5-20250929-v1:0", usage, provider="anthropic-bedrock") == regional


def test_a_region_is_surcharged_or_refused() -> None:
    usage = Usage(1_000_000, 1_000_000, cache_write_tokens=1_000_000, cache_write_1h_tokens=1_000_000)
    standard = BOOK.cost("claude-opus-4-8", usage, provider="anthropic")
    assert BOOK.cost("claude-opus-4-8", usage, provider="anthropic", regional=True) == standard * Decimal("1.1")
    halved = BOOK.cost("claude-opus-4-8", usage, provider="anthropic", context="batch", regional=True)
    assert halved == standard * Decimal("0.55")
    gpt = Usage(1_000_000, 0)
    assert BOOK.cost("gpt-5.5", gpt, provider="openai", regional=True) == BOOK.cost(
        "gpt-5.5", gpt, provider="openai"
    ) * Decimal("1.1")
    assert BOOK.cost("gpt-4o", gpt, provider="openai", regional=True) == Decimal("2.5")
    for model, provider in (
        ("claude-opus-4-5", "anthropic"),
        ("gpt-5.5", "azure"),
        ("llama-3.3-70b-versatile", "groq"),
    ):
        with pytest.raises(NoPrice, match="no regional price"):
            BOOK.cost(model, gpt, provider=provider, regional=True)


def test_who_resells_a_model_sets_contexts_of_its_own() -> None:
    with pytest.raises(NoPrice, match="batch"):
        BOOK.cost("gpt-4o", Usage(1_000_000, 0), provider="azure", context="batch")


def test_openais_long_cache_writes_cost_two_and_a_half_times_the_input() -> None:
    plain = BOOK.cost("gpt-5.6", Usage(100_000, 0), provider="openai")
    short = BOOK.cost("gpt-5.6", Usage(100_000, 0, cache_write_tokens=100_000), provider="openai")
    usage = Usage(100_000, 0, cache_write_tokens=100_000, cache_write_12h_tokens=100_000)
    assert (short, BOOK.cost("gpt-5.6", usage, provider="openai")) == (plain * Decimal("1.25"), plain * Decimal("2.5"))
    assert BOOK.cost("gpt-4o", usage, provider="openai") == Decimal("0.25")  # its writes are free


def test_openais_priority_reprices_reads_and_writes_too() -> None:
    usage = Usage(2304, 0, cache_read_tokens=256, cache_write_tokens=1024)  # langchain#40666
    assert usage.plain_input_tokens == 1024
    card, standard = (BOOK.card("gpt-5.6", provider="openai", context=one) for one in ("priority", None))
    assert card.nano(usage) == standard.nano(usage) * 2


def test_audio_and_searches_have_prices_of_their_own_or_none() -> None:
    spoken = Usage(1_000_000, 1_000_000, input_audio_tokens=1_000_000, output_audio_tokens=1_000_000)
    assert BOOK.cost("gpt-audio", spoken, provider="openai") == 96
    assert BOOK.cost("gemini-2.5-flash", Usage(1_000_000, 0, input_audio_tokens=1_000_000), provider="google") == 1
    assert BOOK.cost("gemini-2.5-pro", Usage(100_000, 0, input_audio_tokens=100_000), provider="google") == Decimal(
        "0.125"
    )
    drawn = Usage(0, 1_000_000, output_image_tokens=1_000_000)
    assert BOOK.cost("gemini-2.5-flash-image", drawn, provider="google") == 30
    assert BOOK.cost("claude-opus-4-8", Usage(web_searches=3), provider="anthropic") == Decimal("0.03")
    for model, usage, what in (
        ("gpt-4o-audio-preview", spoken, "audio input"),
        ("gpt-4o", Usage(0, 9, output_audio_tokens=9), "audio output"),
        ("gpt-4-turbo", Usage(web_searches=1), "web searches"),
    ):
        with pytest.raises(NoPrice, match=f"{model}.*no price for {what}"):
            BOOK.cost(model, usage, provider="openai")


def test_a_price_like_anothers_has_its_tiers_and_contexts() -> None:
    book = PriceBook({"acme": PriceLike(like="openai:gpt-4o", times=Decimal("0.8")), "arn:x": {"like": "gpt-4o-mini"}})
    usage = Usage(1_000_000, 0)
    assert book.cost("acme", usage) == 2
    assert book.cost("acme", usage, provider="azure", context="batch") == 1
    assert book.cost("ARN:x", usage, provider="aws") == Decimal("0.15")
    with pytest.raises(NoPrice, match="flex"):
        book.cost("acme", usage, context="flex")
    with pytest.raises(ValueError, match=r"the price of 'a' is wrong: like: .*'gpt-nope'"):
        PriceBook({"a": {"like": "gpt-nope"}})
    with pytest.raises(ValueError, match=r"the price of 'a' is wrong: output: Field required"):
        PriceBook({"a": {"input": 1}})


@pytest.mark.parametrize(
    ("model", "moments"),
    [
        (
            "deepseek-chat",
            {"2026-02-09T16:29": 270, "2026-02-09T16:30": 135, "2026-02-10T00:29": 135, "2026-02-10T00:30": 270},
        ),
        ("deepseek-v4-pro", {"2026-08-16T23:59": 435, "2026-08-17T00:00": 660, "2026-08-17T01:00": 1320}),
    ],
)
def test_prices_change_on_their_day_and_at_their_hour(model: str, moments: dict[str, int]) -> None:
    clock = ManualClock(0)
    book = PriceBook(clock=clock)
    for when, thousandths in moments.items():
        moment = datetime.fromisoformat(when).replace(tzinfo=UTC)
        clock.advance(moment.timestamp() - clock.monotonic())
        for card in (book.card(model, provider="deepseek"), book.card(model, provider="deepseek", at=moment)):
            assert card.nano(Usage(1_000_000, 0)) == thousandths * 1_000_000


def test_old_data_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "_told", {})
    clock = ManualClock(int(datetime.now(UTC).timestamp()) * 10**9)
    PriceBook(clock=clock).warm()
    fresh = list(caplog.messages)
    clock.advance(5_000 * 86_400)
    PriceBook(clock=clock).warm()
    PriceBook(clock=clock).warm()
    assert (fresh, len(caplog.messages)) == ([], 1)
    assert "the newest price in genai-prices/" in caplog.text
    assert "over 90 days ago" in caplog.text


def test_prices_announced_for_later_do_not_make_the_data_new() -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    assert data_date(now) <= now.date()
    assert data_date(now + timedelta(days=400)) <= datetime.now(UTC).date()


MODELS = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-5"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-opus-4-8"),
    ("google", "gemini-2.5-pro"),
    ("mistral", "mistral-large-latest"),
    ("aws", "anthropic.claude-sonnet-4-5-20250929-v1:0"),
]


NOW = datetime.now(UTC)
PRICED = [
    (provider, model, context)
    for provider in snapshot().providers
    for model in provider.models
    if model.get_prices(NOW).input_mtok is not None
    for context in (None, *(dict(variant.when) for variant in model.price_variants or ()))
]
NAMES = {"processing": ("batch",), "service_tier": ("flex", "priority", "fast"), "speed": ("fast",)}


def their_usage(usage: Usage, *, output: bool) -> TheirUsage:
    return TheirUsage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens if output else 0,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_reasoning_tokens=usage.reasoning_tokens if output else 0,
    )


def check_agreement(provider: Provider, model: ModelInfo, context: dict[str, str] | None, usage: Usage) -> None:
    name = next((how for key, how in (context or {}).items() if how in NAMES.get(key, ())), None)
    if name is None:
        context = None  # the standard price, or a route that is none of our contexts
    card = compiled(Found(provider.id, model, own=True), name, NOW)  # type: ignore[arg-type]
    if not card.prices_output:
        usage = Usage(
            usage.input_tokens, 0, usage.cache_read_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens
        )
    theirs = model.calc_price(
        their_usage(usage, output=card.prices_output), provider, genai_request_timestamp=NOW, price_context=context
    )
    assert card.nano(usage) == round(theirs.total_price * 1_000_000_000), (provider.id, model.id, context)


def test_every_model_with_a_price_costs_what_genai_prices_says_to_the_nano_dollar() -> None:
    assert len(PRICED) > 2_000
    usage = Usage(123_457, 4_321, 23_456, 34_567, 4_567, 321)
    for provider, model, context in PRICED:
        check_agreement(provider, model, context, usage)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PRICED), usages())
def test_agrees_with_genai_prices_for_any_usage(
    priced: tuple[Provider, ModelInfo, dict[str, str] | None], usage: Usage
) -> None:
    check_agreement(*priced, usage)


@settings(deadline=None)
@given(st.sampled_from(MODELS), usages(), usages())
def test_cost_is_monotone_and_additive_within_a_tier(model: tuple[str, str], one: Usage, more: Usage) -> None:
    card = BOOK.card(model[1], provider=model[0])
    both = one + more
    assert card.nano(one) >= 0
    if card.rates(one.input_tokens) == card.rates(both.input_tokens) == card.rates(more.input_tokens):
        assert abs(card.nano(both) - card.nano(one) - card.nano(more)) <= 1  # each is rounded to a nano-dollar
        assert card.nano(both) >= max(card.nano(one), card.nano(more))


@settings(deadline=None)
@given(st.sampled_from(MODELS), usages())
def test_no_usage_within_a_bound_costs_more_than_the_bound(model: tuple[str, str], usage: Usage) -> None:
    card = BOOK.card(model[1], provider=model[0])
    bound = card.most_nano(usage.input_tokens, usage.output_tokens, "1h")
    assert 0 <= card.nano(usage) <= bound
    assert bound <= card.most_nano(usage.input_tokens + 1, usage.output_tokens + 1, "1h")


@pytest.mark.parametrize("context", [Context(prec=3, rounding=ROUND_DOWN), Context(prec=3, traps=[Inexact])])
def test_the_callers_decimal_context_changes_no_price(context: Context) -> None:
    usage = Usage(123_457, 4_321, 23_456, 34_567, web_searches=3)
    cases = [("gpt-5.6", "openai", False), ("claude-opus-4-8", "anthropic", True), ("mine", None, False)]
    prices: dict[str, Any] = {
        "mine": {"input": "1.23456", "output": "7.891", "web_search": "9.87654", "request": "0.0123"}
    }
    expected = [PriceBook(prices).cost(model, usage, provider=who, regional=region) for model, who, region in cases]
    with localcontext(context):
        book = PriceBook(prices)
        assert [book.cost(model, usage, provider=who, regional=region) for model, who, region in cases] == expected


def test_a_date_all_files_share_does_not_make_the_data_old(monkeypatch: pytest.MonkeyPatch) -> None:
    newest = data_date(datetime.now(UTC))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", lambda self, **_: SimpleNamespace(st_mtime=0))
        assert data_date(datetime.now(UTC)) == newest
        patched.setattr(Path, "stat", _not_a_directory)
        assert data_date(datetime.now(UTC)) == newest


def _not_a_directory(self: Path, **_: object) -> None:
    raise NotADirectoryError(str(self))


@pytest.mark.parametrize("names", [("", "x"), ("GPT-X", "gpt-x"), ("models/a", "a"), ("xai:grok", "x-ai:grok")])
def test_a_model_has_one_price(names: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"is there twice|has no model"):
        PriceBook({name: {"input": 1, "output": 1} for name in names})


def test_costs_are_whole_nano_dollars() -> None:
    cost = BOOK.cost("gpt-4o-mini", Usage(1, 1), provider="openai")
    assert to_nano(cost, "cost") == 750
