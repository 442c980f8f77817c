"""langchain-openai, fed with the answers OpenAI documents.

Chat: https://platform.openai.com/docs/api-reference/chat/object and /chat/streaming. Responses: .../responses/object,
.../responses-streaming, https://platform.openai.com/docs/guides/tools-web-search. Prompt caching and its lifetimes:
https://developers.openai.com/api/docs/guides/prompt-caching, and the SDK's types for `usage`.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from runcap.guardrails import Usage

from .wire import JSON, Wire, ainvoked, astreamed, evented, invoked, streamed

# Regression case 6 (langchain#40666): 2,304 input of which 256 cached and 1,024 written leaves 1,024 ordinary.
USAGE: JSON = {
    "prompt_tokens": 2304,
    "completion_tokens": 300,
    "total_tokens": 2604,
    "prompt_tokens_details": {"cached_tokens": 256, "cache_write_tokens": 1024, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 128,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
COUNTED = Usage(2304, 300, cache_read_tokens=256, cache_write_tokens=1024, reasoning_tokens=128)


def chat(usage: JSON | None = USAGE, tier: str | None = "default", choices: int = 1, **more: Any) -> JSON:
    message: JSON = {"role": "assistant", "content": "Hello!", "refusal": None, "annotations": []}
    return {
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        "object": "chat.completion",
        "created": 1741569952,
        "model": "gpt-5.6-2026-06-01",
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": "stop"} for index in range(choices)
        ],
        "usage": usage,
        "service_tier": tier,
    } | more


def chunks(usage: JSON | None = USAGE, tier: str = "default", choices: int = 1) -> list[JSON]:
    base: JSON = {
        "id": "chatcmpl-123",
        "object": "chat.completion.chunk",
        "created": 1694268190,
        "model": "gpt-5.6-2026-06-01",
        "service_tier": tier,
        "system_fingerprint": "fp_44709d6fcb",
    }

    def one(index: int, delta: JSON, reason: str | None) -> JSON:
        return base | {"choices": [{"index": index, "delta": delta, "finish_reason": reason}], "usage": None}

    words = [one(index, {"role": "assistant", "content": "Hello"}, None) for index in range(choices)]
    ends = [one(index, {}, "stop") for index in range(choices)]
    return [*words, *ends, base | {"choices": [], "usage": usage}] if usage else [*words, *ends]


def openai(wire: Wire, **more: Any) -> ChatOpenAI:
    defaults: dict[str, Any] = {"model": "gpt-5.6", "max_retries": 0, "stream_usage": True}
    return ChatOpenAI(base_url=f"{wire.url}/v1", api_key=SecretStr("none"), **(defaults | more))


@pytest.mark.parametrize(
    ("tier", "context"),
    [("default", "standard"), ("priority", "priority"), ("flex", "flex"), ("fast", "fast"), ("auto", None)],
)
@pytest.mark.parametrize("stream", [False, True])
def test_chat(wire: Wire, tier: str, context: str | None, stream: bool) -> None:
    if stream:
        wire.events(*chunks(tier=tier))
        heard = streamed(openai(wire))
    else:
        wire.json(chat(tier=tier))
        heard = invoked(openai(wire))
    assert heard.usage == COUNTED
    assert COUNTED.plain_input_tokens == 1024
    assert heard.response.model == "gpt-5.6-2026-06-01"
    assert heard.response.context == context
    assert heard.response.finish_reasons == ("stop",)
    assert heard.response.billed_nano is None
    assert not heard.response.regional


@pytest.mark.parametrize("responses", [False, True])
def test_a_stream_of_events(wire: Wire, responses: bool) -> None:
    wire.events(*(response_events(tier="priority") if responses else chunks(tier="priority")), done=not responses)
    heard = evented(openai(wire, use_responses_api=responses))
    assert heard.usage == COUNTED
    assert heard.response.context == "priority"


async def test_chat_in_async_code(wire: Wire) -> None:
    wire.json(chat(tier="priority"))
    assert (await ainvoked(openai(wire))).usage == COUNTED
    wire.events(*chunks(tier="priority"))
    assert (await astreamed(openai(wire))).usage == COUNTED


@pytest.mark.parametrize("stream", [False, True])
def test_usage_is_counted_once_whatever_the_number_of_choices(wire: Wire, stream: bool) -> None:
    """Every generation carries all of it; the words a stream's choices end with are joined (`gpt-5.6gpt-5.6`)."""
    if stream:
        wire.events(*chunks(tier="priority", choices=2))
        heard = streamed(openai(wire), n=2)
    else:
        wire.json(chat(tier="priority", choices=2))
        heard = invoked(openai(wire, n=2))
    assert heard.usage == COUNTED
    told = heard.response
    assert (told.model, told.context, told.finish_reasons) == ("gpt-5.6-2026-06-01", "priority", ("stop",))


def test_without_usage_there_is_none(wire: Wire) -> None:
    wire.json(chat(usage=None))
    assert invoked(openai(wire)).usage is None
    wire.events(*chunks(usage=None))
    assert streamed(openai(wire, stream_usage=False)).usage is None


def test_audio(wire: Wire) -> None:
    """https://platform.openai.com/docs/guides/audio: text and audio of one answer are billed apart."""
    usage = {
        "prompt_tokens": 120,
        "completion_tokens": 80,
        "total_tokens": 200,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 100, "text_tokens": 20, "image_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 60, "text_tokens": 20},
    }
    wire.json(chat(usage))
    told = invoked(openai(wire), modalities=["text", "audio"]).usage
    assert told == Usage(120, 80, input_audio_tokens=100, output_audio_tokens=60)


def test_audio_that_was_cached_is_counted_once(wire: Wire) -> None:
    """`cached_tokens` does not say which of them are audio; where the two overlap, they count as audio, the dearer."""
    usage = USAGE | {"prompt_tokens_details": {"cached_tokens": 1500, "audio_tokens": 1000}}
    wire.json(chat(usage))
    told = invoked(openai(wire)).usage
    assert told is not None
    assert (told.input_tokens, told.cache_read_tokens, told.input_audio_tokens) == (2304, 1304, 1000)


def test_usage_told_twice_in_a_stream_is_counted_once(wire: Wire) -> None:
    """Some gateways repeat it: on the chunk with the finish reason and on the last, or so far on every chunk."""
    words, end, last = chunks()
    wire.events(words | {"usage": USAGE | {"completion_tokens": 1}}, end | {"usage": USAGE}, last)
    assert streamed(openai(wire)).usage == COUNTED


@pytest.mark.parametrize(
    ("reasoning", "total", "output"),
    [
        ({"reasoning_tokens": 94}, 135, 103),  # https://docs.x.ai/docs/guides/reasoning: 32 + 9 + 94
        ({"reasoning_tokens": 5}, 46, 14),
        (None, 135, 103),  # Gemini's OpenAI endpoint shows thoughts in the total alone
    ],
)
def test_reasoning_left_out_of_the_output_is_found_in_the_total(
    wire: Wire, reasoning: JSON | None, total: int, output: int
) -> None:
    usage = {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": total, "completion_tokens_details": reasoning}
    wire.json(chat(usage))
    told = invoked(openai(wire)).usage
    assert told == Usage(32, output, reasoning_tokens=(reasoning or {}).get("reasoning_tokens", 0))


@pytest.mark.parametrize(
    ("cost", "nano"),
    [
        ({"cost": 0.00014, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.00014}}, 140_000),
        ({"cost": 0.95, "is_byok": True, "cost_details": {"upstream_inference_cost": 19}}, 19_950_000_000),
        ({"cost": {"input_tokens_cost": 0.001, "total_cost": 0.006}}, 6_000_000),  # Perplexity
        ({"cost_in_usd_ticks": 37_756_000}, 3_775_600),  # xAI
        ({"cost": None}, None),
        ({"cost": "free"}, None),
    ],
)
def test_a_cost_in_the_usage_of_a_compatible_provider(wire: Wire, cost: JSON, nano: int | None) -> None:
    """https://openrouter.ai/docs/use-cases/usage-accounting through ChatOpenAI, which keeps the raw usage."""
    wire.json(chat(USAGE | cost))
    assert invoked(openai(wire)).response.billed_nano == nano


def test_the_cost_of_several_choices(wire: Wire) -> None:
    """With n > 1 LangChain keeps the raw usage beside the generations only."""
    wire.json(chat(USAGE | {"cost": 0.00014}, choices=2))
    assert invoked(openai(wire, n=2)).response.billed_nano == 140_000


RESPONSES_USAGE: JSON = {
    "input_tokens": 2304,
    "input_tokens_details": {"cached_tokens": 256, "cache_write_tokens": 1024},
    "output_tokens": 300,
    "output_tokens_details": {"reasoning_tokens": 128},
    "total_tokens": 2604,
}
TEXT: JSON = {
    "type": "message",
    "id": "msg_67ccd3acc8d48190a77525dc6de64b4104becb25c45c1d41",
    "status": "completed",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "The image depicts a scenic landscape.", "annotations": []}],
}


def searched(number: int, action: JSON, status: str = "completed") -> JSON:
    return {"type": "web_search_call", "id": f"ws_{number}", "status": status, "action": action}


# Three that cost: what is opened or looked through is part of the search before it. Whether the last one, which failed,
# is billed OpenAI does not say: the dearer reading.
SEARCHES = [
    searched(1, {"type": "search", "query": "positive news today", "queries": ["positive news today"]}),
    searched(2, {"type": "open_page", "url": "https://example.com/"}),
    searched(3, {"type": "find_in_page", "url": "https://example.com/", "pattern": "good"}),
    searched(4, {"type": "search", "query": "good news"}),
    searched(5, {"type": "search", "query": "more news"}, status="failed"),
]


def response(*output: JSON, tier: str = "default", status: str = "completed", usage: JSON | None = None) -> JSON:
    return {
        "id": "resp_67ccd3a9da748190baa7f1570fe91ac604becb25c45c1d41",
        "object": "response",
        "created_at": 1741476777,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": "gpt-5.6-2026-06-01",
        "output": list(output or (TEXT,)),
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": tier,
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": RESPONSES_USAGE if usage is None else usage,
        "metadata": {},
    }


def response_events(*items: JSON, tier: str = "default") -> list[JSON]:
    begun = response(tier=tier, status="in_progress") | {"usage": None, "output": []}
    done = [
        {"type": f"response.output_item.{what}", "output_index": index, "item": item}
        for index, item in enumerate(items)
        for what in ("added", "done")
    ]
    text = {
        "type": "response.output_text.delta",
        "item_id": TEXT["id"],
        "output_index": len(items),
        "content_index": 0,
        "delta": "The image depicts a scenic landscape.",
    }
    events: list[JSON] = [
        {"type": "response.created", "response": begun},
        *done,
        text,
        {"type": "response.completed", "response": response(*items, TEXT, tier=tier)},
    ]
    return [event | {"sequence_number": number} for number, event in enumerate(events)]


@pytest.mark.parametrize(("tier", "context"), [("default", "standard"), ("priority", "priority"), ("flex", "flex")])
@pytest.mark.parametrize("stream", [False, True])
def test_responses(wire: Wire, tier: str, context: str, stream: bool) -> None:
    model = openai(wire, use_responses_api=True)
    if stream:
        wire.events(*response_events(tier=tier), done=False)
        heard = streamed(model)
    else:
        wire.json(response(tier=tier))
        heard = invoked(model)
    assert heard.usage == COUNTED
    assert heard.response.model == "gpt-5.6-2026-06-01"
    assert heard.response.context == context
    assert heard.response.finish_reasons == ("completed",)


async def test_responses_in_async_code(wire: Wire) -> None:
    wire.events(*response_events(tier="priority"), done=False)
    assert (await astreamed(openai(wire, use_responses_api=True))).usage == COUNTED


@pytest.mark.parametrize("version", ["v0", "responses/v1", "v1"])
@pytest.mark.parametrize("stream", [False, True])
def test_searches_are_counted_apart(wire: Wire, version: str, stream: bool) -> None:
    model = openai(wire, use_responses_api=True, output_version=version)
    if stream:
        wire.events(*response_events(*SEARCHES), done=False)
        heard = streamed(model)
    else:
        wire.json(response(*SEARCHES, TEXT))
        heard = invoked(model)
    assert heard.usage is not None
    assert heard.usage.web_searches == 3
    assert heard.usage.input_tokens == 2304


@pytest.mark.parametrize("where", ["constructor", "invocation", "extra_body"])
@pytest.mark.parametrize("stream", [False, True])
def test_writes_that_last_twelve_hours_are_known_from_the_request(wire: Wire, where: str, stream: bool) -> None:
    options = {"prompt_cache_options": {"ttl": "12h"}}
    made: dict[str, Any] = {"constructor": options, "invocation": {}}.get(where, {where: options})
    model = openai(wire, use_responses_api=True, **made)
    given: dict[str, Any] = options if where == "invocation" else {}
    if stream:
        wire.events(*response_events(), done=False)
        heard = streamed(model, **given)
    else:
        wire.json(response())
        heard = invoked(model, **given)
    assert heard.request is not None
    assert heard.request.cache_writes == "12h"
    assert heard.usage is not None
    assert (heard.usage.cache_write_tokens, heard.usage.cache_write_12h_tokens) == (1024, 1024)


def test_writes_last_half_an_hour_unless_asked_otherwise(wire: Wire) -> None:
    wire.json(chat())
    heard = invoked(openai(wire, prompt_cache_options={"ttl": "30m"}))
    assert heard.request is not None
    assert heard.request.cache_writes == "5m"
    assert heard.usage == COUNTED
