"""The traces of every example, taken by real OTLP receivers over gRPC and HTTP, and read back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runcap.guardrails import SQLiteLedger

from ..waiting import wait_for
from .conftest import ROOT, Downstream, OtelTap, Rotel
from .held import check, check_metrics, nano
from .readback import ERROR, Point, Read, Spans, Tree, last_of_each

pytestmark = pytest.mark.receiver


class Way(NamedTuple):
    """How telemetry gets to a receiver, and what has come over it of a service."""

    name: str
    endpoint: str
    protocol: str
    spans: Callable[[str], list[Read]]
    points: Callable[[str], list[Point]]


@dataclass(frozen=True)
class Told:
    """What an example printed, what the provider billed, and what a receiver took."""

    service: str
    printed: str
    usd: Decimal
    calls: int
    spans: Spans

    @property
    def trees(self) -> list[Tree]:
        return [self.spans.tree(root) for root in self.spans.roots]


Play = Callable[..., list[Told]]


@pytest.fixture
def play(oteltap: OtelTap, rotel: Rotel, downstream: Downstream) -> Play:
    """Run an example, all ways at once, and check what holds for all: what each of them led to."""
    since = oteltap.size  # it does not say of which service a span is: what is new is this example's

    def new_spans(_: str) -> list[Read]:
        return oteltap.spans(since)

    def new_points(_: str) -> list[Point]:
        return oteltap.points(since)

    grpc, http = (f"http://127.0.0.1:{port}" for port in (rotel.grpc_port, rotel.http_port))
    ways = [
        Way("rotel-grpc", grpc, "grpc", downstream.spans, downstream.points),
        Way("rotel-http", http, "http/protobuf", downstream.spans, downstream.points),
        Way("oteltap-http", oteltap.endpoint, "http/protobuf", new_spans, new_points),
    ]

    def play(example: str, *options: str, spans: Callable[[str, int], int]) -> list[Told]:
        def one(way: Way) -> tuple[Way, str, str]:
            service = f"{example}-{way.name}"
            return way, service, run_example(example, options, way, service)

        with ThreadPoolExecutor(len(ways)) as pool:
            return [told(*done, spans) for done in pool.map(one, ways)]

    return play


def told(way: Way, service: str, printed: str, number: Callable[[str, int], int]) -> Told:
    """What came of it; `number` tells from what was printed and the number of calls how many spans there must be."""
    [(usd, calls)] = re.findall(r"(?:own bill: |^bill +)\$([\d.]+) for (\d+) calls", printed, flags=re.MULTILINE)
    expected = number(printed, int(calls))
    spans = wait_for(lambda: got if len(got := way.spans(service)) >= expected else None, f"the spans of {service}")
    assert len(spans) == expected
    points = wait_for(lambda: whole_points(way.points(service), int(calls)), f"the metrics of {service}")
    one = Told(service, printed, Decimal(usd), int(calls), Spans(spans))
    check(one.spans, one.usd, one.calls)
    check_metrics(points, one.spans)
    return one


def whole_points(points: list[Point], calls: int) -> list[Point] | None:
    """The metrics of that many calls, or None while they are not all there."""
    last = last_of_each(points)
    timed = sum(point.count for point in last if point.metric == "gen_ai.client.operation.duration")
    return last if timed >= calls else None


def run_example(example: str, options: Sequence[str], way: Way, service: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))} | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": way.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": way.protocol,
        "OTEL_SERVICE_NAME": service,
    }
    own = [option.replace("{service}", service) for option in options]
    command = [sys.executable, str(ROOT / "examples" / f"{example}.py"), *own]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def agent(name: str, *below: str) -> Tree:
    """An agent's span with spans below it, which have none below them."""
    return f"invoke_agent {name}", tuple((one, ()) for one in below)


def names(span: Read) -> list[str]:
    return [event.name for event in span.events]


def of_chats(told: Told, attribute: str) -> list[Any]:
    return [chat.attributes[attribute] for chat in told.spans.of("chat")]


def test_runaway_agent(play: Play) -> None:
    for told in play("runaway_agent", "--usd", "0.02", spans=lambda _, calls: 1 + 2 * calls):
        assert told.trees == [agent("travel_agent", *["chat gpt-4o", "execute_tool search_flights"] * told.calls)]
        [root] = told.spans.roots
        assert root.attributes["error.type"] == "BudgetExceeded"
        assert root.attributes["runcap.outcome"] == "refused"
        assert names(root) == ["runcap.budget.warned", "runcap.run.stopped", "runcap.refused"]
        assert root.events[2].attributes["runcap.refused.cap"] == 0.02
        assert set(of_chats(told, "runcap.guarantee")) == {"hard"}
        assert of_chats(told, "runcap.step") == list(range(1, told.calls + 1))


def test_tiered_agent(play: Play) -> None:
    for told in play("tiered_agent", spans=lambda _, calls: 2 * calls):
        models = re.findall(r"^step +\d+  (\S+) ", told.printed, flags=re.MULTILINE)
        below = [name for model in models for name in (f"chat {model}", "execute_tool read_page")]
        assert told.trees == [agent("reader", *below[:-1])]  # the last answer asks for no tool
        [root] = told.spans.roots
        assert root.attributes["runcap.outcome"] == "completed"
        assert of_chats(told, "runcap.tier") == models
        ladder = sorted(set(models), key=models.index)
        assert list(json.loads(root.attributes["runcap.total.by_model"])) == ladder
        switches = [event.attributes for event in root.events if event.name == "runcap.tier.switched"]
        assert [one["runcap.tier.before"] for one in switches] == ladder[:-1] == ["gpt-4.1", "gpt-4.1-mini"]
        assert [one["runcap.tier"] for one in switches] == ladder[1:] == ["gpt-4.1-mini", "gpt-4.1-nano"]


def test_ask_for_more(play: Play) -> None:
    """Three traces of one run and one conversation, made as three processes would."""
    for told in play("ask_for_more", spans=lambda _, calls: 3 + 2 * calls - 1):
        asked = [int(steps) for steps in re.findall(r"asks for more after (\d+) steps", told.printed)]
        numbers = [asked[0], asked[1] - asked[0], told.calls - asked[1]]
        below = [["chat gpt-4o", "execute_tool search_flights"] * number for number in numbers]
        below[-1].pop()  # the last answer asks for no tool
        assert told.trees == [agent("LangGraph", *one) for one in below]
        assert {span.attributes["gen_ai.conversation.id"] for span in told.spans.all} == {"trip-to-lisbon"}
        assert len({span.attributes["runcap.run.id"] for span in told.spans.all}) == 1
        outcomes = [root.attributes["runcap.outcome"] for root in told.spans.roots]
        assert outcomes == ["interrupted", "interrupted", "completed"]
        assert [names(root).count("runcap.run.paused") for root in told.spans.roots] == [1, 1, 0]
        assert [names(root).count("runcap.run.topped_up") for root in told.spans.roots] == [0, 1, 1]
        first, second, third = told.spans.roots
        assert [root.links for root in told.spans.roots] == [(), (first.id,), (second.id,)]
        assert third.trace_id not in (first.trace_id, second.trace_id)


def tickets_in(printed: str) -> int:
    return sum(map(int, re.findall(r"^ \d+ +(\d+) .*halted", printed, flags=re.MULTILINE)))


def test_shared_budget(play: Play, tmp_path: Path) -> None:
    """Two processes: a trace a ticket, and one for the ticket at which each of them was halted."""

    def spans(printed: str, calls: int) -> int:
        tickets = tickets_in(printed)
        return 4 * tickets + 2 + 2 * (calls - 2 * tickets)

    options = ("--workers", "2", "--usd", "0.02", "--file", str(tmp_path / "{service}.db"))
    for told in play("shared_budget", *options, spans=spans):
        tickets = tickets_in(told.printed)
        looked = ["chat gpt-4o", "execute_tool look_up"]
        begun = told.calls - 2 * tickets
        assert Counter(told.trees) == +Counter(
            {
                agent("support_agent", *looked, "chat gpt-4o"): tickets,
                agent("support_agent", *looked): begun,
                agent("support_agent"): 2 - begun,
            }
        )
        halted = [root for root in told.spans.roots if root.status == ERROR]
        assert [root.attributes["error.type"] for root in halted] == ["BudgetExceeded"] * 2
        assert {names(root)[-1] for root in halted} == {"runcap.refused"}
        assert {root.events[-1].attributes["runcap.refused.scope"] for root in halted} == {"team"}
        assert {span.attributes["runcap.tag.team"] for span in told.spans.all} == {"support"}
        check_ledger(told, tmp_path / f"{told.service}.db")


def check_ledger(told: Told, file: Path) -> None:
    """Run by run, what the ledger keeps is what the spans tell."""
    kept: Counter[str] = Counter()
    with SQLiteLedger(str(file)) as ledger:
        for record in ledger.records():
            assert record.cost_nano is not None
            kept[record.about.run_id] += record.cost_nano
    shown: Counter[str] = Counter()
    for chat in told.spans.of("chat"):
        shown[chat.attributes["runcap.run.id"]] += nano([chat])
    assert kept == shown
    assert kept.total() == told.usd * 10**9


def turn(tool: str, number: int) -> list[dict[str, Any]]:
    """Of a recorded conversation: a tool is called, and answers."""
    call = {"id": f"call_{number}", "type": "function", "function": {"name": tool, "arguments": "{}"}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"call_{number}", "content": "In Lisbon. " * 20},
    ]


def test_replay(play: Play, tmp_path: Path) -> None:
    """Two recorded conversations: one of two turns, which are two traces of its run, and one that is halted."""
    asks = {"role": "user", "content": "Where is my order?"}
    short = [asks, *turn("find", 0), {"role": "assistant", "content": "In Lisbon."}, asks, *turn("hand_over", 1)]
    long = [asks, *(message for number in range(40) for message in turn("find", number))]
    recorded = tmp_path / "recorded.json"
    recorded.write_text(json.dumps([{"task_id": "short", "traj": short}, {"task_id": "long", "traj": long}]))
    for told in play("replay", str(recorded), "--cap", "0.01", spans=lambda _, calls: 3 + 2 * calls - 1):
        steps = dict(re.findall(r"^(short|long) +\w+ +(\d+) ", told.printed, flags=re.MULTILINE))
        assert steps["short"] == "3"
        assert told.trees == [
            agent("LangGraph", "chat gpt-4o", "execute_tool find", "chat gpt-4o"),
            agent("LangGraph", "chat gpt-4o", "execute_tool hand_over"),
            agent("LangGraph", *["chat gpt-4o", "execute_tool find"] * int(steps["long"])),
        ]
        first, second, third = (root.attributes for root in told.spans.roots)
        assert first["runcap.run.id"] == second["runcap.run.id"] != third["runcap.run.id"]
        assert [one["runcap.tag.task"] for one in (first, second, third)] == ["short", "short", "long"]
        assert [one["runcap.outcome"] for one in (first, second, third)] == ["completed", "completed", "refused"]
