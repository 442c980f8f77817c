"""LangChain's usage, normalised; fed to the real packages' own conversion code where there is one."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_openai.chat_models.base import _create_usage_metadata

from runcap.guardrails import Usage
from runcap.integrations.langchain.usage import is_cache_hit, message_of, normalise, read_response, read_usage


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
    details: dict[str, Any] = dict(raw.get("input_token_details") or {})
    details.setdefault("priority_cache_creation", 1024)
    usage = normalise({**raw, "input_token_details": details})
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
        ({"input_tokens": 10, "output_tokens": 5, "input_token_details": {"cache_read": None}}, Usage(10, 5)),
    ],
)
def test_details(raw: dict[str, Any], usage: Usage) -> None:
    assert normalise(raw) == usage


def test_contradictory_usage_is_read_the_dearer_way_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    usage = normalise({"input_tokens": 10, "output_tokens": 5, "input_token_details": {"cache_read": 40}})
    assert usage == Usage(50, 5, cache_read_tokens=40)
    assert "contradictory" in caplog.text


def test_a_message_without_usage_has_none() -> None:
    assert read_usage(AIMessage("x")) is None
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
