"""What a program that knows its two accounts would write by hand, in place of a `SQLiteLedger`."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ledgers_measure import ABOUT, ACCOUNTS, CHARGE, OFFER, OUTCOME

from runcap.guardrails.ledger.sqlite import SQLiteLedger, Synchronous
from runcap.guardrails.ledger.sqlite_schema import ACCOUNT_FIGURES, HOLD_COLUMNS, USAGE_COLUMNS

_FIND = f"SELECT n, id, {', '.join(ACCOUNT_FIGURES)} FROM accounts WHERE"  # noqa: S608 - columns of the schema
_HOLD = """UPDATE accounts SET spent_steps = spent_steps + ?, held_nano = held_nano + ?, held_tokens = held_tokens + ?,
  expected_nano = expected_nano + ?, expected_tokens = expected_tokens + ?, in_flight = in_flight + 1
  WHERE n IN (?, ?)"""
_LAND = """UPDATE accounts SET spent_nano = spent_nano + ?, spent_tokens = spent_tokens + ?, held_nano = held_nano - ?,
  held_tokens = held_tokens - ?, expected_nano = expected_nano - ?, expected_tokens = expected_tokens - ?,
  in_flight = in_flight - 1 WHERE n IN (?, ?)"""
_CAP, _SPENT, _HELD, _UNKNOWN = (
    2 + ACCOUNT_FIGURES.index(f"{name}_nano") for name in ("cap", "spent", "held", "unknown")
)
_INSERT_HOLD = f"INSERT INTO holds VALUES ({', '.join('?' * len(HOLD_COLUMNS))})"  # noqa: S608
_INSERT_USAGE = f"INSERT INTO usage ({', '.join(USAGE_COLUMNS)}) VALUES ({', '.join('?' * len(USAGE_COLUMNS))})"  # noqa: S608


class HandWritten:
    """Two transactions through plain sqlite3 that read and write the rows a ledger does, in a file a ledger made.

    One connection under a lock, as SQLite takes one writer at a time: connections for each thread only wait longer.
    """

    def __init__(self, path: Path, synchronous: Synchronous) -> None:
        with SQLiteLedger(path) as ledger:  # the tables, and the accounts
            ledger.reserve("first", (OFFER,), ACCOUNTS, ABOUT)
            ledger.settle("first", CHARGE, outcome=OUTCOME)
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute(f"PRAGMA synchronous = {synchronous}")

    def pair(self, call_id: str) -> None:
        """Reserve and settle."""
        self.reserve(call_id)
        self.settle(call_id)

    async def async_pair(self, call_id: str) -> None:
        """The same, without blocking the loop."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, self.reserve, call_id)
        await loop.run_in_executor(self._pool, self.settle, call_id)

    def close(self) -> None:
        """Let go of the file."""
        self._pool.shutdown()
        self._connection.close()

    def reserve(self, call_id: str) -> None:
        """Hold the call in both accounts."""
        execute, [most, _, expected, *_] = self._connection.execute, OFFER
        with self._lock:
            execute("BEGIN IMMEDIATE")
            assert execute("SELECT 1 FROM tombstones WHERE call_id = ?", (call_id,)).fetchone() is None
            found = execute(f"{_FIND} id IN (?, ?)", [one.id for one in ACCOUNTS]).fetchall()
            for row in found:
                assert row[_SPENT] + row[_HELD] + row[_UNKNOWN] + most.nano <= row[_CAP], "the cap is reached"
            execute(_HOLD, (most.steps, *most[:2], *expected[:2], found[0][0], found[1][0]))
            charged_to = json.dumps([row[:2] for row in found])
            about = json.dumps(ABOUT)
            execute(
                _INSERT_HOLD,
                (call_id, "me", "held", 0, *most, *expected[:2], 0, 0, 0, 0, time.time_ns(), 0, charged_to, about),
            )
            execute("COMMIT")

    def settle(self, call_id: str) -> None:
        """Charge both accounts, and append a record."""
        execute, [about, state, usage, *rest] = self._connection.execute, OUTCOME
        assert usage is not None
        with self._lock:
            execute("BEGIN IMMEDIATE")
            hold = execute("SELECT * FROM holds WHERE call_id = ?", (call_id,)).fetchone()
            first, second = (n for n, _ in json.loads(hold[16]))
            assert len(execute(f"{_FIND} n IN (?, ?)", (first, second)).fetchall()) == len(ACCOUNTS)
            execute(_LAND, (*CHARGE[:2], hold[4], hold[5], hold[8], hold[9], first, second))
            execute("DELETE FROM holds WHERE call_id = ?", (call_id,))
            [run_id, parent, tags, provider, model, tier, attempt, started] = about
            head = (call_id, 0, run_id, parent, json.dumps(tags), provider, model, tier, attempt, started)
            execute(_INSERT_USAGE, (*head, time.time_ns(), state, *usage.counts(), rest[0], 0, *rest[1:]))
            execute("COMMIT")
