"""What a call leaves behind in a ledger that lasts: who made it, what it cost, how it ended. Never content.

A record is appended once an attempt ends. What is learnt of it later (its usage arrives, a person looks at the bill) is
appended as a further revision; the latest stands. A run's verdict is kept beside its records, and joined on reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from ..money import to_usd
from ..usage import Usage

SCHEMA = 1
"""The version of a record's shape, as stored and as exported."""

NAMED_TAGS = ("task", "prompt_version", "feature")
"""Tags that have a field of their own in an exported record."""

_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

_NO_TAGS: Mapping[str, str] = {}


class About(NamedTuple):
    """What is known of a call when it is admitted; kept beside its hold, for the case that nobody ends it."""

    run_id: str
    parent_run_id: str | None = None
    tags: Mapping[str, str] = _NO_TAGS
    provider: str | None = None
    model: str | None = None
    tier: str | None = None
    attempt: int = 1
    started_ns: int = 0

    def to_json(self) -> str:
        """As a ledger keeps it beside a hold."""
        run_id, parent, tags, provider, model, tier, attempt, started_ns = self
        shared = _shared(run_id, parent, tuple(tags.items()), provider, model, tier)
        return f'{shared},"attempt":{attempt},"started_ns":{started_ns}}}'

    @classmethod
    def from_json(cls, text: str | None) -> About:
        """Read what `to_json` wrote; fields added by a later version are passed over."""
        told = json.loads(text) if text else {}
        return cls(**{name: value for name, value in told.items() if name in cls._fields} or {"run_id": ""})


@lru_cache(1_024)
def _shared(
    run_id: str,
    parent_run_id: str | None,
    tags: tuple[tuple[str, str], ...],
    provider: str | None,
    model: str | None,
    tier: str | None,
) -> str:
    """What the calls of a run have in common, up to where they differ."""
    values = (run_id, parent_run_id, dict(tags), provider, model, tier)
    return _to_json(dict(zip(About._fields, values, strict=False)))[:-1]


class Outcome(NamedTuple):
    """How a call ended. Unknown cost is None, never zero.

    `state` is `"settled"`, `"released"` or `"unknown"`. `resolved_by` says who cleared up a call that had ended as
    unknown: `"late"` (its usage arrived), `"hand"`, or a rule's name; `"owner died"` is one that nobody ended.
    """

    about: About
    state: str
    usage: Usage | None = None
    cost_nano: int | None = None
    price_source: str | None = None
    latency_ns: int | None = None
    error_type: str | None = None
    resolved_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One revision of one attempt, as it is read back. Times are nanoseconds since the epoch, money nano-dollars."""

    call_id: str
    revision: int
    ended_ns: int
    about: About
    state: str
    usage: Usage | None
    cost_nano: int | None
    unknown_nano: int
    price_source: str | None = None
    latency_ns: int | None = None
    error_type: str | None = None
    resolved_by: str | None = None
    verdict: str | None = field(default=None, compare=False)

    @property
    def cost_usd(self) -> Decimal | None:
        """`cost_nano` in dollars."""
        return None if self.cost_nano is None else to_usd(self.cost_nano)

    def row(self) -> dict[str, Any]:
        """Flat, as it is exported: ISO times in UTC, dollars as decimal strings, every token count apart."""
        about, tags = self.about, dict(self.about.tags)
        named = {name: tags.pop(name, None) for name in NAMED_TAGS}
        counts = dict.fromkeys(TOKEN_FIELDS) if self.usage is None else _counts(self.usage)
        return {
            "schema": SCHEMA,
            "call": self.call_id,
            "revision": self.revision,
            "run": about.run_id,
            "parent": about.parent_run_id,
            **named,
            "tags": tags,
            "start": _iso(about.started_ns),
            "end": _iso(self.ended_ns),
            "provider": about.provider,
            "model": about.model,
            "tier": about.tier,
            "attempt": about.attempt,
            "state": self.state,
            **counts,
            "cost_usd": _dollars(self.cost_nano),
            "unknown_usd": _dollars(self.unknown_nano),
            "price_source": self.price_source,
            "latency_s": None if self.latency_ns is None else self.latency_ns / 1e9,
            "error": self.error_type,
            "resolved_by": self.resolved_by,
            "verdict": self.verdict,
        }


TOKEN_FIELDS = tuple(one.name for one in fields(Usage))
"""The token counts of a record, in the order of `Usage.counts()`."""


def _counts(usage: Usage) -> dict[str, int]:
    return dict(zip(TOKEN_FIELDS, usage.counts(), strict=True))


def _iso(time_ns: int) -> str | None:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="microseconds") if time_ns else None


def _dollars(nano: int | None) -> str | None:
    return None if nano is None else f"{to_usd(nano):f}"


COLUMNS = tuple(
    UsageRecord(
        call_id="", revision=0, ended_ns=0, about=About(""), state="", usage=None, cost_nano=None, unknown_nano=0
    ).row()
)
"""The names in `UsageRecord.row()`, in order."""
