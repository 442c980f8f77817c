"""Many processes, threads and tasks spend from one account: never above its cap, and exact at the end."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections import Counter

from runcap.guardrails.amounts import Amounts, Caps
from runcap.guardrails.ledger import Account, Grant, Refusal

from .spec import AnyLedger, Spec, start
from .worker import SHARED, Steps, Tally, adrive, drive, offer, oversell, trades

DOLLAR = 10**9
RUN_CAP = DOLLAR // 25
PROCESSES, THREADS = 8, 25
CLIENTS, ACTORS = 4, 25
ROUNDS = {"sqlite": 20, "redis": 60}


def test_8_processes_of_25_threads_share_a_dollar(spec: Spec) -> None:
    """Each thread is a run with a cap of its own, so that every call charges two accounts."""
    with spec.open() as ledger:
        ledger.balance(SHARED)  # makes the file
        told = {
            "processes": PROCESSES,
            "threads": THREADS,
            "rounds": ROUNDS[spec.kind],
            "cap": DOLLAR,
            "run_cap": RUN_CAP,
        }
        workers = start(oversell, spec=spec, **told)
        assert workers.stdout is not None
        assert workers.stdout.readline() == "ready\n"
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(workers.communicate("go\n")[0].splitlines()))
        began = time.monotonic()
        samples = _sample(ledger, [reader])
        seconds = time.monotonic() - began
        assert workers.returncode == 0, lines
        tallies = [Tally(**json.loads(line)) for line in lines]
        assert len(tallies) == PROCESSES * THREADS
        _check(ledger, tallies, f"{spec.kind}, {PROCESSES} processes x {THREADS} threads", samples, seconds)


def test_clients_threads_and_tasks_of_one_process_share_a_dollar(spec: Spec) -> None:
    """Several clients; each is used by threads, and by tasks of two event loops, at once."""
    clients = [spec.open() for _ in range(CLIENTS)]
    tallies = [Tally() for _ in range(CLIENTS * ACTORS)]

    def steps(number: int) -> Steps:
        return trades(
            f"{number}", ROUNDS[spec.kind], random.Random(number), tallies[number], cap=DOLLAR, run_cap=RUN_CAP
        )

    def work(number: int) -> None:
        drive(steps(number), clients[number % CLIENTS])

    async def tasks(numbers: range) -> None:
        await asyncio.gather(*(adrive(steps(number), clients[number % CLIENTS]) for number in numbers))

    def loop(numbers: range) -> None:
        asyncio.run(tasks(numbers))

    third = len(tallies) // 3
    threads = [threading.Thread(target=work, args=(number,)) for number in range(third)]
    threads += [threading.Thread(target=loop, args=(range(begin, begin + third),)) for begin in (third, 2 * third)]
    with spec.open() as ledger:
        began = time.monotonic()
        samples = _sample(ledger, threads)
        seconds = time.monotonic() - began
        for client in clients:
            client.dispose()
        what = f"{spec.kind}, {CLIENTS} clients, {third} threads and {2 * third} tasks in two loops"
        _check(ledger, tallies[: 3 * third], what, samples, seconds)


def _sample(ledger: AnyLedger, threads: list[threading.Thread]) -> int:
    """Look at the account as often as possible until all is done; how often that was."""
    for thread in threads:
        thread.start()
    samples, most = 0, 0
    while any(thread.is_alive() for thread in threads):
        balance = ledger.balance(SHARED)
        assert balance.used.nano <= DOLLAR, balance
        most = max(most, balance.used.nano)
        samples += 1
    assert samples > 20
    assert most > DOLLAR * 9 // 10, f"the cap was never near: {most}"
    return samples


def _check(ledger: AnyLedger, tallies: list[Tally], what: str, samples: int, seconds: float) -> None:
    """The books say what those who spent say."""
    assert [wrong for tally in tallies for wrong in tally.wrong] == []
    granted = sum(tally.granted for tally in tallies)
    balance = ledger.balance(SHARED)
    assert (balance.held.nano, balance.expected.nano, balance.in_flight) == (0, 0, 0)
    assert balance.spent.steps == granted

    charged = sum((Counter(tally.charged) for tally in tallies), Counter[str]())
    rests = {call: tuple(rest) for tally in tallies for call, rest in tally.rests.items()}
    assert {call.call_id: (call.charged.nano, call.unknown.nano) for call in ledger.unknowns()} == rests
    assert balance.unknown.nano == sum(rest for _, rest in rests.values())
    assert balance.spent.nano == charged.total() == _recorded(ledger)

    resolved = ledger.resolve_all("all")
    assert resolved == len(rests)
    for call, (_, rest) in rests.items():
        charged[f"run:{call.partition('/')[0]}"] += rest
    balance = ledger.balance(SHARED)
    assert balance.spent.nano == charged.total() == _recorded(ledger)
    assert balance.used == balance.spent
    for run, nano in charged.items():
        assert ledger.balance(run).spent.nano == nano

    free = DOLLAR - balance.spent.nano
    shared = (Account(SHARED, Caps(nano=DOLLAR), "team"),)
    assert isinstance(ledger.reserve("more than all", (offer(free + 1, free + 1),), shared), Refusal)
    assert isinstance(ledger.reserve("all", (offer(free, free),), shared), Grant)
    ledger.settle("all", Amounts(free))
    assert ledger.balance(SHARED).spent.nano == DOLLAR

    last = [tally.last_refused for tally in tallies if tally.last_refused is not None]
    assert all(least > left for least, left in last)
    _print(
        f"{what}, {seconds:.1f} s: {granted} granted ({sum(tally.clamped for tally in tallies)} clamped), "
        f"{sum(tally.refused for tally in tallies)} refused, {sum(tally.released for tally in tallies)} released, "
        f"{sum(tally.reconciled for tally in tallies) + resolved} reconciled; never above the cap in {samples} samples "
        f"and {sum(tally.seen for tally in tallies)} balances that callers saw; ${balance.spent.nano / DOLLAR:.9f} "
        f"spent, {free} nano-dollars left and granted; tightest refusal {min(a - b for a, b in last)} short"
    )


def _recorded(ledger: AnyLedger) -> int:
    return sum(record.cost_nano or 0 for record in ledger.records())


def _print(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")
