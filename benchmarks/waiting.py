"""What a settle costs while many wait: settle -> wake -> admit, with 10 and with 1,000 waiters, threads and tasks.

    python benchmarks/waiting.py [--rounds N] [--check]

One run, room for one call at a time. Every call that is admitted settles at once, which wakes the next in the queue.
Printed are microseconds a hand-over, the fastest and the median of all rounds, interleaved, and their ratio. `--check`
exits with 1 where 1,000 waiters cost more than twice what 10 do.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Callable
from itertools import count

from runcap.guardrails import Budget, Guard, Usage
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.permit import Permit
from runcap.guardrails.request import Request

FEW, MANY, HANDOVERS, GOAL = 10, 1_000, 5_000, 2.0
_ids = count()


def request() -> Request:
    """A call held at a cent."""
    return Request(
        call_id=f"c{next(_ids)}", model="gpt-4o", provider="openai", prompt=Prompt(measured=0), output_cap=1_000
    )


def full() -> tuple[Guard, Permit]:
    """A guard whose only room is taken."""
    guard = Guard(Budget(usd="0.0101"), sinks=())
    return guard, guard.admit(request())


def tasks(waiters: int) -> float:
    """Seconds a hand-over among tasks: each waiter, once served, stands in line again until all turns are done."""

    async def run() -> float:
        guard, held = full()
        turns = iter(range(HANDOVERS))

        async def wait() -> None:
            for _ in turns:
                (await guard.aadmit(request(), wait=True)).settle(Usage(0, 0))

        waiting = [asyncio.create_task(wait()) for _ in range(waiters)]
        while len(guard.room) < waiters:  # noqa: ASYNC110 - the room has no event
            await asyncio.sleep(0)
        began = time.perf_counter()
        held.settle(Usage(0, 0))
        await asyncio.gather(*waiting)
        return (time.perf_counter() - began) / HANDOVERS

    return asyncio.run(run())


def threads(waiters: int) -> float:
    """The same among threads."""
    guard, held = full()
    turns = iter(range(HANDOVERS))

    def wait() -> None:
        while next(turns, None) is not None:
            guard.admit(request(), wait=True).settle(Usage(0, 0))

    waiting = [threading.Thread(target=wait) for _ in range(waiters)]
    for one in waiting:
        one.start()
    while len(guard.room) < waiters:
        time.sleep(0.001)
    began = time.perf_counter()
    held.settle(Usage(0, 0))
    for one in waiting:
        one.join()
    return (time.perf_counter() - began) / HANDOVERS


def row(name: str, work: Callable[[int], float], rounds: int) -> float:
    """Measure and print; the ratio of the medians."""
    figures: dict[int, list[float]] = {FEW: [], MANY: []}
    for _ in range(rounds):
        for waiters, times in figures.items():
            times.append(work(waiters) * 1e6)
    cells = [f"{min(times):8.1f} / {statistics.median(times):8.1f}" for times in figures.values()]
    ratio = statistics.median(figures[MANY]) / statistics.median(figures[FEW])
    print(f"{name:<10}{cells[0]:>24}{cells[1]:>24}{ratio:>10.2f}", flush=True)
    return ratio


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", action="store_true", help="fail where the goal is missed")
    options = parser.parse_args()
    print(f"{'us':<10}{f'{FEW} waiters':>24}{f'{MANY:,} waiters':>24}{'ratio':>10}")
    ratios = [row("tasks", tasks, options.rounds), row("threads", threads, options.rounds)]
    if options.check and max(ratios) > GOAL:
        raise SystemExit(f"missed: {max(ratios):.2f} times as much, goal {GOAL}")


if __name__ == "__main__":
    main()
