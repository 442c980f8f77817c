"""How large one message or one set of tools is, without sending or keeping it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage
from pydantic import BaseModel

from runcap.guardrails.estimate import Prompt
from runcap.guardrails.kinship import Kin, kin_of
from runcap.guardrails.ratecard import CacheWrites

_AUDIO = frozenset({"audio", "input_audio"})
_MEDIA = frozenset({"audio", "document", "file", "input_audio", "input_file", "media", "video"})
_IMAGES = frozenset({"image", "image_url", "input_image"})
_CALLS = frozenset({"function_call", "tool_call", "tool_use"})
_NOT_SENT = frozenset({"parsed", "refusal", "tool_calls"})
_SETTINGS = frozenset({"_type", "model", "model_name", "model_id", "stop", "stop_sequences"})
_OWN_TOOL = ("name", "function", "function_declarations", "toolSpec", "title")


class Size(NamedTuple):
    """One message: a digest of what is sent of it, and how much that is.

    A digest is Python's own keyed 64-bit hash: it means something in this process only, and tells nothing of the text.
    """

    digest: int
    prompt: Prompt
    writes: CacheWrites
    kin: Kin | None = None
    """Of a base: the family of its model, whose other members' counts bound this one's."""
    shared: int = 0
    """Of a base: the digest that its like has with every member of the family."""


def base_size(model: str | None, provider: str | None, params: Mapping[str, Any]) -> Size:
    """What every message of the call stands on: the model, and what is sent of tools and formats."""
    tools = params.get("tools") or params.get("functions") or ()
    # Whatever is not a mere setting may become text of the prompt: tools, formats, predictions, extra bodies.
    sent = {key: value for key, value in params.items() if key not in _SETTINGS and _has_text(value)}
    parts = _Parts()
    parts.tools = bool(tools)
    text = as_json(sent) if sent else ""
    if sent:
        parts.text(text)
        parts.messages += len(tools) + 1
    parts.cache_control(params.get("cache_control"))
    for tool in tools:
        parts.tool(tool)
    kin = kin_of(provider, model)
    return Size(hash((provider, model, text)), parts.prompt(), parts.writes, kin, hash((provider, kin, text)))


def measure(message: BaseMessage) -> Size:
    """The digest and size of one message. A name on an AI message is left out: agents add it afterwards."""
    if is_plain(message):
        return _measure_plain(message)
    parts = _Parts()
    parts.messages = 1
    parts.content(message.content)
    text = message.content if isinstance(message.content, str) else as_json(message.content)
    calls = parts.calls_of(message) if isinstance(message, AIMessage) else ""
    extra = {key: value for key, value in message.additional_kwargs.items() if key not in _NOT_SENT}
    more = as_json(extra) if extra else ""
    parts.text(more)
    answers = message.tool_call_id if isinstance(message, ToolMessage) else ""
    parts.text(answers)
    parts.text(message.name or "")
    parts.text(_role(message))
    return Size(_digest(message, text, calls, more, answers), parts.prompt(), parts.writes)


def is_plain(message: BaseMessage) -> bool:
    """It is its text and nothing else."""
    if type(message.content) is not str or message.additional_kwargs or isinstance(message, ChatMessage):
        return False
    return not isinstance(message, AIMessage) or not (message.tool_calls or message.invalid_tool_calls)


def sent_of(message: BaseMessage) -> tuple[object, ...]:
    """The parts of a message that are sent, as they stand now."""
    if isinstance(message, AIMessage):
        return message.content, message.additional_kwargs, message.tool_calls, message.invalid_tool_calls
    return message.content, message.additional_kwargs


def mark(message: BaseMessage) -> tuple[object, ...]:
    """A copy of those parts: it differs from `sent_of(message)` once the message was edited in place."""
    return tuple([part if type(part) is str else copied(part) if part else type(part)() for part in sent_of(message)])


def copied(value: object, depth: int = 8) -> object:
    """A copy of what may be edited in place; whatever is nested deeper, cycles too, stands for itself."""
    if isinstance(value, dict) and depth:
        return {key: copied(one, depth - 1) for key, one in value.items()}
    return [copied(one, depth - 1) for one in value] if isinstance(value, list) and depth else value


def dearer(one: CacheWrites, other: CacheWrites) -> CacheWrites:
    """The longer lasting of two cache writes."""
    return one if _WRITES[one] >= _WRITES[other] else other


def as_json(value: object) -> str:
    """As a client would send it, give or take spaces."""
    try:
        return _encode(value)
    except (TypeError, ValueError):
        return repr(value)  # keys of mixed types, or a cycle: no JSON, but no shorter


def size_in_bytes(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


_WRITES: Mapping[CacheWrites, int] = {"none": 0, "5m": 1, "1h": 2, "12h": 3}


def _measure_plain(message: BaseMessage) -> Size:
    text = str(message.content)
    answers = message.tool_call_id if isinstance(message, ToolMessage) else ""
    digest = _digest(message, text, "", "", answers)
    every = text + answers + (message.name or "") if answers or message.name else text
    if every.isascii():
        size = len(every)
        return Size(digest, Prompt(ascii_bytes=size, normalised_bytes=size, messages=1), "none")
    parts = _Parts()
    parts.messages = 1
    parts.text(every)
    return Size(digest, parts.prompt(), "none")


def _digest(message: BaseMessage, text: str, calls: str, more: str, answers: str) -> int:
    name = None if isinstance(message, AIMessage) else message.name
    # A string is not the blocks whose JSON it may be.
    return hash((message.type, _role(message), type(message.content), text, calls, more, answers, name))


def _role(message: BaseMessage) -> str:
    return message.role if isinstance(message, ChatMessage) else ""


class _Parts:
    """Adds up what a message sends."""

    def __init__(self) -> None:
        self.ascii = self.wide = self.normalised = self.messages = self.images = 0
        self.bounded = True
        self.tools = self.audio = False
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
            audio=self.audio,
            bounded=self.bounded,
        )

    def text(self, text: str) -> None:
        if text.isascii():
            self.ascii += len(text)
            self.normalised += len(text)
            return
        size = size_in_bytes(text)
        narrow = len(text.encode("ascii", "ignore"))
        self.ascii += narrow
        self.wide += size - narrow
        forms = (unicodedata.normalize("NFC", text), unicodedata.normalize("NFKC", text))
        self.normalised += max(size, *map(size_in_bytes, forms))

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
                self.call_blocks += as_json(block)
            else:
                self.block(block)

    def calls_of(self, message: AIMessage) -> str:
        """Add an AI message's tool calls, also those whose arguments were cut off: the client sends them again."""
        parsed = (*message.tool_calls, *message.invalid_tool_calls)
        raw = message.additional_kwargs.get("tool_calls") or ()
        calls = [(call["name"], call["args"], call["id"]) for call in parsed]
        told = as_json(calls or raw) if calls or raw else ""
        # Which of the two copies is sent differs by client, so the larger counts.
        self.text(max(told, self.call_blocks, key=size_in_bytes))
        self.messages += max(len(calls), len(raw))
        return told

    def block(self, block: Mapping[str, Any]) -> None:
        kind = block.get("type")
        self.cache_control(block.get("cache_control") or block.get("cachePoint"))  # Bedrock's name for it
        if kind == "text" and isinstance(block.get("text"), str):
            self.text(block["text"])
        elif kind in _IMAGES:
            self.images += 1
            self.bounded = self.bounded and _is_inline(block)
        elif kind in _MEDIA:
            self.images += 1
            self.bounded = False
            self.audio = self.audio or kind in _AUDIO or str(block.get("mime_type")).startswith("audio/")
        elif kind == "reasoning" and block.get("id") and not (block.get("encrypted_content") or _reasons(block)):
            self.bounded = False  # sent by its id: the provider has the text
        elif kind == "tool_result" and isinstance(block.get("content"), list):
            self.content(block["content"])
            self.messages += 1
        else:
            self.text(as_json(block))

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
            self.writes = dearer(self.writes, "1h" if control.get("ttl") == "1h" else "5m")


def _reasons(block: Mapping[str, Any]) -> bool:
    return bool(block.get("reasoning") or block.get("summary") or block.get("content"))


def _is_inline(block: Mapping[str, Any]) -> bool:
    source = block.get("image_url") or block.get("source") or block
    where = source.get("url", "") if isinstance(source, Mapping) else source
    if isinstance(source, Mapping) and (source.get("file_id") or source.get("type") in ("file", "url")):
        return False
    return not str(where).startswith(("http://", "https://"))


def _has_text(value: object) -> bool:
    return bool(value) and not isinstance(value, (bool, int, float))


def _as_plain(value: object) -> object:
    """A pydantic class stands for its schema, a model for its fields; the client will send them so."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        return value.model_json_schema()
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=_as_plain).encode
