"""How large a history is, without sending or keeping it: bytes, digests, and what the provider counted before.

A prompt is walked once. In an agent loop the message objects stay the same, so the next call only measures the new
ones; otherwise (strings, checkpoints) digests find the longest prefix the provider has counted already.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from pydantic import BaseModel

from runcap.guardrails.estimate import Measured, Prompt
from runcap.guardrails.ratecard import CacheWrites
from runcap.guardrails.recent import Recent

_MEDIA = frozenset({"audio", "document", "file", "input_audio", "input_file", "media", "video"})
_IMAGES = frozenset({"image", "image_url", "input_image"})
_CALLS = frozenset({"function_call", "tool_call", "tool_use"})
_NOT_SENT = frozenset({"parsed", "refusal", "tool_calls"})
_SETTINGS = frozenset({"_type", "model", "model_name", "model_id", "stop", "stop_sequences"})
_OWN_TOOL = ("name", "function", "function_declarations", "toolSpec", "title")
_WALKS = 8


class Size(NamedTuple):
    """One message: a digest of what is sent of it, and how much that is."""

    digest: bytes
    prompt: Prompt
    writes: CacheWrites


@dataclass(frozen=True, slots=True)
class Walk:
    """A prompt as walked: `end` names the whole prefix, `prompt` is what is known of its size."""

    base: bytes
    messages: tuple[BaseMessage, ...]
    marks: tuple[object, ...]
    end: bytes
    prompt: Prompt
    writes: CacheWrites


class Walks:
    """The last prompts of one run, by model and tools."""

    def __init__(self) -> None:
        self._last: Recent[bytes, Walk] = Recent(_WALKS)

    def walk(self, base: Size, messages: Sequence[BaseMessage], measured: Measured) -> Walk:
        """Measure a prompt, starting from the previous one where it goes on from that."""
        before = self._last.get(base.digest)
        start = before if before is not None and _goes_on(before, messages) else _empty(base)
        walk = _walk(start, messages, measured)
        self._last.put(base.digest, walk)
        return walk


def base_size(model: str | None, provider: str | None, params: Mapping[str, Any]) -> Size:
    """What every message of the call stands on: the model, and what is sent of tools and formats."""
    tools = params.get("tools") or params.get("functions") or ()
    # Whatever is not a mere setting may become text of the prompt: tools, formats, predictions, extra bodies.
    sent = {key: value for key, value in params.items() if key not in _SETTINGS and _has_text(value)}
    parts = _Parts()
    parts.tools = bool(tools)
    if sent:
        parts.text(_json(sent))
        parts.messages += len(tools) + 1
    parts.cache_control(params.get("cache_control"))
    for tool in tools:
        parts.tool(tool)
    digest = _digest((provider or "", model or "", _json(sent)))
    return Size(digest, parts.prompt(), parts.writes)


def answer_digest(base: bytes, message: BaseMessage) -> bytes:
    """Names an answer of this model, so that its counted output bounds it when it comes back as input."""
    return _digest((base, measure(message).digest))


def measure(message: BaseMessage) -> Size:
    """The digest and size of one message. A name on an AI message is left out: agents add it afterwards."""
    parts = _Parts()
    parts.messages = 1
    pieces: list[str] = [message.type]
    parts.content(message.content)
    pieces.append(message.content if isinstance(message.content, str) else _json(message.content))
    if isinstance(message, AIMessage):
        pieces.append(parts.calls_of(message))
    extra = {key: value for key, value in message.additional_kwargs.items() if key not in _NOT_SENT}
    if extra:
        pieces.append(_json(extra))
        parts.text(pieces[-1])
    if isinstance(message, ToolMessage):
        pieces.append(message.tool_call_id)
        parts.text(message.tool_call_id)
    if message.name:
        parts.text(message.name)
        pieces += [] if isinstance(message, AIMessage) else [message.name]
    return Size(_digest(pieces), parts.prompt(), parts.writes)


def _mark(message: BaseMessage) -> object:
    """Tells whether a message was edited in place since: its text itself, or a fingerprint of all that is not text."""
    content, extra = message.content, message.additional_kwargs
    calls = (message.tool_calls, message.invalid_tool_calls) if isinstance(message, AIMessage) else ((), ())
    if isinstance(content, str) and not extra and not calls[0] and not calls[1]:
        return content
    return hash(repr((content, calls, extra)))


def _goes_on(before: Walk, messages: Sequence[BaseMessage]) -> bool:
    if len(before.messages) > len(messages):
        return False
    # By identity, but messages are mutable and may have been edited in place.
    known = zip(messages, before.messages, before.marks, strict=False)
    return all(message is old and _mark(message) == mark for message, old, mark in known)


def _empty(base: Size) -> Walk:
    return Walk(base.digest, (), (), base.digest, base.prompt, base.writes)


def _walk(start: Walk, messages: Sequence[BaseMessage], measured: Measured) -> Walk:
    prompt, end, writes = _known(start.prompt, start.end, measured), start.end, start.writes
    for message in messages[len(start.messages) :]:
        size = measure(message)
        end = _digest((end, size.digest))
        writes = _dearer(writes, size.writes)
        prompt = _known(_added(prompt, size, start.base, message, measured), end, measured)
    marks = tuple(_mark(message) for message in messages)
    return Walk(start.base, tuple(messages), marks, end, prompt, writes)


def _known(prompt: Prompt, end: bytes, measured: Measured) -> Prompt:
    count = measured.get(end)
    return prompt if count is None else Prompt(measured=count, bounded=prompt.bounded)


def _added(prompt: Prompt, size: Size, base: bytes, message: BaseMessage, measured: Measured) -> Prompt:
    new = size.prompt
    if isinstance(message, AIMessage):
        counted = measured.get(_digest((base, size.digest)))
        if counted is not None and counted < new.ascii_bytes + new.wide_bytes:
            new = Prompt(measured=counted, messages=new.messages, bounded=new.bounded)
    return Prompt(
        measured=prompt.measured + new.measured,
        ascii_bytes=prompt.ascii_bytes + new.ascii_bytes,
        wide_bytes=prompt.wide_bytes + new.wide_bytes,
        normalised_bytes=prompt.normalised_bytes + new.normalised_bytes,
        messages=prompt.messages + new.messages,
        images=prompt.images + new.images,
        tools=prompt.tools,
        bounded=prompt.bounded and new.bounded,
    )


class _Parts:
    """Adds up what a message sends."""

    def __init__(self) -> None:
        self.ascii = self.wide = self.normalised = self.messages = self.images = 0
        self.bounded = True
        self.tools = False
        self.call_blocks = ""
        self.writes: CacheWrites = "none"

    def prompt(self) -> Prompt:
        return Prompt(
            ascii_bytes=self.ascii,
            wide_bytes=self.wide,
            normalised_bytes=self.normalised,
            messages=self.messages,
            images=self.images,
            tools=self.tools,
            bounded=self.bounded,
        )

    def text(self, text: str) -> None:
        if text.isascii():
            self.ascii += len(text)
            self.normalised += len(text)
            return
        size = _size(text)
        narrow = len(text.encode("ascii", "ignore"))
        self.ascii += narrow
        self.wide += size - narrow
        forms = (unicodedata.normalize("NFC", text), unicodedata.normalize("NFKC", text))
        self.normalised += max(size, *map(_size, forms))

    def content(self, content: str | list[str | dict[str, Any]]) -> None:
        """Add a message's content; tool calls in it are kept apart, for they stand in `tool_calls` too."""
        if isinstance(content, str):
            self.text(content)
            return
        for block in content:
            if isinstance(block, str):
                self.text(block)
            elif block.get("type") in _CALLS:
                self.cache_control(block.get("cache_control"))
                self.call_blocks += _json(block)
            else:
                self.block(block)

    def calls_of(self, message: AIMessage) -> str:
        """Add an AI message's tool calls, also those whose arguments were cut off: the client sends them again."""
        parsed = (*message.tool_calls, *message.invalid_tool_calls)
        raw = message.additional_kwargs.get("tool_calls") or ()
        calls = [(call["name"], call["args"], call["id"]) for call in parsed]
        told = _json(calls or raw) if calls or raw else ""
        # Which of the two copies is sent differs by client, so the larger counts.
        self.text(max(told, self.call_blocks, key=_size))
        self.messages += max(len(calls), len(raw))
        return told

    def block(self, block: Mapping[str, Any]) -> None:
        kind = block.get("type")
        self.cache_control(block.get("cache_control"))
        if kind == "text" and isinstance(block.get("text"), str):
            self.text(block["text"])
        elif kind in _IMAGES:
            self.images += 1
            self.bounded = self.bounded and _is_inline(block)
        elif kind in _MEDIA:
            self.images += 1
            self.bounded = False
        elif kind == "reasoning" and block.get("id") and not (block.get("encrypted_content") or _reasons(block)):
            self.bounded = False  # sent by its id: the provider has the text
        elif kind == "tool_result" and isinstance(block.get("content"), list):
            self.content(block["content"])
            self.messages += 1
        else:
            self.text(_json(block))

    def tool(self, tool: object) -> None:
        if not isinstance(tool, Mapping):
            return
        self.cache_control(tool.get("cache_control"))
        # A tool the provider runs itself (web search, code) brings tokens and fees the request does not bound.
        ours = tool.get("type") in ("function", "custom") or any(tool.get(name) for name in _OWN_TOOL)
        if not ours or tool.get("type") not in (None, "function", "custom"):
            self.bounded = False

    def cache_control(self, control: object) -> None:
        if isinstance(control, Mapping):
            self.writes = _dearer(self.writes, "1h" if control.get("ttl") == "1h" else "5m")


def _reasons(block: Mapping[str, Any]) -> bool:
    return bool(block.get("reasoning") or block.get("summary") or block.get("content"))


def _is_inline(block: Mapping[str, Any]) -> bool:
    source = block.get("image_url") or block.get("source") or block
    where = source.get("url", "") if isinstance(source, Mapping) else source
    if isinstance(source, Mapping) and (source.get("file_id") or source.get("type") in ("file", "url")):
        return False
    return not str(where).startswith(("http://", "https://"))


def _dearer(one: CacheWrites, other: CacheWrites) -> CacheWrites:
    order: tuple[CacheWrites, ...] = ("none", "5m", "1h")
    return max(one, other, key=order.index)


def _has_text(value: object) -> bool:
    return bool(value) and not isinstance(value, (bool, int, float))


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=_plain)
    except (TypeError, ValueError):
        return repr(value)  # keys of mixed types, or a cycle: no JSON, but no shorter


def _plain(value: object) -> object:
    """A pydantic class stands for its schema, a model for its fields; the client will send them so."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        return value.model_json_schema()
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _digest(pieces: Iterable[str | bytes]) -> bytes:
    digest = blake2b(digest_size=16)
    for piece in pieces:
        raw = piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return digest.digest()
