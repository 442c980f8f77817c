"""A model's own output cap: where each class keeps it, and how it is set on one call.

The attribute alone is right for every class; the same setting in the call's arguments, or nested in a body, beats it or
is sent beside it, so it is taken out there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel

from .request import CAP_NAMES, NESTED_NAMES

_ATTRIBUTES = {
    "langchain_openai": "max_tokens",
    "langchain_anthropic": "max_tokens",
    "langchain_aws": "max_tokens",
    "langchain_deepseek": "max_tokens",
    "langchain_google_genai": "max_output_tokens",
    "langchain_google_vertexai": "max_output_tokens",
    "langchain_groq": "max_tokens",
    "langchain_mistralai": "max_tokens",
    "langchain_ollama": "num_predict",
    "langchain_openrouter": "max_tokens",
    "langchain_xai": "max_tokens",
}
"""By package; a class of one's own that derives from one of theirs counts as theirs."""


def cap_attribute(kind: type[BaseChatModel]) -> str | None:
    """The attribute that caps this class's output; None where it is not known."""
    for base in kind.__mro__:
        name = _ATTRIBUTES.get(base.__module__.partition(".")[0])
        if name is not None:
            return name if name in kind.model_fields else None
    return None


def capped(state: Mapping[str, Any], attribute: str, cap: int) -> dict[str, Any]:
    """A model's state with this output cap."""
    others = {name: None for name in CAP_NAMES if name in state}
    return {**uncapped(state), **others, attribute: cap}


def uncapped(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without any output cap, nested ones too."""
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        if name in NESTED_NAMES and isinstance(value, Mapping):
            kept[name] = {key: one for key, one in value.items() if key not in CAP_NAMES}
        elif name not in CAP_NAMES:
            kept[name] = value
    return kept
