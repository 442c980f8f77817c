"""The bound of text against what real tokenizers counted (token_counts.json, made by count_tokens.py).

No tokenizer is needed here: the file holds the texts and the counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from runcap.guardrails.estimate import MESSAGE_FRAMING, Measured
from runcap.integrations.langchain.messages import Walks
from runcap.integrations.langchain.parts import base_size, measure

from .count_tokens import COUNTS, texts


class Sample(NamedTuple):
    """A text, and its tokens by tokenizer."""

    kind: str
    text: str
    tokens: dict[str, int]

    @property
    def size(self) -> int:
        return len(self.text.encode())


FILE: dict[str, Any] = json.loads(COUNTS.read_text(encoding="utf-8"))
PROVIDERS: dict[str, str] = {name: source["provider"] for name, source in FILE["tokenizers"].items()}
NORMALISING = {name for name, source in FILE["tokenizers"].items() if source["normalises"]}
SAMPLES = [
    Sample(row["kind"], row["text"], dict(zip(PROVIDERS, row["counts"], strict=True))) for row in FILE["samples"]
]
DEFAULT = [sample for sample in SAMPLES if sample.kind != "normalising"]
"""What the default bound is for; text made to grow when it is normalised is what `strict` is for."""

ASKED = {"english", "code", "json", "chinese", "japanese", "korean", "hex", "base64", "emoji"}
FRAMING, REPLY = 4, 3
"""Tokens a provider puts around each message, and before its answer."""

any_text = st.text(max_size=200) | st.sampled_from([sample.text for sample in SAMPLES])
conversations = st.lists(st.tuples(st.sampled_from(SAMPLES), st.integers(0, 3)), min_size=1, max_size=12)


def bound(text: str, provider: str | None, *, strict: bool = False) -> int:
    return measure(HumanMessage(text)).prompt.most(provider, strict=strict)


def bound_of_all(messages: Sequence[BaseMessage], provider: str, *, strict: bool = False) -> int:
    walk = Walks().walk(base_size("any", provider, {}), messages, Measured())
    return walk.prompt.most(provider, strict=strict)


def message(text: str, role: int) -> BaseMessage:
    made = (HumanMessage(text), AIMessage(text), SystemMessage(text), ToolMessage(text, tool_call_id="c1"))
    return made[role]


def test_the_counts_are_of_the_texts_the_script_makes() -> None:
    assert [(sample.kind, sample.text) for sample in SAMPLES] == list(texts())


def test_every_kind_asked_for_is_there_in_many_lengths() -> None:
    for kind in ASKED:
        sizes = {sample.size for sample in SAMPLES if sample.kind == kind}
        assert len(sizes) >= 10
        assert min(sizes) <= 4
        assert max(sizes) >= 3_900
    assert {"o200k_base", "cl100k_base", "claude-2"} <= set(PROVIDERS)


@pytest.mark.parametrize("tokenizer", PROVIDERS)
def test_the_default_bound_covers_every_kind_of_text(tokenizer: str) -> None:
    for sample in SAMPLES if tokenizer not in NORMALISING else DEFAULT:
        assert bound(sample.text, PROVIDERS[tokenizer]) >= sample.tokens[tokenizer], sample


def test_a_byte_is_a_token_at_most_and_sometimes_just_that() -> None:
    """SentencePiece adds one space before a text: a token above its bytes, which the framing covers."""
    for sample in SAMPLES:
        for tokenizer in PROVIDERS.keys() - NORMALISING - {"mistral-v3"}:
            assert sample.tokens[tokenizer] <= sample.size
        assert sample.tokens["mistral-v3"] <= sample.size + 1
    full = {sample.kind for sample in SAMPLES if sample.size > 200 and sample.size in sample.tokens.values()}
    assert {"control", "digits"} <= full


def test_text_that_grows_when_normalised_needs_the_strict_bound() -> None:
    """One character of three bytes is 18 letters after NFKC, which Claude's public tokenizer applies."""
    greeting = next(sample for sample in SAMPLES if sample.text == "\ufdfa" * 100)
    assert greeting.tokens["claude-2"] == 1_500
    assert bound(greeting.text, "anthropic") == 300 + MESSAGE_FRAMING
    assert bound(greeting.text, "anthropic", strict=True) >= 1_500


@pytest.mark.parametrize("provider", ["anthropic", "aws", None])
def test_the_strict_bound_covers_every_text_and_every_tokenizer(provider: str | None) -> None:
    for sample in SAMPLES:
        strict = bound(sample.text, provider, strict=True)
        assert strict >= max(sample.tokens.values()), sample
        assert strict >= bound(sample.text, provider)


@given(conversations)
def test_the_bound_of_any_conversation_covers_its_tokens_and_framing(drawn: list[tuple[Sample, int]]) -> None:
    messages = [message(sample.text, role) for sample, role in drawn]
    for tokenizer, provider in PROVIDERS.items():
        counted = sum(sample.tokens[tokenizer] + FRAMING for sample, _ in drawn) + REPLY
        if tokenizer not in NORMALISING or all(sample.kind != "normalising" for sample, _ in drawn):
            assert bound_of_all(messages, provider) >= counted
        if tokenizer == "claude-2":
            assert bound_of_all(messages, provider, strict=True) >= counted


@pytest.mark.parametrize("strict", [False, True])
@given(first=any_text, second=any_text, provider=st.sampled_from(["openai", "anthropic", None]))
def test_the_bound_grows_with_the_text_and_never_faster_than_its_parts(
    first: str, second: str, provider: str | None, *, strict: bool
) -> None:
    whole = bound(first + second, provider, strict=strict)
    parts = (bound(first, provider, strict=strict), bound(second, provider, strict=strict))
    assert whole >= max(parts) > 0
    assert whole <= sum(parts)


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.kind in {"english", "code", "json"} and s.size >= 200])
def test_the_expected_value_of_natural_text_is_near_its_count(sample: Sample) -> None:
    expected = measure(HumanMessage(sample.text)).prompt.expected("openai")
    assert 1 / 2.5 <= expected / sample.tokens["o200k_base"] <= 2.5
