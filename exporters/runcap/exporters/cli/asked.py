"""What a report is asked for: dimensions, a span of time, tags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from runcap.guardrails.ledger import UsageRecord

from .text import day

FIELDS = ("model", "provider", "tier", "day")
"""Dimensions that are no tags. `day` is the day, in UTC, on which a call began."""

DEFAULT = ("task", "model", "day")

_SPAN = re.compile(r"(\d{1,6})([mhdw])")
_SECONDS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SKEW_NS = 3_600 * 10**9
"""How far the clocks of a process and of its ledger may be apart."""


class Asked(NamedTuple):
    """What is counted. Times are nanoseconds since the epoch; a call belongs to the time it began."""

    by: tuple[str, ...] = DEFAULT
    since_ns: int | None = None
    until_ns: int | None = None
    tags: Mapping[str, str] = {}
    top: int = 10

    @property
    def written_since_ns(self) -> int:
        """What was written earlier cannot be of interest."""
        return max(0, (self.since_ns or 0) - _SKEW_NS)

    def is_time(self, time_ns: int) -> bool:
        """It lies in the span."""
        return (self.since_ns is None or time_ns >= self.since_ns) and (
            self.until_ns is None or time_ns < self.until_ns
        )

    def overlaps(self, first_ns: int, last_ns: int) -> bool:
        """A part of it lies in the span."""
        return (self.since_ns is None or last_ns >= self.since_ns) and (
            self.until_ns is None or first_ns < self.until_ns
        )

    def has_tags(self, tags: Mapping[str, str]) -> bool:
        """They are among these."""
        return all(tags.get(name) == value for name, value in self.tags.items())

    @property
    def tag_dimensions(self) -> tuple[str, ...]:
        """By which runs are judged: the dimensions asked for that are tags, the task where none is."""
        return tuple(name for name in self.by if name not in FIELDS) or ("task",)


def began_ns(record: UsageRecord) -> int:
    """When a call began; when it ended, where that is not known."""
    return record.about.started_ns or record.ended_ns


def value_of(record: UsageRecord, dimension: str) -> str | None:
    """Where a record stands in a dimension; None where it has none."""
    about = record.about
    if dimension == "day":
        return day(began_ns(record))
    if dimension in FIELDS:
        value: str | None = getattr(about, dimension)
        return value
    return about.tags.get(dimension)


def time_ns_of(text: str, now_ns: int, name: str) -> int:
    """A point of time: so long ago (`90m`, `24h`, `7d`, `2w`), a day (its beginning in UTC), or an ISO time.

    Raises:
        ValueError: it is none.
    """
    ago = _SPAN.fullmatch(text.strip())
    if ago is not None:
        return now_ns - int(ago[1]) * _SECONDS[ago[2]] * 10**9
    try:
        told = datetime.fromisoformat(text.strip())
        told = told if told.tzinfo is not None else told.replace(tzinfo=UTC)
        return int(told.timestamp()) * 10**9 + told.microsecond * 1_000
    except (ValueError, OverflowError):
        raise ValueError(f"{name} takes 90m, 24h, 7d, 2w, 2026-11-01 or 2026-11-01T09:30, got {text!r}") from None


def tags_of(task: str | None, pairs: Sequence[str]) -> dict[str, str]:
    """`--task X` and `--tag name=value` as a mapping.

    Raises:
        ValueError: a pair is none, or a tag is given two values.
    """
    tags: dict[str, str] = {} if task is None else {"task": task}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ValueError(f"--tag takes name=value, got {pair!r}")
        if tags.get(name, value) != value:
            raise ValueError(f"{name} is given twice: {tags[name]!r} and {value!r}")
        tags[name] = value
    return tags
