"""Blocks of a message's content, in every provider's shape -> parts, in the shapes of the GenAI conventions.

Never the bytes of an image, sound or file: what it is and how large.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runcap.exporters.otel.jsontext import left_out, plain, without_binary

Part = dict[str, Any]
Block = Mapping[str, Any]

_TEXTS = frozenset({"text", "input_text", "output_text", "refusal", "text-plain", "text_delta"})
_REASONING = frozenset({"reasoning", "reasoning_content", "redacted_thinking", "thinking"})
_CALLS = frozenset({"custom_tool_call", "function_call", "tool_call", "tool_use", "invalid_tool_call"})
_RESULTS = frozenset({"tool_result", "function_call_output", "custom_tool_call_output"})
_CHUNKS = frozenset({"input_json_delta", "tool_call_chunk", "server_tool_call_chunk"})
_MODALITIES = {
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("audio", "input_audio"), "audio"),
    "video": "video",
    **dict.fromkeys(("document", "file", "input_file", "media"), "document"),
}
_UNTYPED = ("text", "image", "document", "video", "json")
"""Bedrock's blocks say what they are by their one key."""
_BYTES = ("base64", "data", "bytes", "file_data")
_URIS = ("url", "uri", "file_uri", "fileUri", "file_url", "image_url", "s3Location")
_IDS = ("file_id", "fileId", "id")
_INSIDE = ("source", "image_url", "input_audio", "file", "inline_data", "inlineData", "file_data", "fileData")
_MIMES = ("mime_type", "media_type", "mimeType")
_OPAQUE = frozenset({"encrypted_content", "signature", "thoughtSignature", "partial_image_b64", "b64_json", *_BYTES})


def parts_of(content: object) -> list[Part]:
    """The parts of a message's content."""
    if isinstance(content, str):
        return [_text(content)] if content else []
    blocks = content if isinstance(content, (list, tuple)) else [content]
    made = (_text(block) if isinstance(block, str) else part_of(block) for block in blocks if block)
    return [part for part in made if part is not None]


def part_of(block: object) -> Part | None:  # noqa: PLR0911 - one for each kind of block
    """One block; None where it says nothing."""
    if not isinstance(block, Mapping):
        return {"type": type(block).__name__}
    kind = str(block.get("type") or next((name for name in _UNTYPED if name in block), "unknown"))
    if kind in _TEXTS and (told := block.get("text") or block.get("refusal")):
        return _text(str(told))
    if kind in _REASONING or block.get("thought") is True:
        return reasoning(_reasons(block))
    if kind in _CALLS or "toolUse" in block:
        return _call_of(block.get("toolUse") or block)
    if kind in _RESULTS or "toolResult" in block:
        return _result_of(block.get("toolResult") or block)
    if kind in _MODALITIES:
        return _media(block, _MODALITIES[kind])
    if kind in _TEXTS or kind in _CHUNKS or "cachePoint" in block:
        return _media(block, "document") if any(block.get(name) for name in (*_BYTES, *_URIS)) else None
    value = block.get("value")
    if kind == "non_standard" and isinstance(value, Mapping):
        return part_of(value)
    return _other(kind, block)


def reasoning(text: str) -> Part | None:
    """What was thought, where it can be read."""
    return {"type": "reasoning", "content": without_binary(text)} if text else None


def call(call_id: object, name: object, arguments: object) -> Part:
    """A tool that is asked for."""
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": arguments_of(arguments)}


def response(call_id: object, content: object) -> Part:
    """What a tool gave."""
    return {"type": "tool_call_response", "id": call_id, "response": response_of(content)}


def response_of(content: object) -> Any:
    """A tool's result: its text, or the parts of it."""
    if isinstance(content, str):
        return without_binary(content)
    is_blocks = isinstance(content, list) and all(isinstance(one, str) or _is_block(one) for one in content)
    return parts_of(content) if content and is_blocks else plain(content)


def arguments_of(arguments: object) -> Any:
    """A tool's arguments; those that come as JSON are read."""
    if isinstance(arguments, str):
        try:
            return plain(json.loads(arguments))
        except (ValueError, RecursionError):
            return without_binary(arguments)
    return plain(arguments)


def is_call(block: object) -> bool:
    """It asks for a tool."""
    return isinstance(block, Mapping) and (str(block.get("type")) in _CALLS or "toolUse" in block)


def _is_block(one: object) -> bool:
    return isinstance(one, Mapping) and ("type" in one or (len(one) == 1 and next(iter(one)) in _UNTYPED))


def _text(text: str) -> Part:
    return {"type": "text", "content": without_binary(text)}


def _reasons(block: Block) -> str:
    for name in ("thinking", "reasoning", "reasoning_content", "text", "summary", "content"):
        told = block.get(name)
        if isinstance(told, Mapping):
            told = told.get("text") or told.get("reasoningText")
        if isinstance(told, list):
            told = "\n".join(str(one.get("text") or "") for one in told if isinstance(one, Mapping))
        if told and isinstance(told, str):
            return told
    return ""


def _call_of(block: Block) -> Part:
    call_id = block.get("call_id") or block.get("id") or block.get("toolUseId")
    given = next((block[name] for name in ("args", "input", "arguments") if block.get(name) is not None), None)
    return call(call_id, block.get("name"), given)


def _result_of(block: Block) -> Part:
    call_id = block.get("tool_use_id") or block.get("call_id") or block.get("toolUseId")
    return response(call_id, next((block[name] for name in ("content", "output") if name in block), None))


def _media(block: Block, modality: str) -> Part:
    """An image, sound or file: inline without its bytes, by its address, or by its id."""
    places = _places(block)
    mime = next((str(place[name]) for place in places for name in _MIMES if place.get(name)), None)
    modality = _modality(mime, modality)
    for part in (_placed(place, mime, modality) for place in places):
        if part is not None:
            return part
    file_id = next((place[name] for place in reversed(places) for name in _IDS if isinstance(place.get(name), str)), "")
    if file_id:
        return {"type": "file", "mime_type": mime, "modality": modality, "file_id": file_id}
    inside = next((place[name] for name in ("content", "text") for place in places if place.get(name)), None)
    if inside is not None:  # Anthropic's documents of text
        return {"type": "document", "content": parts_of(inside)}
    return {"type": "blob", "mime_type": mime, "modality": modality, "size": None}


def _placed(place: Block, mime: str | None, modality: str) -> Part | None:
    for name in _URIS:
        told = place.get(name)
        if isinstance(told, Mapping) and name == "s3Location":
            told = told.get("uri")
        if isinstance(told, str) and told.startswith("data:"):
            return _blob(told, mime, modality)
        if isinstance(told, str):
            return {"type": "uri", "mime_type": mime, "modality": modality, "uri": told}
    data = next((place[name] for name in _BYTES if isinstance(place.get(name), (str, bytes, bytearray))), None)
    # Anthropic's documents of text have the text as their data.
    if data is None or (isinstance(data, str) and place.get("type") == "text"):
        return None if data is None else {"type": "document", "content": parts_of(data)}
    return _blob(data, mime, modality)


def _places(block: Block) -> list[Block]:
    """The block, and the mappings in it that hold what it is about."""
    places = [block]
    for name in (*_INSIDE, *_UNTYPED):
        inner = block.get(name)
        if isinstance(inner, Mapping):
            places.append(inner)
            source = inner.get("source")
            if isinstance(source, Mapping):
                places.append(source)
    return places


def _blob(data: str | bytes | bytearray, mime: str | None, modality: str) -> Part:
    if isinstance(data, str) and data.startswith("data:"):
        mime, data = data[5:].partition(",")[0].partition(";")[0] or mime, data.partition(",")[2]
    size = len(data) * 3 // 4 - data[-2:].count("=") if isinstance(data, str) else len(data)
    return {"type": "blob", "mime_type": mime, "modality": _modality(mime, modality), "size": size}


def _modality(mime: str | None, otherwise: str) -> str:
    kind = (mime or "").partition("/")[0]
    return kind if kind in ("image", "audio", "video") else otherwise


def _other(kind: str, block: Block) -> Part:
    """What a provider did itself, and whatever is new."""
    told = {str(name): one for name, one in block.items() if name not in ("type", "id", "call_id", "tool_use_id")}
    call_id = block.get("tool_call_id") or block.get("tool_use_id") or block.get("call_id") or block.get("id")
    if kind.endswith(("tool_result", "_output")):
        return {"type": "server_tool_call_response", "id": call_id, "server_tool_call_response": _bare(kind, told)}
    if kind.endswith(("_call", "tool_use")):
        name = block.get("name") or kind
        return {"type": "server_tool_call", "id": call_id, "name": name, "server_tool_call": _bare(kind, told)}
    return _bare(kind, {str(name): one for name, one in block.items() if name != "type"})


def _bare(kind: str, told: Block) -> Part:
    return {"type": kind, **_without_opaque(plain(told))}


def _without_opaque(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_opaque(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: left_out(len(one), "characters of data")
        if name in _OPAQUE and isinstance(one, str)
        else _without_opaque(one)
        for name, one in value.items()
    }
