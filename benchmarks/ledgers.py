"""What a ledger costs: one reservation and its settlement, by one and by many at once, and with a million records.

    python benchmarks/ledgers.py [--quick] [--only memory sqlite redis records] [--check]

Each ledger is measured beside the least that could be done in its place, in turn, in this one process; printed are
pairs of a reservation and a settlement a second (the median of all rounds), microseconds a pair, and how many times as
long ours takes: the median of rounds side by side, and the lower quartile of all rounds beside the other's. Rounds are
short and many, for other jobs on the machine add now to the one and now to the other. On a quiet machine both ratios
agree; of a disturbed one the smaller is held against the goal.

memory  floe-guard's BudgetGuard, if it is installed: its `reserve` and `settle`, which looks a price up and prices the
        call, as its documentation has it; and its `reserve_tool` and `settle_tool`, which get the cost told, as a
        ledger of ours does. It knows no call by an id and answers with no balance. One account.
SQLite  the same rows read and written by hand through sqlite3, with the same schema, synchronous and write-ahead
        logging: a call charged to a run and a limit, with what is known of it, and a usage record at its end. Nothing
        but its cap in dollars is looked at. Tasks go through one thread there as well.
Redis   two EVALSHA of redis-py's client, sync and async, whose scripts read and decide nothing, and write what the
        ledger's were seen to write. The server keeps nothing on a disk, so nothing else takes time.
records files with a thousand, a hundred thousand and (but for --quick) a million usage records, written past the ledger
        in its own row format, runs side by side. Besides: the limits' windows, one for 40 records. What is asked by
        time alone has no index and takes as long as the file is large (nobody waits for it meanwhile).

Goals: memory at most what floe-guard's `reserve` and `settle` take, SQLite and Redis at most 1.5 times what they are
measured against, look-ups at most 1.5 times as long with the most records as with a thousand. `--check` exits with 1
where one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ledgers_measure import ACCOUNTS, Row, Taken, async_pair_of, head, pair_of, side_by_side, tasks, threads
from ledgers_records import records
from ledgers_sqlite import HandWritten

from runcap.guardrails.ledger import Ledger, MemoryLedger
from runcap.guardrails.ledger.sqlite import SQLiteLedger, Synchronous

PARTS = ("memory", "sqlite", "redis", "records")
GOALS = {"memory": 1.0, "SQLite": 1.5, "Redis": 1.5, "records": 1.5}
LOOKUPS = ("balance of a limit", "records of a run", "reserve + settle")


class Effort(NamedTuple):
    """How much is measured."""

    pairs: int
    least_rounds: int
    sizes: tuple[int, ...]

    def rounds(self, pairs: int, *, share: float = 1.0) -> int:
        """How many rounds of so many pairs."""
        return max(self.least_rounds if share < 1 else 2 * self.least_rounds, int(self.pairs * share) // pairs)


QUICK = Effort(pairs=640, least_rounds=5, sizes=(1_000, 100_000))
FULL = Effort(pairs=8_000, least_rounds=20, sizes=(1_000, 100_000, 1_000_000))
MANY = (1, 8, 64)


class Verdicts:
    """What was to be shown, and whether it holds."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def say(self, what: str, ratio: float, goal: float) -> None:
        """Print whether a goal holds."""
        holds = ratio <= goal
        print(f"  {what}: {ratio:.2f} times, goal at most {goal:g}: {'holds' if holds else 'MISSED'}", flush=True)
        if not holds:
            self.missed.append(f"{what} {ratio:.2f} > {goal:g}")

    def rows(self, what: str, rows: Sequence[Row], goal: float) -> None:
        """The worst of several rows."""
        self.say(what, max(row.ratio for row in rows), goal)


def memory(effort: Effort, verdicts: Verdicts) -> None:
    """Beside floe-guard."""
    pairs = 640
    rounds = effort.rounds(pairs, share=20)
    ours = pair_of(MemoryLedger(), ACCOUNTS[:1], records=False)
    if find_spec("floe_guard") is None:
        head("memory: floe-guard is not installed (pip install floe-guard), so ours stands alone", "ours")
        for together in (1, 64):
            same = partial(threads, ours, together, pairs)
            side_by_side(same, same, rounds).show(f"{together} at once, threads")
        return
    guard = import_module("floe_guard").BudgetGuard(limit_usd=1e6)

    def priced(_: str) -> None:
        guard.settle("gpt-4o", 100, 20, reserved=guard.reserve(1e-6))

    def told(_: str) -> None:
        guard.settle_tool("look_up", 4.5e-7, reserved=guard.reserve_tool(1e-6))

    for name, theirs in (("reserve + settle", priced), ("reserve_tool + settle_tool", told)):
        head(f"memory, beside floe-guard's {name}", "floe-guard")
        rows = []
        for together in (1, 64):
            mine, their = partial(threads, ours, together, pairs), partial(threads, theirs, together, pairs)
            rows.append(side_by_side(mine, their, rounds))
            rows[-1].show(f"{together} at once, threads")
        if theirs is priced:
            verdicts.rows("memory, beside floe-guard's reserve + settle", rows, GOALS["memory"])


def by_tasks(run: Callable[[], Coroutine[Any, Any, Taken]]) -> Taken:
    """In a loop of its own."""
    return asyncio.run(run())


def sqlite(effort: Effort, verdicts: Verdicts, folder: Path, synchronous: Synchronous) -> None:
    """Beside the same by hand."""
    hand = HandWritten(folder / f"hand-{synchronous}.db", synchronous)
    slow = synchronous == "FULL"

    def plan(together: int) -> tuple[int, int]:
        pairs = max(4, together) if slow else max(16, together)
        return pairs, effort.rounds(pairs, share=0.1 if slow else 1)

    with SQLiteLedger(folder / f"ours-{synchronous}.db", synchronous=synchronous) as ledger:
        head(f"SQLite, synchronous={synchronous}, beside two transactions by hand", "by hand")
        rows = []
        for together in MANY:
            pairs, rounds = plan(together)
            mine, their = (partial(threads, pair, together, pairs) for pair in (pair_of(ledger), hand.pair))
            rows.append(side_by_side(mine, their, rounds))
            rows[-1].show(f"{together} at once, threads")
        for together in MANY:
            pairs, rounds = plan(together)
            runs = [tasks(pair, together, pairs) for pair in (async_pair_of(ledger), hand.async_pair)]
            rows.append(side_by_side(partial(by_tasks, runs[0]), partial(by_tasks, runs[1]), rounds))
            rows[-1].show(f"{together} at once, tasks")
    hand.close()
    verdicts.rows(f"SQLite, synchronous={synchronous}, beside the same by hand", rows, GOALS["SQLite"])


def redis(effort: Effort, verdicts: Verdicts) -> None:
    """Beside a bare EVALSHA."""
    if find_spec("redis") is None or shutil.which("redis-server") is None:
        print("\nRedis: redis-py or redis-server is not installed, nothing was measured")
        return
    redis_module = import_module("ledgers_redis")
    ledger_class = import_module("runcap.guardrails.ledger.redis").RedisLedger
    with (
        redis_module.server() as port,
        ledger_class(f"redis://127.0.0.1:{port}", namespace=redis_module.NAMESPACE, timeout=30) as ledger,
    ):
        head("Redis, beside a bare EVALSHA that reads nothing", "EVALSHA")
        url = f"redis://127.0.0.1:{port}"
        rows, bare = [], redis_module.Bare(url, port, pair_of(ledger))
        for together in MANY:
            pairs = max(16, together)
            mine, their = (partial(threads, pair, together, pairs) for pair in (pair_of(ledger), bare.pair))
            rows.append(side_by_side(mine, their, effort.rounds(pairs)))
            rows[-1].show(f"{together} at once, threads")
        rows += asyncio.run(redis_tasks(effort, ledger, redis_module.client(url), bare))
        print(f"both write: {bare.describe()}")
    verdicts.rows("Redis, beside a bare EVALSHA", rows, GOALS["Redis"])


async def redis_tasks(effort: Effort, ledger: Ledger, client: Any, bare: Any) -> list[Row]:
    """The async faces, all in one loop: connections are kept, in both."""
    rows = []
    async with client:
        pairs = (async_pair_of(ledger), partial(bare.async_pair, client))
        for together in MANY:
            count = max(16, together)
            row, runs = Row([], []), [tasks(pair, together, count) for pair in pairs]
            for number in range(-1, effort.rounds(count)):
                for side in (0, 1) if number % 2 else (1, 0):
                    taken = await runs[side]()
                    if number >= 0:
                        row[side].append(taken)
            row.show(f"{together} at once, tasks")
            rows.append(row)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no more than 100,000 records")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--folder", type=Path, help="where files are put for the while; it should be on a real disk")
    parser.add_argument("--check", action="store_true", help="fail where a goal is missed")
    options = parser.parse_args()
    effort, verdicts = QUICK if options.quick else FULL, Verdicts()
    if "memory" in options.only:
        memory(effort, verdicts)
    with tempfile.TemporaryDirectory(prefix="runcap-ledgers-", dir=options.folder) as name:
        folder = Path(name)
        if "sqlite" in options.only:
            sqlite(effort, verdicts, folder, "FULL")
            sqlite(effort, verdicts, folder, "NORMAL")
        if "redis" in options.only:
            redis(effort, verdicts)
        if "records" in options.only:
            ratios = records(folder, effort.sizes, effort.least_rounds)
            for question in LOOKUPS:
                found = next(ratio for asked, ratio in ratios.items() if asked.startswith(question))
                most = f"{effort.sizes[-1]:,} records beside {effort.sizes[0]:,}"
                verdicts.say(f"{question}, {most}", found, GOALS["records"])
    if options.quick and verdicts.missed:
        print("few rounds were measured: on a busy machine a goal may be missed by chance, which a run in full tells")
    if options.check and verdicts.missed:
        raise SystemExit("missed: " + "; ".join(verdicts.missed))


if __name__ == "__main__":
    main()
