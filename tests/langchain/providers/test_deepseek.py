"""langchain-deepseek, fed with the answers DeepSeek documents.

https://api-docs.deepseek.com/api/create-chat-completion, https://api-docs.deepseek.com/guides/kv_cache.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_deepseek import ChatDeepSeek
from pydantic import SecretStr

from runcap.guardrails import Usage

from .wire import JSON, Wire, ainvoked, invoked, streamed

USAGE: JSON = {
    "completion_tokens": 300,
    "prompt_tokens": 1000,
    "prompt_cache_hit_tokens": 640,
    "prompt_cache_miss_tokens": 360,
    "total_tokens": 1300,
    "completion_tokens_details": {"reasoning_tokens": 250},
}
NESTED: JSON = {"prompt_tokens_details": {"cached_tokens": 640}}
COUNTED = Usage(1000, 300, cache_read_tokens=640, reasoning_tokens=250)
BASE: JSON = {
    "id": "930c60df-bf64-41c9-a88e-3ec75f81e00e",
    "created": 1705651092,
    "model": "deepseek-reasoner",
    "system_fingerprint": "fp_a49d71b8a1",
}


def answer(usage: JSON | None) -> JSON:
    message = {"role": "assistant", "content": "Hello!", "reasoning_content": "They greet me."}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return BASE | {"object": "chat.completion", "choices": [choice], "usage": usage}


def chunks(usage: JSON | None) -> list[JSON]:
    """The last chunk has the finish reason and the usage both."""
    base = BASE | {"object": "chat.completion.chunk"}
    first = {"index": 0, "delta": {"role": "assistant", "content": "Hello!"}, "finish_reason": None, "logprobs": None}
    last = {"index": 0, "delta": {"content": "", "role": None}, "finish_reason": "stop", "logprobs": None}
    return [base | {"choices": [first], "usage": None}, base | {"choices": [last], "usage": usage}]


def deepseek(wire: Wire, **more: Any) -> ChatDeepSeek:
    return ChatDeepSeek(
        model="deepseek-reasoner",
        base_url=wire.url,
        api_key=SecretStr("none"),
        max_retries=0,
        stream_usage=True,
        **more,
    )


@pytest.mark.parametrize("usage", [USAGE, USAGE | NESTED], ids=["flat", "nested too"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer(wire: Wire, usage: JSON, stream: bool) -> None:
    if stream:
        wire.events(*chunks(usage))
        heard = streamed(deepseek(wire))
    else:
        wire.json(answer(usage))
        heard = invoked(deepseek(wire))
    assert heard.usage == COUNTED
    assert heard.response.model == "deepseek-reasoner"
    assert heard.response.finish_reasons == ("stop",)
    assert heard.response.context is None


async def test_in_async_code(wire: Wire) -> None:
    wire.json(answer(USAGE))
    assert (await ainvoked(deepseek(wire))).usage == COUNTED


def test_without_usage_there_is_none(wire: Wire) -> None:
    wire.json(answer(None))
    assert invoked(deepseek(wire)).usage is None
    wire.events(*chunks(None))
    assert streamed(deepseek(wire)).usage is None
