"""Reading an export of records (`ledger.export`), line by line; of each call the latest revision stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from runcap.guardrails.ledger import About, LedgerError, UsageRecord
from runcap.guardrails.ledger.notes import Note
from runcap.guardrails.ledger.records import NAMED_TAGS, SCHEMA, TOKEN_FIELDS
from runcap.guardrails.money import to_nano
from runcap.guardrails.usage import Usage

from .sources import Open, Source

T = TypeVar("T")

_BEGAN = datetime(1970, 1, 1, tzinfo=UTC)
_WRONG = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


class JsonlSource(Source):
    """A file of JSON lines. It is read twice: revisions replace what stands lines before them.

    Raises:
        LedgerError: it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._revised: dict[str, int] = {}
        self._verdicts: dict[str, str] = {}
        for call_id, revision, run_id, verdict in self._lines(_key_of):
            if revision:
                self._revised[call_id] = max(revision, self._revised.get(call_id, 0))
            if verdict is not None:
                self._verdicts[run_id] = verdict

    def records(self, *, run_id: str | None = None, since_ns: int = 0) -> Iterator[UsageRecord]:
        """See `Source.records`."""
        for record in self._lines(record_of):
            latest = self._revised.get(record.call_id, 0) == record.revision
            if latest and record.ended_ns >= since_ns and run_id in (None, record.about.run_id):
                yield record

    def notes(self, *, run_id: str | None = None) -> Iterator[Note]:
        """See `Source.notes`; an export has none."""
        yield from ()

    def unknowns(self) -> Iterator[Open]:
        """See `Source.unknowns`; as far as the records tell."""
        found = [
            Open(one.call_id, one.about, one.about.started_ns or one.ended_ns, one.cost_nano or 0, one.unknown_nano)
            for one in self.records()
            if one.unknown_nano
        ]
        yield from sorted(found, key=lambda one: (one.since_ns, one.call_id))

    def verdicts(self, run_ids: Iterable[str]) -> Mapping[str, str]:
        """See `Source.verdicts`; of runs that have records."""
        return {run: self._verdicts[run] for run in run_ids if run in self._verdicts}

    def _lines(self, meaning: Callable[[Mapping[str, Any]], T]) -> Iterator[T]:
        try:
            with self._path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield self._read(line, number, meaning)
        except (OSError, UnicodeDecodeError) as error:
            raise LedgerError(f"{self._path} cannot be read: {type(error).__name__}") from error

    def _read(self, line: str, number: int, meaning: Callable[[Mapping[str, Any]], T]) -> T:
        try:
            row = json.loads(line)
            if row["schema"] <= SCHEMA:
                return meaning(row)
        except _WRONG as error:
            raise LedgerError(
                f'{self._path}, line {number}: no record as ledger.export(file, "jsonl") writes it '
                f"({type(error).__name__})"
            ) from None
        raise LedgerError(f"{self._path}, line {number}: written by a newer runcap, upgrade this one")


def _key_of(row: Mapping[str, Any]) -> tuple[str, int, str, str | None]:
    return _text(row["call"]), int(row["revision"]), _text(row["run"]), row["verdict"]


def record_of(row: Mapping[str, Any]) -> UsageRecord:
    """A record as `UsageRecord.row()` wrote it.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is none.
    """
    tags = {str(name): str(value) for name, value in row["tags"].items()}
    named = {name: row[name] for name in NAMED_TAGS if row.get(name) is not None}
    about = About(
        run_id=_text(row["run"]),
        parent_run_id=row["parent"],
        tags={**named, **tags},
        provider=row["provider"],
        model=row["model"],
        tier=row["tier"],
        attempt=int(row["attempt"]),
        started_ns=_time_ns(row["start"]),
    )
    known = row[TOKEN_FIELDS[0]] is not None
    return UsageRecord(
        call_id=_text(row["call"]),
        revision=int(row["revision"]),
        ended_ns=_time_ns(row["end"]),
        about=about,
        state=_text(row["state"]),
        usage=Usage(**{name: row.get(name) or 0 for name in TOKEN_FIELDS}) if known else None,
        cost_nano=None if row["cost_usd"] is None else to_nano(row["cost_usd"], "cost_usd"),
        unknown_nano=to_nano(row["unknown_usd"] or 0, "unknown_usd"),
        price_source=row.get("price_source"),
        latency_ns=None if row.get("latency_s") is None else round(row["latency_s"] * 1e9),
        error_type=row.get("error"),
        resolved_by=row.get("resolved_by"),
        verdict=row.get("verdict"),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _time_ns(text: str | None) -> int:
    return 0 if text is None else (datetime.fromisoformat(text) - _BEGAN) // timedelta(microseconds=1) * 1_000
