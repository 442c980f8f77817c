"""What is said of a model call before its messages are looked at: worked out once for each way a model is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runcap.guardrails.estimate import Prompt
from runcap.guardrails.ratecard import CacheWrites
from runcap.guardrails.request import Request

from .messages import Walk
from .parts import Size, base_size, copied
from .request import Described, describe

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
        try:
            return bool(params == self._params)
        except (TypeError, ValueError, RecursionError):
            return False  # arrays and the like do not compare

    def request(self, walk: Walk, *, call_id: str, parent_id: str | None) -> Request:
        """The neutral request for these messages."""
        known = self._requests.get(walk.writes)
        if known is None:
            empty = walk._replace(prompt=Prompt())
            known = self._requests[walk.writes] = describe(self.call, empty, call_id="", parent_id=None)
        return known.with_prompt(walk.prompt, call_id=call_id, parent_id=parent_id)


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
