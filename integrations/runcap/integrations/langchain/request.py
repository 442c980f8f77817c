"""LangChain's description of a call -> a neutral `Request`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from runcap.guardrails.pricing import PriceContext, provider_id
from runcap.guardrails.ratecard import CacheWrites
from runcap.guardrails.request import Request

from .messages import Walk

_CAPS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_tokens_to_sample", "num_predict")

# Where each integration keeps its models' profiles (the figures `model.profile` shows), by provider.
_PROFILES = {
    "anthropic": "langchain_anthropic",
    "aws": "langchain_aws",
    "azure": "langchain_openai",
    "deepseek": "langchain_deepseek",
    "google": "langchain_google_genai",
    "groq": "langchain_groq",
    "mistral": "langchain_mistralai",
    "openai": "langchain_openai",
    "x-ai": "langchain_xai",
}


def model_of(params: Mapping[str, Any], metadata: Mapping[str, Any]) -> str | None:
    """The model asked for."""
    for source, name in ((params, "model"), (params, "model_name"), (params, "model_id"), (metadata, "ls_model_name")):
        value = source.get(name)
        if isinstance(value, str) and value:
            return value
    return None


def provider_of(metadata: Mapping[str, Any]) -> str | None:
    """Its provider, by the id the price data uses."""
    name = metadata.get("ls_provider")
    return provider_id(name) if isinstance(name, str) and name else None


def describe(
    *,
    call_id: str,
    parent_id: str | None,
    serialized: Mapping[str, Any],
    params: Mapping[str, Any],
    metadata: Mapping[str, Any],
    walk: Walk,
) -> Request:
    """The neutral request. What a callback cannot see (the model object, its client) is taken the careful way."""
    model, provider = model_of(params, metadata), provider_of(metadata)
    choices = params.get("n")
    return Request(
        call_id=call_id,
        parent_id=parent_id,
        model=model,
        provider=provider,
        prompt=walk.prompt,
        output_cap=_output_cap(params, metadata),
        output_ceiling=_ceiling(model, provider),
        choices=choices if isinstance(choices, int) and choices > 0 else 1,
        stream=bool(params.get("stream") or params.get("streaming")),
        attempts_seen=_no_retries(params, serialized),
        cache_writes=_cache_writes(provider, walk.writes),
        context=_context(params),
    )


def _output_cap(params: Mapping[str, Any], metadata: Mapping[str, Any]) -> int | None:
    for value in (*(params.get(name) for name in _CAPS), metadata.get("ls_max_tokens")):
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _no_retries(params: Mapping[str, Any], serialized: Mapping[str, Any]) -> bool:
    kwargs = serialized.get("kwargs") or {}
    return bool(params.get("max_retries", kwargs.get("max_retries")) == 0)


def _cache_writes(provider: str | None, asked: CacheWrites) -> CacheWrites:
    # Claude writes a cache only where the request says so; others cache by themselves and may bill the write.
    return asked if provider in ("anthropic", "aws") or asked == "1h" else "5m"


def _context(params: Mapping[str, Any]) -> PriceContext | None:
    if params.get("speed") == "fast":
        return "fast"
    tier = params.get("service_tier")
    if tier in ("flex", "priority", "fast"):
        named: PriceContext = tier
        return named
    return None


@cache
def _ceiling(model: str | None, provider: str | None) -> int | None:
    module = sys.modules.get(f"{_PROFILES.get(provider or '', '')}.data._profiles")
    profiles = getattr(module, "_PROFILES", None)
    profile = profiles.get(model) if isinstance(profiles, Mapping) else None
    most = profile.get("max_output_tokens") if isinstance(profile, Mapping) else None
    return most if isinstance(most, int) and most > 0 else None
