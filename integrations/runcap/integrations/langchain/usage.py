"""LangChain's answers -> `Usage` and `Response`.

`usage_metadata["input_tokens"]` includes cached tokens. Details may carry a service tier's prefix
(`flex_cache_read`); the entries named `flex` and `priority` themselves are rests and never quantities.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult

from runcap.guardrails.pricing import PriceContext
from runcap.guardrails.request import Response
from runcap.guardrails.usage import Usage

_log = logging.getLogger("runcap")
_TIERS: tuple[PriceContext, ...] = ("flex", "priority")


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


def read_usage(message: BaseMessage | None) -> Usage | None:
    """The usage a message carries; None where it carries none."""
    raw = message.usage_metadata if isinstance(message, AIMessage) else None
    if not raw or not (raw.get("input_tokens") or raw.get("output_tokens")):
        return None
    return normalise(raw)


def read_text_usage(result: LLMResult | None) -> Usage | None:
    """The usage of a text model, which stands beside its answer and has OpenAI's names."""
    raw = ((result.llm_output if result is not None else None) or {}).get("token_usage")
    if not isinstance(raw, Mapping) or message_of(result) is not None or not raw.get("prompt_tokens"):
        return None
    return Usage(_count(raw, "prompt_tokens"), _count(raw, "completion_tokens"))


def tells_ttl(message: BaseMessage | None) -> bool:
    """The usage splits cache writes by how long they last."""
    raw = message.usage_metadata if isinstance(message, AIMessage) else None
    details: Mapping[str, Any] = (raw.get("input_token_details") or {}) if raw else {}
    return bool(details.get("ephemeral_5m_input_tokens") or details.get("ephemeral_1h_input_tokens"))


def normalise(raw: Mapping[str, Any]) -> Usage:
    """One `usage_metadata` in our terms. Figures that contradict each other are read the dearer way, and logged."""
    inputs: Mapping[str, Any] = raw.get("input_token_details") or {}
    outputs: Mapping[str, Any] = raw.get("output_token_details") or {}
    tier = service_tier(inputs) or service_tier(outputs)
    one_hour = _count(inputs, "ephemeral_1h_input_tokens")
    read = _tiered(inputs, "cache_read", tier)
    write = _tiered(inputs, "cache_creation", tier) + _count(inputs, "ephemeral_5m_input_tokens") + one_hour
    reasoning = _tiered(outputs, "reasoning", tier)
    total_in, total_out = _count(raw, "input_tokens"), _count(raw, "output_tokens")
    if read + write > total_in or reasoning > total_out:
        _log.warning(
            "runcap: contradictory usage (%d input, %d read, %d written, %d output, %d reasoning), read the dearer way",
            *(total_in, read, write, total_out, reasoning),
        )
        total_in = total_in + read + write if read + write > total_in else total_in
        total_out = max(total_out, reasoning)
    return Usage(
        input_tokens=total_in,
        output_tokens=total_out,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=one_hour,
        reasoning_tokens=reasoning,
    )


def service_tier(details: Mapping[str, Any]) -> PriceContext | None:
    """The service tier whose prefix the details carry."""
    for tier in _TIERS:
        if any(name == tier or name.startswith(f"{tier}_") for name in details):
            return tier
    return None


def read_response(result: LLMResult | None, message: BaseMessage | None) -> Response:
    """What the provider said about itself."""
    metadata: Mapping[str, Any] = getattr(message, "response_metadata", None) or {}
    output: Mapping[str, Any] = (result.llm_output if result is not None else None) or {}
    finish = metadata.get("finish_reason") or metadata.get("stop_reason")
    return Response(
        model=_text(metadata, "model_name", "model", "model_id") or _text(output, "model_name", "model"),
        id=_text(metadata, "id") or _text(output, "id"),
        finish_reasons=(str(finish),) if finish else (),
        context=_context(message, metadata),
    )


def _context(message: BaseMessage | None, metadata: Mapping[str, Any]) -> PriceContext | Literal["standard"] | None:
    raw = message.usage_metadata if isinstance(message, AIMessage) else None
    named = metadata.get("service_tier")
    if named in ("flex", "priority", "fast"):
        tier: PriceContext = named
        return tier
    if named in ("default", "standard"):
        return "standard"
    return service_tier(raw.get("input_token_details") or {}) if raw else None


def _tiered(details: Mapping[str, Any], name: str, tier: PriceContext | None) -> int:
    return _count(details, name) + (_count(details, f"{tier}_{name}") if tier else 0)


def _count(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return int(value) if isinstance(value, (int, float)) and value > 0 else 0


def _text(values: Mapping[str, Any], *names: str) -> str | None:
    for name in names:
        value = values.get(name)
        if isinstance(value, str) and value:
            return value
    return None
