"""Notes: what happened in a run beside the ends of its calls, added up. Never content."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..checks import storable

MOST = 2**53 - 1
"""The largest figure that is kept: what every ledger counts exactly. A sum stays there."""

_LATEST_NS = 2**63 - 1

_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

Key = tuple[str, str, str | None, str | None, str | None, str | None]


class Note(NamedTuple):
    """What happened in a run, how often and when; notes of the same run, `kind` to `model`, are added up.

    `kind` says what, and what the rest means:

    - `"refused"`: a call was not made. `what` is the error's name, `unit` what ran out, `scope` of which budget.
    - `"prefix"`: a prompt began unlike the one before. `what` is where; `tokens` had to be read again, for `cost_nano`.
    - `"tier"`: the run went down to the model `what`.
    - `"loop"`: an agent repeats itself. `what` is the kind of loop.
    - `"warned"`: the share `what` of a cap (`unit`, `scope`) was reached.
    - `"paused"`: the run waits for a person, for more of `unit`.
    - `"stopped"`: every call is refused from then on. `what` is why.

    `cost_nano` is in nano-dollars, as far as it is known; None where nothing of it is. `first_ns` and `last_ns` are
    nanoseconds since the epoch, by the clock of the process that noted it.
    """

    run_id: str
    parent_run_id: str | None
    tags: Mapping[str, str]
    kind: str
    what: str | None = None
    scope: str | None = None
    unit: str | None = None
    model: str | None = None
    count: int = 1  # type: ignore[assignment] # of notes, not of items in a tuple
    tokens: int = 0
    cost_nano: int | None = None
    first_ns: int = 0
    last_ns: int = 0

    @property
    def key(self) -> Key:
        """What notes that are added up have in common."""
        return (self.run_id, self.kind, self.what, self.scope, self.unit, self.model)

    def plus(self, other: Note) -> Note:
        """Both, added up."""
        costs = [cost for cost in (self.cost_nano, other.cost_nano) if cost is not None]
        return self._replace(
            count=min(self.count + other.count, MOST),
            tokens=min(self.tokens + other.tokens, MOST),
            cost_nano=min(sum(costs), MOST) if costs else None,
            first_ns=min(self.first_ns, other.first_ns),
            last_ns=max(self.last_ns, other.last_ns),
        )

    def kept(self) -> Note:
        """As every store can keep it: text that is text, figures that can be counted."""
        what, scope, unit, model = [storable(text) if text else None for text in self[4:8]]
        return Note(
            storable(self.run_id),
            None if self.parent_run_id is None else storable(self.parent_run_id),
            {storable(name): storable(value) for name, value in self.tags.items()},
            storable(self.kind),
            what,
            scope,
            unit,
            model,
            _within(self.count, MOST),
            _within(self.tokens, MOST),
            None if self.cost_nano is None else _within(self.cost_nano, MOST),
            _within(self.first_ns, _LATEST_NS),
            _within(self.last_ns, _LATEST_NS),
        )

    def about_json(self) -> str:
        """The run's parent and tags, as a store keeps them."""
        return _to_json([self.parent_run_id, dict(self.tags)])


def about_from_json(text: str) -> tuple[str | None, dict[str, str]]:
    """What `Note.about_json` wrote."""
    parent_run_id, tags = json.loads(text)
    return parent_run_id, tags


def _within(figure: int, most: int) -> int:
    return max(0, min(figure, most))


def between(notes: Iterable[Note], since_ns: int | None, until_ns: int | None) -> Iterable[Note]:
    """Those whose last time lies in there."""
    begin, end = since_ns or 0, _LATEST_NS + 1 if until_ns is None else until_ns
    return (note for note in notes if begin <= note.last_ns < end)
