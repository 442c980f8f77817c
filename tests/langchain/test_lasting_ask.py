"""A run that asks for more and goes on elsewhere: by a process that shares the file, or by one that has another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from runcap.guardrails import Budget, BudgetExceeded, Guard, Limit, SQLiteLedger
from runcap.guardrails.money import to_usd
from runcap.guardrails.testing import ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware

from ..waiting import wait_for
from .conftest import LOOK_UP, USER, Caller, Serve, looping, openai

THREAD: Any = {"configurable": {"thread_id": "1"}, "metadata": {"runcap": {"user": "ada"}}}


class Process:
    """Has a guard and a ledger of its own."""

    def __init__(self, path: Path, provider: ScriptedProvider, saver: InMemorySaver) -> None:
        self.ledger = SQLiteLedger(path, synchronous="NORMAL", heartbeat=None)
        budget, limits = Budget(usd="0.01", on_breach="ask"), [Limit("user", usd=1, per="day")]
        self.guard = Guard(budget, limits=limits, ledger=self.ledger, sinks=())
        self.middleware = BudgetMiddleware(self.guard)
        model = openai(provider, max_tokens=300)
        self.agent: Any = create_agent(model, [LOOK_UP], middleware=[self.middleware], checkpointer=saver)


@pytest.fixture
def processes(tmp_path: Path, serve: Serve) -> Iterator[tuple[Any, ScriptedProvider]]:
    provider, saver = serve(looping(250)), InMemorySaver()
    with ExitStack() as stack:

        def start(name: str) -> Process:
            made = Process(tmp_path / name, provider, saver)
            stack.callback(made.ledger.dispose)
            return made

        yield start, provider


def asked(result: Any) -> dict[str, Any]:
    [interrupt] = result["__interrupt__"]
    value: dict[str, Any] = interrupt.value
    return value


@pytest.mark.parametrize("files", [["a", "a", "a"], ["a", "b", "c"], ["a", "b", "a"]], ids=lambda one: "".join(one))
def test_a_run_goes_on_with_what_it_has_spent(processes: Any, caller: Caller, files: list[str]) -> None:
    start, provider = processes
    ledgers = []
    given: Any = USER
    for number, file in enumerate(files):
        process = start(file)
        ledgers.append(process.ledger)
        question = asked(caller.invoke(process.agent, given, THREAD))
        run = process.middleware.last_run
        assert question["run_id"] == run.id
        assert Decimal(question["cap"]) == Decimal("0.01") * (number + 1)
        assert Decimal(question["spent"]) == run.spent_usd == provider.cost_usd
        assert run.steps == provider.received
        given = Command(resume={"usd": "0.01"})
    records = {one.call_id: one.cost_nano or 0 for ledger in ledgers for one in ledger.records()}
    assert to_usd(sum(records.values())) == provider.cost_usd
    assert {one.about.run_id for ledger in ledgers for one in ledger.records()} == {run.id}
    if len(set(files)) == 1:
        [limit] = process.guard.limit_balances(user="ada")
        assert to_usd(limit.spent.nano) == provider.cost_usd
        assert limit.held.nano == limit.unknown.nano == 0


def test_no_is_no_and_the_run_is_over(processes: Any, caller: Caller) -> None:
    start, provider = processes
    first, second = start("a"), start("a")
    question = asked(caller.invoke(first.agent, USER, THREAD))
    with pytest.raises(BudgetExceeded) as info:
        caller.invoke(second.agent, Command(resume=False), THREAD)
    assert info.value.run_id == question["run_id"]
    assert info.value.spent == provider.cost_usd
    account = f"run:{question['run_id']}"
    wait_for(lambda: not any(second.ledger.balance(account).used), "the end of the account, on another thread")
