"""Every attribute that may stand on a span or an event of ours, with its type on the wire: any other is a mistake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .readback import Read

_STR = "str"
_INT = "int"
_FLOAT = "float"
_BOOL = "bool"
_STRS = "tuple of str"

_BUDGET_UNITS = {"usd": _FLOAT, "seconds": _INT, "steps": _INT, "tool_calls": _INT, "tokens": _INT}
_BUDGET_FIGURES = ("cap", "spent", "remaining", "held", "unknown")

ON_SPANS: Mapping[str, str] = {
    "error.type": _STR,
    "gen_ai.operation.name": _STR,
    "gen_ai.conversation.id": _STR,
    "gen_ai.agent.name": _STR,
    "gen_ai.provider.name": _STR,
    "gen_ai.request.model": _STR,
    "gen_ai.request.stream": _BOOL,
    "gen_ai.request.max_tokens": _INT,
    "gen_ai.response.model": _STR,
    "gen_ai.response.id": _STR,
    "gen_ai.response.finish_reasons": _STRS,
    "gen_ai.response.time_to_first_chunk": _FLOAT,
    "gen_ai.usage.input_tokens": _INT,
    "gen_ai.usage.output_tokens": _INT,
    "gen_ai.usage.cost.amount": _FLOAT,
    "gen_ai.usage.cost.currency": _STR,
    "gen_ai.usage.cost.source": _STR,
    "gen_ai.tool.name": _STR,
    "gen_ai.tool.type": _STR,
    "gen_ai.tool.call.id": _STR,
    "gen_ai.tool.description": _STR,
    "runcap.run.id": _STR,
    "runcap.run.stopped": _STR,
    "runcap.outcome": _STR,
    "runcap.step": _INT,
    "runcap.guarantee": _STR,
    "runcap.price.source": _STR,
    "runcap.tier": _STR,
    "runcap.tag.task": _STR,
    "runcap.tag.team": _STR,
    "runcap.call.state": _STR,
    "runcap.call.clamped": _BOOL,
    "runcap.call.waited_s": _FLOAT,
    "runcap.total.calls": _INT,
    "runcap.total.input_tokens": _INT,
    "runcap.total.output_tokens": _INT,
    "runcap.total.cost_usd": _FLOAT,
    "runcap.total.by_model": _STR,
    **{f"runcap.budget.{unit}.{figure}": kind for unit, kind in _BUDGET_UNITS.items() for figure in _BUDGET_FIGURES},
}

_REFUSED_FIGURES = ("cap", "spent", "held", "unknown", "needed")
_ON_BUDGET = {name: kind for name, kind in ON_SPANS.items() if name.startswith("runcap.budget.")} | {
    "runcap.run.stopped": _STR
}
_REFUSED = {"runcap.refused.scope": _STR, "runcap.refused.unit": _STR} | {
    f"runcap.refused.{figure}": _FLOAT for figure in _REFUSED_FIGURES
}

ON_EVENTS: Mapping[str, Mapping[str, str]] = {
    "runcap.refused": _REFUSED | {"runcap.refused.kind": _STR},
    "runcap.run.paused": _REFUSED,
    "runcap.run.stopped": {"runcap.run.stopped": _STR},
    "runcap.run.topped_up": _ON_BUDGET,
    "runcap.budget.warned": _ON_BUDGET
    | {"runcap.budget.unit": _STR, "runcap.budget.share": _FLOAT, "runcap.budget.scope": _STR},
    "runcap.call.clamped": {"gen_ai.request.max_tokens": _INT},
    "runcap.call.waited": {"runcap.call.waited_s": _FLOAT},
    "runcap.tier.switched": {
        "runcap.tier": _STR,
        "runcap.tier.before": _STR,
        "runcap.tier.share": _FLOAT,
        "runcap.tier.forced": _BOOL,
    },
}
"""By the event's name. The refusals of the examples are of dollars, so their figures are."""


def mistakes(spans: Iterable[Read]) -> list[str]:
    """Attributes that nobody knows, or of another type than they should have."""
    wrong = {one for span in spans for one in _compare(span.name.split(" ")[0], span.attributes, ON_SPANS)}
    for span in spans:
        for event in span.events:
            wrong.update(_compare(event.name, event.attributes, ON_EVENTS.get(event.name, {})))
            if event.name not in ON_EVENTS:
                wrong.add(f"{event.name}: no event of ours")
    return sorted(wrong)


def _compare(holder: str, attributes: Mapping[str, Any], table: Mapping[str, str]) -> list[str]:
    found = {name: _type(value) for name, value in attributes.items()}
    return [f"{holder}: {name} is a {kind}" for name, kind in found.items() if table.get(name) != kind]


def _type(value: Any) -> str:
    if isinstance(value, tuple):
        return "tuple of " + " or ".join(sorted({type(one).__name__ for one in value}))
    return type(value).__name__
