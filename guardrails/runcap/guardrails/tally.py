"""Tokens of a run's calls, added up when somebody asks."""

from __future__ import annotations

from collections import deque

from . import forks
from .usage import Usage

NO_USAGE = Usage()
_COUNTED = 256
"""How many calls' tokens wait to be added up, which nobody may ever ask for."""


class Tally:
    """A sum of usages. May be added to from any thread, and from a finalizer that interrupted it."""

    def __init__(self) -> None:
        self._totals = list(NO_USAGE.counts())
        self._counted: deque[tuple[Usage, Usage, bool]] = deque()
        self._counting = forks.rlock()
        self._folding = False
        self._unpriced = 0

    def add(self, usage: Usage, *, priced: bool, instead_of: Usage) -> None:
        """Add a call's tokens, in place of what was counted for it before."""
        self._counted.append((usage, instead_of, priced))
        if len(self._counted) > _COUNTED:
            self._fold(wait=False)

    @property
    def usage(self) -> Usage:
        """The sum."""
        self._fold()
        return Usage(*self._totals)

    @property
    def is_priced(self) -> bool:
        """Every call added had a price."""
        self._fold()
        return not self._unpriced

    def _fold(self, *, wait: bool = True) -> None:
        if not self._counting.acquire(blocking=wait):
            return
        try:
            if self._folding:
                return  # a finalizer interrupted this very thread's fold, which will take the new ones along
            self._folding = True
            try:
                self._add_counted()
            finally:
                self._folding = False
        finally:
            self._counting.release()

    def _add_counted(self) -> None:
        while self._counted:
            usage, before, priced = self._counted.popleft()
            terms = zip(self._totals, usage.counts(), before.counts(), strict=True)
            self._totals = [total + new - old for total, new, old in terms]
            self._unpriced += not priced
