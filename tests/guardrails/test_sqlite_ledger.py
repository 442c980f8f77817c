"""`SQLiteLedger`: the contract of every ledger that lasts, and what is in its file."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from runcap.guardrails.amounts import Amounts
from runcap.guardrails.ledger import Ledger, SQLiteLedger
from runcap.guardrails.testing import ManualClock

from ..effort import examples
from .lasting_contract import ABOUT, LastingContract, LastingMachine, outcome
from .ledger_contract import account, offer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def file(path: Path) -> Iterator[SQLiteLedger]:
    with SQLiteLedger(path, heartbeat=None) as made:
        yield made


class TestContract(LastingContract):
    @pytest.fixture
    def ledger(self, file: SQLiteLedger) -> Ledger:
        return file

    @pytest.fixture
    def other(self, path: Path, file: SQLiteLedger) -> Iterator[SQLiteLedger]:
        with SQLiteLedger(path, heartbeat=None) as made:
            yield made


class _Machine(LastingMachine):
    def make(self) -> Ledger:
        self.folder = tempfile.TemporaryDirectory()
        return self.open()

    def open(self) -> SQLiteLedger:
        self.file = SQLiteLedger(Path(self.folder.name) / "ledger.db", synchronous="NORMAL", heartbeat=None)
        return self.file

    def again(self) -> SQLiteLedger:
        self.file.dispose()
        return self.open()

    def teardown(self) -> None:
        self.file.dispose()
        self.folder.cleanup()


TestMachine = _Machine.TestCase
TestMachine.settings = settings(max_examples=examples(50), stateful_step_count=30, deadline=None)


def _rows(path: Path, table: str) -> list[dict[str, Any]]:
    """What is not empty of each row."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]
    return [{name: value for name, value in row.items() if value not in (None, 0)} for row in rows]


def test_what_is_in_the_file(path: Path) -> None:
    """Pinned: files of this version are out there, and later versions have to read them."""
    with SQLiteLedger(path, heartbeat=None, clock=ManualClock(7)) as ledger:
        owner = ledger.owner
        ledger.top_up("run:a", "key", Amounts(nano=5))
        ledger.reserve("held", (offer(60, expected=40, tokens=9),), (account(), account("limit:b", None)), ABOUT)
        ledger.reserve("unknown", (offer(30),), (account(),), ABOUT)
        ledger.settle("unknown", Amounts(nano=10, tokens=3), Amounts(nano=20), outcome("unknown", 10))
        ledger.release("dead")
        ledger.judge("r1", "failed: no")
        ledger.stop("limit:b", "enough")
        about = (
            '{"run_id":"r1","parent_run_id":null,"tags":{"user":"ada","task":"refund"},"provider":"openai",'
            '"model":"gpt-4o","tier":"gpt-4o","attempt":1,"started_ns":1000}'
        )
        assert _rows(path, "accounts") == [
            {
                "n": 1,
                "id": "run:a",
                "cap_nano": 100,
                "extra_nano": 5,
                "spent_nano": 10,
                "spent_tokens": 3,
                "spent_steps": 2,
                "held_nano": 60,
                "held_tokens": 9,
                "unknown_nano": 20,
                "expected_nano": 40,
                "expected_tokens": 9,
                "in_flight": 1,
            },
            {
                "n": 2,
                "id": "limit:b",
                "spent_steps": 1,
                "held_nano": 60,
                "held_tokens": 9,
                "expected_nano": 40,
                "expected_tokens": 9,
                "in_flight": 1,
                "stopped": "enough",
            },
        ]
        held, unknown = _rows(path, "holds")
        assert held == {
            "call_id": "held",
            "owner": owner,
            "state": "held",
            "nano": 60,
            "tokens": 9,
            "steps": 1,
            "expected_nano": 40,
            "expected_tokens": 9,
            "since_ns": 7,
            "accounts": '[[1,"run:a"],[2,"limit:b"]]',
            "about": about,
        }
        rest = {"charged_nano": 10, "charged_tokens": 3, "unknown_nano": 20, "revision": 1}
        assert unknown == {
            "call_id": "unknown",
            "owner": owner,
            "state": "unknown",
            "nano": 30,
            "steps": 1,
            "expected_nano": 30,
            "since_ns": 7,
            "accounts": '[[1,"run:a"]]',
            "about": about,
            **rest,
        }
        assert _rows(path, "usage") == [
            {
                "n": 1,
                "call_id": "unknown",
                "run_id": "r1",
                "tags": '{"user":"ada","task":"refund"}',
                "provider": "openai",
                "model": "gpt-4o",
                "tier": "gpt-4o",
                "attempt": 1,
                "started_ns": 1000,
                "ended_ns": 7,
                "state": "unknown",
                "input_tokens": 7,
                "output_tokens": 3,
                "cost_nano": 10,
                "unknown_nano": 20,
                "price_source": "catalog",
                "latency_ns": 5000,
            }
        ]
        assert _rows(path, "top_ups") == [{"account": 1, "key": "key", "nano": 5, "at_ns": 7}]
        assert _rows(path, "tombstones") == [{"call_id": "dead", "at_ns": 7}]
        assert _rows(path, "verdicts") == [{"run_id": "r1", "verdict": "failed: no", "at_ns": 7}]
        assert [row["id"] for row in _rows(path, "owners")] == [owner]
