"""`BudgetMiddleware` before, behind and between every middleware that langchain ships: every call counted, once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware, ToolRetryMiddleware

from runcap.guardrails import BudgetExceeded
from runcap.guardrails.testing import ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware, auto_attach

from ..langchain.conftest import USER
from .conftest import Caller, Serve, Watch, books, called
from .middleware_cases import CASES, SHIPPED, Case, Kit, Shells

PLACES = ["first", "last", "between"]


def matrix(*places: str, loops: bool = False) -> pytest.MarkDecorator:
    cases = [
        pytest.param(case, place, id=f"{name}-{place}")
        for name, case in CASES.items()
        for place in places
        if case.loops or not loops
    ]
    return pytest.mark.parametrize(("case", "place"), cases)


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Some middlewares are beta, and say so where they are made."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is in beta")
        yield
    Shells.close()


def build(case: Case, place: str, watch: Watch, provider: ScriptedProvider, folder: Path) -> Any:
    budget, other = BudgetMiddleware(watch.guard), case.make(Kit(provider, folder))
    around = [ToolRetryMiddleware(max_retries=1, initial_delay=0), ModelRetryMiddleware(max_retries=1, initial_delay=0)]
    stack: list[Any] = {
        "first": [budget, other],
        "last": [other, budget],
        "between": [other, budget, *(one for one in around if type(one) is not type(other))],
    }[place]
    return create_agent(case.model(provider), [case.tool()], middleware=stack)


def test_no_middleware_is_left_out() -> None:
    assert sorted(SHIPPED) == sorted(CASES)


@matrix(*PLACES)
def test_a_whole_run_is_counted_once(serve: Serve, caller: Caller, tmp_path: Path, case: Case, place: str) -> None:
    provider, watch = serve(case.script(endless=False)), Watch(usd=1, steps=20)
    answer = caller.invoke(build(case, place, watch, provider, tmp_path), USER)
    assert answer["messages"][-1].text == "done"
    called(answer["messages"])
    books(watch, provider, steps=case.requests)


@matrix(*PLACES)
def test_every_cap_on_steps_holds(serve: Serve, caller: Caller, tmp_path: Path, case: Case, place: str) -> None:
    for steps in range(1, case.requests):
        provider, watch = serve(case.script(endless=False)), Watch(steps=steps)
        with pytest.raises(BudgetExceeded, match=f"steps cap {steps}"):
            caller.invoke(build(case, place, watch, provider, tmp_path), USER)
        books(watch, provider, steps=steps)


@matrix("first", "last", loops=True)
def test_no_cap_in_dollars_is_passed(serve: Serve, caller: Caller, tmp_path: Path, case: Case, place: str) -> None:
    provider, watch = serve(case.script(endless=True)), Watch(usd="0.025")
    with pytest.raises(BudgetExceeded, match="usd cap"):
        caller.invoke(build(case, place, watch, provider, tmp_path), USER)
    books(watch, provider)
    assert provider.received > 2


@pytest.mark.parametrize("also", ["handler", "auto_attach", "both", "twice"])
@pytest.mark.parametrize("name", ["ModelRetryMiddleware", "SummarizationMiddleware", "LLMToolSelectorMiddleware"])
@pytest.mark.parametrize("place", PLACES)
def test_attached_in_more_ways_counts_once(
    serve: Serve, caller: Caller, tmp_path: Path, name: str, place: str, also: str
) -> None:
    case = CASES[name]
    provider, watch = serve(case.script(endless=False)), Watch(usd=1)
    agent = build(case, place, watch, provider, tmp_path)
    config = watch.config if also in ("handler", "both") else None
    times = {"handler": 0, "twice": 2}.get(also, 1)
    with ExitStack() as attached:
        for _ in range(times):
            attached.enter_context(auto_attach(watch.guard))
        caller.invoke(agent, USER, config)
    books(watch, provider, steps=case.requests)
