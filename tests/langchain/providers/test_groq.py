"""langchain-groq, fed with the answers Groq documents.

https://console.groq.com/docs/api-reference#chat-create, https://console.groq.com/docs/prompt-caching,
https://console.groq.com/docs/service-tiers, https://console.groq.com/docs/reasoning.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_groq import ChatGroq
from pydantic import SecretStr

from runcap.guardrails import Usage

from .wire import JSON, Wire, ainvoked, invoked, streamed

USAGE: JSON = {
    "queue_time": 0.026959759,
    "prompt_tokens": 4641,
    "prompt_time": 0.009995497,
    "completion_tokens": 1817,
    "completion_time": 5.57691751,
    "total_tokens": 6458,
    "total_time": 5.586913007,
    "prompt_tokens_details": {"cached_tokens": 4608},
    "completion_tokens_details": {"reasoning_tokens": 1200},
}
COUNTED = Usage(4641, 1817, cache_read_tokens=4608, reasoning_tokens=1200)
BASE: JSON = {
    "id": "chatcmpl-f51b2cd2-bef7-417e-964e-a08f0b513c22",
    "created": 1730241104,
    "model": "openai/gpt-oss-120b",
    "system_fingerprint": "fp_179b0f92c9",
}


def answer(usage: JSON | None = USAGE) -> JSON:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Fast."},
        "logprobs": None,
        "finish_reason": "stop",
    }
    told = BASE | {"object": "chat.completion", "choices": [choice], "x_groq": {"id": "req_01jbd6g2qdfw2adyrt2az8hz4w"}}
    return told | ({"usage": usage} if usage else {})


def chunks(usage: JSON | None = USAGE) -> list[JSON]:
    base = BASE | {"object": "chat.completion.chunk"}
    first = {"index": 0, "delta": {"role": "assistant", "content": "Fast."}, "logprobs": None, "finish_reason": None}
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    end = {"id": "req_01jbd6g2qdfw2adyrt2az8hz4w"} | ({"usage": usage} if usage else {})
    return [base | {"choices": [first]}, base | {"choices": [last], "x_groq": end}]


def groq(wire: Wire, **more: Any) -> ChatGroq:
    return ChatGroq(model="openai/gpt-oss-120b", base_url=wire.url, api_key=SecretStr("none"), max_retries=0, **more)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("tier", "context"), [("on_demand", "standard"), ("flex", "flex"), ("auto", None)])
def test_an_answer(wire: Wire, stream: bool, tier: str, context: str | None) -> None:
    """The tier is the one asked for: LangChain does not read which one served the call."""
    if stream:
        wire.events(*chunks())
        heard = streamed(groq(wire, service_tier=tier))
    else:
        wire.json(answer())
        heard = invoked(groq(wire, service_tier=tier))
    assert heard.usage == COUNTED
    assert heard.response.model == "openai/gpt-oss-120b"
    assert heard.response.context == context
    assert heard.response.finish_reasons == ("stop",)


async def test_in_async_code(wire: Wire) -> None:
    wire.json(answer())
    assert (await ainvoked(groq(wire))).usage == COUNTED


def test_without_usage_there_is_none(wire: Wire) -> None:
    wire.json(answer(None))
    assert invoked(groq(wire)).usage is None
    wire.events(*chunks(None))
    assert streamed(groq(wire)).usage is None
