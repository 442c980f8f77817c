"""Which time series a measurement belongs to: sets of attributes, made once each, of bounded number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from . import semconv as sc
from .semconv_metrics import INPUT, OTHER, OUTPUT, TOKEN_TYPE

Attributes = Mapping[str, str | bool]
Tags = tuple[tuple[str, str], ...]
"""Tags by the names of their attributes."""

MOST_VALUES = 100
"""Distinct values of one attribute of free origin (an agent's name, a tag, a model); all further ones are `_other`."""
_MOST_SETS = 2_000
"""Sets of attributes that are kept made; the SDK, too, keeps that many series of a metric."""

_CallKey = tuple[str | None, str | None, str | None, str | None, str | None, Tags]


class CallSeries(NamedTuple):
    """A call's attributes: `whole`, with the type of token, and `asked`, which leaves out how it ended."""

    whole: Attributes
    inputs: Attributes
    outputs: Attributes
    asked: Attributes
    ended: Attributes
    """`asked` and the type of error."""


class Series:
    """Sets of attributes of bounded number. Not safe across threads: whoever asks does so one at a time."""

    def __init__(self) -> None:
        self._values: dict[str, set[str]] = {}
        self._calls: dict[_CallKey, CallSeries] = {}

    def of(self, tags: Tags, pairs: Mapping[str, str | bool | None]) -> dict[str, str | bool]:
        """A set of attributes, of those that are not None."""
        named = {name: self._folded(name, value) for name, value in pairs.items() if value is not None}
        named.update({name: self._folded(name, value) for name, value in tags})
        return named

    def of_call(
        self,
        model: str | None,
        provider: str | None,
        response_model: str | None,
        error_type: str | None,
        agent_name: str | None,
        tags: Tags,
    ) -> CallSeries:
        """A call's sets."""
        key = (model, provider, response_model, error_type, agent_name, tags)
        known = self._calls.get(key)
        if known is None:
            if len(self._calls) >= _MOST_SETS:
                self._calls.clear()
            known = self._calls[key] = self._made(key)
        return known

    def _made(self, key: _CallKey) -> CallSeries:
        model, provider, response_model, error_type, agent_name, tags = key
        told = {
            sc.OPERATION_NAME: sc.OPERATION_CHAT,
            sc.PROVIDER_NAME: provider and sc.PROVIDERS.get(provider, provider),
            sc.REQUEST_MODEL: model,
            sc.AGENT_NAME: agent_name,
        }
        asked = self.of(tags, told)
        ended = asked | self.of((), {sc.ERROR_TYPE: error_type})
        whole = ended | self.of((), {sc.RESPONSE_MODEL: response_model})
        return CallSeries(whole, {**whole, TOKEN_TYPE: INPUT}, {**whole, TOKEN_TYPE: OUTPUT}, asked, ended)

    def _folded(self, name: str, value: str | bool) -> str | bool:
        if isinstance(value, bool):
            return value
        seen = self._values.setdefault(name, set())
        if value not in seen:
            if len(seen) >= MOST_VALUES:
                return OTHER
            seen.add(value)
        return value
