"""Ways an adversarial reading found past the bound of a call, each mended."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, ToolMessage

from runcap.guardrails import (
    BudgetExceeded,
    UnpricedModel,
)
from runcap.guardrails.estimate import Measured
from runcap.guardrails.events import CallStarted
from runcap.guardrails.testing import Reply
from runcap.integrations.langchain.messages import Walk, Walks
from runcap.integrations.langchain.parts import as_json, base_size, measure
from runcap.integrations.langchain.request import Described, describe

from .conftest import Serve, Watch, openai

BASE = base_size("gpt-4o", "openai", {})


def walk_of(*messages: Any) -> Walk:
    return Walks().walk(BASE, messages, Measured())


def described(params: dict[str, Any], constructor: dict[str, Any] | None = None) -> Any:
    call = Described({"kwargs": constructor or {}}, params, {"ls_provider": "openai", "ls_model_name": "gpt-4o"})
    return describe(call, walk_of(HumanMessage("hi")), call_id="c", parent_id=None)


@pytest.mark.parametrize(
    "options",
    [
        {"bound": {"max_tokens": 8_000}},
        {"called": {"max_tokens": 8_000}},
        {"made": {"extra_body": {"max_completion_tokens": 8_000}}},
    ],
)
def test_the_largest_output_cap_anywhere_counts(serve: Serve, options: dict[str, Any]) -> None:
    provider = serve(Reply(output_tokens=8_000))
    watch = Watch(usd="0.02")
    model = openai(provider, max_tokens=10, **options.get("made", {}))
    with pytest.raises(BudgetExceeded, match="max_tokens is 8,000"):
        model.bind(**options.get("bound", {})).invoke("hi", watch.config, **options.get("called", {}))
    assert provider.cost_usd == 0


def test_many_choices_multiply_however_they_are_named() -> None:
    assert described({"n": 3}).choices == 3
    assert described({}, {"best_of": 10}).choices == 10
    assert described({"model_kwargs": {"n": 4}}).choices == 4


@pytest.mark.parametrize(
    ("params", "constructor"),
    [
        ({}, {"use_previous_response_id": True}),
        ({"extra_body": {"previous_response_id": "r1"}}, {}),
        ({"model_kwargs": {"prompt": {"id": "p1"}}}, {}),
        ({}, {"mcp_servers": [{"url": "x"}]}),
        ({}, {"container": {"skills": []}}),
        ({}, {"inference_geo": "eu"}),
        ({"plugins": [{"id": "web"}]}, {}),
        ({"models": ["openai/o1-pro"], "route": "fallback"}, {}),
        ({"extra_body": {"models": ["openai/o1-pro"]}}, {}),
        ({"model": "gpt-4o-search-preview"}, {}),
    ],
)
def test_state_and_features_on_the_servers_side_are_not_bounded(params: Any, constructor: Any) -> None:
    assert not described(params, constructor).bounded
    assert described({}, {}).bounded


@pytest.mark.parametrize(
    ("params", "cap", "choices"),
    [
        ({"max_tokens": 100, "generation_config": {"max_output_tokens": 8_000, "candidate_count": 4}}, 8_000, 4),
        ({"max_output_tokens": 100, "candidate_count": 3}, 100, 3),
        ({"max_tokens": 100, "inferenceConfig": {"maxTokens": 8_000}}, 8_000, 1),
        ({"max_tokens": 100, "maxTokens": 8_000}, 8_000, 1),
    ],
)
def test_caps_and_choices_go_by_every_packages_names(params: dict[str, Any], cap: int, choices: int) -> None:
    request = described(params)
    assert (request.output_cap, request.choices) == (cap, choices)


@pytest.mark.parametrize(
    ("model", "bounded"),
    [
        ("gpt-4o-search-preview", False),
        ("gpt-5-search-api", False),
        ("o3-deep-research", False),
        ("perplexity/sonar-pro", False),
        ("groq/compound", False),
        ("openai/gpt-4o:online", False),
        ("gpt-4o", True),
        ("ft:gpt-4o-2024-08-06:acme:product-search-v2:abc", True),
        ("my-search-bot", True),
    ],
)
def test_models_that_search_by_themselves_are_not_bounded(model: str, bounded: bool) -> None:
    assert described({"model": model}).bounded == bounded


def test_a_body_given_to_the_call_replaces_the_constructors() -> None:
    made = {"extra_body": {"model": "gpt-4o-mini"}}
    assert described({"model": "o1-pro", "extra_body": {"x": 1}}, made).model == "o1-pro"


@pytest.mark.parametrize("made", [False, True])
def test_a_model_named_in_the_body_is_the_one_that_is_called(made: bool) -> None:
    body = {"extra_body": {"model": "gpt-4"}}
    call = described({"model": "gpt-4o-mini"}, body) if made else described({"model": "gpt-4o-mini", **body})
    assert call.model == "gpt-4"


def test_a_history_that_begins_with_an_answer_is_not_held_at_its_output(serve: Serve) -> None:
    provider = serve(Reply(text="fine", output_tokens=5))
    watch = Watch(usd=1)
    tools = [{"type": "function", "function": {"name": f"f{n}", "description": "x" * 500}} for n in range(20)]
    model = openai(provider, max_tokens=10).bind(tools=tools)
    answer = model.invoke("hello", watch.config)
    model.invoke([answer, HumanMessage("go on")], watch.config)
    first, second = watch.recorder.of(CallStarted)
    assert second.held_nano > first.held_nano * 0.9


def test_blocks_and_the_json_of_them_are_two_messages() -> None:
    blocks: Any = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 30_000}}]
    text = HumanMessage(as_json(blocks))
    assert measure(text).digest != measure(HumanMessage(blocks)).digest
    assert measure(text).prompt.ascii_bytes > 30_000


def test_the_role_of_a_chat_message_counts() -> None:
    one, other = ChatMessage(content="hi", role="user"), ChatMessage(content="hi", role="x" * 1_000)
    assert measure(one).digest != measure(other).digest
    assert measure(other).prompt.ascii_bytes >= 1_000


def test_sound_stays_sound_when_a_string_after_it_grows() -> None:
    measured, walks = Measured(), Walks()
    sound: Any = HumanMessage([{"type": "input_audio", "input_audio": {"data": "AAAA"}}])
    text = "one two three " * 50
    measured.put(walks.walk(BASE, [sound, HumanMessage(text)], measured).end, 500)
    grown = walks.walk(BASE, [sound, HumanMessage(text + "four")], measured).prompt
    assert (grown.audio, grown.bounded, grown.measured > 500) == (True, False, True)


def test_the_models_ceiling_bounds_an_absurd_cap_unless_a_beta_raises_it() -> None:
    assert described({"max_tokens": 999_999_999}).output_ceiling == 16_384
    assert described({"max_tokens": 999_999_999, "betas": ["output-128k"]}).output_ceiling is None


def test_audio_output_has_no_known_price_and_is_refused_under_dollars(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    watch = Watch(usd=1)
    with pytest.raises(UnpricedModel, match="audio output"):
        openai(provider, model_kwargs={"modalities": ["text", "audio"]}).invoke("hi", watch.config)
    assert provider.received == 0


def test_calls_cut_off_midway_are_sent_again_and_counted() -> None:
    cut: Any = {"name": "run", "args": "x" * 500, "id": "c1", "error": "cut", "type": "invalid_tool_call"}
    other = cut | {"args": "y" * 500}
    one, two = AIMessage("", invalid_tool_calls=[cut]), AIMessage("", invalid_tool_calls=[other])
    assert measure(one).prompt.ascii_bytes > 500
    assert measure(one).digest != measure(two).digest
    raw = AIMessage("", additional_kwargs={"tool_calls": [{"function": {"arguments": "z" * 500}}]})
    raw.tool_calls, raw.invalid_tool_calls = [], []
    assert measure(raw).prompt.ascii_bytes > 500


def test_the_larger_copy_of_a_tool_call_counts() -> None:
    blocks: Any = [{"type": "tool_use", "id": "c1", "name": "run", "input": {}}]
    edited: Any = [{"name": "run", "args": {"code": "x" * 500}, "id": "c1"}]
    assert measure(AIMessage(blocks, tool_calls=edited)).prompt.ascii_bytes > 500


@pytest.mark.parametrize("edit", ["append", "block", "args"])
def test_messages_edited_in_place_are_measured_again(edit: str) -> None:
    human = HumanMessage([{"type": "text", "text": "hi"}])
    answer = AIMessage("", tool_calls=[{"name": "f", "args": {"q": "x"}, "id": "c1"}])
    history = [human, answer, ToolMessage("r", tool_call_id="c1")]
    measured, walks = Measured(), Walks()
    measured.put(walks.walk(BASE, history, measured).end, 10)
    content: Any = human.content
    if edit == "append":
        content.append({"type": "text", "text": "more " * 100})
    elif edit == "block":
        content[0]["text"] = "more " * 100
    else:
        answer.tool_calls[0]["args"]["q"] = "more " * 100
    walk = walks.walk(BASE, history, measured)
    assert walk.prompt.measured == 0
    assert walk.prompt.ascii_bytes > 500


def test_what_is_no_json_is_measured_all_the_same(serve: Serve) -> None:
    provider = serve(Reply(text="ok"))
    watch = Watch(steps=5)
    openai(provider, extra_body={"a": {1: 2, "b": 3}}).invoke("hi", watch.config)
    loop: dict[str, Any] = {}
    loop["self"] = loop
    FakeListChatModel(responses=["ok"]).invoke([HumanMessage("hi", additional_kwargs={"loop": loop})], watch.config)
    assert watch.guard.default_run.steps == 2


def test_a_cap_given_to_the_invocation_replaces_the_constructors() -> None:
    assert described({"max_tokens": 100}, {"max_tokens": 128_000}).output_cap == 100
    assert described({"max_completion_tokens": 10, "max_tokens": 100}, {"max_tokens": 10}).output_cap == 100
