"""`SQLiteLedger`: the contract, and what only a file has."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from runcap.guardrails.ledger import Ledger
from runcap.guardrails.ledger.sqlite import SQLiteLedger

from ..effort import examples
from .ledger_contract import LedgerContract, LedgerMachine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def file(path: Path) -> Iterator[SQLiteLedger]:
    with SQLiteLedger(path, heartbeat=None) as ledger:
        yield ledger


class TestContract(LedgerContract):
    @pytest.fixture
    def ledger(self, file: SQLiteLedger) -> Ledger:
        return file


class _Machine(LedgerMachine):
    def make(self) -> Ledger:
        self.folder = tempfile.TemporaryDirectory()
        self.file = SQLiteLedger(Path(self.folder.name) / "ledger.db", synchronous="NORMAL", heartbeat=None)
        return self.file

    def teardown(self) -> None:
        self.file.dispose()
        self.folder.cleanup()


TestMachine = _Machine.TestCase
TestMachine.settings = settings(max_examples=examples(50), stateful_step_count=30, deadline=None)
