"""langchain-google-genai, fed with the answers Google documents.

https://ai.google.dev/api/generate-content (UsageMetadata, GroundingMetadata, PromptFeedback),
https://ai.google.dev/gemini-api/docs/google-search, .../image-generation, .../pricing.
"""

from __future__ import annotations

import base64
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_google_genai import ChatGoogleGenerativeAI
from pydantic import SecretStr

from runcap.guardrails import Usage

from .wire import JSON, Wire, ainvoked, astreamed, evented, invoked, streamed

USAGE: JSON = {
    "promptTokenCount": 2152,
    "cachedContentTokenCount": 2027,
    "candidatesTokenCount": 400,
    "thoughtsTokenCount": 710,
    "toolUsePromptTokenCount": 100,
    "totalTokenCount": 3362,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 2152}],
    "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 2027}],
    "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 400}],
    "serviceTier": "standard",
}
AIOHTTP = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
COUNTED = Usage(2252, 1110, cache_read_tokens=2027, reasoning_tokens=710)


def answer(
    *parts: JSON,
    usage: JSON | None = USAGE,
    reason: str | None = "STOP",
    model: str = "gemini-2.5-flash",
    **candidate: Any,
) -> JSON:
    content = {"role": "model", "parts": list(parts or ({"text": "Hello"},))}
    told: JSON = {
        "candidates": [{"index": 0, "content": content} | candidate],
        "modelVersion": model,
        "responseId": "r1",
    }
    if reason:
        told["candidates"][0]["finishReason"] = reason
    return told | ({"usageMetadata": usage} if usage else {})


def gemini(wire: Wire, **more: Any) -> ChatGoogleGenerativeAI:
    defaults: dict[str, Any] = {"model": "gemini-2.5-flash", "max_retries": 1}
    return ChatGoogleGenerativeAI(base_url=wire.url, api_key=SecretStr("none"), **(defaults | more))


def test_an_answer(wire: Wire) -> None:
    """Thoughts are output, and what the provider's own tools read is input."""
    wire.json(answer())
    heard = invoked(gemini(wire))
    assert heard.usage == COUNTED
    assert heard.response.model == "gemini-2.5-flash"
    assert heard.response.finish_reasons == ("STOP",)
    assert heard.response.context is None


@AIOHTTP
async def test_in_async_code(wire: Wire) -> None:
    model = gemini(wire)
    wire.json(answer())
    assert (await ainvoked(model)).usage == COUNTED
    wire.events(*CHUNKS, done=False)
    assert (await astreamed(model)).usage == ADDED_UP


def so_far(prompt: int, thoughts: int, words: int) -> JSON:
    """Each chunk's figures are totals."""
    return {
        "promptTokenCount": prompt,
        "cachedContentTokenCount": 2027,
        "thoughtsTokenCount": thoughts,
        "candidatesTokenCount": words,
        "totalTokenCount": prompt + thoughts + words,
    }


CHUNKS = [
    answer({"text": "Hel"}, usage=so_far(2152, 500, 0), reason=None),
    answer({"text": "lo"}, usage=so_far(2152, 710, 200), reason=None),
    answer({"text": "!"}, usage=so_far(2152, 710, 400)),
]


ADDED_UP = Usage(2152, 1110, cache_read_tokens=2027, reasoning_tokens=710)


def test_a_stream(wire: Wire) -> None:
    wire.events(*CHUNKS, done=False)
    heard = streamed(gemini(wire))
    assert heard.usage == ADDED_UP
    assert heard.response.model == "gemini-2.5-flash"
    assert heard.response.finish_reasons == ("STOP",)


def test_a_stream_of_events(wire: Wire) -> None:
    """Of the details LangChain keeps the last chunk's alone, in which nothing is cached and nothing thought."""
    wire.events(*CHUNKS, done=False)
    assert evented(gemini(wire)).usage == ADDED_UP


def test_a_stream_whose_input_becomes_less(wire: Wire) -> None:
    """Gemini 2.0 does that, and its last figures are the ones billed."""
    first = {"promptTokenCount": 100, "candidatesTokenCount": 1, "totalTokenCount": 101}
    last = {"promptTokenCount": 20, "candidatesTokenCount": 5, "totalTokenCount": 25}
    chunks = (answer({"text": "a"}, usage=first, reason=None), answer({"text": "b"}, usage=last))
    wire.events(*chunks, done=False)
    assert streamed(gemini(wire)).usage == Usage(20, 5)


@pytest.mark.parametrize("stream", [False, True])
def test_usage_is_counted_once_whatever_the_number_of_candidates(wire: Wire, stream: bool) -> None:
    two = answer()
    two["candidates"].append(two["candidates"][0] | {"index": 1})
    if stream:
        wire.events(two, done=False)
        heard = streamed(gemini(wire, n=2))
    else:
        wire.json(two)
        heard = invoked(gemini(wire, n=2))
    assert heard.usage == COUNTED
    assert heard.response.model == "gemini-2.5-flash"


def test_a_blocked_prompt_has_no_usage(wire: Wire) -> None:
    feedback = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "modelVersion": "gemini-2.5-flash"}
    wire.json(feedback | {"usageMetadata": {"promptTokenCount": 8, "totalTokenCount": 8}})
    assert invoked(gemini(wire)).usage is None
    wire.json(feedback)
    assert invoked(gemini(wire)).usage is None


def test_a_blocked_prompt_of_a_stream_may_have_some(wire: Wire) -> None:
    feedback = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "modelVersion": "gemini-2.5-flash"}
    wire.events(feedback | {"usageMetadata": {"promptTokenCount": 8, "totalTokenCount": 8}}, done=False)
    assert streamed(gemini(wire)).usage == Usage(8, 0)


PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_with_an_image_counts_as_image(wire: Wire, stream: bool, version: str) -> None:
    """LangChain drops `candidatesTokensDetails`, which would tell the 1,290 tokens of the image from the text."""
    usage = {
        "promptTokenCount": 12,
        "candidatesTokenCount": 1320,
        "thoughtsTokenCount": 50,
        "totalTokenCount": 1382,
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1290}],
    }
    drawn = answer(
        {"text": "Here you are:"},
        {"inlineData": {"mimeType": "image/png", "data": PIXEL}},
        usage=usage,
        model="gemini-2.5-flash-image",
    )
    model = gemini(wire, model="gemini-2.5-flash-image", output_version=version)
    if stream:
        wire.events(drawn, done=False)
        told = streamed(model).usage
    else:
        wire.json(drawn)
        told = invoked(model).usage
    assert told == Usage(12, 1370, reasoning_tokens=50, output_image_tokens=1320)


def grounded(model: str, queries: list[str]) -> JSON:
    return answer(
        model=model,
        groundingMetadata={
            "webSearchQueries": queries,
            "searchEntryPoint": {"renderedContent": "<!-- HTML and CSS for the search widget -->"},
            "groundingChunks": [{"web": {"uri": "https://example.com/", "title": "example.com"}}],
            "groundingSupports": [
                {"segment": {"startIndex": 0, "endIndex": 85, "text": "Spain won."}, "groundingChunkIndices": [0]}
            ],
        },
    )


@pytest.mark.parametrize(
    ("model", "queries", "searches"),
    [
        ("gemini-2.5-flash", ["UEFA Euro 2024 winner", "who won euro 2024"], 1),  # billed by the grounded prompt
        ("gemini-3-flash-preview", ["UEFA Euro 2024 winner", "who won euro 2024"], 2),  # billed by the query
        (
            "gemini-3-flash-preview",
            ["", "who won euro 2024", "", "who won euro 2024"],
            1,
        ),  # distinct ones, empty ones free
        ("gemini-3-flash-preview", [], 0),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_searches(wire: Wire, model: str, queries: list[str], searches: int, stream: bool) -> None:
    if stream:
        wire.events(answer({"text": "Spain"}, reason=None, model=model), grounded(model, queries), done=False)
        told = streamed(gemini(wire, model=model)).usage
    else:
        wire.json(grounded(model, queries))
        told = invoked(gemini(wire, model=model)).usage
    assert told is not None
    assert told.web_searches == searches


def test_without_usage_there_is_none(wire: Wire) -> None:
    wire.json(answer(usage=None))
    assert invoked(gemini(wire)).usage is None


def test_a_prompt_with_sound_counts_as_sound(wire: Wire) -> None:
    """LangChain drops `promptTokensDetails`; only the request says that there was sound. 1,600 of it, the wire says."""
    usage = {
        "promptTokenCount": 1620,
        "candidatesTokenCount": 40,
        "totalTokenCount": 1660,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 20}, {"modality": "AUDIO", "tokenCount": 1600}],
    }
    wire.json(answer(usage=usage))
    sound = {"type": "audio", "base64": PIXEL, "mime_type": "audio/wav"}
    heard = invoked(gemini(wire), [HumanMessage([{"type": "text", "text": "What is said?"}, sound])])
    assert heard.usage == Usage(1620, 40, input_audio_tokens=1620)
