"""Notes as they go to Redis and come back: see note.lua."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .notes import Note, about_from_json

PAGE = 100
"""How many runs' notes one script reads."""

_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def args(number: int, notes: Sequence[Note]) -> list[Any]:
    """The arguments of note.lua."""
    told: list[Any] = [number]
    for note in notes:
        of = _to_json([note.kind, note.what, note.scope, note.unit, note.model])
        cost = "" if note.cost_nano is None else note.cost_nano
        told += (note.run_id, note.about_json(), of, note.count, note.tokens, cost)
        told += (f"{note.first_ns:020}", f"{note.last_ns:020}")
    return told


def read(run_id: str, stored: Sequence[str]) -> list[Note]:
    """The notes of a run: its hash, as names and values in turn."""
    fields = dict(zip(stored[::2], stored[1::2], strict=True))
    parent_run_id, tags = about_from_json(fields.pop("", "[null,{}]"))
    notes = []
    for of, figures in fields.items():
        count, tokens, cost, first, last = figures.split(" ")
        kind, what, scope, unit, model = json.loads(of)
        about = (run_id, parent_run_id, tags, kind, what, scope, unit, model)
        notes.append(Note(*about, int(count), int(tokens), int(cost) if cost else None, int(first), int(last)))
    return notes
