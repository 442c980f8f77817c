"""What a receiver took, read back: spans as a tree, every attribute with the type it has on the wire, metrics."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

INTERNAL, CLIENT = Span.SPAN_KIND_INTERNAL, Span.SPAN_KIND_CLIENT
UNSET, ERROR = 0, 2

Tree = tuple[str, tuple["Tree", ...]]


class Marked(NamedTuple):
    """An event on a span, or a span that it links to."""

    name: str
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Read:
    """A span. `links` are the ids of spans; times are in nanoseconds."""

    trace_id: str
    id: str
    parent_id: str
    name: str
    kind: int
    start: int
    end: int
    status: int
    message: str
    attributes: dict[str, Any]
    events: tuple[Marked, ...]
    links: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """What a metric of one process tells of one set of attributes: the number of measurements and their sum so far."""

    metric: str
    unit: str
    attributes: dict[str, Any]
    start: int
    count: int
    sum: float

    @property
    def series(self) -> tuple[str, int, frozenset[tuple[str, Any]]]:
        """What it is the state of."""
        return self.metric, self.start, frozenset(self.attributes.items())


def last_of_each(points: Iterable[Point]) -> list[Point]:
    """Totals grow from one export to the next: the last one holds all."""
    return list({point.series: point for point in sorted(points, key=lambda point: point.count)}.values())


def read_span(span: Any) -> Read:
    """A span as OpenTelemetry's own message has it."""
    return Read(
        trace_id=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        kind=span.kind,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        status=span.status.code,
        message=span.status.message,
        attributes=_attributes(span.attributes),
        events=tuple(Marked(event.name, _attributes(event.attributes)) for event in span.events),
        links=tuple(link.span_id.hex() for link in span.links),
    )


def read_metric(metric: Any) -> Iterator[Point]:
    """A point for every set of attributes. A sum that is no histogram counts as one measurement."""
    kind = metric.WhichOneof("data")
    for point in getattr(metric, kind).data_points:
        count, total = (point.count, point.sum) if kind == "histogram" else (1, _number(point))
        attributes = _attributes(point.attributes)
        yield Point(metric.name, metric.unit, attributes, point.start_time_unix_nano, count, total)


def read_line(line: str) -> Read | list[Point]:
    """A line of what oteltap prints: OTLP's JSON, which has ids in hexadecimal where protobuf's has base64."""
    told = json.loads(line, object_hook=_ids_for_protobuf)
    if "spanId" in told:
        return read_span(ParseDict(told, Span(), ignore_unknown_fields=True))
    return list(read_metric(ParseDict(told, Metric(), ignore_unknown_fields=True)))


def _ids_for_protobuf(told: dict[str, Any]) -> dict[str, Any]:
    ids = {name: told[name] for name in ("traceId", "spanId", "parentSpanId") if name in told}
    return told | {name: base64.b64encode(bytes.fromhex(one)).decode() for name, one in ids.items()}


def _number(point: Any) -> float:
    return float(getattr(point, point.WhichOneof("value")))


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    """As the wire has it: str, bool, int, float, or a tuple of them."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(map(_value, value.array_value.values))
    assert kind in ("string_value", "bool_value", "int_value", "double_value"), f"no attribute of ours is a {kind}"
    return getattr(value, kind)


class Spans:
    """Spans that belong together, as trees."""

    def __init__(self, spans: Iterable[Read]) -> None:
        self.all = sorted(spans, key=lambda span: (span.start, span.end))
        self.by_id = {span.id: span for span in self.all}
        assert len(self.by_id) == len(self.all), "a span came twice"
        self._below: defaultdict[str, list[Read]] = defaultdict(list)
        for span in self.all:
            self._below[span.parent_id].append(span)

    @property
    def roots(self) -> Sequence[Read]:
        """Those without a parent, in the order of their beginnings."""
        return self._below[""]

    def children(self, span: Read) -> Sequence[Read]:
        """In the order of their beginnings."""
        return self._below[span.id]

    def below(self, span: Read) -> Iterator[Read]:
        """All below it."""
        for child in self.children(span):
            yield child
            yield from self.below(child)

    def of(self, operation: str) -> list[Read]:
        """Those of one operation, as `gen_ai.operation.name` has it."""
        return [span for span in self.all if span.attributes["gen_ai.operation.name"] == operation]

    def tree(self, root: Read) -> Tree:
        """The names below it, nested as the spans are."""
        return root.name, tuple(self.tree(child) for child in self.children(root))
