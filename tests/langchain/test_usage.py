"""LangChain's usage, normalised. tests/langchain/providers feeds the packages' own conversion code."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult
from langchain_openai.chat_models.base import _create_usage_metadata

from runcap.guardrails import Usage
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.ratecard import CacheWrites
from runcap.guardrails.request import Request
from runcap.integrations.langchain import usage as reading
from runcap.integrations.langchain.usage import (
    StreamUsage,
    as_asked,
    is_cache_hit,
    message_of,
    normalise,
    read_response,
    read_text_usage,
    read_usage,
)


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_said", set())


def test_priority_tokens_of_openai_are_not_counted_twice() -> None:
    """langchain#40666: 2,304 input of which 256 cached and 1,024 written leaves 1,024 ordinary."""
    raw = _create_usage_metadata(
        {
            "prompt_tokens": 2304,
            "completion_tokens": 10,
            "total_tokens": 2314,
            "prompt_tokens_details": {"cached_tokens": 256, "cache_write_tokens": 1024},
        },
        "priority",
    )
    usage = normalise(raw)
    assert usage.plain_input_tokens == 1024
    assert (usage.cache_read_tokens, usage.cache_write_tokens) == (256, 1024)


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        (
            {"input_tokens": 100, "output_tokens": 9, "input_token_details": {"cache_read": 40, "cache_creation": 30}},
            Usage(100, 9, cache_read_tokens=40, cache_write_tokens=30),
        ),
        (
            {
                "input_tokens": 100,
                "output_tokens": 9,
                "input_token_details": {
                    "cache_creation": 0,
                    "ephemeral_5m_input_tokens": 20,
                    "ephemeral_1h_input_tokens": 30,
                },
            },
            Usage(100, 9, cache_write_tokens=50, cache_write_1h_tokens=30),
        ),
        (
            {
                "input_tokens": 100,
                "output_tokens": 9,
                "input_token_details": {"flex": 60, "flex_cache_read": 40},
                "output_token_details": {"flex": 4, "flex_reasoning": 5},
            },
            Usage(100, 9, cache_read_tokens=40, reasoning_tokens=5),
        ),
        (
            {
                "input_tokens": 100,
                "output_tokens": 90,
                "input_token_details": {"audio": 60, "cache_read": 10},
                "output_token_details": {"audio": 50, "image": 20, "reasoning": 5},
            },
            Usage(
                *(100, 90),
                cache_read_tokens=10,
                input_audio_tokens=60,
                output_audio_tokens=50,
                output_image_tokens=20,
                reasoning_tokens=5,
            ),
        ),
        ({"input_tokens": 10, "output_tokens": 5, "input_token_details": {"cache_read": None}}, Usage(10, 5)),
        ({"input_tokens": 10, "output_tokens": 5, "input_token_details": {"unheard_of": 7}}, Usage(10, 5)),
        ({"input_tokens": 10.0, "output_tokens": float("nan"), "input_token_details": None}, Usage(10, 0)),
    ],
)
def test_details(raw: dict[str, Any], usage: Usage) -> None:
    assert normalise(raw) == usage


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        ({"input_tokens": 10, "output_tokens": 5, "input_token_details": {"cache_read": 40}}, Usage(50, 5, 40)),
        (
            {"input_tokens": 32, "output_tokens": 9, "output_token_details": {"reasoning": 94}},
            Usage(32, 103, reasoning_tokens=94),
        ),
    ],
)
def test_contradictory_usage_is_read_the_dearer_way_and_said_once(
    raw: dict[str, Any], usage: Usage, caplog: pytest.LogCaptureFixture
) -> None:
    assert normalise(raw) == normalise(raw) == usage
    assert len(caplog.records) == 1
    assert "contradictory" in caplog.text


_INPUTS = ("cache_read", "cache_creation", "priority_cache_read", "ephemeral_5m_input_tokens", "audio", "flex")
_OUTPUTS = ("reasoning", "audio", "image", "flex_reasoning", "priority")
_counts = st.one_of(st.none(), st.integers(-5, 200), st.floats(), st.text(max_size=2))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    total=st.tuples(_counts, _counts),
    inputs=st.dictionaries(st.sampled_from((*_INPUTS, "ephemeral_1h_input_tokens", "x")), _counts),
    outputs=st.dictionaries(st.sampled_from(_OUTPUTS), _counts),
)
def test_no_figures_make_it_fail_or_count_less_than_the_totals(
    total: tuple[Any, Any], inputs: dict[str, Any], outputs: dict[str, Any]
) -> None:
    raw = {"input_tokens": total[0], "output_tokens": total[1]}
    usage = normalise(raw | {"input_token_details": inputs, "output_token_details": outputs})
    plain = normalise(raw)
    assert usage.input_tokens >= plain.input_tokens
    assert usage.output_tokens >= plain.output_tokens


def test_a_message_without_usage_has_none() -> None:
    assert read_usage(AIMessage("x")) is None
    assert read_usage(HumanMessage("x")) is None
    assert read_usage(None) is None
    assert message_of(None) is None
    assert not is_cache_hit(AIMessage("x"))


def test_the_service_tier_of_the_answer_is_its_price_context() -> None:
    fast = AIMessage("x", response_metadata={"service_tier": "fast", "model_name": "gpt-4o-2024-08-06", "id": "r1"})
    told = read_response(LLMResult(generations=[[ChatGeneration(message=fast)]]), fast)
    assert (told.context, told.model, told.id) == ("fast", "gpt-4o-2024-08-06", "r1")
    default = AIMessage("x", response_metadata={"service_tier": "default", "stop_reason": "end_turn"})
    told = read_response(None, default)
    assert (told.context, told.finish_reasons) == ("standard", ("end_turn",))


def test_without_a_service_tier_the_details_tell_it() -> None:
    details: Any = {"priority_cache_read": 0, "priority": 10}
    usage: Any = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15, "input_token_details": details}
    assert read_response(None, AIMessage("x", usage_metadata=usage)).context == "priority"
    assert read_response(None, AIMessage("x")).context is None


@pytest.mark.parametrize(
    ("metadata", "model"),
    [
        ({"model_name": "a-1", "model": "b"}, "a-1"),
        ({"model": "b"}, "b"),
        ({"model_id": "us.anthropic.claude"}, "us.anthropic.claude"),
        ({"model_name": "a-1a-1a-1"}, "a-1"),  # three choices of a stream
        ({"model_name": "", "model": None}, None),
    ],
)
def test_the_model_that_answered(metadata: dict[str, Any], model: str | None) -> None:
    assert read_response(None, AIMessage("x", response_metadata=metadata)).model == model


def test_an_answer_out_of_langchains_cache() -> None:
    usage: Any = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15, "total_cost": 0}
    assert is_cache_hit(AIMessage("x").model_copy(update={"usage_metadata": usage}))


def chunk(provider: str, **usage: Any) -> AIMessageChunk:
    told: Any = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0} | usage
    return AIMessageChunk(content="", usage_metadata=told, response_metadata={"model_provider": provider})


def test_of_running_totals_the_largest_count() -> None:
    stream = StreamUsage()
    details = {"cache_creation": 50, "cache_read": 7}
    first = chunk("anthropic", input_tokens=100, output_tokens=3, input_token_details=details)
    for _ in range(2):  # the same chunk, told by the package and by core
        stream.add(first)
    assert stream.whole is None, "one chunk needs no other reading than LangChain's"
    split = {"cache_creation": 0, "ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30, "cache_read": 7}
    stream.add(chunk("anthropic", input_tokens=100, output_tokens=40, input_token_details=split))
    stream.add(chunk("anthropic", output_tokens=90))
    assert stream.whole is not None
    assert normalise(stream.whole) == Usage(
        100, 90, cache_read_tokens=7, cache_write_tokens=50, cache_write_1h_tokens=30
    )


def test_parts_are_added_up() -> None:
    stream = StreamUsage()
    for read, reasoned in ((40, 3), (0, 4)):
        inputs, outputs = {"cache_read": read}, {"reasoning": reasoned}
        told = {"input_token_details": inputs, "output_token_details": outputs}
        stream.add(chunk("google_genai", input_tokens=50, output_tokens=5, **told))
    assert stream.whole is not None
    assert normalise(stream.whole) == Usage(100, 10, cache_read_tokens=40, reasoning_tokens=7)


@pytest.mark.parametrize("provider", ["bedrock", "fake"])
def test_what_is_not_known_is_left_to_langchain(provider: str) -> None:
    stream = StreamUsage()
    for _ in range(2):
        stream.add(chunk(provider, input_tokens=10, output_tokens=5))
    stream.add(AIMessageChunk(content=""))
    assert stream.whole is None


def asked(provider: str, *, writes: CacheWrites = "none", audio: bool = False) -> Request:
    prompt = Prompt(audio=audio)
    return Request(call_id="c", model="m", provider=provider, prompt=prompt, cache_writes=writes)


@pytest.mark.parametrize(
    ("request_", "usage"),
    [
        (asked("anthropic"), Usage(100, 9, cache_write_tokens=40)),
        (asked("anthropic", writes="5m"), Usage(100, 9, cache_write_tokens=40)),
        (asked("anthropic", writes="1h"), Usage(100, 9, cache_write_tokens=40, cache_write_1h_tokens=40)),
        (asked("openai", writes="12h"), Usage(100, 9, cache_write_tokens=40, cache_write_12h_tokens=40)),
        (asked("google", audio=True), Usage(100, 9, cache_write_tokens=40, input_audio_tokens=60)),
        (asked("openai", audio=True), Usage(100, 9, cache_write_tokens=40)),
    ],
)
def test_what_the_answer_leaves_unsaid_is_as_the_request_has_it(request_: Request, usage: Usage) -> None:
    """Which part of a Gemini prompt was sound no field tells, so all of it counts as that; OpenAI tells."""
    assert as_asked(Usage(100, 9, cache_write_tokens=40), AIMessage("x"), request_) == usage


@pytest.mark.parametrize(
    ("output", "usage"),
    [
        ({"token_usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}, Usage(5, 7)),
        ({"usage": {"prompt_tokens": 5, "completion_tokens": 7}}, Usage(5, 7)),  # BedrockLLM
        ({"token_usage": {}}, None),
        ({"token_usage": None}, None),
        (None, None),
    ],
)
def test_text_models(output: dict[str, Any] | None, usage: Usage | None) -> None:
    assert read_text_usage(LLMResult(generations=[[Generation(text="x")]], llm_output=output)) == usage
