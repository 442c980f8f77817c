"""langchain-anthropic, fed with the answers Anthropic documents.

https://platform.claude.com/docs/en/api/messages, .../build-with-claude/streaming, .../build-with-claude/prompt-caching,
.../agents-and-tools/tool-use/web-search-tool, .../build-with-claude/data-residency, .../build-with-claude/compaction.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from pydantic import SecretStr

from runcap.guardrails import PriceBook, Usage
from runcap.integrations.langchain.usage import message_of, read_usage

from .wire import JSON, Wire, ainvoked, astreamed, evented, invoked, streamed

USAGE: JSON = {
    "cache_creation": {"ephemeral_1h_input_tokens": 30, "ephemeral_5m_input_tokens": 20},
    "cache_creation_input_tokens": 50,
    "cache_read_input_tokens": 2051,
    "inference_geo": "global",
    "input_tokens": 2095,
    "output_tokens": 503,
    "output_tokens_details": {"thinking_tokens": 100},
    "server_tool_use": None,
    "service_tier": "standard",
}
TEXT: JSON = {"citations": None, "text": "Hi! My name is Claude.", "type": "text"}
COUNTED = Usage(
    4196, 503, cache_read_tokens=2051, cache_write_tokens=50, cache_write_1h_tokens=30, reasoning_tokens=100
)


def message(*content: JSON, **usage: Any) -> JSON:
    return {
        "id": "msg_013Zva2CMHLNnXjNJJKqJ2EF",
        "content": list(content or (TEXT,)),
        "model": "claude-sonnet-5",
        "role": "assistant",
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "type": "message",
        "usage": USAGE | usage,
    }


def claude(wire: Wire, **more: Any) -> ChatAnthropic:
    defaults: dict[str, Any] = {"model": "claude-sonnet-5", "max_tokens": 1000, "max_retries": 0}
    return ChatAnthropic(base_url=wire.url, api_key=SecretStr("none"), **(defaults | more))


def test_a_message(wire: Wire) -> None:
    wire.json(message())
    heard = invoked(claude(wire))
    assert heard.usage == COUNTED
    assert heard.response.model == "claude-sonnet-5"
    assert heard.response.id == "msg_013Zva2CMHLNnXjNJJKqJ2EF"
    assert heard.response.finish_reasons == ("end_turn",)
    assert heard.response.billed_nano is None


async def test_a_message_in_async_code(wire: Wire) -> None:
    wire.json(message())
    assert (await ainvoked(claude(wire))).usage == COUNTED


@pytest.mark.parametrize(
    ("model", "usage", "dollars"),
    [
        # Regression cases 1, 4 and 5 of reference/pricing.md, from the wire to the dollar.
        (
            "claude-3-7-sonnet-20250219",
            {"input_tokens": 3, "cache_creation_input_tokens": 12304, "output_tokens": 550, "cache_creation": None},
            "0.054399",
        ),
        (
            "claude-opus-5",
            {
                "cache_creation_input_tokens": 344139,
                "cache_creation": {"ephemeral_1h_input_tokens": 344139, "ephemeral_5m_input_tokens": 0},
            },
            "3.44139",
        ),
        (
            "claude-opus-4-8",
            {
                "cache_creation_input_tokens": 1_000_000,
                "cache_creation": {"ephemeral_1h_input_tokens": 400_000, "ephemeral_5m_input_tokens": 600_000},
            },
            "7.75",
        ),
    ],
)
def test_writes_by_how_long_they_last_are_priced_apart(wire: Wire, model: str, usage: JSON, dollars: str) -> None:
    nothing = {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0, "output_tokens_details": None}
    wire.json(message(**nothing | usage))
    told = invoked(claude(wire)).usage
    assert told is not None
    assert PriceBook().cost(model, told, provider="anthropic") == Decimal(dollars)


@pytest.mark.parametrize(
    ("usage", "context"),
    [
        ({"service_tier": "standard"}, None),  # says nothing of the speed
        ({"service_tier": "standard", "speed": "standard"}, "standard"),
        ({"service_tier": "standard", "speed": "fast"}, "fast"),
        ({"service_tier": "priority"}, "priority"),
        ({"service_tier": "batch"}, "batch"),
        ({"service_tier": None}, None),
    ],
)
def test_the_service_tier_and_the_speed(wire: Wire, usage: JSON, context: str | None) -> None:
    wire.json(message(**usage))
    assert invoked(claude(wire)).response.context == context


@pytest.mark.parametrize(
    ("geo", "regional"), [("us", True), ("global", False), ("not_available", False), (None, False)]
)
def test_the_region_it_was_held_to(wire: Wire, geo: str | None, regional: bool) -> None:
    wire.json(message(inference_geo=geo))
    assert invoked(claude(wire)).response.regional is regional


def test_searches_are_billed_apart(wire: Wire) -> None:
    wire.json(message(TEXT, server_tool_use={"web_search_requests": 3, "web_fetch_requests": 2}))
    told = invoked(claude(wire)).usage
    assert told is not None
    assert told.web_searches == 3


def test_what_compaction_took_is_in_no_total(wire: Wire) -> None:
    """.../build-with-claude/compaction: the top-level figures leave the compaction's own iteration out."""
    steps = [
        {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500},
        {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000},
    ]
    usage = {"input_tokens": 23_000, "output_tokens": 1_000, "iterations": steps}
    nothing = {"cache_creation": None, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    wire.json(message(**nothing, **usage, output_tokens_details=None))
    assert invoked(claude(wire)).usage == Usage(203_000, 4_500)


def start(index: int, block: JSON) -> JSON:
    return {"type": "content_block_start", "index": index, "content_block": block}


def stop(index: int) -> JSON:
    return {"type": "content_block_stop", "index": index}


def delta(reason: str | None, **usage: Any) -> JSON:
    return {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage}


def stream(*events: JSON, input_tokens: int = 472, cached: int = 0) -> list[JSON]:
    begun = message() | {
        "content": [],
        "stop_reason": None,
        "usage": {
            "input_tokens": input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": 2,
            "service_tier": "standard",
        },
    }
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Okay"}}
    words = [start(0, {"type": "text", "text": ""}), {"type": "ping"}, text, stop(0)]
    return [{"type": "message_start", "message": begun}, *words, *events, {"type": "message_stop"}]


def totals(output: int, cached: int = 0, written: int = 0) -> JSON:
    return {
        "input_tokens": 472,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
    }


def test_a_stream(wire: Wire) -> None:
    """Both its ends carry the cached tokens; they are counted once (langchainjs#10249 counted them twice)."""
    wire.events(*stream(delta("end_turn", **totals(89, cached=2000)), cached=2000), done=False)
    heard = streamed(claude(wire))
    assert heard.usage == Usage(2472, 89, cache_read_tokens=2000)
    assert heard.response.model == "claude-sonnet-5"
    assert heard.response.finish_reasons == ("end_turn",)
    assert heard.response.context is None


def test_several_deltas_each_carry_the_whole(wire: Wire) -> None:
    """Their figures are cumulative (posthog-python 7.75.4); LangChain adds them up, and its sum would be 3,144 in."""
    deltas = (delta(None, **totals(40, 1000, 100)), delta("end_turn", **totals(89, 1000, 100)))
    wire.events(*stream(*deltas, cached=1000), done=False)
    told = streamed(claude(wire)).usage
    assert told == Usage(1572, 89, cache_read_tokens=1000, cache_write_tokens=100)


def test_several_deltas_of_a_stream_of_events(wire: Wire) -> None:
    deltas = (delta(None, **totals(40, 1000, 100)), delta("end_turn", **totals(89, 1000, 100)))
    wire.events(*stream(*deltas, cached=1000), done=False)
    told = evented(claude(wire)).usage
    assert told == Usage(1572, 89, cache_read_tokens=1000, cache_write_tokens=100)


async def test_several_deltas_in_async_code(wire: Wire) -> None:
    wire.events(*stream(delta(None, **totals(40)), delta("end_turn", output_tokens=89)), done=False)
    assert (await astreamed(claude(wire))).usage == Usage(472, 89)


def test_a_stream_whose_last_delta_has_the_output_alone(wire: Wire) -> None:
    """As in the first example of the streaming guide: then the input is nowhere, for LangChain drops message_start."""
    wire.events(*stream(delta("end_turn", output_tokens=15)), done=False)
    heard = streamed(claude(wire))
    assert read_usage(message_of(heard.result)) == Usage(0, 15)


@pytest.mark.parametrize(("ttl", "hour"), [({}, 0), ({"ttl": "5m"}, 0), ({"ttl": "1h"}, 700)])
def test_a_stream_does_not_say_how_long_writes_last_so_the_request_does(wire: Wire, ttl: JSON, hour: int) -> None:
    wire.events(*stream(delta("end_turn", **totals(89, written=700))), done=False)
    block = {"type": "text", "text": "long", "cache_control": {"type": "ephemeral"} | ttl}
    told = streamed(claude(wire), [HumanMessage([block])]).usage
    assert told == Usage(1172, 89, cache_write_tokens=700, cache_write_1h_tokens=hour)


def test_an_answer_that_says_how_long_writes_last_is_believed(wire: Wire) -> None:
    wire.json(message())
    block = {"type": "text", "text": "long", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert invoked(claude(wire), [HumanMessage([block])]).usage == COUNTED


FOUND: JSON = {
    "type": "web_search_result",
    "title": "Weather in New York City",
    "url": "https://example.com/",
    "encrypted_content": "Ev0DCioIAxgCIiQ3NmU4ZmI4OC1k",
    "page_age": None,
}
FAILED: JSON = {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}


def search(index: int, result: Any) -> list[JSON]:
    use = {"type": "server_tool_use", "id": f"srvtoolu_{index}", "name": "web_search", "input": {}}
    words = {"type": "input_json_delta", "partial_json": '{"query": "weather NYC today"}'}
    found = {"type": "web_search_tool_result", "tool_use_id": f"srvtoolu_{index}", "content": result}
    return [
        start(index, use),
        {"type": "content_block_delta", "index": index, "delta": words},
        stop(index),
        start(index + 1, found),
        stop(index + 1),
    ]


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_searches_of_a_stream_are_counted_by_their_results(wire: Wire, version: str) -> None:
    """LangChain drops a stream's `server_tool_use`. A search that failed is not billed."""
    searches = [*search(1, [FOUND, FOUND]), *search(3, []), *search(5, FAILED)]
    usage = totals(510) | {"server_tool_use": {"web_search_requests": 2}}
    wire.events(*stream(*searches, delta("end_turn", **usage)), done=False)
    tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
    told = streamed(claude(wire, output_version=version), tools=[tool]).usage
    assert told == Usage(472, 510, web_searches=2)


def test_thinking_of_a_stream(wire: Wire) -> None:
    usage = totals(89) | {"output_tokens_details": {"thinking_tokens": 60}}
    wire.events(*stream(delta("end_turn", **usage)), done=False)
    assert streamed(claude(wire)).usage == Usage(472, 89, reasoning_tokens=60)


def test_a_stream_without_usage_has_none(wire: Wire) -> None:
    wire.events(*stream(delta("end_turn", **totals(89))), done=False)
    assert streamed(claude(wire, stream_usage=False)).usage is None


@pytest.mark.parametrize("where", ["constructor", "invocation"])
@pytest.mark.parametrize(
    ("geo", "regional", "bounded"), [("us", True, True), ("global", False, True), ("eu", False, False)]
)
def test_a_region_asked_for(wire: Wire, where: str, geo: str, regional: bool, bounded: bool) -> None:
    """`us` costs 1.1 times as much; what another one costs is not published."""
    wire.json(message(inference_geo=geo))
    asked: dict[str, Any] = {"inference_geo": geo}
    heard = invoked(claude(wire, **asked)) if where == "constructor" else invoked(claude(wire), **asked)
    assert heard.request is not None
    assert (heard.request.regional, heard.request.bounded) == (regional, bounded)
