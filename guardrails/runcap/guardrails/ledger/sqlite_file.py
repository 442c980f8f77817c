"""The file of a `SQLiteLedger`: one connection a process, one transaction at a time, errors that say what to do."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from .base import LedgerError
from .sqlite_schema import prepare, version_of

P = ParamSpec("P")
T = TypeVar("T")


class File:
    """A connection to the file, opened when it is needed. Safe across threads; not to be used across a fork."""

    def __init__(self, path: Path, synchronous: str, timeout: float) -> None:
        self.path = path
        self._synchronous = synchronous
        self._timeout = timeout
        self._lock = threading.Lock()
        self._open_here: list[sqlite3.Connection] = []
        self._opened: tuple[int, int] | None = None
        self._close_when_freed()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for as long as nobody else of this process uses it.

        Raises:
            LedgerError: the file could not be read.
        """
        if not self._lock.acquire(timeout=self._timeout):
            raise self._busy()
        try:
            yield self._open_here[0] if self._open_here else self._open()
        except _REFUSED as error:
            raise self._explained(error) from error
        finally:
            self._lock.release()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is written, or nothing.

        Raises:
            LedgerError: it could not be written.
        """
        with self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has rolled back already
                    connection.execute("ROLLBACK")
                raise

    def write(
        self,
        operation: Callable[Concatenate[sqlite3.Connection, P], T],
        then: Callable[[T], None],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """An operation in a transaction of its own, as `writing` gives one; written out for speed.

        `then` is told what came of it, once it is written and before anybody else writes.

        Raises:
            LedgerError: it could not be written.
        """
        if not self._lock.acquire(timeout=self._timeout):
            raise self._busy()
        try:
            connection = self._open_here[0] if self._open_here else self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = operation(connection, *args, **kwargs)
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            then(result)
        except _REFUSED as error:
            raise self._explained(error) from error
        finally:
            self._lock.release()
        return result

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            _close(self._open_here, os.getpid())
            self._opened = None

    def check(self) -> None:
        """See that the path still is the file that was opened, as long as it was not let go of.

        Raises:
            LedgerError: somebody removed it, or put another in its place.
        """
        with self._lock:
            self._check()

    def _check(self) -> None:
        if self._opened is None or _identity(self.path) == self._opened:
            return
        _close(self._open_here, os.getpid())
        raise LedgerError(
            f"{self.path} was removed or replaced while it was in use, and with it what was spent of every cap: put it "
            "back, or go on with what is there now by ledger.dispose() in every process, or a restart"
        )

    def abandon(self) -> None:
        """In a forked child: forget the parent's connection, which may be in the middle of something."""
        self._lock = threading.Lock()
        # Never closed, nor freed: SQLite would write to the file for the last time, in the parent's place.
        _abandoned.extend(self._open_here)
        self._open_here = []
        self._close_when_freed()

    def _close_when_freed(self) -> None:
        # Not as the program ends: SQLite crashes under a thread that is in the middle of it. The ledger disposes then.
        weakref.finalize(self, _close, self._open_here, os.getpid()).atexit = False

    def _open(self) -> sqlite3.Connection:
        self._check()
        if not self.path.parent.is_dir():
            raise LedgerError(f"{self.path.parent} is no folder: make it, or give SQLiteLedger another path")
        connection = sqlite3.connect(
            self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            version_of(connection, self.path)  # first: a file of something else is left as it is
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            _write_ahead(connection, self.path, time.monotonic() + self._timeout)
            prepare(connection, self.path)
        except BaseException:
            connection.close()
            raise
        self._open_here.append(connection)
        self._opened = self._opened or _identity(self.path)
        return connection

    def _busy(self) -> LedgerError:
        return LedgerError(f"{self.path} was in use by this process for more than {self._timeout:g} s")

    def _explained(self, error: Exception) -> LedgerError:
        text = str(error)
        way_out = next((hint for sign, hint in _HINTS if sign in text), "")
        return LedgerError(f"{self.path}: {text}{way_out.format(seconds=f'{self._timeout:g}')}")


def checked_path(path: str | os.PathLike[str]) -> Path:
    """The path of a ledger, from the root.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f'SQLiteLedger takes a path, e.g. SQLiteLedger("budget.db"); got {path!r}')
    if not str(path) or str(path) == ":memory:":
        raise ValueError(f"SQLiteLedger takes the path of a file, got {str(path)!r}: MemoryLedger() keeps none")
    return Path(path).absolute()  # a process may go elsewhere, and its children begin there


def _close(connections: list[sqlite3.Connection], pid: int) -> None:
    while connections and os.getpid() == pid:
        connections.pop().close()


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return _NO_FILE
    return found.st_dev, found.st_ino


def _write_ahead(connection: sqlite3.Connection, path: Path, until: float) -> None:
    while True:
        try:
            [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:  # SQLite does not wait here where others do the same at once
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.001)
    if mode != "wal":
        raise LedgerError(f"{path} cannot be shared by processes (journal mode {mode}): put it on a local disk")


_NO_FILE = (-1, -1)

_REFUSED = (sqlite3.Error, ValueError, OverflowError)
"""What SQLite raises, for one reason or another, where it does not carry out a statement."""

_abandoned: list[sqlite3.Connection] = []

_HINTS = (
    ("locked", ": another process held it for more than {seconds} s"),
    ("readonly", ": give this process the right to write the file and its folder"),
    ("unable to open", ": give this process the right to write the file and its folder"),
    ("not a database", ": it is no ledger; give SQLiteLedger a path of its own"),
    ("full", ": make room; nothing that was written before is lost"),
    ("too large", ": an account cannot keep a sum above 2**63"),
    ("surrogates", ": a text holds half of a surrogate pair, which no file can keep"),
    ("malformed", ": restore it from a backup; the file is damaged"),
)
