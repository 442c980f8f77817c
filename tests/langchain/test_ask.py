"""`Budget(on_breach="ask")`: the graph is interrupted with the numbers, and the same run goes on with what is added."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command

from runcap.guardrails import Budget, BudgetExceeded, Guard, LoopPolicy
from runcap.guardrails.events import RunEnded, RunPaused, RunStarted, RunToppedUp
from runcap.guardrails.testing import ManualClock, Recorder, Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware

from .conftest import LOOK_UP, USER, Caller, Serve, called, claude, looping, openai

ROOT = Path(__file__).parents[2]
both = pytest.mark.parametrize("make", [openai, claude], ids=["openai", "anthropic"])


def thread(name: str = "1") -> Any:
    return {"configurable": {"thread_id": name}}


class Asking:
    """An agent whose run asks, with everything that is told of it."""

    def __init__(self, model: Any, saver: Any, tools: list[BaseTool] | None = None, **more: Any) -> None:
        self.recorder = Recorder()
        self.clock = more.pop("clock", None)
        stack: list[Any] = more.pop("stack", [])
        loops = more.pop("loops", None)
        budget = Budget(**more, on_breach="ask")
        self.guard = Guard(budget, sinks=(self.recorder,), clock=self.clock, loops=loops)
        self.middleware = BudgetMiddleware(self.guard)
        self.agent: Any = create_agent(
            model, tools or [LOOK_UP], middleware=[*stack, self.middleware], checkpointer=saver
        )

    @property
    def run(self) -> Any:
        return self.middleware.last_run

    def count(self, kind: Any) -> int:
        return len(self.recorder.of(kind))

    def idle(self) -> None:
        self.guard.calls.drain()
        assert len(self.guard.paused) == 0
        assert len(self.guard.calls) == 0
        assert len(self.middleware._attachment.nodes) == 0


def asked(result: Any) -> Any:
    """The one question."""
    [question] = result["__interrupt__"]
    return question.value


@contextmanager
def saver_of(kind: str, folder: Path) -> Iterator[Any]:
    if kind == "memory":
        yield InMemorySaver()
        return
    with SqliteSaver.from_conn_string(str(folder / "checkpoints.db")) as saver:
        yield saver


@asynccontextmanager
async def asaver_of(kind: str, folder: Path) -> AsyncIterator[Any]:
    if kind == "memory":
        yield InMemorySaver()
        return
    async with AsyncSqliteSaver.from_conn_string(str(folder / "checkpoints.db")) as saver:
        yield saver


def the_question(made: Asking, provider: ScriptedProvider, result: Any) -> None:
    question = asked(result)
    assert question["type"] == "runcap.budget"
    assert (question["run_id"], question["unit"], question["cap"]) == (made.run.id, "usd", "0.02")
    assert Decimal(question["spent"]) == provider.cost_usd
    assert Decimal(question["spent"]) + Decimal(question["needed"]) > Decimal("0.02")
    assert "resume" in question["resume_with"]
    json.dumps(question)
    assert "find it" not in str(question)
    assert made.run.paused
    assert made.count(RunPaused) == 1
    assert made.count(RunEnded) == 0


def went_on(made: Asking, provider: ScriptedProvider, before: Any) -> None:
    assert made.run.id == before.id
    assert made.run.spent_usd == provider.cost_usd > before.spent
    assert made.run.steps == provider.received > before.steps
    assert provider.cost_usd <= Decimal("0.03")
    assert made.count(RunToppedUp) == 1
    assert made.count(RunStarted) == 1


class Before:
    def __init__(self, run: Any) -> None:
        self.id, self.spent, self.steps = run.id, run.spent_usd, run.steps


@both
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_it_asks_and_goes_on(serve: Serve, make: Any, kind: str, tmp_path: Path) -> None:
    provider = serve(looping())
    with saver_of(kind, tmp_path) as saver:
        made = Asking(make(provider, max_tokens=300), saver, usd="0.02")
        result = made.agent.invoke(USER, thread())
        the_question(made, provider, result)
        before = Before(made.run)
        asked(made.agent.invoke(Command(resume={"usd": "0.01"}), thread()))
        went_on(made, provider, before)
        with pytest.raises(BudgetExceeded):
            made.agent.invoke(Command(resume=False), thread())
        called(made.agent.get_state(thread()).values["messages"])
    made.idle()


@both
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_it_asks_and_goes_on_async(serve: Serve, make: Any, kind: str, tmp_path: Path) -> None:
    provider = serve(looping())
    async with asaver_of(kind, tmp_path) as saver:
        made = Asking(make(provider, max_tokens=300), saver, usd="0.02")
        result = await made.agent.ainvoke(USER, thread())
        the_question(made, provider, result)
        before = Before(made.run)
        asked(await made.agent.ainvoke(Command(resume={"usd": "0.01"}), thread()))
        went_on(made, provider, before)
        with pytest.raises(BudgetExceeded):
            await made.agent.ainvoke(Command(resume=False), thread())
        called((await made.agent.aget_state(thread())).values["messages"])
    made.idle()


def test_two_questions_in_one_node_top_up_once_each(serve: Serve, caller: Caller) -> None:
    """The first answer does not suffice, so the node asks again; it is replayed with both, and counts each once."""
    provider = serve(looping())
    made = Asking(openai(provider), InMemorySaver(), usd="0.01", min_output_tokens=1_000)
    asked(caller.invoke(made.agent, USER, thread()))
    assert provider.received == 0
    question = asked(caller.invoke(made.agent, Command(resume={"usd": "0.0001"}), thread()))
    assert question["cap"] == "0.0101"
    asked(caller.invoke(made.agent, Command(resume={"usd": "0.002"}), thread()))
    assert made.run.budget.usd == Decimal("0.01")
    assert made.run.balance.caps.nano == 12_100_000
    assert made.count(RunToppedUp) == 2
    assert made.run.spent_usd == provider.cost_usd
    assert provider.received >= 1


def test_a_key_counts_once(serve: Serve, caller: Caller) -> None:
    provider = serve(looping())
    made = Asking(openai(provider), InMemorySaver(), steps=2)
    asked(caller.invoke(made.agent, USER, thread()))
    asked(caller.invoke(made.agent, Command(resume={"steps": 1, "key": "approval-17"}), thread()))
    assert provider.received == 3
    asked(caller.invoke(made.agent, Command(resume={"steps": 1, "key": "approval-17"}), thread()))
    assert provider.received == 3
    asked(caller.invoke(made.agent, Command(resume={"steps": 1, "key": "approval-18"}), thread()))
    assert provider.received == made.run.steps == 4
    assert made.count(RunToppedUp) == 2


@pytest.mark.parametrize("answer", [False, "", 0], ids=repr)
def test_no_declines(serve: Serve, caller: Caller, answer: Any) -> None:
    provider = serve(looping())
    made = Asking(openai(provider), InMemorySaver(), steps=2)
    asked(caller.invoke(made.agent, USER, thread()))
    with pytest.raises(BudgetExceeded, match="steps cap 2"):
        caller.invoke(made.agent, Command(resume=answer), thread())
    assert provider.received == 2
    made.idle()


NONSENSE: list[Any] = ["yes", True, 5, {"dollars": 3}, {"key": "k"}, {"usd": "much"}, {"steps": -1}, {"steps": "5"}]


@pytest.mark.parametrize("answer", NONSENSE, ids=repr)
def test_nonsense_is_asked_about_again(serve: Serve, caller: Caller, answer: Any) -> None:
    """LangGraph keeps an answer: were it an error, no other could ever be given on this thread."""
    provider = serve(looping())
    made = Asking(openai(provider), InMemorySaver(), steps=2)
    asked(caller.invoke(made.agent, USER, thread()))
    question = asked(caller.invoke(made.agent, Command(resume=answer), thread()))
    assert "resume" in question["error"] or "top_up" in question["error"]
    assert provider.received == 2
    asked(caller.invoke(made.agent, Command(resume={"steps": 1}), thread()))
    assert (provider.received, made.run.steps, made.count(RunToppedUp)) == (3, 3, 1)
    with pytest.raises(BudgetExceeded, match="steps cap 3"):
        caller.invoke(made.agent, Command(resume=False), thread())
    made.idle()


def test_without_a_checkpointer_it_is_raised_and_says_so(serve: Serve, caller: Caller) -> None:
    provider = serve(looping())
    made = Asking(openai(provider), None, steps=2)
    with pytest.raises(BudgetExceeded, match="takes a checkpointer"):
        caller.invoke(made.agent, USER)
    made.idle()


def test_seconds_cannot_be_added_to(serve: Serve, caller: Caller) -> None:
    provider = serve(Reply(tool_calls=[("look_up", {"query": "x"})], latency=0.3))
    made = Asking(openai(provider), InMemorySaver(), seconds=0.2)
    with pytest.raises(BudgetExceeded, match="seconds cap"):
        caller.invoke(made.agent, USER, thread())
    made.idle()


def test_new_input_instead_of_an_answer_is_a_new_run(serve: Serve, caller: Caller) -> None:
    provider = serve(looping())
    made = Asking(openai(provider), InMemorySaver(), steps=2)
    asked(caller.invoke(made.agent, USER, thread()))
    old = made.run
    question = asked(caller.invoke(made.agent, USER, thread()))
    assert old.ended
    assert made.run.id != old.id
    assert question["run_id"] == made.run.id
    assert made.run.steps == 2, "a whole budget"
    assert provider.received == 4
    with pytest.raises(BudgetExceeded):
        caller.invoke(made.agent, Command(resume=False), thread())
    made.idle()


def test_a_run_that_a_person_approves_step_by_step_is_one_run(serve: Serve, caller: Caller) -> None:
    provider = serve(looping())
    made = Asking(openai(provider), InMemorySaver(), steps=2, stack=[HumanInTheLoopMiddleware({"look_up": True})])
    approve: Command[Any] = Command(resume={"decisions": [{"type": "approve"}]})
    assert "action_requests" in asked(caller.invoke(made.agent, USER, thread()))
    old = made.run
    assert not old.ended
    assert len(made.guard.paused) == 1
    assert "action_requests" in asked(caller.invoke(made.agent, approve, thread()))
    assert asked(caller.invoke(made.agent, approve, thread()))["unit"] == "steps"
    assert made.run is old
    assert (old.steps, old.tool_calls, provider.received) == (2, 2, 2)
    with pytest.raises(BudgetExceeded, match="steps cap 2"):
        caller.invoke(made.agent, Command(resume=False), thread())
    made.idle()


def test_seconds_do_not_count_while_it_waits(serve: Serve, caller: Caller) -> None:
    provider, clock = serve(looping()), ManualClock()
    made = Asking(openai(provider), InMemorySaver(), clock=clock, steps=2, seconds=60)
    asked(caller.invoke(made.agent, USER, thread()))
    clock.advance(3_600)
    asked(caller.invoke(made.agent, Command(resume={"steps": 1}), thread()))
    assert provider.received == 3
    assert made.run.elapsed() < 60


@both
def test_a_run_around_it_goes_on(serve: Serve, caller: Caller, make: Any) -> None:
    provider, clock = serve(looping()), ManualClock()
    made = Asking(make(provider), InMemorySaver(), clock=clock, steps=2, seconds=60)
    with made.guard.run() as run:
        asked(caller.invoke(made.agent, USER, thread()))
        clock.advance(3_600)
        asked(caller.invoke(made.agent, Command(resume={"steps": 2}), thread()))
        assert run.steps == provider.received == 4
        assert run.elapsed() < 60
    made.idle()


def sub_agent(caller: Caller, made_guard: list[Guard], model: Any) -> BaseTool:
    """A colleague with the middleware too; it inherits the checkpointer."""
    agents: list[Any] = []

    def agent() -> Any:
        if not agents:
            agents.append(create_agent(model, [LOOK_UP], middleware=[BudgetMiddleware(made_guard[0])]))
        return agents[0]

    def ask(query: str) -> str:
        """Ask a colleague."""
        return str(agent().invoke({"messages": [("user", query)]})["messages"][-1].text)

    async def aask(query: str) -> str:
        """Ask a colleague."""
        return str((await agent().ainvoke({"messages": [("user", query)]}))["messages"][-1].text)

    a = caller.asynchronous
    return StructuredTool.from_function(None if a else ask, aask if a else None, name="ask")


def first_ask_then_look(wide: int = 1) -> Any:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        name = (body["tools"][0].get("name")) or body["tools"][0]["function"]["name"]
        many = range(wide if name == "ask" else 1)
        return Reply(tool_calls=[(name, {"query": f"{number}.{part}"}) for part in many], output_tokens=50)

    return script


def test_a_sub_agent_in_a_tool_asks(serve: Serve, caller: Caller) -> None:
    provider, guards = serve(first_ask_then_look()), list[Guard]()
    made = Asking(openai(provider), InMemorySaver(), [sub_agent(caller, guards, openai(provider))], steps=3)
    guards.append(made.guard)
    asked(caller.invoke(made.agent, USER, thread()))
    before = Before(made.run)
    asked(caller.invoke(made.agent, Command(resume={"steps": 2}), thread()))
    assert made.run.id == before.id
    assert made.run.steps == provider.received == 5
    with pytest.raises(BudgetExceeded):
        caller.invoke(made.agent, Command(resume=False), thread())
    assert provider.received == 5
    made.idle()


def test_sub_agents_at_once_ask_and_are_answered(serve: Serve, caller: Caller) -> None:
    provider, guards = serve(first_ask_then_look(wide=3)), list[Guard]()
    made = Asking(openai(provider), InMemorySaver(), [sub_agent(caller, guards, openai(provider))], steps=7)
    guards.append(made.guard)
    result = caller.invoke(made.agent, USER, thread())
    assert len(result["__interrupt__"]) == 3
    before = Before(made.run)
    first, *_ = result["__interrupt__"]
    result = caller.invoke(made.agent, Command(resume={first.id: {"steps": 1}}), thread())
    assert made.run.id == before.id
    assert made.run.paused
    assert made.run.steps == provider.received == 8
    answers = {one.id: {"steps": 1} for one in result["__interrupt__"]}
    result = caller.invoke(made.agent, Command(resume=answers), thread())
    # What one adds another may use: a step each, and whoever finds none left asks again.
    assert made.run.steps == provider.received == 7 + made.count(RunToppedUp)
    assert 9 <= provider.received <= 8 + len(answers)


def test_a_loop_is_asked_about(serve: Serve, caller: Caller) -> None:
    provider = serve(Reply(tool_calls=[("look_up", {"query": "the same"})]))
    made = Asking(openai(provider), InMemorySaver(), usd=1, loops=LoopPolicy(halt=3))
    question = asked(caller.invoke(made.agent, USER, thread()))
    assert question["unit"] is None
    assert question["reason"].startswith("loop:")
    assert "cap" not in question
    before = Before(made.run)
    asked(caller.invoke(made.agent, Command(resume={"usd": "0.01"}), thread()))
    assert made.run.id == before.id
    assert provider.received > before.steps


class Script:
    """Answers a while with tool calls; then it is done."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, number: int, body: Mapping[str, Any]) -> Reply:
        return Reply(text="done") if number >= self.calls else Reply(tool_calls=[("look_up", {"query": f"{number}"})])


def test_it_may_end_after_all(serve: Serve, caller: Caller) -> None:
    provider = serve(Script(3))
    made = Asking(openai(provider), InMemorySaver(), steps=2)
    asked(caller.invoke(made.agent, USER, thread()))
    answer = caller.invoke(made.agent, Command(resume={"steps": 9}), thread())
    assert answer["messages"][-1].text == "done"
    assert "runcap" not in answer, "the record is the middleware's own"
    assert made.run.ended
    assert made.count(RunEnded) == 1
    made.idle()


THREADS = 200


async def test_many_threads_leave_nothing_behind(serve: Serve) -> None:
    provider = serve(lambda number, body: Reply(text="done") if len(body["messages"]) > 2 else ONE)
    made = Asking(openai(provider), InMemorySaver(), steps=1)
    at_once = asyncio.Semaphore(50)

    async def call(given: Any, number: int) -> Any:
        async with at_once:
            return await made.agent.ainvoke(given, thread(str(number)))

    results = await asyncio.gather(*(call(USER, number) for number in range(THREADS)))
    assert all("__interrupt__" in one for one in results)
    assert len(made.guard.paused) == THREADS
    results = await asyncio.gather(*(call(Command(resume={"steps": 1}), number) for number in range(THREADS)))
    assert all(one["messages"][-1].text == "done" for one in results)
    assert made.count(RunEnded) == THREADS
    assert not made.guard.ledger._accounts  # type: ignore[attr-defined]
    assert not made.guard.ledger._holds  # type: ignore[attr-defined]
    made.idle()


ONE = Reply(tool_calls=[("look_up", {"query": "x"})])


def process(provider: ScriptedProvider, folder: Path, nested: str, answer: Any = None) -> Any:
    """One process of the run, from its start or its question to the next one."""
    script = str(Path(__file__).with_name("asking_agent.py"))
    more = [] if answer is None else [json.dumps(answer)]
    paths = os.pathsep.join(str(ROOT / one) for one in ("guardrails", "integrations", "exporters"))
    done = subprocess.run(
        [sys.executable, script, provider.openai_url, str(folder / "run.db"), nested, *more],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("nested", ["flat", "nested"])
def test_three_processes_are_one_run(serve: Serve, tmp_path: Path, nested: str) -> None:
    provider = serve(first_ask_then_look())
    first = process(provider, tmp_path, nested)
    assert Decimal("0.01") < provider.cost_usd <= Decimal("0.02")
    assert [one["cap"] for one in first["asked"]] == ["0.02"]
    second = process(provider, tmp_path, nested, {"usd": "0.01"})
    assert second["run"] == first["run"]
    assert [one["cap"] for one in second["asked"]] == ["0.03"]
    assert Decimal("0.02") < provider.cost_usd <= Decimal("0.03")
    third = process(provider, tmp_path, nested, {"usd": "0.01", "key": "approval-17"})
    assert third["run"] == first["run"]
    assert [one["cap"] for one in third["asked"]] == ["0.04"]
    assert Decimal("0.03") < provider.cost_usd <= Decimal("0.04")
    assert third["steps"] == provider.received
    assert Decimal(third["spent"]) == provider.cost_usd


def test_a_fresh_guard_in_the_same_process_goes_on_too(serve: Serve, caller: Caller) -> None:
    provider, saver = serve(looping()), InMemorySaver()
    old = Asking(openai(provider), saver, steps=2)
    asked(caller.invoke(old.agent, USER, thread()))
    new = Asking(openai(provider), saver, steps=2)
    asked(caller.invoke(new.agent, Command(resume={"steps": 3}), thread()))
    assert new.run.id == old.run.id
    assert new.run.steps == provider.received == 5
    assert new.run.spent_usd == provider.cost_usd


def test_new_input_to_a_fresh_guard_is_a_new_run(serve: Serve, caller: Caller) -> None:
    provider, saver = serve(looping()), InMemorySaver()
    old = Asking(openai(provider), saver, steps=2)
    asked(caller.invoke(old.agent, USER, thread()))
    new = Asking(openai(provider), saver, steps=2)
    asked(caller.invoke(new.agent, USER, thread()))
    assert new.run.id != old.run.id
    assert new.run.steps == 2


def test_sub_agents_at_once_go_on_under_a_fresh_guard(serve: Serve, caller: Caller) -> None:
    """Each has a record of the run, of another moment: the latest counts, and no cap is passed."""
    provider, saver = serve(first_ask_then_look(wide=3)), InMemorySaver()
    made = []
    for _ in range(2):
        guards = list[Guard]()
        one = Asking(openai(provider), saver, [sub_agent(caller, guards, openai(provider))], steps=8)
        guards.append(one.guard)
        made.append(one)
    result = caller.invoke(made[0].agent, USER, thread())
    assert provider.received == 8
    answers = {one.id: {"steps": 1} for one in result["__interrupt__"]}
    caller.invoke(made[1].agent, Command(resume=answers), thread())
    assert made[1].run.id == made[0].run.id
    assert provider.received <= 8 + len(answers)
    assert made[1].run.steps >= provider.received
