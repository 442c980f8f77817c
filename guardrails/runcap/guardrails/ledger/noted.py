"""What ledgers that last have in common about notes."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from .base import LedgerError
from .heart import Heart
from .notes import Note, between
from .pending import Pending

_log = logging.getLogger("runcap")


class Noted(ABC):
    """A ledger that keeps notes. They never hold up what ends a call: they wait apart, and come after."""

    _heart: Heart
    _noted: Pending

    # What a store does

    @abstractmethod
    def _add_notes(self, number: int, notes: Sequence[Note]) -> None:
        """Add notes up with those that are kept, in one step; nothing where a step of this number was written."""

    @abstractmethod
    def _notes_page(self, run_id: str | None, after: int) -> tuple[list[Note], int | None]:
        """The next notes, from a place on, and the place to go on from; None at the end."""

    @abstractmethod
    def _check_fork(self) -> None: ...

    @abstractmethod
    def _interrupts(self) -> bool: ...

    @abstractmethod
    def _flush(self) -> None: ...

    # What callers do

    def note(self, note: Note) -> None:
        """See `Ledger.note`. Never raises: what cannot be written now is written later, added up.

        Once it could not be written, nobody waits for that any more but the heartbeat.
        """
        self._check_fork()
        write = self._noted.take(note.kept())
        if self._interrupts():
            return
        if not write:
            self._heart.start()
        elif not self._write_notes():
            self._heart.hurry()

    def notes(
        self, *, run_id: str | None = None, since_ns: int | None = None, until_ns: int | None = None
    ) -> Iterator[Note]:
        """The notes, of each kind one, whose last time lies in there; in no order that is promised.

        Raises:
            LedgerError: the ledger could not be reached.
        """
        self._write_notes()
        after: int | None = 0
        while after is not None:
            page, after = self._notes_page(run_id, after)
            yield from between(page, since_ns, until_ns)

    # Inside

    def _write_notes(self) -> bool:
        """Whether it could be done, or need not."""
        if not self._noted:
            return True
        was_late = self._noted.late
        try:
            self._flush()  # what ends calls comes first
            self._noted.write(self._add_notes)
        except LedgerError as error:
            self._noted.late = True
            if not was_late:
                _log.warning("runcap: the ledger will be told later of what is to be noted: %s", error)
            return False
        return True
