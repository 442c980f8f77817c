from __future__ import annotations

import os
import subprocess
import sys
import threading
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent

from runcap.exporters import Alert, AlertSink
from runcap.exporters.alerts import KINDS
from runcap.guardrails import Budget, BudgetExceeded, Guard, LoopPolicy, RefusalDetails, RunPaused, TierSwitched, Usage
from runcap.guardrails.testing import ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware

from ..guardrails.helpers import request
from ..langchain.conftest import LOOK_UP, USER, looping, openai

ROOT = Path(__file__).parents[2]


def refuse(guard: Guard, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(BudgetExceeded):
            guard.admit(request())


def test_a_storm_of_refusals_is_one_alert_and_counted_in_the_next() -> None:
    told: list[Alert] = []
    with AlertSink(told.append) as sink:
        guard = Guard(Budget(usd="0.02"), sinks=(sink,), loops=LoopPolicy(warn=2))
        with guard.run(task="refund") as run:
            for _ in range(2):
                guard.admit(request()).settle(Usage(0, 900))
            refuse(guard, 100)
            for _ in range(2):
                guard.saw_tool_call(run, "look_up", 1)
            run.top_up(usd="0.01")
            guard.admit(request()).settle(Usage(0, 900))
            refuse(guard)
    assert [(alert.kind, alert.unit, alert.repeats) for alert in told] == [
        ("budget", "usd", 0),
        ("stopped", "usd", 0),
        ("refused", "usd", 0),
        ("loop", None, 99),
        ("budget", "usd", 0),  # begun anew by the top-up
        ("stopped", "usd", 0),
        ("refused", "usd", 0),
    ]
    assert told[2].title == "A call was refused with BudgetExceeded (run): usd cap $0.02, spent $0.018"
    assert (told[2].cap, told[2].spent, told[2].held) == (Decimal("0.02"), Decimal("0.018"), Decimal(0))
    assert (told[0].share, told[0].title) == (0.8, "80% of the cap on usd is used (run)")
    assert told[1].title == "A run was stopped at its cap on usd"
    assert all(alert.run_id == run.id and alert.tags == {"task": "refund"} for alert in told)


def test_unknown_and_unpriced_calls_pauses_and_tiers() -> None:
    told: list[Alert] = []
    with AlertSink(told.append, on=KINDS) as sink:
        guard = Guard(Budget(tokens=10**6), sinks=(sink,))
        with guard.run() as run:
            guard.admit(request()).abandon("TimeoutError")
            guard.admit(request()).abandon("TimeoutError")
            guard.admit(request(model="nobody-knows", provider=None)).settle(Usage(0, 9))
            guard.emit(TierSwitched(0, run.info, None, "a", "b", 0.5))
            guard.emit(RunPaused(0, run.info, None, _details(run.id)))
    assert [(alert.kind, alert.model) for alert in told] == [
        ("unknown", "gpt-4o"),
        ("unpriced", "nobody-knows"),
        ("tier", "b"),
        ("paused", None),
    ]
    assert told[3].cap == 3
    assert told[0].title == "A call of gpt-4o may have been billed up to $0.01 more than was seen"


def _details(run_id: str) -> RefusalDetails:
    return RefusalDetails(reason="", way_out="", run_id=run_id, unit="steps", cap=3, spent=3)


def test_only_what_was_asked_for_of_a_real_agent() -> None:
    told: list[Alert] = []
    with ScriptedProvider(looping(), keep_alive=False) as provider, AlertSink(told.append, on=["refused"]) as sink:
        middleware = BudgetMiddleware(Guard(Budget(steps=2), sinks=(sink,)))
        agent: Any = create_agent(openai(provider), [LOOK_UP], middleware=[middleware])
        with pytest.raises(BudgetExceeded):
            agent.invoke(USER)
    assert [(alert.kind, alert.unit, alert.run_id) for alert in told] == [("refused", "steps", middleware.last_run.id)]


def test_a_slow_webhook_holds_up_no_call_and_the_oldest_alerts_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    gate, begun = threading.Event(), threading.Event()

    def slow(alert: Alert) -> None:
        begun.set()
        gate.wait()
        told.append(alert.run_id)

    sink = AlertSink(slow, on=["refused"], queue=2)
    guard = Guard(Budget(steps=1), sinks=(sink,))
    for number in range(6):
        guard.admit(request(), guard.named_run(str(number))).settle(Usage(0, 1))
        with pytest.raises(BudgetExceeded):
            guard.admit(request(), guard.named_run(str(number)))
        begun.wait()  # the first is being told
    gate.set()
    sink.close(60)
    assert told == ["0", "4", "5"]
    assert [record.getMessage() for record in caplog.records] == ["runcap: alerts failed with AlertsDropped; said once"]


def test_what_tell_raises_is_said_once_by_its_type(caplog: pytest.LogCaptureFixture) -> None:
    def broken(alert: Alert) -> None:
        raise ConnectionError("https://hooks.example/secret")

    with AlertSink(broken) as sink:
        guard = Guard(Budget(steps=1), sinks=(sink,))
        for _ in range(3):
            with guard.run():
                guard.admit(request()).settle(Usage(0, 1))
                refuse(guard)
    assert [record.getMessage() for record in caplog.records] == [
        "runcap: alerts failed with ConnectionError; said once"
    ]


async def coroutine(alert: Alert) -> None: ...


class Awaited:
    async def __call__(self, alert: Alert) -> None: ...


@pytest.mark.parametrize("tell", [coroutine, partial(coroutine), Awaited(), None, 3])
def test_what_cannot_be_called_is_named(tell: Any) -> None:
    with pytest.raises(TypeError, match=r"must not be a coroutine function|must be a function of an Alert, got"):
        AlertSink(tell)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"on": "refused"}, TypeError, "collection of kinds"),
        ({"on": ["refusal"]}, ValueError, "no kind 'refusal'; there are budget, refused"),
        ({"on": []}, ValueError, "names no kind"),
        ({"queue": 0}, ValueError, "at least 1; got 0"),
    ],
)
def test_bad_arguments_are_named(how: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        AlertSink(print, **how)


def test_runs_are_forgotten_and_after_close_nothing_is_told() -> None:
    told: list[Alert] = []
    sink = AlertSink(told.append)
    guard = Guard(Budget(steps=1), sinks=(sink,))
    for number in range(1_200):
        run = guard.named_run(str(number))
        guard.admit(request(), run).settle(Usage(0, 1))
        with pytest.raises(BudgetExceeded):
            guard.admit(request(), run)
    assert len(sink._told) == 1_000
    sink.close(60)
    count = len(told)
    refuse(guard, 0)
    guard.admit(request()).settle(Usage(0, 1))
    refuse(guard)
    assert len(told) == count


PROGRAM = """
import sys, threading
sys.path.insert(0, {root!r})
from runcap.exporters import AlertSink
from runcap.guardrails import Budget, BudgetExceeded, Guard, Usage
from tests.guardrails.helpers import request

def tell(alert):
    print(alert.kind, flush=True)
    if {hang}: threading.Event().wait()

guard = Guard(Budget(steps=1), sinks=(AlertSink(tell, on=["refused", "stopped"]),))
guard.admit(request()).settle(Usage(0, 1))
try: guard.admit(request())
except BudgetExceeded: pass
"""


@pytest.mark.parametrize(("hang", "told"), [(False, "stopped\nrefused\n"), (True, "stopped\n")])
def test_the_end_of_the_program_tells_what_is_left_and_waits_for_no_webhook(hang: bool, told: str) -> None:
    path = os.pathsep.join(str(ROOT / part) for part in ("guardrails", "exporters", "integrations"))
    code = PROGRAM.format(root=str(ROOT), hang=hang)
    command = [sys.executable, "-c", code]
    env = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == told
