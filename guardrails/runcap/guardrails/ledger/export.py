"""Usage records as files for spreadsheets and for whoever loads them elsewhere: JSON lines, or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import Literal, TextIO, get_args

from .records import COLUMNS, UsageRecord

Format = Literal["jsonl", "csv"]
"""`"jsonl"`: an object a line. `"csv"`: a header, then a row a record; the tags as JSON in one column."""


def write_records(records: Iterable[UsageRecord], file: TextIO, format: Format) -> int:
    """Write records to an open text file; how many.

    Raises:
        ValueError: `format` is neither.
    """
    if format not in get_args(Format):
        raise ValueError(f'format must be "jsonl" or "csv", got {format!r}')
    return _jsonl(records, file) if format == "jsonl" else _csv(records, file)


def _jsonl(records: Iterable[UsageRecord], file: TextIO) -> int:
    count = 0
    for record in records:
        file.write(json.dumps(record.row(), ensure_ascii=False) + "\n")
        count += 1
    return count


def _csv(records: Iterable[UsageRecord], file: TextIO) -> int:
    writer, count = csv.DictWriter(file, COLUMNS, lineterminator="\n"), 0
    writer.writeheader()
    for record in records:
        row = record.row()
        writer.writerow({**row, "tags": json.dumps(row["tags"], ensure_ascii=False)})
        count += 1
    return count
