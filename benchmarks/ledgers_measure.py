"""What is measured by `ledgers.py`: one reservation and its settlement, by many at once, ours and theirs in turn."""

from __future__ import annotations

import asyncio
import gc
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import count
from typing import Any, NamedTuple

from runcap.guardrails.amounts import ZERO, Amounts, Caps
from runcap.guardrails.ledger import About, Account, Grant, Ledger, Offer, Outcome
from runcap.guardrails.usage import Usage

ACCOUNTS = (
    Account("run:0b51f8e2", Caps(nano=10**15, steps=10**9)),
    Account("limit:user=ada/day/2026-11-26", Caps(nano=10**15), "user=ada"),
)
"""What a call is charged to: its run, and a limit."""

MOST = Amounts(nano=1_000, tokens=100, steps=1)
OFFER = Offer(MOST, MOST, Amounts(nano=500, tokens=50, steps=1))
CHARGE = Amounts(nano=450, tokens=120)
ABOUT = About("0b51f8e2", None, {"user": "ada", "task": "refund"}, "openai", "gpt-4o", None, 1, time.time_ns())
OUTCOME = Outcome(ABOUT, "settled", Usage(100, 20), 450, "genai-prices", 10**9)

Pair = Callable[[str], object]
AsyncPair = Callable[[str], Awaitable[object]]

_ids = count()


class Taken(NamedTuple):
    """How long some pairs took: all together, and each."""

    seconds: float
    each: list[int]


class Row(NamedTuple):
    """Ours beside theirs."""

    ours: list[Taken]
    theirs: list[Taken]

    @property
    def median(self) -> float:
        """How many times as long ours takes: the median of rounds side by side."""
        return statistics.median(mine.seconds / their.seconds for mine, their in zip(*self, strict=True))

    @property
    def quarter(self) -> float:
        """The same of the faster quarter of the rounds of each: whatever else runs on the machine only ever adds."""
        mine, their = (_quarter([one.seconds for one in side]) for side in self)
        return mine / their

    @property
    def ratio(self) -> float:
        """What is held against the goal."""
        return min(self.median, self.quarter)

    def show(self, name: str) -> None:
        """Print it."""
        cells = [
            f"{_speed(side):>9,.0f} {_percentile(side, 50):>9,.1f} {_percentile(side, 99):>10,.1f}" for side in self
        ]
        print(f"{name:<26}{cells[0]}  |{cells[1]}  |{self.median:>7.2f} {self.quarter:>7.2f}", flush=True)


def head(title: str, theirs: str) -> None:
    """Print what the columns of rows are."""
    columns = f"{'pairs/s':>9} {'p50 us':>9} {'p99 us':>10}"
    print(f"\n{title}\n{'':<26}{'ours':>9}{'':>21}  |{theirs:>9}{'':>21}  |{'ratio':>7}")
    print(f"{'':<26}{columns}  |{columns}  |{'median':>7} {'quarter':>7}")


def pair_of(ledger: Ledger, accounts: Sequence[Account] = ACCOUNTS, *, records: bool = True) -> Pair:
    """A reservation and its settlement."""
    offers, charged_to = (OFFER,), tuple(accounts)
    about, outcome = (ABOUT, OUTCOME) if records else (None, None)

    def pair(call_id: str) -> None:
        granted = ledger.reserve(call_id, offers, charged_to, about)
        assert granted.__class__ is Grant
        ledger.settle(call_id, CHARGE, ZERO, outcome)

    return pair


def async_pair_of(ledger: Ledger) -> AsyncPair:
    """The same, by the async face."""

    async def pair(call_id: str) -> None:
        granted = await ledger.areserve(call_id, (OFFER,), ACCOUNTS, ABOUT)
        assert granted.__class__ is Grant
        await ledger.asettle(call_id, CHARGE, ZERO, OUTCOME)

    return pair


def threads(pair: Pair, together: int, pairs: int) -> Taken:
    """Pairs by so many threads at once; by this one, where it is one."""
    each: list[list[int]] = [[] for _ in range(together)]
    barrier = threading.Barrier(together + 1)

    def work(times: list[int]) -> None:
        names = [f"call-{next(_ids)}" for _ in range(pairs // together)]
        if together > 1:
            barrier.wait()
        last = time.perf_counter_ns()
        for name in names:
            pair(name)
            now = time.perf_counter_ns()
            times.append(now - last)
            last = now

    working = [threading.Thread(target=work, args=(times,)) for times in each]
    if together == 1:
        began = time.perf_counter()
        work(each[0])
        return Taken(time.perf_counter() - began, each[0])
    for one in working:
        one.start()
    barrier.wait()
    began = time.perf_counter()
    for one in working:
        one.join()
    return Taken(time.perf_counter() - began, [taken for times in each for taken in times])


def tasks(pair: AsyncPair, together: int, pairs: int) -> Callable[[], Coroutine[Any, Any, Taken]]:
    """Pairs by so many tasks of one loop at once."""

    async def run() -> Taken:
        times: list[int] = []

        async def work() -> None:
            for _ in range(pairs // together):
                began = time.perf_counter_ns()
                await pair(f"call-{next(_ids)}")
                times.append(time.perf_counter_ns() - began)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(together):
                group.create_task(work())
        return Taken(time.perf_counter() - began, times)

    return run


def side_by_side(ours: Callable[[], Taken], theirs: Callable[[], Taken], rounds: int) -> Row:
    """Ours, theirs; theirs, ours; and so on, after one of each that does not count."""
    row = Row([], [])
    gc.collect()
    for number in range(-1, rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            taken = (ours, theirs)[side]()
            if number >= 0:
                row[side].append(taken)
    return row


def _quarter(times: list[float]) -> float:
    return sorted(times)[len(times) // 4]


def _speed(side: list[Taken]) -> float:
    return statistics.median(len(one.each) / one.seconds for one in side)


def _percentile(side: list[Taken], percent: int) -> float:
    """Microseconds, of all rounds."""
    times = sorted(time for one in side for time in one.each)
    return times[min(len(times) * percent // 100, len(times) - 1)] / 1e3
