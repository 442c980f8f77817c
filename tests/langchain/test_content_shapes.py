"""Every provider's shapes of content, tool calls and tools, in those of the GenAI conventions."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage

from runcap.integrations.langchain.contentparts import part_of, parts_of
from runcap.integrations.langchain.contents import message_of, tool_definitions

from ..effort import examples

PNG = base64.b64encode(b"\x89PNG" + bytes(range(200)) * 20).decode()


def texts(*content: str) -> list[dict[str, Any]]:
    return [{"type": "text", "content": one} for one in content]


BLOB = {"type": "blob", "mime_type": "image/png", "modality": "image", "size": 4_004}
SOUND = {"type": "blob", "mime_type": "audio/wav", "modality": "audio", "size": 4_004}
DOCUMENT = {"type": "blob", "mime_type": "application/pdf", "modality": "document", "size": 4_004}
URI = {"type": "uri", "mime_type": None, "modality": "image", "uri": "https://x.test/a.png"}
CALL = {"type": "tool_call", "id": "1", "name": "f", "arguments": {"a": 1}}
RESULT = {"type": "tool_call_response", "id": "1", "response": "ok"}
THOUGHT = {"type": "reasoning", "content": "hm"}


@pytest.mark.parametrize(
    ("block", "part"),
    [
        ({"type": "text", "text": "x"}, {"type": "text", "content": "x"}),
        ({"type": "input_text", "text": "x"}, {"type": "text", "content": "x"}),
        ({"type": "refusal", "refusal": "no"}, {"type": "text", "content": "no"}),
        ({"type": "text-plain", "text": "x", "mime_type": "text/plain"}, {"type": "text", "content": "x"}),
        ({"text": "x"}, {"type": "text", "content": "x"}),
        ({"type": "text", "text": ""}, None),
        ({"type": "image_url", "image_url": f"data:image/png;base64,{PNG}"}, BLOB),
        ({"type": "input_image", "image_url": "https://x.test/a.png"}, URI),
        ({"type": "image_url", "image_url": {"url": "https://x.test/a.png", "detail": "low"}}, URI),
        ({"type": "image", "base64": PNG, "mime_type": "image/png"}, BLOB),
        ({"type": "image", "source_type": "base64", "data": PNG, "mime_type": "image/png"}, BLOB),
        ({"type": "image", "url": "https://x.test/a.png"}, URI),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}, BLOB),
        ({"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}}, URI),
        ({"type": "media", "mime_type": "image/png", "data": PNG}, BLOB),
        ({"type": "media", "mime_type": "image/png", "data": base64.b64decode(PNG)}, BLOB),
        (
            {"type": "media", "mime_type": "video/mp4", "file_uri": "gs://b/v"},
            {"type": "uri", "mime_type": "video/mp4", "modality": "video", "uri": "gs://b/v"},
        ),
        ({"type": "audio", "base64": PNG, "mime_type": "audio/wav"}, SOUND),
        ({"type": "file", "base64": PNG, "mime_type": "application/pdf"}, DOCUMENT),
        (
            {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PNG}", "filename": "a.pdf"}},
            DOCUMENT,
        ),
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PNG}}, DOCUMENT),
        (
            {"type": "file", "file": {"file_id": "file-1"}},
            {"type": "file", "mime_type": None, "modality": "document", "file_id": "file-1"},
        ),
        (
            {"type": "image", "source": {"type": "file", "file_id": "file-1"}},
            {"type": "file", "mime_type": None, "modality": "image", "file_id": "file-1"},
        ),
        (
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "the text"}},
            {"type": "document", "content": [{"type": "text", "content": "the text"}]},
        ),
        ({"type": "thinking", "thinking": "hm", "signature": PNG}, THOUGHT),
        ({"type": "reasoning", "reasoning": "hm", "extras": {"signature": PNG}}, THOUGHT),
        ({"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}, THOUGHT),
        ({"type": "reasoning_content", "reasoning_content": {"text": "hm", "signature": PNG}}, THOUGHT),
        ({"type": "redacted_thinking", "data": PNG}, None),
        ({"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}, CALL),
        ({"type": "function_call", "call_id": "1", "id": "fc_1", "name": "f", "arguments": '{"a": 1}'}, CALL),
        ({"type": "tool_call", "id": "1", "name": "f", "args": {"a": 1}}, CALL),
        ({"toolUse": {"toolUseId": "1", "name": "f", "input": {"a": 1}}}, CALL),
        ({"type": "tool_result", "tool_use_id": "1", "content": "ok"}, RESULT),
        ({"type": "function_call_output", "call_id": "1", "output": "ok"}, RESULT),
        ({"type": "non_standard", "value": {"type": "thinking", "thinking": "hm"}}, THOUGHT),
        ({"cachePoint": {"type": "default"}}, None),
        ({"type": "input_json_delta", "partial_json": "{"}, None),
    ],
)
def test_every_shape_of_block(block: Mapping[str, Any], part: Mapping[str, Any] | None) -> None:
    made = part_of(block)
    assert made == part
    assert PNG[:100] not in json.dumps(made)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_generation_call", "id": "ig_1", "result": PNG},
        {
            "type": "web_search_tool_result",
            "tool_use_id": "1",
            "content": [{"encrypted_content": "short", "title": "t"}],
        },
        {"type": "code_execution_result", "inline_data": {"data": PNG[:80], "mime_type": "image/png"}},
        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image", "source": {"data": PNG}}]},
        {"image": {"format": "png", "source": {"bytes": b"\x89PNG"}}},
    ],
)
def test_bytes_are_never_copied(block: Mapping[str, Any]) -> None:
    made = json.dumps(part_of(block))
    assert PNG[:80] not in made
    assert "short" not in made


@pytest.mark.parametrize(
    ("message", "made"),
    [
        (ChatMessage(content="x", role="developer"), {"role": "developer", "parts": texts("x")}),
        (HumanMessage("x", name="ada"), {"role": "user", "parts": texts("x"), "name": "ada"}),
        (SystemMessage("x"), {"role": "system", "parts": texts("x")}),
        (AIMessage("", additional_kwargs={"refusal": "no"}), {"role": "assistant", "parts": texts("no")}),
        (
            AIMessage("so", additional_kwargs={"reasoning_content": "hm"}),
            {"role": "assistant", "parts": [THOUGHT, *texts("so")]},
        ),
        (
            AIMessage("", additional_kwargs={"function_call": {"name": "f", "arguments": '{"a": 1}'}}),
            {"role": "assistant", "parts": [{**CALL, "id": None}]},
        ),
        (
            AIMessage(
                [{"type": "text", "text": "x"}, {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}],
                tool_calls=[{"id": "1", "name": "f", "args": {"a": 1}}],
            ),
            {"role": "assistant", "parts": [*texts("x"), CALL]},
        ),
        (
            AIMessage("", invalid_tool_calls=[{"id": "1", "name": "f", "args": '{"a', "error": "cut"}]),
            {"role": "assistant", "parts": [{**CALL, "arguments": '{"a'}]},
        ),
        (
            AIMessage("", additional_kwargs={"audio": {"id": "a1", "data": PNG, "transcript": "hi"}}),
            {"role": "assistant", "parts": [{**SOUND, "mime_type": "audio"}]},
        ),
    ],
)
def test_messages(message: BaseMessage, made: Mapping[str, Any]) -> None:
    assert message_of(message) == made


@pytest.mark.parametrize(
    ("tools", "names"),
    [
        (
            [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
            ["f"],
        ),
        ([{"name": "f", "description": "d", "input_schema": {"type": "object"}}], ["f"]),
        ([{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}], ["f"]),
        ([{"toolSpec": {"name": "f", "description": "d", "inputSchema": {"json": {"type": "object"}}}}], ["f"]),
        (
            [{"function_declarations": [{"name": "f", "description": "d", "parameters": {"type": "object"}}] * 2}],
            ["f", "f"],
        ),
    ],
)
def test_definitions_of_tools(tools: Any, names: list[str]) -> None:
    made = tool_definitions(tools)
    assert [one["name"] for one in made] == names
    assert all(one["type"] == "function" and one["description"] == "d" and one["parameters"] for one in made)
    assert tool_definitions([{"type": "web_search_20250305", "name": "web_search"}]) == [
        {"type": "web_search_20250305", "name": "web_search"}
    ]
    assert tool_definitions(None) == []


NAMES = st.sampled_from(
    ["type", "text", "source", "data", "url", "image_url", "file", "content", "id", "name", "input", "value", "summary"]
)
KINDS = st.sampled_from(["text", "image", "image_url", "file", "document", "thinking", "reasoning", "tool_use", "odd"])
FOREIGN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | KINDS | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=examples(300), deadline=None)
@given(blocks=st.lists(st.text(max_size=3) | st.dictionaries(NAMES, FOREIGN, max_size=6), max_size=3))
def test_blocks_nobody_knows_do_no_harm(blocks: list[Any]) -> None:
    parts = parts_of(blocks)
    assert json.dumps(parts)
    assert all(isinstance(part["type"], str) for part in parts)
