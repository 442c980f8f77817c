"""What holds for the spans of every example: kinds, statuses, types, nesting, and sums to the last nano-dollar."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

import pytest

from runcap.guardrails.money import NANO

from .readback import CLIENT, ERROR, INTERNAL, UNSET, Point, Read, Spans
from .wire import mistakes

_KINDS = {"chat": CLIENT, "execute_tool": INTERNAL, "invoke_agent": INTERNAL}
_NAMES = {"chat": "gen_ai.request.model", "execute_tool": "gen_ai.tool.name", "invoke_agent": "gen_ai.agent.name"}

_SAID = ("Lisbon", "Try another day", "sales in region", "Sales grew", "parcel", "next ticket", "Be brief", "my order")
"""Words of the prompts, answers, arguments and results of the examples."""


def check(spans: Spans, usd: Decimal, calls: int) -> None:
    """That they are whole and right, and add up to what the provider billed."""
    assert mistakes(spans.all) == []
    for span in spans.all:
        _check_span(span)
        if span.parent_id:
            _check_nested(span, spans.by_id[span.parent_id])
    assert len({root.trace_id for root in spans.roots}) == len(spans.roots)
    chats = spans.of("chat")
    assert len(chats) == calls
    assert nano(chats) == usd * NANO
    for agent in spans.of("invoke_agent"):
        _check_totals(agent, [span for span in spans.below(agent) if span.name.startswith("chat ")])
    everything = str(spans.all)
    assert not [word for word in _SAID if word in everything]


def check_metrics(points: Sequence[Point], spans: Spans) -> None:
    """That they tell the same as the spans, model by model, and have no ids."""
    assert not {name for point in points for name in point.attributes if name.endswith(".id")}
    chats = spans.of("chat")
    for model in {chat.attributes["gen_ai.request.model"] for chat in chats}:
        _check_model(
            [point for point in points if point.attributes.get("gen_ai.request.model") == model],
            [chat for chat in chats if chat.attributes["gen_ai.request.model"] == model],
        )
    agents = [point for point in points if point.metric == "gen_ai.invoke_agent.duration"]
    assert sum(point.count for point in agents) == len(spans.of("invoke_agent"))


def _check_model(points: Sequence[Point], chats: Sequence[Read]) -> None:
    for side in ("input", "output"):
        tokens = sum(chat.attributes[f"gen_ai.usage.{side}_tokens"] for chat in chats)
        of_side = [point for point in points if point.attributes.get("gen_ai.token.type") == side]
        assert _summed(of_side, "gen_ai.client.token.usage", "{token}") == (len(chats), tokens)
    count, usd = _summed(points, "gen_ai.client.operation.cost", "USD")
    assert (count, round(usd * NANO)) == (len(chats), nano(chats))
    count, seconds = _summed(points, "gen_ai.client.operation.duration", "s")
    assert count == len(chats)
    assert seconds == pytest.approx(sum(chat.end - chat.start for chat in chats) / NANO)


def _summed(points: Sequence[Point], metric: str, unit: str) -> tuple[int, float]:
    of_metric = [point for point in points if point.metric == metric]
    assert {point.unit for point in of_metric} == {unit}
    return sum(point.count for point in of_metric), sum(point.sum for point in of_metric)


def nano(chats: Sequence[Read]) -> int:
    """What they cost together, in nano-dollars: each amount is the double nearest to a whole number of them."""
    return sum(_nano(chat.attributes["gen_ai.usage.cost.amount"]) for chat in chats)


def _nano(usd: float) -> int:
    exact = Decimal(repr(usd)) * NANO
    assert exact == int(exact), f"${usd} is no whole number of nano-dollars"
    return int(exact)


def _check_span(span: Read) -> None:
    told = span.attributes
    operation, _, name = span.name.partition(" ")
    assert (told["gen_ai.operation.name"], told[_NAMES[operation]]) == (operation, name)
    assert span.kind == _KINDS[operation]
    assert told["gen_ai.agent.name"]
    assert told["gen_ai.conversation.id"]
    # A failure is told by its type, and by nothing else.
    assert (span.status, span.message) == ((ERROR, told["error.type"]) if "error.type" in told else (UNSET, ""))
    if operation == "chat":
        assert told["gen_ai.usage.cost.currency"] == "USD"
        assert told["gen_ai.usage.cost.source"] == "local"
        assert told["runcap.call.state"] == "settled"
    else:
        assert "gen_ai.usage.cost.amount" not in told, "it would be counted twice"


def _check_nested(span: Read, parent: Read) -> None:
    assert span.trace_id == parent.trace_id
    assert parent.start <= span.start <= span.end <= parent.end
    for same in ("gen_ai.agent.name", "gen_ai.conversation.id", "runcap.run.id"):
        assert span.attributes[same] == parent.attributes[same]


def _check_totals(agent: Read, chats: Sequence[Read]) -> None:
    """What stands on an agent is the sum of what stands on the calls below it; also of those of each model."""
    told = agent.attributes
    _check_sums({name.removeprefix("runcap.total."): figure for name, figure in told.items()}, chats)
    by_model = json.loads(told.get("runcap.total.by_model", "{}"))
    of_model = Counter(chat.attributes["gen_ai.request.model"] for chat in chats)
    assert set(by_model) == set(of_model)
    for model, sums in by_model.items():
        _check_sums(sums, [chat for chat in chats if chat.attributes["gen_ai.request.model"] == model])


def _check_sums(sums: dict[str, float], chats: Sequence[Read]) -> None:
    assert sums["calls"] == len(chats)
    assert _nano(sums["cost_usd"]) == nano(chats)
    for side in ("input_tokens", "output_tokens"):
        assert sums[side] == sum(chat.attributes[f"gen_ai.usage.{side}"] for chat in chats)
