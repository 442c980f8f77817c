"""deepagents under `BudgetMiddleware`: its sub-agents, its summaries and its files, counted once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
from deepagents import create_deep_agent
from deepagents.backends import StateBackend
from deepagents.middleware.summarization import SummarizationMiddleware
from langgraph.checkpoint.memory import InMemorySaver

from runcap.guardrails import BudgetExceeded
from runcap.guardrails.testing import Reply
from runcap.integrations.langchain import auto_attach, guard_model

from ..langchain.conftest import LOOK_UP, USER
from .conftest import Caller, Serve, Watch, books, both, called, middleware, openai

THREAD: Any = {"configurable": {"thread_id": "1"}}


def task(agent: str) -> Reply:
    return Reply(tool_calls=[("task", {"description": "find it", "subagent_type": agent})])


RESEARCHER: Any = {"name": "researcher", "description": "Finds things.", "system_prompt": "Find.", "tools": [LOOK_UP]}
A_TASK = [Reply(tool_calls=[("look_up", {"query": "x"})]), Reply(text="found"), Reply(text="done")]


@both
def test_a_whole_run(serve: Serve, caller: Caller, make: Any) -> None:
    script = [
        Reply(tool_calls=[("write_todos", {"todos": [{"content": "look", "status": "pending"}]})]),
        Reply(tool_calls=[("write_file", {"file_path": "/notes.txt", "content": "found"})]),
        Reply(tool_calls=[("read_file", {"file_path": "/notes.txt"})]),
        Reply(text="done"),
    ]
    provider, watch = serve(script), Watch(usd=1)
    agent = create_deep_agent(make(provider), [LOOK_UP], middleware=[middleware(watch)])
    answer = caller.invoke(agent, USER)
    called(answer["messages"])
    assert answer["messages"][-1].text == "done"
    books(watch, provider, steps=4)
    assert watch.handler.last_run.tool_calls == 3


@both
@pytest.mark.parametrize("own", [False, True], ids=["bare sub-agent", "its own middleware"])
@pytest.mark.parametrize("agent", ["researcher", "general-purpose"])
def test_sub_agents(serve: Serve, caller: Caller, make: Any, own: bool, agent: str) -> None:
    provider, watch = serve([task(agent), *A_TASK]), Watch(usd=1)
    of_sub = RESEARCHER | ({"middleware": [middleware(watch)], "model": make(provider)} if own else {})
    deep = create_deep_agent(make(provider), [LOOK_UP], subagents=[of_sub], middleware=[middleware(watch)])
    answer = caller.invoke(deep, USER)
    assert answer["messages"][-1].text == "done"
    books(watch, provider, steps=4)
    assert watch.handler.last_run.tool_calls == 2


@pytest.mark.parametrize("agent", ["researcher", "general-purpose"])
@pytest.mark.parametrize("attach", ["middleware", "handler", "auto_attach", "guard_model", "all"])
def test_sub_agents_that_never_stop(serve: Serve, caller: Caller, attach: str, agent: str) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        names = [one["function"]["name"] for one in body.get("tools", ())]
        return task(agent) if "task" in names else Reply(tool_calls=[("look_up", {"query": str(number)})])

    provider, watch = serve(script), Watch(steps=7)
    every = attach == "all"
    model = guard_model(openai(provider), watch.guard) if every or attach == "guard_model" else openai(provider)
    stack: list[Any] = [middleware(watch)] if every or attach == "middleware" else []
    deep = create_deep_agent(model, [LOOK_UP], subagents=[RESEARCHER], middleware=stack)
    config = watch.config if every or attach == "handler" else None
    with watch.guard.run() as run, pytest.raises(BudgetExceeded, match="steps cap 7"):
        if every or attach == "auto_attach":
            with auto_attach(watch.guard):
                caller.invoke(deep, USER, config)
        else:
            caller.invoke(deep, USER, config)
    books(watch, provider, steps=7, run=run)


def test_tasks_at_once(serve: Serve, caller: Caller) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        last = body["messages"][-1]["role"]
        names = [one["function"]["name"] for one in body.get("tools", ())]
        if "task" in names and last == "user":
            return Reply(tool_calls=4 * list(task("researcher").tool_calls))
        return Reply(text="done")

    for cap in (6, 3):
        provider, watch = serve(script), Watch(steps=cap)
        deep = create_deep_agent(
            openai(provider), subagents=[RESEARCHER], middleware=[middleware(watch)], checkpointer=InMemorySaver()
        )
        if cap == 6:
            assert caller.invoke(deep, USER, THREAD)["messages"][-1].text == "done"
        else:
            with pytest.raises(BudgetExceeded):
                caller.invoke(deep, USER, THREAD)
        called(deep.get_state(cast("Any", THREAD)).values["messages"])
        books(watch, provider, steps=cap)


@pytest.mark.parametrize("cap", [2, 5])
@pytest.mark.parametrize("summarizer", ["the agent's model", "one of its own"])
def test_summaries(serve: Serve, caller: Caller, cap: int, summarizer: str) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        asks = body.get("tools") and number < 3
        return Reply(tool_calls=[("look_up", {"query": f"{number}"})]) if asks else Reply(text="done")

    provider, watch = serve(script), Watch(steps=cap)
    mini = openai(provider, model="gpt-4o-mini")
    summarize = SummarizationMiddleware(
        mini,
        backend=StateBackend(),
        trigger=("messages", 4),
        keep=("messages", 2),
        summarizer=mini if summarizer == "one of its own" else None,
    )
    deep = create_deep_agent(openai(provider), [LOOK_UP], middleware=[summarize, middleware(watch)])
    if cap == 2:
        with pytest.raises(BudgetExceeded):
            caller.invoke(deep, USER)
        books(watch, provider, steps=2)
        return
    assert caller.invoke(deep, USER)["messages"][-1].text == "done"
    books(watch, provider)
    assert "gpt-4o-mini" in [one.model for one in provider.served]
