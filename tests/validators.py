"""What OpenAI's and Anthropic's APIs refuse, checked on the payloads that their packages build.

Written from the providers' documentation and from the errors they answer with, not from any code of runcap's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

Payload = dict[str, Any]
Blocks = list[dict[str, Any]]

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CLAUDE_ID = re.compile(r"[a-zA-Z0-9_-]+")

_OPENAI_KEYS = {
    "assistant": {"role", "content", "name", "tool_calls", "refusal", "audio"},
    "developer": {"role", "content", "name"},
    "system": {"role", "content", "name"},
    "tool": {"role", "content", "tool_call_id"},
    "user": {"role", "content", "name"},
}
_OPENAI_PARTS = {
    "assistant": {"text", "refusal"},
    "developer": {"text"},
    "system": {"text"},
    "tool": {"text"},
    "user": {"text", "image_url", "input_audio", "file"},
}
_OPENAI_MOST_CALLS, _OPENAI_LONGEST_ID = 128, 40

_THINKING = ("thinking", "redacted_thinking")
_CLAUDE_BREAKPOINTS = 4
_CLAUDE_KEYS = {
    "text": {"type", "text", "citations", "cache_control"},
    "image": {"type", "source", "cache_control"},
    "document": {"type", "source", "title", "context", "citations", "cache_control"},
    "search_result": {"type", "source", "title", "content", "citations", "cache_control"},
    "tool_use": {"type", "id", "name", "input", "caller", "toolset_name", "cache_control"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
    "thinking": {"type", "thinking", "signature"},
    "redacted_thinking": {"type", "data"},
    "server_tool_use": {"type", "id", "name", "input", "caller", "cache_control"},
    "web_search_tool_result": {"type", "tool_use_id", "content", "caller", "cache_control"},
    "code_execution_tool_result": {"type", "tool_use_id", "content", "cache_control"},
}
_CLAUDE_SAYS = {
    *("text", "tool_use", "thinking", "redacted_thinking"),
    *("server_tool_use", "web_search_tool_result", "code_execution_tool_result"),
}
_USERS_SAY = {"text", "image", "document", "search_result", "tool_result"}
_RESULTS_SAY = {"text", "image", "document", "search_result"}
_SOURCES = {"base64": {"media_type", "data"}, "url": {"url"}, "file": {"file_id"}, "text": {"media_type", "data"}}


def check_openai(payload: Payload) -> None:
    """Raise AssertionError where OpenAI's Chat Completions would answer 400."""
    messages = payload["messages"]
    assert not {"max_tokens", "max_completion_tokens"} <= payload.keys(), "both max_tokens and max_completion_tokens"
    said = [message for message in messages if message.get("role") not in ("system", "developer")]
    assert said, "messages: nothing but system prompts"
    for at, message in enumerate(messages):
        _check_openai_message(f"messages[{at}]", message)
    _check_openai_sequence(messages)


def _check_openai_message(where: str, message: Payload) -> None:
    role = message.get("role")
    assert role in _OPENAI_KEYS, f"{where}: unknown role {role!r}"
    unknown = message.keys() - _OPENAI_KEYS[role]
    assert not unknown, f"{where}: unknown keys {sorted(unknown)}"
    content = message.get("content")
    if isinstance(content, list):
        assert content, f"{where}: an empty list of parts"
        for part in content:
            _check_openai_part(where, role, part)
    elif content is None:
        assert role == "assistant", f"{where}: no content"
        assert message.keys() & {"tool_calls", "refusal", "audio"}, f"{where}: neither content nor tool calls"
    else:
        assert isinstance(content, str), f"{where}: content is no text"
    if "tool_calls" in message:
        _check_openai_calls(where, message["tool_calls"])
    if role == "tool":
        assert isinstance(message.get("tool_call_id"), str), f"{where}: a tool message without tool_call_id"


def _check_openai_part(where: str, role: str, part: object) -> None:
    assert isinstance(part, dict), f"{where}: a part that is no object"
    kind = part.get("type")
    assert kind in _OPENAI_PARTS[role], f"{where}: part {kind!r} in a message of role {role}"
    unknown = part.keys() - {"type", kind}
    assert not unknown, f"{where}: unknown keys {sorted(unknown)} in part {kind!r}"
    if kind in ("text", "refusal"):
        assert isinstance(part.get(kind), str), f"{where}: {kind} is no text"
    elif kind == "image_url":
        url = part["image_url"].get("url", "")
        assert url.startswith(("https://", "http://", "data:image/")), f"{where}: image_url is no address of an image"
    elif kind == "file":
        assert part["file"].keys() & {"file_id", "file_data"}, f"{where}: a file without its data or id"


def _check_openai_calls(where: str, calls: Blocks) -> None:
    assert calls, f"{where}: tool_calls is empty"
    assert len(calls) <= _OPENAI_MOST_CALLS, f"{where}: more than {_OPENAI_MOST_CALLS} tool calls"
    ids = [call.get("id") for call in calls]
    assert len(set(ids)) == len(ids), f"{where}: a tool call id stands twice"
    for call in calls:
        call_id = call.get("id")
        assert call.keys() == {"id", "type", "function"}, f"{where}: keys of a tool call {sorted(call)}"
        assert isinstance(call_id, str), f"{where}: a tool call without id"
        assert 0 < len(call_id) <= _OPENAI_LONGEST_ID, f"{where}: id longer than {_OPENAI_LONGEST_ID} or empty"
        function = call["function"]
        assert _TOOL_NAME.fullmatch(function["name"]), f"{where}: tool name {function['name']!r}"
        assert isinstance(function["arguments"], str), f"{where}: arguments are no string"
        assert isinstance(_json(function["arguments"]), dict), f"{where}: arguments are no JSON object"


def _check_openai_sequence(messages: Blocks) -> None:
    waiting: list[str] = []
    asked_at = 0
    for at, message in enumerate(messages):
        if message["role"] == "tool":
            told = message["tool_call_id"]
            assert told in waiting, f"messages[{at}]: a tool message that answers no call before it, or one twice"
            waiting.remove(told)
            continue
        assert not waiting, f"messages[{asked_at}]: tool calls not answered by the messages that follow: {waiting}"
        waiting, asked_at = [call["id"] for call in message.get("tool_calls", ())], at
    assert not waiting, f"messages[{asked_at}]: tool calls not answered by the messages that follow: {waiting}"


def check_anthropic(payload: Payload, *, manual_thinking: bool = False, bound_thinking: bool = False) -> None:
    """Raise AssertionError where Anthropic's Messages API would answer 400.

    Args:
        payload: What is sent.
        manual_thinking: Thinking is on with a budget of its own.
        bound_thinking: The model binds its thinking to all that came before, as `sign` does.
    """
    messages = payload["messages"]
    assert messages, "messages: empty"
    _check_claude_system(payload.get("system"))
    for at, message in enumerate(messages):
        _check_claude_message(f"messages[{at}]", message)
    assert messages[0]["role"] == "user", "messages[0]: the first message is not the user's"
    assert messages[-1]["role"] == "user", f"messages[{len(messages) - 1}]: the last message is the assistant's"
    _check_claude_tools(messages)
    breakpoints = sum(map(_breakpoints, (payload.get("system"), payload.get("tools"), messages)))
    assert breakpoints <= _CLAUDE_BREAKPOINTS, f"{breakpoints} blocks with cache_control, {_CLAUDE_BREAKPOINTS} allowed"
    if manual_thinking:
        _check_manual_thinking(messages)
    if bound_thinking:
        _check_bound_thinking(payload.get("system"), messages)


def sign(system: str | Blocks | None, messages_before: Sequence[Payload]) -> str:
    """The signature of a thinking block that comes after these messages of a payload.

    Its first half stands for the system prompt and all that was said, thinking and cache_control aside; its second for
    the thinking block before it. So thinking may go oldest first, newest first or as a whole, but leave no gap.
    """
    heard = [_bare(_blocks(system)), [(role, _bare(blocks)) for role, blocks in _merged(messages_before)]]
    before = [block["signature"] for _, block in _thoughts(messages_before)]
    return f"{_digest(heard)}.{_digest(before[-1] if before else None)}"


def _check_claude_system(system: object) -> None:
    assert system is None or isinstance(system, (str, list)), "system: neither text nor blocks"
    assert system is None or system, "system: empty"
    for block in _blocks(system):
        assert block.get("type") == "text", f"system: block {block.get('type')!r}"
        _check_claude_block("system", block)


def _check_claude_message(where: str, message: Payload) -> None:
    role, content = message.get("role"), message.get("content")
    assert role in ("user", "assistant"), f"{where}: unknown role {role!r}"
    assert message.keys() == {"role", "content"}, f"{where}: unknown keys {sorted(message)}"
    assert isinstance(content, (str, list)), f"{where}: content is neither text nor blocks"
    assert content, f"{where}: empty content"
    allowed = _CLAUDE_SAYS if role == "assistant" else _USERS_SAY
    blocks = _blocks(content)
    for block in blocks:
        assert isinstance(block, dict), f"{where}: a block that is no object"
        assert block.get("type") in allowed, f"{where}: block {block.get('type')!r} in a message of role {role}"
        _check_claude_block(where, block)
    assert blocks[-1]["type"] not in _THINKING, f"{where}: the last block is thinking"


def _check_claude_block(where: str, block: Payload) -> None:
    kind = block["type"]
    unknown = block.keys() - _CLAUDE_KEYS[kind]
    assert not unknown, f"{where}: unknown keys {sorted(unknown)} in block {kind!r}"
    if kind == "text":
        assert isinstance(block.get("text"), str), f"{where}: text is no text"
        assert block["text"].strip(), f"{where}: text without a character that is no white space"
    elif kind in ("image", "document"):
        source = block["source"]
        assert source.get("type") in _SOURCES, f"{where}: unknown source {source.get('type')!r}"
        assert source.keys() - {"type"} == _SOURCES[source["type"]], f"{where}: keys of a source {sorted(source)}"
    elif kind == "thinking":
        assert isinstance(block.get("thinking"), str), f"{where}: thinking is no text"
        assert block.get("signature"), f"{where}: thinking without its signature"
    elif kind == "tool_use":
        assert _CLAUDE_ID.fullmatch(block["id"] or ""), f"{where}: tool id {block['id']!r}"
        assert isinstance(block["input"], dict), f"{where}: the input of a tool is no object"
    elif kind == "tool_result":
        _check_claude_result(where, block)


def _check_claude_result(where: str, block: Payload) -> None:
    assert _CLAUDE_ID.fullmatch(block["tool_use_id"] or ""), f"{where}: tool id {block['tool_use_id']!r}"
    content = block.get("content", "")
    for inner in content if isinstance(content, list) else ():
        assert isinstance(inner, dict), f"{where}: a block of a tool's result that is no object"
        assert inner.get("type") in _RESULTS_SAY, f"{where}: block {inner.get('type')!r} in a tool's result"
        assert "cache_control" not in inner, f"{where}: cache_control inside a tool's result"
        _check_claude_block(where, inner)


def _check_claude_tools(messages: Sequence[Payload]) -> None:
    waiting: set[str] = set()
    ever: set[str] = set()
    # Messages of one role that follow each other count as one.
    for role, blocks in _merged(messages):
        if role == "user":
            results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
            opening = [block["tool_use_id"] for block in blocks[: len(results)] if block["type"] == "tool_result"]
            assert len(set(results)) == len(results), f"a tool result stands twice: {results}"
            assert set(results) <= waiting, f"tool results for calls that were not just made: {set(results) - waiting}"
            assert waiting <= set(opening), f"tool calls without results right after them: {waiting - set(opening)}"
            waiting = set()
        else:
            calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
            assert len(set(calls)) == len(calls), f"a tool id stands twice: {calls}"
            assert not ever & set(calls), f"tool ids used before: {ever & set(calls)}"
            waiting = set(calls)
            ever |= waiting
    assert not waiting, f"tool calls without results right after them: {waiting}"


def _check_manual_thinking(messages: Sequence[Payload]) -> None:
    *_, (_, answer), (_, last) = [("assistant", []), *_merged(messages)]
    if any(block["type"] == "tool_result" for block in last):
        kind = answer[0]["type"]
        assert kind in _THINKING, f"messages[-2]: with manual thinking it starts with thinking, not {kind!r}"


def _check_bound_thinking(system: str | Blocks | None, messages: Sequence[Payload]) -> None:
    first_at: int | None = None
    for at, block in _thoughts(messages):
        first_at = at if first_at is None else first_at
        said, after = block["signature"].partition(".")[::2]
        expected, expected_after = sign(system, messages[:at]).split(".")
        assert said == expected, f"messages[{at}]: thinking is bound to a different conversation"
        # What came before the first one that is left may have gone.
        assert at == first_at or after == expected_after, f"messages[{at}]: thinking is missing before it: a gap"


def _thoughts(messages: Sequence[Payload]) -> Iterator[tuple[int, Payload]]:
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            yield from ((at, block) for block in _blocks(message["content"]) if block.get("type") == "thinking")


def _merged(messages: Sequence[Payload]) -> list[tuple[str, Blocks]]:
    merged: list[tuple[str, Blocks]] = []
    for message in messages:
        if not merged or merged[-1][0] != message["role"]:
            merged.append((message["role"], []))
        merged[-1][1].extend(_blocks(message["content"]))
    return merged


def _blocks(content: object) -> Blocks:
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content  # type: ignore[return-value]


def _bare(blocks: Blocks) -> Blocks:
    kept = [block for block in blocks if block.get("type") not in _THINKING]
    return [{key: value for key, value in block.items() if key != "cache_control"} for block in kept]


def _digest(value: object) -> str:
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()


def _breakpoints(value: object) -> int:
    if isinstance(value, dict):
        return ("cache_control" in value) + sum(map(_breakpoints, value.values()))
    return sum(map(_breakpoints, value)) if isinstance(value, list) else 0


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
