"""langchain-xai, fed with the answers xAI documents.

https://docs.x.ai/developers/cost-tracking, https://docs.x.ai/docs/guides/reasoning (32 + 9 + 94 tokens),
https://docs.x.ai/developers/advanced-api-usage/prompt-caching/usage-and-pricing.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_xai import ChatXAI
from pydantic import SecretStr

from runcap.guardrails import Usage

from .test_openai import RESPONSES_USAGE, SEARCHES, TEXT, response, response_events
from .wire import JSON, Wire, ainvoked, invoked, streamed

USAGE: JSON = {
    "prompt_tokens": 32,
    "completion_tokens": 9,
    "total_tokens": 135,
    "prompt_tokens_details": {"text_tokens": 32, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 6},
    "completion_tokens_details": {
        "reasoning_tokens": 94,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
    "num_sources_used": 0,
    "cost_in_usd_ticks": 37_756_005,
}
COUNTED = Usage(32, 103, cache_read_tokens=6, reasoning_tokens=94)
BASE: JSON = {"id": "0daf962f-a275-4a3c-839a-047854645532", "created": 1739301120, "model": "grok-4-0709"}


def answer(usage: JSON | None) -> JSON:
    message = {
        "role": "assistant",
        "content": "The answer is 303.",
        "reasoning_content": "Let me think.",
        "refusal": None,
    }
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return BASE | {
        "object": "chat.completion",
        "choices": [choice],
        "usage": usage,
        "system_fingerprint": "fp_84ff176447",
    }


def chunks(usage: JSON | None) -> list[JSON]:
    base = BASE | {"object": "chat.completion.chunk"}
    first = {"index": 0, "delta": {"role": "assistant", "content": "The answer is 303."}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    return [base | {"choices": [first]}, base | {"choices": [last]}, base | {"choices": [], "usage": usage}]


def grok(wire: Wire, **more: Any) -> ChatXAI:
    return ChatXAI(model="grok-4", base_url=wire.url, api_key=SecretStr("none"), max_retries=0, **more)


def test_reasoning_is_billed_on_top_of_the_completion(wire: Wire) -> None:
    """The package adds it to the output. What xAI charged stands in the raw usage, in ten-billionths of a dollar."""
    wire.json(answer(USAGE))
    heard = invoked(grok(wire))
    assert heard.usage == COUNTED
    assert heard.response.billed_nano == 3_775_600  # a half goes to the even one
    assert heard.response.model == "grok-4-0709"
    assert heard.response.finish_reasons == ("stop",)


async def test_in_async_code(wire: Wire) -> None:
    wire.json(answer(USAGE))
    assert (await ainvoked(grok(wire))).usage == COUNTED


def test_a_stream_has_no_cost(wire: Wire) -> None:
    wire.events(*chunks(USAGE))
    heard = streamed(grok(wire))
    assert heard.usage == COUNTED
    assert heard.response.billed_nano is None
    assert heard.response.model == "grok-4-0709"


@pytest.mark.parametrize("stream", [False, True])
def test_the_responses_api_has_reasoning_in_its_output(wire: Wire, stream: bool) -> None:
    """Here the output includes it, as OpenAI's does; the cost is dropped, and searches are counted."""
    model = grok(wire, use_responses_api=True)
    if stream:
        wire.events(*response_events(*SEARCHES), done=False)
        heard = streamed(model)
    else:
        wire.json(response(*SEARCHES, TEXT, usage=RESPONSES_USAGE | {"cost_in_usd_ticks": 1}))
        heard = invoked(model)
    assert heard.usage == Usage(
        2304, 300, cache_read_tokens=256, cache_write_tokens=1024, reasoning_tokens=128, web_searches=3
    )
    assert heard.response.billed_nano is None


def test_without_usage_there_is_none(wire: Wire) -> None:
    wire.json(answer(None))
    assert invoked(grok(wire)).usage is None
