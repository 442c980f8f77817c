"""What happened beside the calls, added up over runs: refusals, loops, warnings, broken prefixes."""

from __future__ import annotations

from typing import NamedTuple

from runcap.guardrails.ledger.notes import Note

KINDS = {
    "refused": "refusals",
    "loop": "loops",
    "tier": "tier_switches",
    "warned": "warnings",
    "paused": "pauses",
    "stopped": "stops",
}
"""Kinds of notes, and what a report calls them. Broken prefixes have a place of their own."""

PREFIX = "prefix"


class Happening(NamedTuple):
    """So often, in so many runs. `what`, `scope` and `unit` as the note has them."""

    kind: str
    what: str | None
    scope: str | None
    unit: str | None
    count: int  # type: ignore[assignment] # of happenings, not of items in a tuple
    runs: int
    tokens: int
    cost_nano: int | None


class Happenings:
    """Adds up notes by what they tell, whatever run they are of."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str | None, str | None, str | None], _Sum] = {}

    def add(self, note: Note) -> None:
        """Count a note."""
        self._sums.setdefault((note.kind, note.what, note.scope, note.unit), _Sum()).add(note)

    def of(self, kind: str) -> list[Happening]:
        """Those of a kind, the most frequent first."""
        found = [
            Happening(*key, total.count, len(total.runs), total.tokens, total.cost_nano)
            for key, total in self._sums.items()
            if key[0] == kind
        ]
        return sorted(found, key=lambda one: (-one.count, *(text or "" for text in one[1:4])))


class _Sum:
    def __init__(self) -> None:
        self.count = self.tokens = 0
        self.cost_nano: int | None = None
        self.runs: set[str] = set()

    def add(self, note: Note) -> None:
        self.count += note.count
        self.tokens += note.tokens
        if note.cost_nano is not None:
            self.cost_nano = (self.cost_nano or 0) + note.cost_nano
        self.runs.add(note.run_id)
