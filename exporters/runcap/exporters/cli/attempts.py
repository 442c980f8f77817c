"""Runs: what each cost with all beneath it, and what a successful one costs.

An attempt is an outermost run that made calls, itself or in sub-runs. Its verdict is the one given to it, not to a
sub-run. What an attempt cost counts whether it succeeded or not, and whether anybody said so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from runcap.guardrails.ledger import UsageRecord
from runcap.guardrails.ledger.notes import Note

from .asked import began_ns
from .spending import Spend, Tags

SUCCEEDED = "succeeded"

ENOUGH = 20
"""How many attempts an interval takes."""

_Z95 = 1.959963984540054


class Own:
    """A run's own calls. `tags` is None for one that is only known as the parent of others."""

    __slots__ = ("first_ns", "last_ns", "number", "parent", "spend", "tags", "verdict")

    def __init__(self, number: int) -> None:
        self.number = number
        self.parent: str | None = None
        self.tags: Mapping[str, str] | None = None
        self.verdict: str | None = None
        self.spend = Spend()
        self.first_ns = self.last_ns = 0


@dataclass(slots=True)
class Attempt:
    """An outermost run, with everything beneath it."""

    run_id: str
    tags: Mapping[str, str]
    verdict: str | None
    spend: Spend
    subruns: int
    first_ns: int
    last_ns: int

    @property
    def succeeded(self) -> bool:
        """Its task was done."""
        return self.verdict == SUCCEEDED


class Runs:
    """Every run that was seen, by its id."""

    def __init__(self) -> None:
        self._runs: dict[str, Own] = {}
        self._tags = Tags()

    def add(self, record: UsageRecord) -> int:
        """Count a call; the number of its run."""
        about = record.about
        own = self._see(about.run_id, about.parent_run_id, about.tags)
        own.verdict = record.verdict
        own.spend.add(record)
        began = began_ns(record)
        own.first_ns = min(own.first_ns or began, began)
        own.last_ns = max(own.last_ns, record.ended_ns)
        return own.number

    def hear(self, note: Note) -> None:
        """Learn from a note whose sub-run a run is, and its tags."""
        self._see(note.run_id, note.parent_run_id, note.tags)

    def attempts(self, verdicts: Callable[[Iterable[str]], Mapping[str, str]]) -> list[Attempt]:
        """Every outermost run that made calls. `verdicts` looks up those of runs without a record of their own."""
        beneath: dict[str, list[str]] = {}
        for run_id, own in self._runs.items():
            if own.spend.calls:
                beneath.setdefault(self._outermost(run_id), []).append(run_id)
        silent = [run_id for run_id in beneath if not self._has_calls(run_id)]
        judged = verdicts(silent) if silent else {}
        return [self._attempt(run_id, members, judged) for run_id, members in beneath.items()]

    def _see(self, run_id: str, parent: str | None, tags: Mapping[str, str]) -> Own:
        own = self._runs.get(run_id)
        if own is None:
            own = self._runs[run_id] = Own(len(self._runs))
        if own.tags is None:
            own.tags = self._tags.of(tags)
        own.parent = own.parent or parent
        return own

    def _has_calls(self, run_id: str) -> bool:
        own = self._runs.get(run_id)
        return own is not None and own.spend.calls > 0

    def _outermost(self, run_id: str) -> str:
        """The last one outward; in a circle, which nothing makes, the smallest id of it."""
        passed = [run_id]
        while True:
            own = self._runs.get(passed[-1])
            if own is None or own.parent is None:
                return passed[-1]
            if own.parent in passed:
                return min(passed[passed.index(own.parent) :])
            passed.append(own.parent)

    def _attempt(self, run_id: str, members: list[str], judged: Mapping[str, str]) -> Attempt:
        owns = [self._runs[member] for member in members]
        total = Spend()
        for own in owns:
            total.merge(own.spend)
        root = self._runs.get(run_id)
        tags = None if root is None else root.tags
        return Attempt(
            run_id,
            tags if tags is not None else self._tags.common(own.tags or {} for own in owns),
            root.verdict if root is not None and root.spend.calls else judged.get(run_id),
            total,
            sum(member != run_id for member in members),
            min(own.first_ns for own in owns),
            max(own.last_ns for own in owns),
        )


class Success:
    """What a successful attempt costs, of some attempts. Money in nano-dollars."""

    def __init__(self) -> None:
        self.attempts = self.judged = self.succeeded = 0
        self.spend = Spend()
        self._squares = self._of_successes = 0

    def add(self, attempt: Attempt) -> None:
        """Count an attempt."""
        nano = attempt.spend.nano
        self.attempts += 1
        self.judged += attempt.verdict is not None
        self.succeeded += attempt.succeeded
        self.spend.merge(attempt.spend)
        self._squares += nano * nano
        self._of_successes += nano * attempt.succeeded

    @property
    def unjudged(self) -> int:
        """Attempts without a verdict. Their cost counts."""
        return self.attempts - self.judged

    @property
    def nano_each(self) -> int | None:
        """Cost of all attempts / successes, rounded half-even to a nano-dollar; None without a success or a price."""
        cost = self.spend.cost_nano
        return None if cost is None or not self.succeeded else round(Fraction(cost, self.succeeded))

    @property
    def interval(self) -> tuple[int, int] | None:
        """95 % of `nano_each`, by the delta method on its logarithm; None for fewer than `ENOUGH` attempts."""
        if self.attempts < ENOUGH or not self.succeeded or not self.spend.nano:
            return None
        n, cost, done = self.attempts, self.spend.nano, self.succeeded
        each = Fraction(cost, done)
        # The residuals cost - each * success add up to zero, so their squares are the variance.
        squares = self._squares - 2 * each * self._of_successes + each * each * done
        relative = math.sqrt(squares * n / (n - 1)) / cost
        middle = float(each)
        return round(middle * math.exp(-_Z95 * relative)), round(middle * math.exp(_Z95 * relative))


def by_value(attempts: Iterable[Attempt], dimension: str) -> list[tuple[str | None, Success]]:
    """Attempts by a tag of theirs, the dearest first."""
    found: dict[str | None, Success] = {}
    for attempt in attempts:
        found.setdefault(attempt.tags.get(dimension), Success()).add(attempt)
    return sorted(found.items(), key=lambda one: (-one[1].spend.nano, one[0] is None, one[0] or ""))
