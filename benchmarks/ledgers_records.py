"""Files with few and with very many usage records: how long is what is asked of them, how large are they."""

from __future__ import annotations

import io
import random
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ledgers_measure import ABOUT, OUTCOME, pair_of

from runcap.guardrails.amounts import ZERO
from runcap.guardrails.ledger.sqlite import SQLiteLedger
from runcap.guardrails.ledger.sqlite_rows import INSERT_USAGE, usage_values

CALLS, RUNS_AT_ONCE = 20, 50
"""Calls of a run, and how many runs write their records side by side."""

RECORDS_A_LIMIT = 40
"""How many records there are for each window of a limit, which stays in the file."""

EXPORTED = 20_000
"""How many records are exported, at most."""

BEGAN_NS = 1_790_000_000 * 10**9
EVERY_NS = 250_000_000

Measure = Callable[["Filled"], object]


def ids(seed: int) -> Iterator[str]:
    """As `new_id` gives them, the same each time."""
    rng = random.Random(seed)
    while True:
        yield f"{rng.getrandbits(128):032x}"


class Filled:
    """A ledger's file with so many records, written past the ledger, in its own row format."""

    def __init__(self, path: Path, size: int) -> None:
        self.size, self.path = size, path
        names = ids(size)
        self.runs = [next(names) for _ in range(size // CALLS)]
        self.limits = [f"limit:user={next(names)[:8]}/day/2026-11-26" for _ in range(size // RECORDS_A_LIMIT)]
        self.ledger = SQLiteLedger(path, synchronous="NORMAL", heartbeat=None)
        began = time.perf_counter()
        self._fill(names)
        self.seconds = time.perf_counter() - began
        self._pair, self._calls, self._rng = pair_of(self.ledger), ids(size + 1), random.Random(size)

    def _fill(self, names: Iterator[str]) -> None:
        connection = sqlite3.connect(self.path)
        with connection:
            connection.executemany("INSERT INTO accounts (id) VALUES (?)", [(name,) for name in self.limits])
        for begin in range(0, len(self.runs), 5_000):
            with connection:
                connection.executemany(INSERT_USAGE, self._rows(names, begin, min(begin + 5_000, len(self.runs))))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    def _rows(self, names: Iterator[str], begin: int, end: int) -> Iterator[tuple[Any, ...]]:
        for first in range(begin, end, RUNS_AT_ONCE):
            for turn in range(CALLS):
                for n in range(first, min(first + RUNS_AT_ONCE, end)):
                    at = BEGAN_NS + (n * CALLS + turn) * EVERY_NS
                    about = ABOUT._replace(run_id=self.runs[n], started_ns=at)
                    outcome = OUTCOME._replace(about=about)
                    yield usage_values(next(names), 0, at + 10**9, outcome, ZERO)

    def balance(self) -> None:
        """What a limit has left."""
        assert self.ledger.balance(self._rng.choice(self.limits)).in_flight == 0

    def run(self) -> None:
        """All records of a run."""
        assert len(list(self.ledger.records(run_id=self._rng.choice(self.runs)))) == CALLS

    def reserve_and_settle(self) -> None:
        """A call more."""
        self._pair(next(self._calls))

    def recent(self) -> None:
        """What the last hundred records say, by their time."""
        since = BEGAN_NS + (self.size - 100) * EVERY_NS + 10**9
        last = self.ledger.records(since_ns=since, until_ns=BEGAN_NS + (self.size + 100) * EVERY_NS)
        assert sum(1 for _ in last) >= 1

    def export(self) -> float:
        """Records a second, as JSON lines."""
        file = io.StringIO()
        began = time.perf_counter()
        count = self.ledger.export(file, until_ns=BEGAN_NS + min(self.size, EXPORTED) * EVERY_NS)
        return count / (time.perf_counter() - began)

    @property
    def bytes_a_record(self) -> float:
        """Of the whole file, with its indexes and the limits' windows."""
        return self.path.stat().st_size / self.size


QUESTIONS: tuple[tuple[str, Measure, int], ...] = (
    ("balance of a limit", Filled.balance, 100),
    (f"records of a run ({CALLS})", Filled.run, 40),
    ("reserve + settle", Filled.reserve_and_settle, 100),
    ("records by their time", Filled.recent, 1),
)
"""What is asked, and how often in a round."""


def ask(files: list[Filled], rounds: int) -> dict[str, list[list[float]]]:
    """Microseconds, by question and file, the files in turn."""
    times: dict[str, list[list[float]]] = {name: [[] for _ in files] for name, *_ in QUESTIONS}
    for number in range(-1, rounds):
        for name, question, often in QUESTIONS:
            for file, each in zip(files, times[name], strict=True):
                for _ in range(often):
                    began = time.perf_counter_ns()
                    question(file)
                    if number >= 0:
                        each.append((time.perf_counter_ns() - began) / 1e3)
    return times


def records(folder: Path, sizes: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Print the table; by question how many times as long the largest file takes as the smallest."""
    files = [Filled(folder / f"{size}.db", size) for size in sizes]
    print(
        f"\n{'SQLite, p50 / p99 in us':<26}" + "".join(f"{f'{size:,} records':>24}" for size in sizes) + f"{'ratio':>9}"
    )
    ratios = {}
    for name, each in ask(files, rounds).items():
        cells = [f"{statistics.median(times):,.1f} / {_p99(times):,.1f}" for times in each]
        ratios[name] = statistics.median(each[-1]) / statistics.median(each[0])
        print(f"{name:<26}" + "".join(f"{cell:>24}" for cell in cells) + f"{ratios[name]:>9.2f}", flush=True)
    print(f"{'file, bytes a record':<26}" + "".join(f"{file.bytes_a_record:>24,.0f}" for file in files))
    print(f"{'export, records a second':<26}" + "".join(f"{file.export():>24,.0f}" for file in files))
    print(f"{sizes[-1]:,} records were written past the ledger in {files[-1].seconds:.1f} s")
    for file in files:
        file.ledger.dispose()
    return ratios


def _p99(times: list[float]) -> float:
    return sorted(times)[min(len(times) * 99 // 100, len(times) - 1)]
