"""What is said of a model call before its messages are looked at: worked out once for each way a model is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel

from runcap.guardrails.course import ANY, Purpose
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.ratecard import CacheWrites
from runcap.guardrails.request import Request

from .messages import Walk
from .parts import Size, base_size, copied
from .request import Described, describe, thinking_tokens

_KEPT = 32
_DEPTH = 64
_TOLD = ("ls_provider", "ls_model_name", "ls_max_tokens")


class Sketch:
    """One way a model is called: which model, with which settings and tools."""

    def __init__(self, serialized: Mapping[str, Any], params: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        self.call = Described(serialized, params, metadata)
        self.model = self.call.model
        self.base: Size = base_size(self.model, self.call.provider, self.call.body)
        self._serialized = serialized
        # A copy: tools and other settings are the caller's own, and may be edited in place.
        self._params = copied(params, _DEPTH)
        self._told = [metadata.get(name) for name in _TOLD]
        self._requests: dict[CacheWrites, Request] = {}

    def fits(self, serialized: Mapping[str, Any], params: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
        """The same model, called the same way; `serialized` is made once for each model."""
        if serialized is not self._serialized or [metadata.get(name) for name in _TOLD] != self._told:
            return False
        return same(params, self._params)

    def request(self, walk: Walk, *, call_id: str, parent_id: str | None, purpose: Purpose = ANY) -> Request:
        """The neutral request for these messages."""
        known = self._requests.get(walk.writes)
        if known is None:
            known = self._requests[walk.writes] = self._describe(walk._replace(prompt=Prompt()))
        return known.with_prompt(walk.prompt, call_id=call_id, parent_id=parent_id, purpose=purpose)

    def _describe(self, walk: Walk) -> Request:
        return describe(self.call, walk, call_id="", parent_id=None)


def same(one: object, other: object) -> bool:
    """They compare, and are equal."""
    try:
        return bool(one == other)
    except (TypeError, ValueError, RecursionError):
        return False  # arrays and the like do not compare


class GuardedSketch(Sketch):
    """One way a guarded model is called. What a callback can only take the careful way is known here."""

    def __init__(
        self,
        model: BaseChatModel,
        stop: list[str] | None,
        kwargs: Mapping[str, Any],
        *,
        attempts_seen: bool,
        may_clamp: bool,
    ) -> None:
        params = model._get_invocation_params(stop=stop, **kwargs)  # noqa: SLF001 - what callbacks are told
        super().__init__(model._serialized, params, dict(model._get_ls_params(stop=stop, **kwargs)))  # noqa: SLF001
        self._state = copied(settings_of(model), _DEPTH)
        self._called = (stop, copied(dict(kwargs), _DEPTH), attempts_seen)
        self._may_clamp = may_clamp

    def is_of(self, state: Mapping[str, Any], called: tuple[object, ...]) -> bool:
        """The same settings, called the same way."""
        return same(called, self._called) and same(state, self._state)

    def _describe(self, walk: Walk) -> Request:
        request = super()._describe(walk)
        request.attempts_seen = request.attempts_seen or bool(self._called[2])
        request.may_clamp = self._may_clamp
        request.thinking_tokens = thinking_tokens(self.call)
        return request


def settings_of(model: BaseChatModel) -> dict[str, Any]:
    """A model's fields; what it keeps for itself has an underscore."""
    return {name: value for name, value in model.__dict__.items() if name[0] != "_"}


class GuardedSketches:
    """The sketches made last of the models of one class."""

    def __init__(self, *, may_clamp: bool) -> None:
        self._may_clamp = may_clamp
        self._known: list[GuardedSketch] = []

    def of(
        self, model: BaseChatModel, stop: list[str] | None, kwargs: Mapping[str, Any], *, attempts_seen: bool
    ) -> GuardedSketch:
        """The sketch of this call, made at its first."""
        state, called = settings_of(model), (stop, kwargs, attempts_seen)
        for sketch in self._known:
            if sketch.is_of(state, called):
                return sketch
        made = GuardedSketch(model, stop, kwargs, attempts_seen=attempts_seen, may_clamp=self._may_clamp)
        self._known = [made, *self._known[: _KEPT - 1]]
        return made


class Sketches:
    """The sketches made last."""

    def __init__(self) -> None:
        self._known: list[Sketch] = []

    def get(self, serialized: Mapping[str, Any], params: Mapping[str, Any], metadata: Mapping[str, Any]) -> Sketch:
        """The sketch of this call, made at its first."""
        for sketch in self._known:
            if sketch.fits(serialized, params, metadata):
                return sketch
        made = Sketch(serialized, params, metadata)
        self._known = [made, *self._known[: _KEPT - 1]]  # a new list: other threads may be reading the old one
        return made
