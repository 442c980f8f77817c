"""Notes in the file of a `SQLiteLedger`: a row for each run, kind and so on."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from .notes import MOST, Note

PAGE = 1_000
"""How many rows are read in one go."""

_COLUMNS = ", ".join(Note._fields)
_ADD = f"""INSERT INTO notes ({_COLUMNS}) VALUES ({", ".join("?" * len(Note._fields))})
  ON CONFLICT (run_id, kind, ifnull(what, ''), ifnull(scope, ''), ifnull(unit, ''), ifnull(model, '')) DO UPDATE SET
  count = min(count + excluded.count, {MOST}),
  tokens = min(tokens + excluded.tokens, {MOST}),
  cost_nano = min(ifnull(cost_nano + excluded.cost_nano, ifnull(cost_nano, excluded.cost_nano)), {MOST}),
  first_ns = min(first_ns, excluded.first_ns),
  last_ns = max(last_ns, excluded.last_ns)"""  # noqa: S608 - columns named in Note
_PAGE = f"SELECT n, {_COLUMNS} FROM notes WHERE n > ?"  # noqa: S608
_TAGS = Note._fields.index("tags")


def add(connection: sqlite3.Connection, notes: Sequence[Note]) -> None:
    """Add notes up with those that are there."""
    connection.executemany(_ADD, [(*note[:_TAGS], _json(note), *note[_TAGS + 1 :]) for note in notes])


def page(connection: sqlite3.Connection, run_id: str | None, after: int) -> tuple[list[Note], int | None]:
    """The next notes after number `after`, of a run or of all, and the number to go on after; None at the end."""
    of_run, values = ("", (after,)) if run_id is None else (" AND run_id = ?", (after, run_id))
    found = connection.execute(f"{_PAGE}{of_run} ORDER BY n LIMIT {PAGE}", values).fetchall()
    notes = [Note._make((*row[1 : _TAGS + 1], json.loads(row[_TAGS + 1]), *row[_TAGS + 2 :])) for row in found]
    return notes, found[-1][0] if len(found) == PAGE else None


def _json(note: Note) -> str:
    return json.dumps(dict(note.tags), ensure_ascii=False, separators=(",", ":"))
