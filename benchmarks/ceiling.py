"""A hard ceiling of $1, put to the test cold: a hundred calls at once that would cost $7.50.

    python benchmarks/ceiling.py                         all rows; exits with 1 where one misses its line
    python benchmarks/ceiling.py --quick                 those that CI runs
    python benchmarks/ceiling.py --rows 'agent/*' team/model/tasks
    python benchmarks/ceiling.py --list
    python benchmarks/ceiling.py --peers                 other projects' guards beside it, as far as installed:
                                                         pip install floe-guard shekel 'pydantic-ai-slim[openai]'

`spent` is the scripted provider's own bill. gpt-4o list prices; 47 kB of English, 10,000 tokens, in each prompt;
2,500 to 7,500 tokens out after 20 to 60 ms; a fresh guard and a fresh provider for each row. A row's name says how it
is attached, how the calls are made, and the max_tokens they set. A guarded row passes if it spends no more than its
cap, and at least 95 % of it (85 % where every prompt is a different document, known by its bytes alone). `cut` counts
the answers that would have been longer.

bare        no guard
model       guard_model(model, guard)
agent       create_agent(model, middleware=[BudgetMiddleware(guard)])
documents/  a different prompt for every call
team/       100 agents in one run, each with a tool and with a sub-agent called in a tool; 1,000 tokens out at most
timeouts/   30 % of the answers come after the client's time-out and are billed all the same; the client's own retries
refused     nobody listens: nothing may be counted
callback    BudgetCallbackHandler alone, which cannot wait or clamp: no share is asked of it
one-stream  an answer that would cost $0.19, streamed from an agent under $0.05
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from ceiling_peers import PEERS, Peer
from ceiling_workloads import (
    CALLS,
    CAP,
    CHARACTERS,
    LONGEST,
    Answers,
    Calls,
    Carry,
    Outcome,
    Tally,
    TeamAnswers,
    as_it_is,
    calls_of,
    chat,
    documents,
    outcome,
    prose,
    same,
    tasks,
    team,
    threads,
)
from langchain.agents import create_agent
from openai import APIConnectionError, APITimeoutError

from runcap.guardrails import Budget, Guard
from runcap.guardrails.testing import ScriptedProvider
from runcap.integrations.langchain import BudgetCallbackHandler, BudgetMiddleware, guard_model

SHARE, DOCUMENTS_SHARE, NO_SHARE = Decimal("0.95"), Decimal("0.85"), Decimal(0)
SHAPES = {
    "threads": (threads, False),
    "tasks": (tasks, False),
    "stream-threads": (threads, True),
    "stream-tasks": (tasks, True),
}
LIMITS = {str(LONGEST): LONGEST, "none": None}
CLIENT_TIMEOUT, SLOW_SHARE = 0.25, 0.3
UNREACHABLE, UNREACHABLE_TOKENS, SHORT_PROMPT = 15, 1_000, 1_000
STREAM_CAP, STREAM_TOKENS = Decimal("0.05"), 18_900


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table. Without a `cap` it has no line to keep."""

    name: str
    run: Callable[[], Outcome]
    cap: Decimal | None = CAP
    least: Decimal = SHARE
    quick: bool = False

    def missed(self, got: Outcome) -> list[str]:
        """Which lines it missed."""
        missed = list(got.faults)
        if self.cap is not None and got.spent > self.cap:
            missed.append(f"over ${self.cap}")
        if self.cap is not None and got.spent < self.least * self.cap:
            missed.append(f"under {self.least:.0%}")
        return missed


@contextmanager
def one_run(guard: Guard, style: str) -> Iterator[Carry]:
    """One run around all agents; calls of a model share the guard's default run without it."""
    if style != "agent":
        yield as_it_is
        return
    with guard.run() as run:
        yield run.bind


def attached(style: str, model: Any, guard: Guard, *, stream: bool) -> Calls:
    """The calls of a row, attached in its style."""
    match style:
        case "model":
            return calls_of(guard_model(model, guard), stream=stream)
        case "agent":
            agent = create_agent(model, tools=[], middleware=[BudgetMiddleware(guard)])
            return calls_of(agent, stream=stream)
        case "callback":
            return calls_of(model, stream=stream, config={"callbacks": [BudgetCallbackHandler(guard)]})
        case _:
            return calls_of(model, stream=stream)


def concurrent(style: str, shape: str, limit: int | None, prompts: Callable[[], list[str]] = same) -> Outcome:
    """A hundred calls at once."""
    answers, guard = Answers(), Guard(Budget(usd=CAP))
    together, stream = SHAPES[shape]
    with ScriptedProvider(answers) as provider, one_run(guard, style) as carry:
        calls = attached(style, chat(provider.openai_url, max_tokens=limit), guard, stream=stream)
        return outcome(provider, answers, together([calls] * CALLS, prompts(), carry))


def teams(style: str, shape: str) -> Outcome:
    """A hundred agents with sub-agents, in one run. Served and asked are model calls."""
    answers, guard = TeamAnswers(), Guard(Budget(usd=CAP))
    together, _ = SHAPES[shape]
    with ScriptedProvider(answers) as provider, guard.run() as run:
        model = chat(provider.openai_url, max_tokens=1_000)
        if style == "model":
            agents = [team(guard_model(model, guard), list) for _ in range(CALLS)]
        else:
            agents = [team(model, lambda: [BudgetMiddleware(guard)]) for _ in range(CALLS)]
        prompts = [prose(index, 4_000) for index in range(CALLS)]
        tally = together([calls_of(agent) for agent in agents], prompts, run.bind)
        note = f"{tally.answered} of {tally.asked} agents done, {answers.helpers} calls by sub-agents"
        tally.answered, tally.asked = len(provider.served), provider.received + tally.refused
        return outcome(provider, answers, tally, note=note)


def timeouts(shape: str) -> Outcome:
    """Clients that hang up and try again, on a provider that bills what it was asked for."""
    answers, guard = Answers(slow=SLOW_SHARE), Guard(Budget(usd=CAP))
    together, _ = SHAPES[shape]
    with ScriptedProvider(answers) as provider:
        model = chat(provider.openai_url, max_tokens=LONGEST, max_retries=None, timeout=CLIENT_TIMEOUT)
        tally = together([attached("model", model, guard, stream=False)] * CALLS, same())
        note = f"{provider.received} requests, unknown ${guard.default_run.unknown_usd:.4f}"
        return outcome(provider, answers, tally, expects=(APITimeoutError,), note=note)


def unreachable() -> Outcome:
    """Connections nobody accepts, with the client's own retries. The guard's count stands in for a bill."""
    guard = Guard(Budget(usd=CAP))
    with socket.socket() as bound, ScriptedProvider() as nobody:
        bound.bind(("127.0.0.1", 0))  # and never listens
        model = chat(f"http://127.0.0.1:{bound.getsockname()[1]}/v1", max_tokens=UNREACHABLE_TOKENS, max_retries=None)
        calls = [attached("model", model, guard, stream=False)] * UNREACHABLE
        tally = threads(calls, [prose(index, SHORT_PROMPT) for index in range(UNREACHABLE)])
        got = outcome(nobody, Answers(), tally, expects=(APIConnectionError,))
    run = guard.default_run
    counted = {"spent": run.spent_usd, "held": run.held_usd, "unknown": run.unknown_usd}
    faults = (*got.faults, *(f"{name} ${usd}" for name, usd in counted.items() if usd != 0))
    failed = sum(tally.raised.values())
    return replace(got, spent=run.spent_usd or Decimal(0), faults=faults, note=f"{failed} connection errors")


def one_stream() -> Outcome:
    """What the reader of one stream gets for its cap."""
    answers = Answers((STREAM_TOKENS, STREAM_TOKENS), input_tokens=SHORT_PROMPT // CHARACTERS)
    asked, read = {"messages": [("user", prose(1, SHORT_PROMPT))]}, 0
    tally, started = Tally(1), time.monotonic()
    with ScriptedProvider(answers) as provider:
        agent = create_agent(chat(provider.openai_url), tools=[], middleware=[BudgetMiddleware(Budget(usd=STREAM_CAP))])
        with tally.one():
            for chunk, _ in agent.stream(asked, stream_mode="messages"):
                read += len(chunk.text)
        note = f"{read // CHARACTERS:,} of {STREAM_TOKENS:,} tokens read"
        return outcome(provider, answers, tally.close(started, 0), note=note)


def rows() -> Iterable[Row]:
    """The table."""
    for shape in ("threads", "tasks"):
        yield Row(name=f"bare/{shape}/{LONGEST}", run=partial(concurrent, "bare", shape, LONGEST), cap=None, quick=True)
    quick = {"model/threads/7500", "model/stream-tasks/none", "agent/stream-threads/7500", "agent/tasks/none"}
    for style in ("model", "agent"):
        for shape in SHAPES:
            for name, limit in LIMITS.items():
                full = f"{style}/{shape}/{name}"
                yield Row(name=full, run=partial(concurrent, style, shape, limit), quick=full in quick)
    for style, shape in (("model", "threads"), ("agent", "tasks")):
        for name, limit in LIMITS.items():
            run = partial(concurrent, style, shape, limit, documents)
            yield Row(name=f"documents/{style}/{shape}/{name}", run=run, least=DOCUMENTS_SHARE, quick=limit is None)
    for style in ("model", "agent"):
        for shape in ("threads", "tasks"):
            yield Row(name=f"team/{style}/{shape}", run=partial(teams, style, shape), quick=style == "agent")
    for shape in ("threads", "tasks"):
        yield Row(name=f"timeouts/{shape}", run=partial(timeouts, shape), least=NO_SHARE, quick=shape == "threads")
    yield Row(name="refused", run=unreachable, least=NO_SHARE, quick=True)
    yield Row(name="callback", run=partial(concurrent, "callback", "threads", LONGEST), least=NO_SHARE, quick=True)
    yield Row(name="one-stream", run=one_stream, cap=STREAM_CAP, quick=True)


def show(name: str, got: Outcome, cap: Decimal, verdict: str) -> None:
    """Print a row."""
    served = f"{got.served}/{got.asked}"
    figures = f"${got.spent:>7.4f}  {got.spent / cap:>7.1%}  {served:>8}  {got.cut:>4}  {got.seconds:>6.2f} s"
    print(f"{name:<30}  {figures}  {verdict}{f'  ({got.note})' if got.note else ''}", flush=True)


def head(title: str) -> None:
    """Print the columns' names."""
    print(f"{title:<30}  {'spent':>8}  {'of cap':>7}  {'served':>8}  {'cut':>4}  {'wall':>8}  verdict")


def measure(chosen: Sequence[Row]) -> list[str]:
    """Run the rows and print them; the names of those that miss their line."""
    missed, spent = [], {}
    head(f"runcap, cap ${CAP}")
    for row in chosen:
        got = row.run()
        spent[row.name] = got.spent
        faults = row.missed(got)
        show(
            row.name, got, row.cap or CAP, f"MISSED: {', '.join(faults)}" if faults else "ok" if row.cap else "no guard"
        )
        missed += [row.name] if faults else []
    bare = [usd for name, usd in spent.items() if name.startswith("bare/")]
    held = [usd for name, usd in spent.items() if name.startswith(("model/", "agent/"))]
    if bare and held:
        print(f"guarded / unguarded: {max(held) / min(bare):.3f} (the dearest guarded row, the cheapest unguarded one)")
    return missed


def measure_peers(peers: Sequence[Peer]) -> None:
    """Run other projects' guards on the same calls and print what they spent."""
    head(f"\npeers, cap ${CAP}, max_tokens {LONGEST:,}")
    for peer in peers:
        if not peer.installed:
            print(f"{peer.name:<30}  not installed ({peer.package})")
            continue
        for shape in ("threads", "tasks"):
            got = peer.run(SHAPES[shape][0])
            raised = f", raised {', '.join(got.faults)}" if got.faults else ""
            over = got.spent / CAP - 1
            verdict = f"OVER by {over:.0%}" if over > 0 else f"held, {-over:.0%} unused"
            show(f"{peer.name}/{shape}", got, CAP, verdict + raised)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these; * and ? match")
    parser.add_argument("--quick", action="store_true", help="a smaller set")
    parser.add_argument("--peers", action="store_true", help="other projects' guards as well")
    parser.add_argument("--list", action="store_true", help="print the rows' names")
    options = parser.parse_args()
    chosen = [row for row in rows() if row.quick or not options.quick]
    if options.rows:
        chosen = [row for row in chosen if any(fnmatchcase(row.name, pattern) for pattern in options.rows)]
    if not chosen:
        parser.error("no such row; --list names them")
    if options.list:
        print("\n".join(row.name for row in chosen))
        return
    missed = measure(chosen)
    if options.peers:
        measure_peers(PEERS)
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
