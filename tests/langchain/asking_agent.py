"""One process of a run that asks for more: `python asking_agent.py URL DATABASE [ANSWER]`; prints JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from pydantic import SecretStr

from runcap.guardrails import Budget, Guard
from runcap.integrations.langchain import BudgetMiddleware

THREAD: Any = {"configurable": {"thread_id": "1"}}


@tool
def look_up(query: str) -> str:
    """Look something up."""
    return f"nothing found for {query}"


def main(url: str, database: str, nested: str, answer: str | None = None) -> None:
    guard = Guard(Budget(usd="0.02", on_breach="ask"), sinks=())
    model = ChatOpenAI(
        model="gpt-4o", base_url=url, api_key=SecretStr("none"), max_completion_tokens=400, max_retries=0
    )
    stack: Any = [BudgetMiddleware(guard)]
    tools: list[Any] = [look_up]
    if nested == "nested":
        inner: Any = create_agent(model, [look_up], middleware=[BudgetMiddleware(guard)])

        @tool
        def ask(query: str) -> str:
            """Ask a colleague."""
            return str(inner.invoke({"messages": [("user", query)]})["messages"][-1].text)

        tools = [ask]
    with SqliteSaver.from_conn_string(database) as saver:
        agent: Any = create_agent(model, tools, middleware=stack, checkpointer=saver)
        given: Any = {"messages": [("user", "find it")]} if answer is None else Command(resume=json.loads(answer))
        result = agent.invoke(given, THREAD)
    run = stack[0].last_run
    asked = [one.value for one in result.get("__interrupt__", ())]
    sys.stdout.write(json.dumps({"run": run.id, "steps": run.steps, "spent": str(run.spent_usd), "asked": asked}))


if __name__ == "__main__":
    main(*sys.argv[1:])
