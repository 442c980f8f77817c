"""What is counted beside the calls, and in which series: of bounded number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.util.genai import _instruments as official

from runcap.exporters.otel import semconv_metrics as sm
from runcap.exporters.otel.metrics import Meters
from runcap.guardrails import Budget, BudgetExceeded, Guard, Limit, Usage
from runcap.guardrails.course import Purpose
from runcap.guardrails.events import BudgetWarned, LoopWarned, PrefixBroken, RunPaused, TierSwitched
from runcap.guardrails.history import Cut
from runcap.guardrails.loops import Loop
from runcap.guardrails.request import Response
from runcap.guardrails.testing import ScriptedProvider
from runcap.guardrails.testing.provider import Script

from .metering import Watch, only, request, tokens

Serve = Callable[[Script], ScriptedProvider]
USER: Any = {"messages": [("user", "secret prompt")]}


# What is counted


def test_late_usage_corrects_the_cost_and_brings_the_tokens() -> None:
    watch = Watch(usd=1)
    late, never = (watch.guard.admit(request(name)) for name in ("late", "never"))
    late.seen(400)
    for permit in (late, never):
        permit.abandon("CancelledError")
    late.settle(Usage(1000, 500))
    found = watch.read()
    assert tokens(found["gen_ai.client.token.usage"]) == {"input": (1, 1000), "output": (1, 500)}
    assert only(found["runcap.calls.reconciled"]).sum == 1
    charged = sum(one.sum for one in found["gen_ai.client.operation.cost"])
    corrected = only(found["runcap.calls.reconciled.cost"]).sum
    assert corrected != 0
    assert charged + corrected == pytest.approx(watch.spent, abs=1e-12)


def test_the_end_of_a_run_tells_the_share_of_each_cap_and_the_verdict() -> None:
    watch = Watch(usd="0.10", tokens=10_000, tags=("task",))
    for number, task in enumerate(["refund", "refund", "refund", "chat"]):
        with watch.guard.run(task=task, user=f"u{number}") as run:
            watch.guard.admit(request(f"c{number}"), run).settle(Usage(0, 1000))
            (run.succeed if number == 0 else lambda run=run: run.fail("secret reason"))()
    found = watch.read()
    assert {
        (one.attributes["runcap.tag.task"], one.attributes["runcap.budget.unit"]): (one.number, round(one.sum, 9))
        for one in found["runcap.budget.utilization"]
    } == {
        ("refund", "usd"): (3, 0.3),
        ("refund", "tokens"): (3, 0.3),
        ("chat", "usd"): (1, 0.1),
        ("chat", "tokens"): (1, 0.1),
    }
    assert {
        (one.attributes["runcap.tag.task"], one.attributes["runcap.run.verdict"]): one.sum
        for one in found["runcap.runs"]
    } == {
        ("refund", "succeeded"): 1,
        ("refund", "failed"): 2,
        ("chat", "failed"): 1,
    }
    assert "secret" not in repr(found)
    assert "u1" not in repr(found)


def test_a_limit_is_told_by_the_name_of_its_scope() -> None:
    watch = Watch(usd=1, limits=[Limit("user", usd="0.02", per="total")])
    for number in range(2):
        with watch.guard.run(user="ada") as run:
            watch.guard.admit(request(f"c{number}"), run).settle(Usage(0, 1000))
    with watch.guard.run(user="ada") as run, pytest.raises(BudgetExceeded):
        watch.guard.admit(request("c2"), run)
    found = watch.read()
    assert only(found["runcap.refusals"]).attributes["runcap.refused.scope"] == "user"
    assert "user" in {one.attributes["runcap.budget.scope"] for one in found["runcap.budget.warnings"]}
    assert "ada" not in repr(found)


def test_what_happens_on_the_way_is_counted() -> None:
    watch = Watch(usd=1)
    guard, run = watch.guard, watch.guard.default_run.info
    cut = Purpose(cut=Cut(messages=3, tokens=700, kept=100))
    guard.admit(request("trimmed", purpose=cut)).settle(Usage(10, 10), Response(model="gpt-4o-2024-08-06"))
    guard.emit(TierSwitched(0, run, None, None, "gpt-4o-mini", 0.6))
    guard.emit(TierSwitched(0, run, None, None, "gpt-4o-mini", 0.9, forced=True))
    guard.emit(LoopWarned(0, run, None, Loop("repeat", 3, 1, ("look_up",)), halted=False))
    for what in ("system", "message 3 (tool)", "message 7 (user)"):
        guard.emit(PrefixBroken(0, run, None, what, 100, 250_000))
    guard.emit(BudgetWarned(0, run, "usd", 0.8, guard.default_run.seen))
    with pytest.raises(BudgetExceeded) as refused:
        guard.admit(request("dear", output_cap=10_000_000))
    guard.emit(RunPaused(0, run, None, refused.value.details))
    found = watch.read()
    assert only(found["runcap.history.trims"]).sum == 1
    assert only(found["runcap.history.trimmed_tokens"]).sum == 700
    assert {one.attributes["runcap.tier.forced"]: one.sum for one in found["runcap.tier.switches"]} == {
        False: 1,
        True: 1,
    }
    assert only(found["runcap.loops"]).attributes == {"runcap.loop.kind": "repeat", "runcap.loop.halted": False}
    assert {one.attributes["runcap.prefix.changed"]: one.sum for one in found["runcap.prefix.breaks"]} == {
        "system": 1,
        "message": 2,
    }
    assert sum(one.sum for one in found["runcap.prefix.cost"]) == pytest.approx(0.00075)
    assert only(found["runcap.run.pauses"]).attributes["runcap.refused.unit"] == "usd"
    assert only(found["gen_ai.client.operation.cost"]).attributes["gen_ai.response.model"] == "gpt-4o-2024-08-06"


def test_clamps_waits_and_calls_without_a_price_are_counted() -> None:
    watch = Watch(usd=1)
    unpriced = Watch(steps=5)
    unpriced.guard.admit(request("u", model="nobody-knows-it")).settle(Usage(10, 10))
    found = unpriced.read()
    assert only(found["runcap.calls.unpriced"]).sum == 1
    assert "gen_ai.client.operation.cost" not in found
    assert tokens(found["gen_ai.client.token.usage"]) == {"input": (1, 10), "output": (1, 10)}
    permit = watch.guard.admit(request("c"))
    permit.clamped, permit.waited_s = True, 0.5
    permit.settle(Usage(10, 10))
    found = watch.read()
    assert only(found["runcap.calls.clamped"]).sum == 1
    assert only(found["runcap.call.wait"])[1:] == (1, 0.5)


def test_what_another_instrumentation_counts_is_left_to_it() -> None:
    watch = Watch(usd=1)
    guard = Guard(Budget(usd=1), sinks=(lambda event: watch.meters(event, standard=False),))
    settled, late = guard.admit(request("a")), guard.admit(request("b"))
    settled.settle(Usage(10, 10))
    late.abandon("TimeoutError")
    late.settle(Usage(10, 10))
    found = watch.read()
    assert {name for name in found if name.startswith("gen_ai.")} == {"gen_ai.client.operation.cost"}
    assert only(found["runcap.calls.reconciled"]).sum == 1


def test_names_are_those_of_the_official_package() -> None:
    names = {one.name for one in sm.METRICS}
    meter = MeterProvider(shutdown_on_exit=False).get_meter("x")
    theirs = {(one.name, one.unit) for one in vars(official._Instruments(meter)).values()}
    shared = {name for name, _ in theirs} & names
    assert shared == {
        "gen_ai.client.operation.duration",
        "gen_ai.client.token.usage",
        "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai.execute_tool.duration",
        "gen_ai.invoke_agent.duration",
    }
    assert {(one.name, one.unit) for one in sm.METRICS if one.name in shared} <= theirs
    assert len(names) == len(sm.METRICS)


def test_ten_thousand_runs_and_users_make_no_new_series() -> None:
    watch = Watch(usd="0.10", tags=("task",))
    counts = []
    for number in range(10_000):
        with watch.guard.run(task="refund", user=f"user-{number}") as run:
            watch.guard.admit(request(f"call-{number}"), run).settle(Usage(10, 10), Response(id=f"id-{number}"))
        if number in (0, 9_999):
            counts.append({name: len(points) for name, points in watch.read().items()})
    assert counts[0] == counts[1]
    assert sum(counts[1].values()) < 10
    assert only(watch.read()["gen_ai.client.operation.duration"]).number == 10_000


def test_values_beyond_a_hundred_are_counted_as_other() -> None:
    watch = Watch(usd=1, tags=("user",))
    names = iter(range(250))
    guard = Guard(Budget(usd=100), sinks=(lambda event: watch.meters(event, f"agent-{next(names)}"),))
    permits = [guard.admit(request(f"c{number}")) for number in range(100)]
    names = iter(range(250))
    for permit in permits:
        permit.settle(Usage(1, 1))
    for number in range(150):
        names = iter([7, 100 + number])
        guard.admit(request(f"more{number}")).settle(Usage(1, 1))
    found = watch.read()["gen_ai.client.operation.duration"]
    by_name = {one.attributes["gen_ai.agent.name"]: one.number for one in found}
    assert len(by_name) == 101
    assert by_name.pop("_other") == 150
    assert set(by_name.values()) == {1}

    for number in range(150):
        with watch.guard.run(user=f"u{number}") as run:
            watch.guard.admit(request(f"t{number}"), run).settle(Usage(1, 1))
    by_user = {one.attributes["runcap.tag.user"]: one.sum for one in watch.read()["runcap.runs"]}
    assert (len(by_user), by_user["_other"]) == (101, 50)


@pytest.mark.parametrize("tags", ["task", (1,)])
def test_tags_are_names(tags: Any) -> None:
    with pytest.raises(TypeError, match="names of tags"):
        Meters(NoOpMeterProvider(), tags=tags)
