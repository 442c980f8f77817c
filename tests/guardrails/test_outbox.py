"""What ends a call and cannot be written: tried again, given up where it never can be, tried last as a program ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runcap.guardrails import Guard, SQLiteLedger
from runcap.guardrails.amounts import Amounts
from runcap.guardrails.ledger import LedgerError
from runcap.guardrails.testing import ManualClock

from .helpers import request
from .ledger_contract import account, offer
from .test_unknowns import CENT, LIMIT, clock, guard, ledger, locked, make, path

__all__ = ["clock", "guard", "ledger", "path"]


class TestWhatCannotBeWritten:
    def test_is_given_up_after_a_while_and_does_not_block_the_rest(
        self, path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The file is there and takes everything but this: a charge that no file can keep."""
        with make(path, clock) as ledger:
            for call in ("bad", "good"):
                ledger.reserve(call, (offer(10),), (account(),))
            with pytest.raises(LedgerError, match="cannot keep a sum"):
                ledger.settle("bad", Amounts(nano=2**64))
            with pytest.raises(LedgerError, match="cannot keep a sum"):
                ledger.settle("good", Amounts(nano=4))
            for _ in range(19):
                with pytest.raises(LedgerError, match="cannot keep a sum"):
                    ledger.beat()
            assert "given up" not in caplog.text
            with pytest.raises(LedgerError, match="cannot keep a sum"):
                ledger.beat()
            assert "an entry was given up, and the call it ends keeps its hold" in caplog.text
            ledger.beat()
            balance = ledger.balance("run:a")
            assert (balance.spent.nano, balance.held.nano, balance.in_flight) == (4, 10, 1)

    def test_is_not_given_up_while_the_file_cannot_be_written_at_all(self, path: Path, clock: ManualClock) -> None:
        with make(path, clock) as ledger:
            ledger.reserve("c", (offer(10),), (account(),))
            with locked(path):
                with pytest.raises(LedgerError):
                    ledger.settle("c", Amounts(nano=4))
                for _ in range(25):
                    with pytest.raises(LedgerError):
                        ledger.beat()
            ledger.beat()
            assert ledger.balance("run:a").spent.nano == 4

    @pytest.mark.parametrize("error", [UnicodeError, ValueError, TypeError])
    def test_and_fails_otherwise_is_given_up_at_once(
        self, ledger: SQLiteLedger, error: type[Exception], caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail() -> None:
            raise error("secret")

        ledger.reserve("c", (offer(10),), (account(),))
        ledger._soon(fail)
        assert ledger.settle("c", Amounts(nano=4)) is not None
        assert caplog.text.count("an entry was given up") == 1
        assert error.__name__ in caplog.text
        assert "secret" not in caplog.text

    def test_is_not_given_up_in_the_place_of_another(self, path: Path, clock: ManualClock) -> None:
        """Another thread may be writing what comes first just now."""
        with make(path, clock) as ledger:
            ledger.reserve("c", (offer(10),), (account(),))
            with pytest.raises(LedgerError, match="cannot keep a sum"):
                ledger.settle("c", Amounts(nano=2**64))
            with ledger._flushing:
                for _ in range(25):
                    ledger._doubt(LedgerError("no"))
            assert len(ledger._outbox) == 1
            ledger._outbox.clear()


_LAST_WORDS = """
import sqlite3, sys
from runcap.guardrails import SQLiteLedger
from runcap.guardrails.amounts import Amounts, Caps
from runcap.guardrails.ledger import Account, LedgerError, Offer

ledger = SQLiteLedger(sys.argv[1], heartbeat=None, timeout=0.02)
ten = Amounts(10, steps=1)
ledger.reserve("c", (Offer(ten, ten, ten),), (Account("run:a", Caps(nano=100)),))
lock = sqlite3.connect(sys.argv[1], isolation_level=None)
lock.execute("BEGIN IMMEDIATE")
try:
    ledger.settle("c", Amounts(nano=4))
except LedgerError:
    print("later")
lock.execute("ROLLBACK")
lock.close()
"""


def test_what_could_not_be_written_is_tried_once_more_as_the_program_ends(path: Path, clock: ManualClock) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LAST_WORDS, str(path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("later\n", "")
    with make(path, clock) as ledger:
        assert ledger.balance("run:a").spent.nano == 4


def test_a_forked_child_cannot_end_its_parents_call(ledger: SQLiteLedger, guard: Guard) -> None:
    permit = guard.admit(request(), guard.run(user="ada"))
    permit._pid += 1  # as a child sees it
    assert not permit.release("ConnectError")
    assert not permit.settle(CENT)
    assert ledger.balance(LIMIT).in_flight == 1
    permit._pid -= 1
    assert permit.settle(CENT)
