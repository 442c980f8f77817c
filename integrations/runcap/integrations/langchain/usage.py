"""LangChain's answers -> `Usage` and `Response`.

`usage_metadata["input_tokens"]` includes cached tokens. Details may carry a service tier's prefix
(`flex_cache_read`); the entries named `flex` and `priority` themselves are rests and never quantities.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import add
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult

from runcap.guardrails.pricing import PriceContext
from runcap.guardrails.request import Request, Response
from runcap.guardrails.usage import Usage

from .providers import NOTHING, Answer, Details, billed_nano, completed, count, mapping, once, served

_log = logging.getLogger("runcap")

_TIERS: tuple[PriceContext, ...] = ("flex", "priority", "fast", "batch")
_PREFIXES = ("", *(f"{tier}_" for tier in _TIERS))
_READ, _WRITTEN, _HOUR, _HEARD = range(4)
_REASONED, _SPOKEN, _DRAWN = range(3)


def _places(names: Mapping[str, int]) -> dict[str, int]:
    return {prefix + name: place for name, place in names.items() for prefix in _PREFIXES}


_INPUTS = _places({"cache_read": _READ, "cache_creation": _WRITTEN, "audio": _HEARD}) | {
    "ephemeral_5m_input_tokens": _WRITTEN,
    "ephemeral_1h_input_tokens": _HOUR,
}
_OUTPUTS = _places({"reasoning": _REASONED, "audio": _SPOKEN, "image": _DRAWN})
_TIER_OF = {f"{tier}{rest}": tier for tier in _TIERS for rest in ("", "_cache_read", "_cache_creation", "_reasoning")}

_said: set[str] = set()


def message_of(result: LLMResult | None) -> BaseMessage | None:
    """The first message of a result; all choices of one call carry the same, full usage."""
    for generations in result.generations if result is not None else ():
        for generation in generations:
            if isinstance(generation, ChatGeneration):
                return generation.message
    return None


def text_of(result: LLMResult | None) -> str:
    """The text of a result of a text model."""
    generations = result.generations if result is not None else []
    return "".join(one.text for many in generations for one in many if isinstance(one, Generation))


def is_cache_hit(message: BaseMessage | None) -> bool:
    """LangChain answered from its own cache: it marks the copy with a total cost of zero."""
    usage = getattr(message, "usage_metadata", None)
    return isinstance(usage, Mapping) and usage.get("total_cost") == 0


class StreamUsage:
    """What the chunks of a stream said of its usage, put together as their provider means it.

    LangChain adds chunks up, also those of which each has the whole so far. (And its stream of events v3 keeps of all
    details the last ones, also those that are parts.)
    """

    __slots__ = ("_chunks", "_last", "_whole")

    def __init__(self) -> None:
        self._chunks = 0
        self._last: object = None
        self._whole: Details = NOTHING

    def add(self, message: BaseMessage) -> None:
        """Note a chunk that carries usage."""
        raw = getattr(message, "usage_metadata", None)
        put_together = _STREAMS.get(message.response_metadata.get("model_provider", ""))
        if not raw or raw is self._last or put_together is None:
            return
        self._chunks += 1
        self._last, self._whole = raw, put_together(self._whole, raw) if self._whole else raw

    @property
    def whole(self) -> Details | None:
        """All of it as one `usage_metadata`; None where one chunk at most had any."""
        return self._whole if self._chunks > 1 else None


def _most(one: Details, other: Details) -> Details:
    largest = _joined(one, other, max)
    details = mapping(largest.get("input_token_details"))
    if count(details, "ephemeral_5m_input_tokens") + count(details, "ephemeral_1h_input_tokens"):
        largest["input_token_details"] = {**details, "cache_creation": 0}  # the same tokens, by how long they last
    return largest


def _sum(one: Details, other: Details) -> Details:
    return _joined(one, other, add)


def _joined(one: Details, other: Details, join: Callable[[Any, Any], Any]) -> dict[str, Any]:
    joined: dict[str, Any] = {**one}
    for name, value in other.items():
        known = one.get(name)
        if isinstance(value, Mapping):
            joined[name] = _joined(mapping(known), value, join)
        elif isinstance(value, (int, float)):
            joined[name] = join(known, value) if isinstance(known, (int, float)) else value
    return joined


# OpenAI-shaped chunks have it all: as a running total, or twice, on the last chunk with words and on one without.
_STREAMS: Mapping[str, Callable[[Details, Details], Details]] = {
    **dict.fromkeys(("anthropic", "deepseek", "groq", "mistralai", "openai", "openrouter", "xai"), _most),
    "google_genai": _sum,  # the package makes parts of Google's running totals
}


def read_usage(
    message: BaseMessage | None, result: LLMResult | None = None, stream: StreamUsage | None = None
) -> Usage | None:
    """The usage a message carries; None where it carries none."""
    if not isinstance(message, AIMessage):
        return None
    raw: Details | None = (stream.whole if stream is not None else None) or message.usage_metadata
    if not raw or not (raw.get("input_tokens") or raw.get("output_tokens")):
        return None
    told = message.response_metadata.get("token_usage") or _output_of(result).get("token_usage")
    return completed(normalise(raw), Answer(message, raw, mapping(told)))


def read_text_usage(result: LLMResult | None) -> Usage | None:
    """The usage of a text model, which stands beside its answer and has OpenAI's names."""
    output = _output_of(result)
    raw = mapping(output.get("token_usage") or output.get("usage"))
    if not raw.get("prompt_tokens") or message_of(result) is not None:
        return None
    return Usage(count(raw, "prompt_tokens"), count(raw, "completion_tokens"))


def as_asked(usage: Usage, message: BaseMessage | None, request: Request) -> Usage:
    """What the answer leaves unsaid, as the request has it: how long cache writes last, and that there was sound."""
    written = usage.cache_write_tokens
    if written and request.cache_writes == "12h":
        return replace(usage, cache_write_12h_tokens=written)
    if written and request.cache_writes == "1h" and not tells_ttl(message):
        # Claude's streams do not say how long a write lasts: the request asked for an hour, the dearer one.
        return replace(usage, cache_write_1h_tokens=written)
    if request.prompt.audio and request.provider == "google" and not usage.input_audio_tokens:
        # Nothing tells which part of the prompt was sound, so all of it counts as that, the dearer one.
        return replace(usage, input_audio_tokens=usage.plain_input_tokens)
    return usage


def tells_ttl(message: BaseMessage | None) -> bool:
    """The usage splits cache writes by how long they last."""
    raw = message.usage_metadata if isinstance(message, AIMessage) else None
    details: Details = (raw.get("input_token_details") or NOTHING) if raw else NOTHING
    return bool(details.get("ephemeral_5m_input_tokens") or details.get("ephemeral_1h_input_tokens"))


def normalise(raw: Details) -> Usage:
    """One `usage_metadata` in our terms. Figures that contradict each other are read the dearer way, and logged."""
    read, written, hour, heard = _parts(raw.get("input_token_details"), _INPUTS, 4)
    reasoned, spoken, drawn = _parts(raw.get("output_token_details"), _OUTPUTS, 3)
    total_in, total_out = count(raw, "input_tokens"), count(raw, "output_tokens")
    written += hour
    if read + written > total_in:
        _contradiction("cached tokens exceed the input", read + written, total_in)
        total_in += read + written
    if read + written + heard > total_in:
        # Sound may be cached as well; it is the dearer of the two.
        heard = min(heard, total_in - written)
        read = total_in - written - heard
    if reasoned + spoken + drawn > total_out:
        _contradiction("reasoning and media exceed the output", reasoned + spoken + drawn, total_out)
        total_out += reasoned + spoken + drawn
    return Usage(total_in, total_out, read, written, hour, reasoned, 0, heard, spoken, drawn)


def _parts(details: Any, places: Mapping[str, int], size: int) -> list[int]:
    sums = [0] * size
    if details:
        for name, value in details.items():
            if value and name in places:
                sums[places[name]] += value if type(value) is int and value > 0 else count(details, name)
    return sums


def _contradiction(kind: str, parts: int, whole: int) -> None:
    if kind not in _said:
        _said.add(kind)
        _log.warning("runcap: contradictory usage, read the dearer way: %s (%d > %d)", kind, parts, whole)


def read_response(result: LLMResult | None, message: BaseMessage | None) -> Response:
    """What the provider said about itself."""
    metadata: Details = getattr(message, "response_metadata", None) or NOTHING
    output = _output_of(result)
    finish = _text(metadata, "finish_reason", "stop_reason", "stopReason", "status")
    return Response(
        model=_text(metadata, "model_name", "model", "model_id") or _text(output, "model_name", "model", "model_id"),
        id=_text(metadata, "id") or _text(output, "id"),
        finish_reasons=(finish,) if finish else (),
        context=served(metadata, output) or _tier_of(message),
        regional=mapping(metadata.get("usage")).get("inference_geo") == "us",
        billed_nano=billed_nano(metadata, output),
    )


def _tier_of(message: BaseMessage | None) -> PriceContext | None:
    raw = message.usage_metadata if isinstance(message, AIMessage) else None
    details = raw.get("input_token_details") if raw else None
    return next((_TIER_OF[name] for name in details or () if name in _TIER_OF), None)


def _output_of(result: LLMResult | None) -> Details:
    return (result.llm_output if result is not None else None) or NOTHING


def _text(values: Details, *names: str) -> str | None:
    for name in names:
        value = values.get(name)
        if isinstance(value, str) and value:
            return once(value)
    return None
