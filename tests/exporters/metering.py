"""A guard whose metrics are read from memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from runcap.exporters.otel import semconv_metrics as sm
from runcap.exporters.otel.metrics import Meters
from runcap.guardrails import Budget, Guard, MemoryLedger
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.request import Request
from runcap.guardrails.testing import Recorder, ScriptedProvider
from runcap.guardrails.testing.provider import Script
from runcap.integrations.langchain import BudgetCallbackHandler

Serve = Callable[[Script], ScriptedProvider]
USER: Any = {"messages": [("user", "secret prompt")]}


class Point(NamedTuple):
    attributes: dict[str, Any]
    number: int
    sum: float


class Watch:
    """A guard whose metrics are read from memory."""

    def __init__(self, *, tags: tuple[str, ...] = (), limits: Any = (), **caps: Any) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.meters = Meters(self.provider, tags=tags)
        self.recorder = Recorder()
        more: dict[str, Any] = {"limits": limits, "ledger": MemoryLedger()} if limits else {}
        self.guard = Guard(Budget(**caps), sinks=(self.meters, self.recorder), **more)
        self.config: Any = {"callbacks": [BudgetCallbackHandler(self.guard)]}

    @property
    def spent(self) -> float:
        return float(self.guard.default_run.spent_usd or 0)

    def read(self) -> dict[str, list[Point]]:
        return read(self.reader)


def read(reader: InMemoryMetricReader) -> dict[str, list[Point]]:
    """What was collected, by metric; every attribute is one that the metric is documented to have."""
    documented = {one.name: one for one in sm.METRICS}
    found: dict[str, list[Point]] = {}
    for metric in metrics_of(reader):
        known = documented[metric.name]
        assert metric.unit == known.unit
        for point in metric.data.data_points:
            attributes = dict(point.attributes)
            assert {name for name in attributes if not name.startswith("runcap.tag.")} <= set(known.attributes)
            count, total = (point.count, point.sum) if hasattr(point, "sum") else (1, point.value)
            found.setdefault(metric.name, []).append(Point(attributes, count, total))
    return found


def metrics_of(reader: InMemoryMetricReader) -> Iterator[Any]:
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            yield from scope.metrics


def only(points: list[Point]) -> Point:
    (point,) = points
    return point


def tokens(points: list[Point]) -> dict[str, tuple[int, float]]:
    return {one.attributes["gen_ai.token.type"]: (one.number, one.sum) for one in points}


def request(call_id: str, **more: Any) -> Request:
    """A request to gpt-4o of at most 1,000 tokens out, that is one cent."""
    told: dict[str, Any] = {"model": "gpt-4o", "provider": "openai", "prompt": Prompt(), "output_cap": 1000}
    return Request(call_id=call_id, output_ceiling=None, **(told | more))
