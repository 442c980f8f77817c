"""What a call is charged follows what the provider says of it: its own bill, the tier, the region, the parts."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from runcap.guardrails import Budget, Guard, PriceBook, UnpricedModel, Usage
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.events import CallEnded
from runcap.guardrails.request import Response
from runcap.guardrails.testing import Recorder

from .helpers import guard, request

MILLION = Usage(1_000_000, 0)
DATED_WITHOUT_TIERS = {
    "gpt-4o": {"input": 1, "output": 1, "contexts": {"priority": {"input": 10, "output": 10}}},
    "gpt-4o-2024-08-06": {"input": 2, "output": 2},
}


def charged(usage: Usage, response: Response, **asked: Any) -> tuple[int | None, str | None]:
    seen = Recorder()
    g = guard(seen, usd=1_000)
    g.admit(request(**asked)).settle(usage, response)
    ended = seen.of(CallEnded)[0]
    assert g.default_run.spent_usd == ended.cost_usd
    return ended.cost_nano, ended.price_source


def test_what_the_provider_says_it_charges_is_the_cost() -> None:
    assert charged(MILLION, Response(billed_nano=1_234_567)) == (1_234_567, "provider")
    assert charged(MILLION, Response(billed_nano=0), provider="openrouter", model="openai/gpt-4o") == (0, "provider")


def test_a_bill_of_nothing_is_believed_only_of_who_sends_bills() -> None:
    cost, source = charged(MILLION, Response(billed_nano=0))  # as proxies fill the field
    assert cost == 2_500_000_000
    assert source != "provider"


def test_the_providers_own_bill_needs_no_price() -> None:
    seen = Recorder()
    g = Guard(Budget(steps=5), sinks=(seen,))
    g.admit(request(model="nobody-knows-it", provider="openrouter")).settle(MILLION, Response(billed_nano=5))
    assert (seen.of(CallEnded)[0].cost_nano, seen.of(CallEnded)[0].price_source) == (5, "provider")
    assert g.default_run.spent_usd == Decimal("0.000000005")


@pytest.mark.parametrize(
    ("asked", "told", "dollars"),
    [
        ({}, Response(context="priority"), "4.25"),
        ({"context": "priority"}, Response(context="standard"), "2.5"),
        ({"context": "priority"}, Response(), "4.25"),
        ({}, Response(context="flex"), "2.5"),  # no flex price for gpt-4o: the standard one is the dearer
        ({}, Response(model="gpt-4o-mini-2024-07-18"), "0.15"),
        ({}, Response(model="nobody-knows-it"), "2.5"),
        ({"model": "gpt-5.5", "regional": True}, Response(), "5.5"),
        ({"model": "gpt-5.5"}, Response(regional=True), "5.5"),
        ({"model": "gpt-5.5"}, Response(), "5"),
    ],
)
def test_the_tier_model_and_region_that_were_served_are_charged(
    asked: dict[str, Any], told: Response, dollars: str
) -> None:
    cost, source = charged(Usage(100_000, 0), told, **asked)
    assert Decimal(cost or 0) / 10**8 == Decimal(dollars)
    assert source is not None
    assert source.startswith("genai-prices/")


def test_a_region_is_held_at_its_surcharge() -> None:
    g = guard(usd=10)
    standard = g.admit(request(model="gpt-5.5", output_ceiling=None)).grant.amount.nano
    regional = g.admit(request(model="gpt-5.5", output_ceiling=None, regional=True)).grant.amount.nano
    assert regional * 10 == standard * 11


def test_sound_is_held_at_its_own_price_or_refused() -> None:
    spoken: dict[str, Any] = {"model": "gpt-audio", "output_ceiling": None, "audio": True}
    assert guard(usd=10).admit(request(**spoken)).grant.amount.nano == 64_000 * 1000
    heard = Prompt(measured=1_000, audio=True)
    assert guard(usd=10).admit(request(model="gpt-audio", prompt=heard)).grant.amount.nano == 32_000 * 1000 + 64_000_000
    for asked, missing in (
        ({"model": "gpt-4o", "audio": True}, "audio output"),
        ({"model": "gpt-4o-audio-preview", "prompt": heard}, "audio input"),
    ):
        with pytest.raises(UnpricedModel, match=f"no price for {missing}"):
            guard(usd=10).admit(request(**asked))
        guard(steps=1).admit(request(**asked))


def test_a_part_without_a_price_is_said_and_the_rest_is_charged(caplog: pytest.LogCaptureFixture) -> None:
    cost, _ = charged(Usage(400_000, 0, web_searches=2), Response(), model="gpt-4-turbo")
    assert cost == 4 * 10**9
    assert "no price for web searches" in caplog.text


def test_an_override_stands_whatever_dated_name_answers() -> None:
    seen = Recorder()
    prices = PriceBook({"azure:ours": {"like": "openai:gpt-4o", "times": "0.5"}})
    g = Guard(Budget(usd=10), prices=prices, sinks=(seen,))
    g.admit(request(model="ours", provider="azure")).settle(MILLION, Response(model="gpt-4o-2024-08-06"))
    assert seen.of(CallEnded)[0].cost_usd == Decimal("1.25")
    assert str(seen.of(CallEnded)[0].price_source).startswith("override of genai-prices/")


@pytest.mark.parametrize(
    ("override", "told", "dollars"),
    [
        ({"input": 1, "output": 1, "contexts": {"priority": {"input": 10, "output": 10}}}, "priority", "10"),
        ({"input": 1, "output": 1, "contexts": {"priority": {"input": 10, "output": 10}}}, "standard", "1"),
        ({"input": 1, "output": 1}, "flex", "1"),
        ({"like": "openai:gpt-4o"}, "priority", "4.25"),
        (DATED_WITHOUT_TIERS, "priority", "10"),
        (DATED_WITHOUT_TIERS, "standard", "2"),
    ],
)
def test_the_tier_that_was_served_is_charged_under_an_override_too(
    override: dict[str, Any], told: Any, dollars: str
) -> None:
    prices = override if "gpt-4o" in override else {"gpt-4o": override}
    g = Guard(Budget(usd=100), prices=PriceBook(prices), sinks=())
    g.admit(request()).settle(MILLION, Response(model="gpt-4o-2024-08-06", context=told))
    assert g.default_run.spent_usd == Decimal(dollars)
