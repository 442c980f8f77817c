"""Four worker processes, one team budget: however they race, together they stay under it.

    python examples/shared_budget.py                                    # a SQLite file; no key, no network, no server
    python examples/shared_budget.py --redis redis://localhost:6379     # the same in Redis, for more than one machine
    python examples/shared_budget.py --usd 0.10 --workers 8
    OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 python examples/shared_budget.py    # and its traces to Jaeger

Each worker runs agents of its own, one after another, until the team's limit refuses their next call. Real `ChatOpenAI`
models talk to a local provider, which keeps the bill. The ledger keeps a record of every call: the last lines are read
from there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from queue import Empty
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from rich.live import Live
from rich.table import Table

from runcap.exporters import OTelSink, setup_otlp
from runcap.guardrails import Budget, BudgetExceeded, CallEnded, Event, Guard, Limit, RedisLedger, SQLiteLedger
from runcap.guardrails.money import to_usd
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware

_TEAM = "support"


@dataclass(frozen=True)
class Place:
    """Where the ledger is."""

    file: str | None
    redis: str | None
    namespace: str

    def open(self) -> SQLiteLedger | RedisLedger:
        """The ledger, for one process."""
        if self.redis is not None:
            return RedisLedger(self.redis, namespace=self.namespace)
        return SQLiteLedger(self.file or "budget.db")


@dataclass
class Worker:
    """What a worker has told so far."""

    calls: int = 0
    tickets: int = 0
    spent: Decimal = field(default_factory=Decimal)
    team_nano: int = 0
    ended: str = ""


@tool
def look_up(ticket: int) -> str:
    """Read a ticket."""
    return f"Ticket {ticket}: the parcel has not arrived. The customer has written twice."


def answers(number: int, body: Mapping[str, Any]) -> Reply:
    """The scripted model: looks at a ticket, then answers it."""
    if body["messages"][-1]["role"] == "tool":
        return Reply(text="We are sorry. A new parcel is on its way.", output_tokens=60 + 20 * (number % 5))
    return Reply(tool_calls=[("look_up", {"ticket": number})], output_tokens=20)


def guard_of(ledger: SQLiteLedger | RedisLedger, usd: str, sinks: Sequence[Any] = ()) -> Guard:
    """A run may spend a cent; all runs of a team together, `usd` a day."""
    return Guard(Budget(usd="0.01"), limits=[Limit("team", usd=usd, per="day")], ledger=ledger, sinks=sinks)


def work(number: int, place: Place, url: str, usd: str, told: Any, begin: Any) -> None:
    """A worker process: agent after agent, until the team's budget is used up."""

    def show(event: Event) -> None:
        if isinstance(event, CallEnded):
            told.put((number, "call", event.cost_nano or 0))

    if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        setup_otlp(service_name=os.environ.get("OTEL_SERVICE_NAME", "shared-budget"))
    with place.open() as ledger:
        guard = guard_of(ledger, usd, (OTelSink(), show))
        model = ChatOpenAI(model="gpt-4o", base_url=url, api_key=SecretStr("no key needed"), max_completion_tokens=400)
        agent: Any = create_agent(model, [look_up], middleware=[BudgetMiddleware(guard)], name="support_agent")
        begin.wait()
        while True:
            try:
                with guard.run(team=_TEAM, task="answer ticket") as run:
                    agent.invoke({"messages": [("user", "Answer the next ticket.")]})
                    run.succeed()
            except BudgetExceeded as refused:
                told.put((number, "ended", str(refused)))
                return
            [team] = guard.limit_balances(team=_TEAM)
            told.put((number, "ticket", team.spent.nano))


def table(workers: Sequence[Worker], usd: str) -> Table:
    """A line a worker."""
    shown = Table("worker", "tickets", "calls", "spent", f"team, of ${usd}", "", box=None)
    for number, one in enumerate(workers, 1):
        state = "halted" if one.ended else "at work"
        columns = (number, one.tickets, one.calls, f"${one.spent:.5f}", f"${to_usd(one.team_nano):.5f}", state)
        shown.add_row(*map(str, columns))
    return shown


def race(place: Place, url: str, options: argparse.Namespace) -> list[Worker]:
    """Start the workers, and show what they tell until all of them are halted."""
    context = multiprocessing.get_context("spawn")
    told, workers = context.Queue(), [Worker() for _ in range(options.workers)]
    begin = context.Barrier(options.workers)
    processes = [
        context.Process(target=work, args=(number, place, url, options.usd, told, begin))
        for number in range(options.workers)
    ]
    for process in processes:
        process.start()
    with Live(table(workers, options.usd), refresh_per_second=10) as live:
        while not all(worker.ended for worker in workers):
            try:
                number, what, value = told.get(timeout=1)
            except Empty:
                if not any(process.is_alive() for process in processes):
                    raise RuntimeError("the workers died") from None
                continue
            worker = workers[number]
            if what == "call":
                worker.calls, worker.spent = worker.calls + 1, worker.spent + to_usd(value)
            elif what == "ticket":
                worker.tickets, worker.team_nano = worker.tickets + 1, value
            else:
                worker.ended = value
            live.update(table(workers, options.usd))
    for process in processes:
        process.join()
    return workers


def main() -> int:
    """Run it; 0 when the cap held, and the ledger agrees with the provider's bill to the last digit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--usd", default="0.05", help="dollars the team may spend a day (default %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="processes (default %(default)s)")
    parser.add_argument("--redis", metavar="URL", help="keep the ledger there")
    parser.add_argument("--file", metavar="PATH", help="keep the ledger in this file, and go on from what it says")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ScriptedProvider(answers) as provider:
        file = options.file or str(Path(folder) / "budget.db")
        place = Place(file, options.redis, f"example-{uuid.uuid4().hex}")
        workers = race(place, provider.openai_url, options)
        print(f"\nHALTED: {workers[0].ended}\n")
        with place.open() as ledger:
            [team] = guard_of(ledger, options.usd).limit_balances(team=_TEAM)
            records = list(ledger.records())
        spent, bill = to_usd(team.spent.nano), provider.cost_usd
        cost = to_usd(sum(record.cost_nano or 0 for record in records))
        done = len({record.about.run_id for record in records if record.verdict == "succeeded"})
        print(
            f"The team's budget: ${options.usd} a day; {options.workers} processes spent ${spent.normalize():f} of it."
        )
        print(f"The ledger's records: {len(records)} calls, ${cost.normalize():f}; {done} tickets answered.")
        print(f"The provider's own bill: ${bill.normalize():f} for {provider.received} calls.")
        held = spent <= Decimal(options.usd) and not team.in_flight
        return 0 if held and (options.file or spent == bill == cost) else 1


if __name__ == "__main__":
    sys.exit(main())
