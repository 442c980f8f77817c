"""How notes wait to be written."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from .. import forks
from .base import LedgerError
from .notes import Key, Note
from .timekeeper import elapsed_ns

_log = logging.getLogger("runcap")

BATCH = 250
"""How many notes are written in one step."""

_WAITING = 10_000
"""How many notes, those alike added up, wait at most for a ledger that cannot be reached."""

_APART_NS = 100_000_000
_AT_ONCE = 10
"""Notes are written as they come, ten at once and ten a second after that; others wait for the next of those, or for
the heartbeat."""

Add = Callable[[int, Sequence[Note]], object]
"""Writes notes in one step. The number says which: a step that may have been written is tried again under the same."""


class Pending:
    """Notes on their way to a ledger, those alike added up. Any thread and any finalizer may bring one."""

    def __init__(self) -> None:
        self.late = False
        """The last try to write failed: the heartbeat goes on trying."""
        self._came: deque[Note] = deque()
        self._kept: dict[Key, Note] = {}
        self._batch: Sequence[Note] = ()
        self._number = 0
        self._sorting, self._writing = forks.lock(), forks.lock()  # nobody waits for either: see take()
        self._next_ns = 0
        self._dropped = False

    def __len__(self) -> int:
        return len(self._batch) + len(self._kept) + len(self._came)

    def take(self, note: Note) -> bool:
        """Keep a note; whether to write it right now."""
        self._came.append(note)
        self._sort()
        now = elapsed_ns()
        if self.late or self._next_ns - now > (_AT_ONCE - 1) * _APART_NS:
            return False
        self._next_ns = max(self._next_ns, now) + _APART_NS
        return True

    def write(self, add: Add) -> None:
        """Write what there is; whatever comes meanwhile may be left for the next time.

        Raises:
            LedgerError: it could not be written, and stays.
        """
        self._sort()
        for _ in range(2 + len(self._kept) // BATCH):
            if not len(self) or not self._writing.acquire(blocking=False):
                return
            try:
                self._write_batch(add)
            finally:
                self._writing.release()

    def _write_batch(self, add: Add) -> None:
        if not self._batch:
            self._number += 1
            self._batch = self._taken()
        try:
            if self._batch:
                add(self._number, self._batch)
            self.late = False
        except LedgerError:
            self.late = True
            raise
        except Exception as error:  # noqa: BLE001 - no ledger that cannot be reached: it never can be written
            _log.error("runcap: %d notes were given up: %s", len(self._batch), type(error).__name__)
        self._batch = ()

    def _taken(self) -> Sequence[Note]:
        self._sort()
        found = (self._kept.pop(key, None) for key in list(self._kept)[:BATCH])
        return [note for note in found if note is not None]

    def _sort(self) -> None:
        """Add up what came. Whoever finds another at it leaves it to him: that may be this very thread."""
        while self._came and self._sorting.acquire(blocking=False):
            try:
                while self._came:
                    self._add(self._came.popleft())
            finally:
                self._sorting.release()

    def _add(self, note: Note) -> None:
        before = self._kept.pop(note.key, None)
        self._kept[note.key] = note if before is None else before.plus(note)
        if len(self._kept) > _WAITING:
            for oldest in list(self._kept)[:1]:
                self._kept.pop(oldest, None)
            if not self._dropped:
                self._dropped = True
                _log.warning("runcap: more than %d notes wait for the ledger: the oldest are dropped", _WAITING)
