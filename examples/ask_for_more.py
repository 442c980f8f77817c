"""An agent that asks a person for more at its cap, and goes on in the same run: its old spend is not forgotten.

    python examples/ask_for_more.py                                  # offline: a scripted provider on loopback
    python examples/ask_for_more.py --usd 0.02 --more 0.03
    python examples/ask_for_more.py --more 0                         # the answer is no
    python examples/ask_for_more.py --interactive                    # you answer
    OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 python examples/ask_for_more.py    # and its traces to Jaeger

The question and the run's record are in a SQLite checkpoint, so the answer may come days later and in another process:
the second half builds everything anew, as another process would, and knows nothing but the file and the thread.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from pydantic import SecretStr

from runcap.exporters import setup_otlp
from runcap.guardrails import Budget, BudgetExceeded, Guard, Run
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware

_QUESTION = "Find me a flight to Lisbon. Try every day of the month until you have one."
_THREAD: Any = {"configurable": {"thread_id": "trip-to-lisbon"}}


@tool
def search_flights(destination: str, day: int) -> str:
    """Find flights to a destination on a day of the month."""
    return f"One seat left to {destination} on day {day}." if day == 17 else f"No flights on day {day}."  # noqa: PLR2004


def day_after_day(number: int, body: Mapping[str, Any]) -> Reply:
    """The scripted model tries one day after the other, until the tool has found something."""
    if "One seat left" in str(body["messages"][-1]["content"]):
        return Reply(text="There is one seat left to Lisbon, on day 17.")
    return Reply(tool_calls=[("search_flights", {"destination": "Lisbon", "day": number + 1})], output_tokens=120)


def call_agent(provider: ScriptedProvider, database: Path, usd: str, given: Any) -> tuple[dict[str, Any], Run]:
    """Build the agent from nothing and call it, as one process would: its answer, and the run it was in."""
    guard = Guard(Budget(usd=usd, on_breach="ask"))
    middleware = BudgetMiddleware(guard)
    key = SecretStr("no key needed")
    model = ChatOpenAI(model="gpt-4o", base_url=provider.openai_url, api_key=key, max_completion_tokens=400)
    with SqliteSaver.from_conn_string(str(database)) as checkpoints:
        agent: Any = create_agent(model, [search_flights], middleware=[middleware], checkpointer=checkpoints)
        result: dict[str, Any] = agent.invoke(given, _THREAD)
    return result, middleware.last_run


def question_in(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the run asks for; None where it did not."""
    asked: list[dict[str, Any]] = [one.value for one in result.get("__interrupt__", ())]
    return asked[0] if asked else None


def show(question: Mapping[str, Any], run: Run) -> None:
    """The question, with its numbers."""
    print(f"run {run.id} asks for more after {run.steps} steps:")
    for name in ("unit", "cap", "spent", "held", "unknown", "needed"):
        print(f"  {name:<8} {question[name]}")


def answer_of(options: argparse.Namespace, number: int) -> Any:
    """What a person says: a top-up with a key, so that it counts once however often it is sent; or no."""
    more = input("Dollars to add (nothing to decline): ").strip() if options.interactive else options.more
    if more in ("", "0"):
        print("the answer: no\n")
        return False
    print(f"the answer: ${more} more\n")
    return {"usd": more, "key": f"approval-{number}"}


def main() -> int:
    """Run it; 0 when no cap was passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--usd", default="0.02", help="dollars the run may spend (default %(default)s)")
    parser.add_argument("--more", default="0.02", help="dollars each answer adds; 0 declines (default %(default)s)")
    parser.add_argument("--interactive", action="store_true", help="answer yourself")
    options = parser.parse_args()
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        setup_otlp(service_name=os.environ.get("OTEL_SERVICE_NAME", "ask-for-more"))
    with tempfile.TemporaryDirectory() as folder, ScriptedProvider(day_after_day) as provider:
        database = Path(folder) / "checkpoints.db"
        result, run = call_agent(provider, database, options.usd, {"messages": [("user", _QUESTION)]})
        number, first = 0, run.id
        while (question := question_in(result)) is not None:
            show(question, run)
            number += 1
            try:
                result, run = call_agent(provider, database, options.usd, Command(resume=answer_of(options, number)))
            except BudgetExceeded as refused:
                print(f"DECLINED: {refused}")
                break
        else:
            print(f"ANSWER: {result['messages'][-1].text}")
            print(f"run {run.id} ended: ${run.spent_usd} in {run.steps} steps, {number} top-ups.")
        print(f"The provider's own bill: ${provider.cost_usd.normalize():f} for {provider.received} calls.")
        counted = question is not None or (run.id == first and run.spent_usd == provider.cost_usd)
        return 0 if counted else 1


if __name__ == "__main__":
    sys.exit(main())
