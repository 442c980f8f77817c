"""LangChain's description of a call -> a neutral `Request`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from runcap.guardrails.pricing import PriceContext, provider_id
from runcap.guardrails.ratecard import CacheWrites
from runcap.guardrails.request import Request

from .messages import Walk

CAP_NAMES = (
    *("max_completion_tokens", "max_tokens", "max_output_tokens", "max_tokens_to_sample", "num_predict"),
    *("maxTokens", "maxOutputTokens"),
)
_THINKING = 1_024
"""The smallest thinking budget Anthropic takes; stands in where a model thinks and no budget is given."""

_THINK_WHEN_TOLD = ("anthropic", "aws")
"""Providers whose models think only where the request says so; others' do unasked."""

_CHOICES = ("n", "best_of", "candidate_count", "candidateCount")

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


@dataclass(frozen=True, slots=True)
class Described:
    """A call as LangChain tells it: the model's constructor arguments, the invocation's parameters, its metadata.

    The same setting may stand in several places, and which one reaches the wire differs by class: a bound `max_tokens`
    beats the constructor's `max_completion_tokens`, `extra_body` beats both. So all are looked at, dearest first.
    """

    serialized: Mapping[str, Any]
    params: Mapping[str, Any]
    metadata: Mapping[str, Any]
    _places: tuple[Mapping[str, Any], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        made = self.serialized.get("kwargs") or {}
        nested = (at.get(name) for at in (made, self.params) for name in NESTED_NAMES)
        places = tuple(place for place in (made, self.params, *nested) if place and isinstance(place, Mapping))
        object.__setattr__(self, "_places", places)

    @property
    def body(self) -> dict[str, Any]:
        """The parameters with those nested in `model_kwargs` and `extra_body`, as they are sent."""
        flat = {name: value for name, value in self.params.items() if name not in _BODIES}
        for more in (self.params.get(name) for name in reversed(_BODIES)):
            if isinstance(more, Mapping):
                flat.update({str(name): value for name, value in more.items()})
        return flat

    def everywhere(self, name: str) -> list[Any]:
        """Every value a setting has, wherever it stands."""
        return [place[name] for place in self._places if place.get(name) is not None]

    def sent(self, name: str) -> list[Any]:
        """The values a setting may be sent with: one given to the invocation replaces the constructor's."""
        values = self.everywhere(name)
        made = (self.serialized.get("kwargs") or {}).get(name)
        return values[1:] if made is not None and self.params.get(name) is not None else values

    @property
    def model(self) -> str | None:
        """The model asked for."""
        made = self.serialized.get("kwargs") or {}
        # A body given by hand is laid over the rest, so its model is the one that is called.
        bodies = [made.get(name) if self.params.get(name) is None else self.params[name] for name in _BODIES]
        places = [(body, "model") for body in bodies if isinstance(body, Mapping)]
        places += [(self.params, "model"), (self.params, "model_name"), (self.params, "model_id")]
        for source, name in (*places, (self.metadata, "ls_model_name")):
            value = source.get(name)
            if isinstance(value, str) and value:
                return value
        return None

    @property
    def provider(self) -> str | None:
        """Its provider, by the id the price data uses."""
        name = self.metadata.get("ls_provider")
        return provider_id(name) if isinstance(name, str) and name else None


_BODIES = ("extra_body", "model_kwargs")
NESTED_NAMES = (*_BODIES, "generation_config", "inferenceConfig", "inference_config")

# Settings that let a request cost more than its own text and caps say: server-side state, hosted features, surcharges.
_UNBOUNDED = (
    *("previous_response_id", "use_previous_response_id", "conversation", "prompt", "mcp_servers", "container"),
    *("context_management", "cached_content", "web_search_options", "search_parameters", "background"),
    *("plugins", "models", "route", "fallbacks"),
)
# Models that search by themselves, at a fee for each search.
_SEARCHING = re.compile(r"^(.*/)?(gpt-[\w.-]+-search-|[\w.-]+-deep-research|sonar|compound)|:online$")
_PRICED_REGIONS = ("global", "us")
_OPENAI = "api.openai.com"


def describe(call: Described, walk: Walk, *, call_id: str, parent_id: str | None) -> Request:
    """The neutral request. What a callback cannot see (the model object, its client) is taken the careful way."""
    return Request(
        call_id=call_id,
        parent_id=parent_id,
        model=call.model,
        provider=call.provider,
        prompt=walk.prompt,
        output_cap=_output_cap(call),
        output_ceiling=None if _is_beta(call) else _ceiling(call.model, call.provider),
        choices=max((value for name in _CHOICES for value in call.everywhere(name) if _is_count(value)), default=1),
        stream=bool(call.params.get("stream") or call.params.get("streaming")),
        attempts_seen=_no_retries(call),
        cache_writes=_cache_writes(call, walk.writes),
        context=_context(call),
        bounded=_is_bounded(call),
        audio=_speaks(call),
        regional=_is_regional(call),
    )


def _output_cap(call: Described) -> int | None:
    caps = [value for name in CAP_NAMES for value in call.sent(name) if _is_count(value)]
    told = call.metadata.get("ls_max_tokens")
    return max(caps, default=told if _is_count(told) else None)


def thinking_tokens(call: Described) -> int:
    """Output tokens the model may think away before it answers; a guess where it decides on that itself."""
    budgets = call.sent("thinking_budget")
    for told in call.sent("thinking"):
        if isinstance(told, Mapping) and told.get("type") != "disabled":
            budgets.append(told.get("budget_tokens") or _THINKING)
    if budgets:
        return max((value for value in budgets if _is_count(value)), default=0)
    if call.provider in _THINK_WHEN_TOLD:
        return 0
    return _THINKING if _profile(call.model, call.provider).get("reasoning_output") else 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _no_retries(call: Described) -> bool:
    retries = call.everywhere("max_retries")
    return bool(retries) and not any(retries)


def _is_beta(call: Described) -> bool:
    # Beta features raise a model's output beyond what its profile says.
    return any(any(call.everywhere(name)) for name in ("betas", "extra_headers", "default_headers"))


def _speaks(call: Described) -> bool:
    return any("audio" in value for value in call.everywhere("modalities")) or bool(call.everywhere("audio"))


def _is_bounded(call: Described) -> bool:
    # An `inference_geo` that has no published surcharge may have any.
    known = all(geo in _PRICED_REGIONS for geo in call.everywhere("inference_geo"))
    return known and not _searches(call.model or "") and not any(any(call.everywhere(name)) for name in _UNBOUNDED)


def _searches(model: str) -> bool:
    return _SEARCHING.search(model) is not None


def _is_regional(call: Described) -> bool:
    if "us" in call.sent("inference_geo"):
        return True
    if call.provider != "openai":
        return False
    told = call.everywhere("openai_api_base") or call.everywhere("base_url")
    return any(_is_regional_host(url) for url in told or (os.environ.get("OPENAI_BASE_URL"),))


def _is_regional_host(url: object) -> bool:
    """`https://eu.api.openai.com/v1`, for one: OpenAI keeps the call to that region."""
    host = str(url or "").partition("://")[2].partition("/")[0].partition(":")[0].lower()
    return host.endswith(f".{_OPENAI}")


def _cache_writes(call: Described, asked: CacheWrites) -> CacheWrites:
    if any(isinstance(how, Mapping) and how.get("ttl") == "12h" for how in call.sent("prompt_cache_options")):
        return "12h"
    # Claude writes a cache only where the request says so; others cache by themselves and may bill the write.
    return asked if call.provider in ("anthropic", "aws") or asked == "1h" else "5m"


def _context(call: Described) -> PriceContext | None:
    if "fast" in (*call.everywhere("speed"), *call.everywhere("service_tier")):
        return "fast"
    # Flex may be served at the standard tier, so it is held at that; the answer says which it was.
    return "priority" if "priority" in call.everywhere("service_tier") else None


@cache
def _profiles(package: str) -> Mapping[str, Any]:
    return getattr(sys.modules[package], "_PROFILES", None) or {}


def _profile(model: str | None, provider: str | None) -> Mapping[str, Any]:
    package = f"{_PROFILES.get(provider or '', '')}.data._profiles"
    profile = _profiles(package).get(model) if package in sys.modules and model is not None else None
    return profile if isinstance(profile, Mapping) else {}


def _ceiling(model: str | None, provider: str | None) -> int | None:
    most = _profile(model, provider).get("max_output_tokens")
    return most if isinstance(most, int) and most > 0 else None
