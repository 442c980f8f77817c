"""The ladder of models as LangChain has them: made once, and an agent's call put on one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from langchain.agents.middleware import ModelRequest
from langchain.chat_models import init_chat_model
from runcap.guardrails.guard import Guard
from runcap.guardrails.pricing import NoPrice
from runcap.guardrails.ratecard import RateCard

from .rewriting import Target, target_of
from .thinking import needs_thinking, thinks_by_hand

_PORTABLE = frozenset({"stop", "temperature", "reasoning_effort"})
"""Settings of one call that every provider's package takes or passes over, and that mean the same everywhere."""

_CHOICES = ("any", "auto", "none")


class Rung(NamedTuple):
    """One model: guarded, its name, to whom histories are sent there, and its price if it has one."""

    model: BaseChatModel
    name: str
    target: Target
    card: RateCard | None


def rung_of(model: BaseChatModel, guard: Guard) -> Rung:
    """What is known of a model that is guarded already."""
    target = target_of(model)
    try:
        card: RateCard | None = guard.prices.card(target.model or "", provider=target.provider)
    except NoPrice:
        card = None
    return Rung(model, target.model or type(model).__name__, target, card)


def made_rungs(guard: Guard, guarded: Callable[[Any], Any]) -> tuple[Rung, ...]:
    """The guard's tiers.

    Raises:
        TypeError: a tier is no chat model, nor the name of one.
        ValueError: a tier has no price, or is no cheaper than the one above it; or its name is not known.
    """
    rungs = tuple([_made(tier.model, guard, guarded) for tier in guard.tiers])
    for above, below in pairwise(rungs):
        if not _is_cheaper(below, above):
            raise ValueError(f"Guard.tiers go from dear to cheap: {below.name!r} is no cheaper than {above.name!r}")
    return rungs


def _is_cheaper(one: Rung, other: Rung) -> bool:
    """In its input or in its output."""
    if one.card is None or other.card is None:
        return True
    new, old = one.card.rates(0), other.card.rates(0)
    return new.plain_input < old.plain_input or (new.output or 0) < (old.output or 0)


def made_model(given: object, what: str) -> BaseChatModel:
    """A chat model, made of its name if need be.

    Raises:
        TypeError: it is neither.
    """
    model = init_chat_model(given) if isinstance(given, str) else given
    if not isinstance(model, BaseChatModel):
        raise TypeError(
            f'{what} must be a chat model, or its name such as "openai:gpt-4o-mini"; got {type(given).__name__}. '
            "Tools, retries and fallbacks are the agent's: it binds and wraps whichever tier it is on"
        )
    return model


def _made(given: object, guard: Guard, guarded: Callable[[Any], Any]) -> Rung:
    rung = rung_of(guarded(made_model(given, "Tier.model")), guard)
    if rung.card is None:
        raise ValueError(
            f"Tier.model {rung.name!r} has no known price: give one, Guard(prices=PriceBook({{...}})), or leave it out"
        )
    return rung


def put_on(request: ModelRequest[Any], rung: Rung, before: Target, **overrides: Any) -> ModelRequest[Any]:
    """The call, made by this model; what only the provider before understands is left out."""
    if rung.target[:2] == before[:2]:
        return request.override(model=rung.model, **overrides)
    settings = {name: value for name, value in request.model_settings.items() if _suits(rung.model, name, value)}
    if rung.target.provider == before.provider:
        return request.override(model=rung.model, model_settings=settings, **overrides)
    settings = {name: value for name, value in settings.items() if name in _PORTABLE}
    return request.override(
        model=rung.model,
        model_settings=settings,
        tools=[tool for tool in request.tools if not _is_native(tool)],
        tool_choice=_portable_choice(request.tool_choice),
        **overrides,
    )


def _suits(model: BaseChatModel, name: str, value: object) -> bool:
    """The model takes this setting, as far as its profile tells: an effort it does not have is refused."""
    profile = model.profile or {}
    if not profile or name not in ("reasoning_effort", "temperature"):
        return True
    if name == "temperature":
        return profile.get("temperature") is not False
    return value in profile.get("reasoning_effort_levels", ())


def thinking_if_taken(request: ModelRequest[Any], messages: Sequence[BaseMessage]) -> ModelRequest[Any]:
    """The call, without thinking on a budget given by hand where Claude refuses to think on from these messages."""
    if not (needs_thinking(messages) and thinks_by_hand(request.model, request.model_settings)):
        return request
    settings = {name: value for name, value in request.model_settings.items() if name != "thinking"}
    if getattr(request.model, "thinking", None) is None:
        return request.override(model_settings=settings)
    return request.override(model=request.model.model_copy(update={"thinking": None}), model_settings=settings)


def _is_native(tool: object) -> bool:
    """A tool that runs at its provider, and nowhere else."""
    return isinstance(tool, Mapping) and tool.get("type", "function") != "function" and "input_schema" not in tool


def _portable_choice(choice: Any) -> Any:
    """Which tool to call, as every `bind_tools` takes it: a word, or a tool's name."""
    if not isinstance(choice, Mapping):
        return "any" if choice == "required" else choice
    function = choice.get("function")
    name = choice.get("name") or (function.get("name") if isinstance(function, Mapping) else None)
    return name or (choice.get("type") if choice.get("type") in _CHOICES else None)


def cost_of(rung: Rung, *, cached: int, tokens: int, output: int, writes: bool) -> int | None:
    """Nano-dollars a call is expected to cost, `cached` of its `tokens` read from a cache; None without a price.

    With `writes`, the others are written to it, at the price of that where there is one.
    """
    if rung.card is None:
        return None
    rates = rung.card.rates(tokens)
    fresh = max(rates.plain_input, rates.cache_write) if writes else rates.plain_input
    total = rates.cache_read * cached + fresh * (tokens - cached) + (rates.output or 0) * output
    return total // 1_000_000 + rung.card.per_request


def index_of(rungs: Sequence[Rung], target: Target) -> int | None:
    """Which of the tiers the agent's own model is."""
    return next((index for index, rung in enumerate(rungs) if rung.target[:2] == target[:2]), None)
