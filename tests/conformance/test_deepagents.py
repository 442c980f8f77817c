"""deepagents: planning, files and sub-agents of the real package, all in one budget."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from deepagents import create_deep_agent

from runcap.guardrails import BudgetExceeded
from runcap.guardrails.testing import Reply
from runcap.integrations.langchain import BudgetMiddleware

from ..langchain.conftest import USER, Serve, Watch, openai, serve  # noqa: F401


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_deep_agent_and_its_sub_agents_share_the_budget(serve: Serve, asynchronous: bool) -> None:  # noqa: F811
    task = {"description": "look into it", "subagent_type": "general-purpose"}

    provider = serve(lambda number, body: Reply(tool_calls=[("task", task)]) if number % 2 == 0 else Reply(text="ok"))
    watch = Watch(steps=9)
    budgeted = BudgetMiddleware(watch.guard)
    agent: Any = create_deep_agent(model=openai(provider), middleware=[budgeted])
    with pytest.raises(BudgetExceeded):
        if asynchronous:
            asyncio.run(agent.ainvoke(USER))
        else:
            agent.invoke(USER)
    run = budgeted.last_run
    assert (provider.received, run.steps) == (9, 9)
    assert run.spent_usd == provider.cost_usd
    watch.idle()
