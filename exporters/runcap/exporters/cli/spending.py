"""Sums over usage records, in integers. A call without a price is counted, and never one of $0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from runcap.guardrails.ledger import UsageRecord


class Spend:
    """What some calls cost together. Money in nano-dollars."""

    __slots__ = (
        "cache_read",
        "cache_write",
        "calls",
        "input",
        "nano",
        "output",
        "priced",
        "reasoning",
        "retries",
        "unknown_nano",
        "unpriced",
    )

    def __init__(self) -> None:
        self.calls = self.retries = self.priced = self.unpriced = 0
        self.nano = self.unknown_nano = 0
        self.input = self.output = self.cache_read = self.cache_write = self.reasoning = 0

    @property
    def cost_nano(self) -> int | None:
        """What is known of the cost; None where no call has a price."""
        return None if self.calls and not self.priced else self.nano

    def add(self, record: UsageRecord) -> None:
        """Count a call."""
        self.calls += 1
        self.retries += record.about.attempt > 1
        self.unknown_nano += record.unknown_nano
        if record.cost_nano is not None:
            self.priced += 1
            self.nano += record.cost_nano
        elif not record.unknown_nano:
            self.unpriced += 1
        usage = record.usage
        if usage is not None:
            self.input += usage.input_tokens
            self.output += usage.output_tokens
            self.cache_read += usage.cache_read_tokens
            self.cache_write += usage.cache_write_tokens
            self.reasoning += usage.reasoning_tokens

    def merge(self, other: Spend) -> None:
        """Count the calls of another."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Row(NamedTuple):
    """A line of a breakdown. `value` is None for what stands nowhere in the dimension."""

    value: str | None
    spend: Spend
    runs: int


class Breakdown:
    """Spend by the values of one dimension."""

    def __init__(self, dimension: str) -> None:
        self.dimension = dimension
        self._spends: dict[str | None, Spend] = {}
        self._runs: dict[str | None, set[int]] = {}

    def add(self, value: str | None, record: UsageRecord, run: int) -> None:
        """Count a call of the run of this number."""
        spend = self._spends.get(value)
        if spend is None:
            spend = self._spends[value] = Spend()
            self._runs[value] = set()
        spend.add(record)
        self._runs[value].add(run)

    def rows(self) -> list[Row]:
        """Days in order; anything else, the dearest first."""
        rows = [Row(value, spend, len(self._runs[value])) for value, spend in self._spends.items()]
        if self.dimension == "day":
            return sorted(rows, key=lambda row: row.value or "")
        return sorted(rows, key=lambda row: (-row.spend.nano, -row.spend.calls, row.value is None, row.value or ""))


class Tags:
    """Tags of runs, each set of them kept once."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}

    def of(self, tags: Mapping[str, str]) -> Mapping[str, str]:
        """The same tags, shared."""
        return self._known.setdefault(tuple(sorted(tags.items())), tags)

    def common(self, several: Iterator[Mapping[str, str]]) -> Mapping[str, str]:
        """What all of them have."""
        shared = dict(next(several, {}))
        for tags in several:
            shared = {name: value for name, value in shared.items() if tags.get(name) == value}
        return self.of(shared)
