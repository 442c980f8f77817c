"""Files that are no ledger, or cannot be one now: one clear error each, early where possible; no loss."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runcap.guardrails import Budget, Guard, LedgerUnavailable, SQLiteLedger, Usage
from runcap.guardrails.amounts import Amounts
from runcap.guardrails.ledger import About, Grant, LedgerError, sqlite_schema
from runcap.guardrails.ledger.sqlite_schema import APPLICATION_ID, MIGRATIONS, VERSION
from runcap.guardrails.testing import ManualClock

from .helpers import request
from .ledger_contract import account, offer

CENT = Usage(0, 1000)


def make(path: Path | str, **more: Any) -> SQLiteLedger:
    return SQLiteLedger(path, **{"synchronous": "NORMAL", "heartbeat": None} | more)


def put(path: Path, *statements: str) -> None:
    with sqlite3.connect(path, isolation_level=None) as connection:
        for one in statements:
            connection.execute(one)
    connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


class TestWhatIsNoLedger:
    def check(self, path: Path, message: str) -> None:
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(LedgerError, match=message) as info:
            make(path)
        assert str(path) in str(info.value) or str(path.parent) in str(info.value)
        assert (path.read_bytes() if path.is_file() else None) == before, "not touched"

    def test_a_text(self, path: Path) -> None:
        path.write_text("user,usd\nada,5\n" * 500)
        self.check(path, "it is no ledger; give SQLiteLedger a path of its own")

    def test_the_file_of_something_else(self, path: Path) -> None:
        put(path, "CREATE TABLE users (name)", "INSERT INTO users VALUES ('ada')")
        self.check(path, "something else, no ledger: give SQLiteLedger a path of its own")

    def test_the_file_of_another_application(self, path: Path) -> None:
        put(path, "PRAGMA application_id = 7", "PRAGMA user_version = 1")
        self.check(path, "something else")

    def test_a_newer_schema(self, path: Path) -> None:
        make(path).dispose()
        put(path, f"PRAGMA user_version = {VERSION + 1}")
        self.check(path, rf"newer runcap \(ledger schema {VERSION + 1}, this one knows {VERSION}\): upgrade runcap")

    def test_a_folder(self, tmp_path: Path) -> None:
        self.check(tmp_path, "unable to open")

    def test_in_no_folder(self, tmp_path: Path) -> None:
        self.check(tmp_path / "nowhere" / "ledger.db", "is no folder: make it, or give SQLiteLedger another path")

    def test_in_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        self.check(tmp_path / "file" / "ledger.db", "is no folder")

    @pytest.mark.parametrize(
        ("given", "error"),
        [("", ValueError), (":memory:", ValueError), (None, TypeError), (3, TypeError), (b"x", TypeError)],
    )
    def test_no_path(self, given: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="SQLiteLedger takes"):
            make(given)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"synchronous": "OFF"},
            {"timeout": 0},
            {"timeout": None},
            {"heartbeat": -1},
            {"heartbeat": True},
            {"dead_after": float("inf")},
            {"dead_after": "60"},
            {"heartbeat": 40, "dead_after": 60},
        ],
    )
    def test_bad_arguments(self, path: Path, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(arguments)) if len(arguments) == 1 else "dead_after"):
            make(path, **arguments)
        assert not path.exists()


def test_an_empty_file_becomes_one(path: Path) -> None:
    path.touch()
    with make(path) as ledger:
        assert isinstance(ledger.reserve("c", (offer(1),), (account(),)), Grant)


def test_a_path_of_any_kind(path: Path) -> None:
    odd = path.parent / "a b?c#d%20é.db"
    for given in (odd, str(odd), os.fspath(odd)):
        with make(given) as ledger:
            ledger.reserve(f"c{given!r}", (offer(1),), (account(),))
            assert str(odd) in repr(ledger)
    assert odd.exists()


def test_a_damaged_file_says_so(path: Path) -> None:
    with make(path) as ledger:
        for number in range(200):
            ledger.reserve(f"c{number}", (offer(0, tokens=1),), (account(),))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="malformed: restore it from a backup"):
        make(path)


class TestSchema:
    def test_is_marked(self, path: Path) -> None:
        make(path).dispose()
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
            assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.close()

    def test_an_older_file_is_brought_up_to_date_once_and_keeps_its_money(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with make(path) as ledger:
            ledger.reserve("c", (offer(60),), (account(),))
        later = (*MIGRATIONS, "CREATE TABLE extra (n INTEGER);\nCREATE INDEX extra_n ON extra (n);\n")
        monkeypatch.setattr(sqlite_schema, "MIGRATIONS", later)
        monkeypatch.setattr(sqlite_schema, "VERSION", len(later))
        for _ in range(2):
            with make(path) as ledger:
                assert ledger.balance("run:a").held.nano == 60
        put(path, "INSERT INTO extra VALUES (1)")

    def test_a_migration_that_fails_changes_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make(path).dispose()
        before = path.read_bytes()
        monkeypatch.setattr(sqlite_schema, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE extra (n);\nNONSENSE"))
        monkeypatch.setattr(sqlite_schema, "VERSION", len(MIGRATIONS) + 1)
        with pytest.raises(LedgerError, match="syntax error"):
            make(path)
        assert path.read_bytes() == before
        monkeypatch.undo()
        make(path).dispose()


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """Every connection that is opened from now on."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def remember(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", remember)
    return opened


def test_a_file_that_may_only_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(path).dispose()
    connect = sqlite3.connect

    def read_only(database: Path, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(f"file:{database}?mode=ro", uri=True, **kwargs)
        return connection

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(LedgerError, match="give this process the right to write the file and its folder"):
        make(path)


def test_a_full_disk_refuses_calls_and_loses_nothing(path: Path, connections: list[sqlite3.Connection]) -> None:
    with make(path) as ledger:
        guard = Guard(Budget(usd=100), ledger=ledger, sinks=())
        with guard.run() as run:
            permits = [guard.admit(request(), run) for _ in range(3)]
            [connection] = connections
            [pages] = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
            with pytest.raises(LedgerUnavailable, match="full: make room; nothing that was written before is lost"):
                while True:
                    permits.append(guard.admit(request(), run))
            held = run.balance
            assert held.held.nano == len(permits) * 10_000_000
            for one in permits:
                one.settle(CENT)
            connection.execute("PRAGMA max_page_count = 1000000")
            guard.admit(request(), run).settle(CENT)
            assert run.balance.spent.nano == (len(permits) + 1) * 10_000_000
            assert run.balance.in_flight == 0
        assert sum(one.cost_nano or 0 for one in ledger.records()) == (len(permits) + 1) * 10_000_000


def test_numbers_beyond_what_a_file_can_hold_are_refused_before(path: Path) -> None:
    with make(path) as ledger:
        guard = Guard(Budget(usd=1), ledger=ledger, sinks=())
        with guard.run() as run:
            with pytest.raises(ValueError, match="2\\*\\*53"):
                run.top_up(steps=2**70)
            permit = guard.admit(request(), run)
            permit.abandon("TimeoutError")
        with pytest.raises(ValueError, match="2\\*\\*53"):
            ledger.resolve(permit.call_id, usd=0, tokens=2**70)
        assert len(ledger.unknowns()) == 1


_OPEN = """
import sys
from runcap.guardrails import SQLiteLedger
print("ready", flush=True)
sys.stdin.readline()
for path in sys.argv[1:]:
    SQLiteLedger(path, heartbeat=None).dispose()
"""


def test_many_processes_make_one_at_once(tmp_path: Path) -> None:
    """They all begin the same new files: one makes each, the others wait for it."""
    files = [str(tmp_path / f"{number}.db") for number in range(10)]
    command = [sys.executable, "-c", _OPEN, *files]
    openers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for one in openers:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in openers:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    assert [one.communicate(timeout=60)[1] for one in openers] == [""] * 4
    assert [one.returncode for one in openers] == [0] * 4


def test_a_sign_of_life_that_was_rolled_back_is_given_again(path: Path) -> None:
    with make(path) as mine, make(path) as other:
        with pytest.raises(TypeError):
            mine.reserve("x", (offer(10),), (account(),), About("a", tags={"no": object()}))  # type: ignore[dict-item]
        mine.reserve("c", (offer(10),), (account(),))
        other.beat()
        assert (mine.balance("run:a").held.nano, mine.balance("run:a").unknown.nano) == (10, 0)


def test_owners_that_died_long_ago_are_forgotten(path: Path) -> None:
    clock = ManualClock()
    for number in range(3):
        ledger = make(path, clock=clock)
        ledger.reserve(f"{number}", (offer(1),), (account(),))
        ledger.settle(f"{number}", Amounts(nano=1))
    clock.advance(2 * 86_400)
    make(path, clock=clock).beat()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM owners").fetchone() == (1,)


def test_a_sum_that_no_file_keeps_is_a_clear_error(path: Path) -> None:
    with make(path) as ledger:
        ledger.reserve("c", (offer(10),), (account(),))
        with pytest.raises(LedgerError, match="cannot keep a sum"):
            ledger.settle("c", Amounts(nano=2**64))


def test_two_make_one_at_once(path: Path) -> None:
    made: list[SQLiteLedger] = []
    threads = [threading.Thread(target=lambda: made.append(make(path))) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(10)
    assert len(made) == 8
    for ledger in made:
        ledger.dispose()


class TestAFileThatIsGone:
    """Somebody removed it, or put another in its place, while processes use it."""

    def spent(self, ledger: SQLiteLedger) -> None:
        ledger.reserve("c", (offer(100),), (account(),))
        ledger.settle("c", Amounts(nano=100))

    @pytest.mark.parametrize("replaced", [False, True])
    def test_fails_closed(self, path: Path, replaced: bool) -> None:
        with make(path) as ledger:
            self.spent(ledger)
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                (path.parent / name).unlink()
            with make(path if replaced else path.parent / "other.db") as other:
                other.reserve("d", (offer(7),), (account(),))
                for action in (ledger.beat, ledger.beat, lambda: ledger.balance("run:a")):
                    with pytest.raises(LedgerError, match=r"was removed or replaced while it was in use"):
                        action()
                with pytest.raises(LedgerError, match=r"was removed or replaced while it was in use"):
                    ledger.reserve("e", (offer(1),), (account(),))
                assert other.balance("run:a").held.nano == 7
            assert path.exists() == replaced
            ledger.dispose()
            assert isinstance(ledger.reserve("f", (offer(1),), (account(),)), Grant), "as somebody wants it"
        with make(path) as later:
            assert later.balance("run:a").held.nano == (8 if replaced else 1), "nothing of the new file was lost"

    def test_goes_on_once_it_is_back(self, path: Path) -> None:
        with make(path) as ledger:
            self.spent(ledger)
            path.rename(path.parent / "away.db")
            with pytest.raises(LedgerError, match="removed or replaced"):
                ledger.beat()
            (path.parent / "away.db").rename(path)
            assert ledger.balance("run:a").spent.nano == 100

    def test_is_none_that_only_grows(self, path: Path) -> None:
        with make(path) as ledger:
            for number in range(200):
                ledger.reserve(f"{number}", (offer(1),), (account(nano=1000),))
            ledger.beat()
        with make(path) as again:
            again.beat()


def test_the_path_is_that_of_the_beginning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with make(path.name) as ledger:
        (path.parent / "other").mkdir()
        monkeypatch.chdir(path.parent / "other")
        ledger.reserve("c", (offer(10),), (account(),))
        ledger.dispose()
        assert ledger.balance("run:a").held.nano == 10
    assert not (path.parent / "other" / path.name).exists()
