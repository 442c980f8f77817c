from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runcap.guardrails import PriceBook
from runcap.guardrails.estimate import IMAGE_BOUND, IMAGE_BOUND_OTHERWISE, Measured, Prompt, TypicalOutput, estimate

CARD = PriceBook().card("gpt-4o", provider="openai")


def test_the_bound_is_a_token_a_byte_and_framing() -> None:
    prompt = Prompt(measured=100, ascii_bytes=50, wide_bytes=30, messages=2)
    assert prompt.most("openai") == 100 + 80 + 24
    assert prompt.expected("openai") == 100 + 15 + 18 + 8


def test_strict_bounds_adversarial_text_for_claude_only() -> None:
    prompt = Prompt(ascii_bytes=100, normalised_bytes=120)
    assert prompt.most("anthropic", strict=True) == 252
    assert prompt.most("openai", strict=True) == 100


def test_claude_adds_instructions_for_tools() -> None:
    """403 tokens were measured for one small tool, whose schema is some 150 bytes."""
    offered = Prompt(ascii_bytes=150, messages=1, tools=True)
    assert offered.most("anthropic") == 150 + 12 + 1_024
    assert offered.most("openai") == 150 + 12
    assert offered.expected("anthropic") > 403


def test_images_are_bounded_by_the_provider_and_by_the_dearest_rule_otherwise() -> None:
    assert Prompt(images=2).most("anthropic") == 2 * IMAGE_BOUND["anthropic"]
    assert Prompt(images=1).most("openai") == IMAGE_BOUND_OTHERWISE


def test_the_output_is_bounded_by_the_cap_times_n_and_never_above_the_ceiling() -> None:
    known = estimate(Prompt(), provider="openai", card=CARD, output_cap=999_999_999, output_ceiling=16_384, choices=2)
    assert known.output_most == 32_768
    assert known.hard


def test_without_a_cap_of_its_own_a_call_is_held_at_its_expected_cost() -> None:
    known = estimate(Prompt(ascii_bytes=1000), provider="openai", card=CARD, output_cap=None, output_ceiling=16_384)
    assert not known.hard
    assert known.hold == known.expected
    assert known.most is not None
    assert known.most.nano > known.hold.nano


def test_every_reason_for_being_soft_is_named() -> None:
    known = estimate(
        Prompt(bounded=False), provider=None, card=None, output_cap=None, output_ceiling=None, attempts_seen=False
    )
    assert len(known.soft_because) == 3
    assert known.most is None


def test_statistics_serve_the_expected_value_only() -> None:
    plain = estimate(Prompt(), provider="openai", card=CARD, output_cap=5000, output_ceiling=None)
    seen = estimate(Prompt(), provider="openai", card=CARD, output_cap=5000, output_ceiling=None, typical_output=3000)
    assert seen.output_expected == 3000
    assert seen.hold == plain.hold


@given(
    st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 100), st.sampled_from(["openai", "anthropic", None])
)
def test_expected_never_exceeds_the_bound(ascii_bytes: int, wide: int, messages: int, provider: str | None) -> None:
    prompt = Prompt(ascii_bytes=ascii_bytes, wide_bytes=wide, messages=messages)
    known = estimate(prompt, provider=provider, card=CARD, output_cap=10, output_ceiling=None)
    assert known.input_expected <= known.input_most
    assert known.most is not None
    assert known.expected.nano <= known.most.nano


def test_measured_counts_are_bounded() -> None:
    measured = Measured()
    for number in range(20_000):
        measured.put(number, number)
    assert measured.get(0) is None
    assert measured.get(19_999) == 19_999


def test_the_typical_output_follows_the_calls() -> None:
    typical = TypicalOutput()
    assert typical.get("m") is None
    typical.add("m", 100)
    typical.add("m", 200)
    assert typical.get("m") == 120
