"""langchain-mistralai, fed with the answers Mistral documents.

https://docs.mistral.ai/api/endpoint/chat, https://docs.mistral.ai/studio-api/conversations/advanced/prompt-caching.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_mistralai import ChatMistralAI
from pydantic import SecretStr

from runcap.guardrails import Usage

from .wire import JSON, Wire, ainvoked, invoked, streamed

USAGE: JSON = {
    "prompt_tokens": 1250,
    "completion_tokens": 34,
    "total_tokens": 1284,
    "prompt_tokens_details": {"cached_tokens": 1088},
}
BASE: JSON = {"id": "cmpl-e5cc70bb28c444948073e77776eb30ef", "created": 1702256327, "model": "mistral-large-2512"}


def answer(usage: JSON | None, choices: int = 1) -> JSON:
    message = {"role": "assistant", "content": "Check the key.", "tool_calls": None, "prefix": False}
    many = [{"index": index, "message": message, "finish_reason": "stop"} for index in range(choices)]
    return BASE | {"object": "chat.completion", "choices": many, "usage": usage}


def chunks(usage: JSON | None) -> list[JSON]:
    first = {"index": 0, "delta": {"role": "assistant", "content": "Check"}, "finish_reason": None}
    last = {"index": 0, "delta": {"content": " the key."}, "finish_reason": "stop"}
    base = BASE | {"object": "chat.completion.chunk"}
    return [base | {"choices": [first]}, base | {"choices": [last]} | ({"usage": usage} if usage else {})]


@pytest.fixture
def model(wire: Wire) -> ChatMistralAI:
    return ChatMistralAI(model_name="mistral-large-latest", base_url=wire.url, api_key=SecretStr("none"), max_retries=1)


def test_cached_tokens_are_found_in_the_raw_usage(wire: Wire, model: ChatMistralAI) -> None:
    """`usage_metadata` has no details at all."""
    wire.json(answer(USAGE))
    heard = invoked(model)
    assert heard.usage == Usage(1250, 34, cache_read_tokens=1088)
    assert heard.response.model == "mistral-large-latest"
    assert heard.response.finish_reasons == ("stop",)


async def test_in_async_code(wire: Wire, model: ChatMistralAI) -> None:
    wire.json(answer(USAGE))
    assert (await ainvoked(model)).usage == Usage(1250, 34, cache_read_tokens=1088)


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": None}, {"cached_tokens": 0}])
def test_without_cached_tokens(wire: Wire, model: ChatMistralAI, details: Any) -> None:
    wire.json(answer(USAGE | {"prompt_tokens_details": details}))
    assert invoked(model).usage == Usage(1250, 34)


def test_a_stream_loses_the_cached_tokens(wire: Wire, model: ChatMistralAI) -> None:
    """Nothing of the raw usage is kept: they count as ordinary input, the dearer reading."""
    wire.events(*chunks(USAGE))
    heard = streamed(model)
    assert heard.usage == Usage(1250, 34)
    assert heard.response.model == "mistral-large-2512"
    assert heard.response.finish_reasons == ("stop",)


def test_usage_is_counted_once_whatever_the_number_of_choices(wire: Wire, model: ChatMistralAI) -> None:
    wire.json(answer(USAGE, choices=2))
    heard = invoked(model, n=2)
    assert heard.usage == Usage(1250, 34, cache_read_tokens=1088)
    assert heard.response.model == "mistral-large-latest"


def test_without_usage_there_is_none(wire: Wire, model: ChatMistralAI) -> None:
    wire.json(answer(None))
    assert invoked(model).usage is None
    wire.events(*chunks(None))
    assert streamed(model).usage is None
