"""Where a run is on its way to its cap: which tier it is on, and what is kept for its last answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from . import forks
from .amounts import ZERO, Amounts
from .history import Cut

if TYPE_CHECKING:
    from .saved import SavedRun

LAST_OUTPUT = 1_024
"""Output tokens of a last answer, at most."""


class Purpose(NamedTuple):
    """What a call is in the course of its run, for the adapter that makes it.

    `tier` names the model's tier, `cut` what was just cut from its history. `stops` is False where the adapter has
    another way to make the call, so that a refusal for want of money stops nothing; `whole` then asks for room for a
    whole answer, as long as they usually are, rather than for the shortest. `root` says that it is the call of the
    run's root agent, whose last answer is kept room for; `last`, that it is that answer.
    """

    tier: str | None = None
    cut: Cut | None = None
    stops: bool = True
    whole: bool = False
    root: bool = False
    last: bool = False


ANY = Purpose()
"""A call like any other."""


class Course:
    """What changes on the way, once each. Shared by all threads of a run."""

    __slots__ = ("_claimed", "_lock", "declined", "known", "restored", "rung", "spare", "tier", "top_ups", "unsaid")

    def __init__(self) -> None:
        self._lock = forks.lock()
        self._claimed = False
        self.rung = 0
        self.tier: str | None = None
        self.spare: Amounts = ZERO
        """What the last answer would cost; kept free beside every call."""
        self.top_ups: dict[str, Amounts] = {}
        """What was added to the caps, by key."""
        self.declined = False
        """A person was asked for more, and said no."""
        self.restored: SavedRun | None = None
        """The record it was made again from."""
        self.known: bool | None = None
        """The ledger knew it before it was made again: it needs no record."""
        self.unsaid: list[str] = []
        """Warnings that the agent is to be told of."""

    def descend(self, rung: int, tier: str, tell: Callable[[str | None], None]) -> None:
        """Go down to a rung; `tell` is called with the tier before, once, by whoever is first."""
        with self._lock:
            before, lower = self.tier, rung > self.rung
            self.rung = max(self.rung, rung)
            self.tier = tier if lower or before is None else before
        if lower:
            tell(before)

    def claim_last(self) -> bool:
        """The right to give the last answer; True once."""
        with self._lock:
            claimed, self._claimed = self._claimed, True
            return not claimed

    def begin_anew(self, key: str, extra: Amounts) -> None:
        """The caps were raised: the ladder may be climbed, and there is a last answer again."""
        self.top_ups[key] = extra
        with self._lock:
            self._claimed, self.declined, self.rung, self.tier = False, False, 0, None
