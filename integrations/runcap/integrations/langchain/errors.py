"""The refusals as LangGraph lets them through.

Retry, fallback and error-handling middlewares and tool nodes swallow plain exceptions, and would go on spending (or
answer the model with the text of the refusal). They all let `GraphBubbleUp` pass, so inside LangChain each refusal
derives from it as well, where langgraph is installed. `except runcap.guardrails.BudgetExceeded` catches both.
"""

from __future__ import annotations

from typing import cast

from runcap.guardrails.errors import Refused

_made: dict[type[Refused], type[Refused]] = {}


def _bubbling(kind: type[Refused]) -> type[Refused]:
    if kind not in _made:
        _made[kind] = _make(kind)
    return _made[kind]


def _make(kind: type[Refused]) -> type[Refused]:
    try:
        from langgraph.errors import GraphBubbleUp  # noqa: PLC0415 - an optional dependency
    except ImportError:
        return kind
    body = {"__doc__": kind.__doc__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    made = type(kind.__name__, (kind, GraphBubbleUp), {**body, "__reduce__": _reduce})
    return cast("type[Refused]", made)


def _reduce(refused: Refused) -> tuple[object, ...]:
    return _restore, (type(refused).__mro__[1], refused.details)


def _restore(kind: type[Refused], details: object) -> Refused:
    return _bubbling(kind)(details)  # type: ignore[arg-type]


def bubbling(refused: Refused) -> Refused:
    """The same refusal, as an error that LangGraph's own machinery lets through."""
    return _bubbling(type(refused))(refused.details)
