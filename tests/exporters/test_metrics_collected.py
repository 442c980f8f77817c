"""Metrics are counted when a reader collects: exactly, whatever threads, readers, sinks and processes there are."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from runcap.exporters.otel.backlog import Backlog
from runcap.exporters.otel.metrics import WAITING, Meters
from runcap.guardrails import Budget, Guard, Usage
from runcap.guardrails.testing import ScriptedProvider
from runcap.guardrails.testing.provider import Script

from .metering import Watch, only, read, request, tokens

Serve = Callable[[Script], ScriptedProvider]
USER: Any = {"messages": [("user", "secret prompt")]}


# Many at once


def test_threads_at_once_add_up_exactly_while_a_reader_collects() -> None:
    watch = Watch(usd=1000)
    each, threads = 400, 8
    assert each * threads > WAITING, "more than may wait"

    def work(thread: int) -> None:
        for number in range(each):
            watch.guard.admit(request(f"{thread}-{number}")).settle(Usage(number, 7))

    with ThreadPoolExecutor(threads) as pool:
        works = [pool.submit(work, thread) for thread in range(threads)]
        while not all(one.done() for one in works):
            watch.read()
    for one in works:
        one.result()
    found = watch.read()
    assert tokens(found["gen_ai.client.token.usage"]) == {
        "input": (each * threads, threads * each * (each - 1) // 2),
        "output": (each * threads, each * threads * 7),
    }
    spent = watch.spent
    assert only(found["gen_ai.client.operation.cost"]).sum == pytest.approx(spent, abs=1e-9)


def test_every_reader_gets_all_and_a_delta_is_counted_once() -> None:
    cumulative = InMemoryMetricReader()
    histogram = type(MeterProvider(shutdown_on_exit=False).get_meter("x").create_histogram("x")).__mro__[1]
    delta = InMemoryMetricReader({histogram: AggregationTemporality.DELTA})
    provider = MeterProvider([cumulative, delta], shutdown_on_exit=False)
    guard = Guard(Budget(usd=1), sinks=(Meters(provider),))
    got = []
    for number in range(3):
        guard.admit(request(f"c{number}")).settle(Usage(10, 10))
        got.append(tokens(read(delta)["gen_ai.client.token.usage"])["input"])
    assert got == [(1, 10)] * 3
    assert tokens(read(cumulative)["gen_ai.client.token.usage"])["input"] == (3, 30)


def test_sinks_on_one_provider_share_its_instruments(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(usd=1)
    for number in range(50):
        guard = Guard(Budget(usd=1), sinks=(Meters(watch.provider),))
        guard.admit(request(f"c{number}")).settle(Usage(10, 10))
    assert only(watch.read()["gen_ai.client.operation.duration"]).number == 50
    assert not caplog.records


def test_without_a_reader_what_waits_is_bounded() -> None:
    provider = MeterProvider(shutdown_on_exit=False)
    meters = Meters(provider)
    guard = Guard(Budget(usd=1000), sinks=(meters,))
    for number in range(2 * WAITING):
        guard.admit(request(f"c{number}")).settle(Usage(10, 10))
    assert len(meters._recorder.backlog) == WAITING


def test_one_item_that_fails_is_lost_alone_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item % 2:
            raise ValueError("secret")
        done.append(item)

    backlog = Backlog(work, most=3)
    for item in range(6):
        backlog.put(item)
    assert done == [0, 2], "two of the oldest each time that too many wait"
    backlog.drain()
    assert done == [0, 2, 4]
    assert [record.getMessage() for record in caplog.records] == [
        "runcap: a metric could not be recorded (ValueError); said once"
    ]


def test_an_item_put_while_one_is_worked_off_waits() -> None:
    order: list[int] = []

    def work(item: int) -> None:
        order.append(item)
        if item == 0:
            backlog.put(2)  # as a finalizer might, on this very thread

    backlog = Backlog(work, most=0)
    backlog.put(0)
    backlog.drain()
    assert order == [0, 2]


# Processes

PROGRAM = """
import os
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from runcap.exporters.otel.metrics import Meters
from runcap.guardrails import Budget, Guard, Usage
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.request import Request

def call(name, meters=None):
    asked = Request(call_id=name, model="gpt-4o", provider="openai", prompt=Prompt(), output_cap=9, output_ceiling=None)
    Guard(Budget(usd=1), sinks=(meters or Meters(),)).admit(asked).settle(Usage(1, 1))

def counted():
    data = reader.get_metrics_data()
    every = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
    return sum(p.count for m in every if m.name == "gen_ai.client.operation.duration" for p in m.data.data_points)

reader = InMemoryMetricReader()
"""


def run(program: str) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM + textwrap.dedent(program)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()


def test_a_global_provider_that_is_set_later_is_found() -> None:
    assert run(
        """
        meters = Meters()
        call("a")
        metrics.set_meter_provider(MeterProvider([reader]))
        call("b")
        call("c", meters)
        print(counted())
        """
    ) == ["3"]


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs os.fork")
def test_after_a_fork_the_child_counts_only_its_own() -> None:
    told = run(
        """
        metrics.set_meter_provider(MeterProvider([reader]))
        call("a")
        if os.fork() == 0:
            call("b")
            print("child", counted(), flush=True)
            os._exit(0)
        os.wait()
        print("parent", counted())
        """
    )
    assert told == ["child", "1", "parent", "1"]
