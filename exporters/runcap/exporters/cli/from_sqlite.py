"""Reading the file of a `SQLiteLedger`: no sign of life, no migration, no file that was not there."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from runcap.guardrails.ledger import LedgerError, UsageRecord, sqlite_notes
from runcap.guardrails.ledger import sqlite_rows as rows
from runcap.guardrails.ledger.notes import Note
from runcap.guardrails.ledger.records import About
from runcap.guardrails.ledger.sqlite_schema import version_of

from .sources import Open, Source

_PAGE = 1_000
_FOREVER_NS = 2**63 - 1
_TIMEOUT = 10.0
_HAS_NOTES = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'notes'"


class SQLiteSource(Source):
    """A ledger's file. A page at a time, so that whoever writes to it is not kept waiting.

    Raises:
        LedgerError: it is no ledger, a newer one, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._connection = self._open()
        try:
            self._has_notes = self._look()
        except BaseException:
            self._connection.close()
            raise

    def records(self, *, run_id: str | None = None, since_ns: int = 0) -> Iterator[UsageRecord]:
        """See `Source.records`."""
        after: int | None = 0
        while after is not None:
            with self._reading():
                page, after = rows.usage_page(
                    self._connection,
                    after,
                    _PAGE,
                    run_id=run_id,
                    since_ns=since_ns,
                    until_ns=_FOREVER_NS,
                    every_revision=False,
                )
            yield from page

    def notes(self, *, run_id: str | None = None) -> Iterator[Note]:
        """See `Source.notes`; none in a file that was made before there were any."""
        after: int | None = 0 if self._has_notes else None
        while after is not None:
            with self._reading():
                page, after = sqlite_notes.page(self._connection, run_id, after)
            yield from page

    def unknowns(self) -> Iterator[Open]:
        """See `Source.unknowns`."""
        with self._reading():
            holds = rows.unknown_holds(self._connection)
        for hold in holds:
            about = About.from_json(hold.about)
            yield Open(hold.call_id, about, hold.since_ns, hold.charged.nano, hold.unknown.nano)

    def verdicts(self, run_ids: Iterable[str]) -> Mapping[str, str]:
        """See `Source.verdicts`."""
        found: dict[str, str] = {}
        asked = list(run_ids)
        for at in range(0, len(asked), _PAGE):
            some = asked[at : at + _PAGE]
            marks = ", ".join("?" * len(some))
            sql = f"SELECT run_id, verdict FROM verdicts WHERE run_id IN ({marks})"  # noqa: S608 - question marks
            with self._reading():
                found.update(self._connection.execute(sql, some).fetchall())
        return found

    def close(self) -> None:
        """See `Source.close`."""
        self._connection.close()

    def _open(self) -> sqlite3.Connection:
        # Not mode=ro: whoever opens a file so cannot remove the -wal and -shm that come to be beside it.
        connection = self._connect("mode=rw")
        try:
            connection.execute(_HAS_NOTES)
        except sqlite3.OperationalError:
            connection.close()
            if Path(f"{self._path}-wal").exists() or os.access(self._path, os.W_OK):
                raise LedgerError(f"{self._path} cannot be opened") from None
            # A file that nobody here may write to, such as a copy: SQLite would write beside it all the same.
            connection = self._connect("mode=ro&immutable=1")
        except sqlite3.Error as error:
            connection.close()
            raise LedgerError(f"{self._path}: {error}") from error
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _connect(self, how: str) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?{how}"
        with self._reading():
            return sqlite3.connect(uri, uri=True, timeout=_TIMEOUT, isolation_level=None)

    def _look(self) -> bool:
        """See that it is a ledger; whether it has notes."""
        with self._reading():
            if version_of(self._connection, self._path) == 0:
                raise LedgerError(f"{self._path} is an empty SQLite file, no ledger")
            return bool(self._connection.execute(_HAS_NOTES).fetchall())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: {error}") from error
