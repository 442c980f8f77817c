"""Reading a `RedisLedger`'s namespace: only commands that read, so a replica will do, and a user with few rights."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from runcap.guardrails.ledger import LedgerError, UsageRecord, redis_notes
from runcap.guardrails.ledger import redis_errors as errors
from runcap.guardrails.ledger import redis_wire as wire
from runcap.guardrails.ledger.notes import Note
from runcap.guardrails.ledger.redis_clients import Commands, Lines, Steps
from runcap.guardrails.ledger.redis_steps import Asking
from runcap.guardrails.ledger.redis_target import Target

from .sources import Open, Source

T = TypeVar("T")

_PAGE = 500
_TIMEOUT = 10.0
_SCHEMA = "1"  # as contact.lua has it
_NAME = re.compile(r"[^\s{}]{1,200}")


class RedisSource(Source):
    """A namespace in Redis.

    Raises:
        ImportError: redis-py is not installed.
        LedgerError: Redis cannot be reached, or there is no ledger of this name.
        ValueError: the URL is none of Redis', or no such name.
    """

    def __init__(self, url: str, namespace: str) -> None:
        if not _NAME.fullmatch(namespace):
            raise ValueError(f"a namespace is a name without spaces and braces, got {namespace!r}")
        target = Target(url, _TIMEOUT)
        self.name = f"Redis at {target.where}, namespace {namespace}"
        self._lines, self._reading = Lines(target), _Reading(target, namespace)
        try:
            lost = self._do(self._reading.check())
        except BaseException:
            self.close()
            raise
        if lost:
            self.warnings = (f"this ledger lost data ({lost}): what was spent may be more than it says",)

    def records(self, *, run_id: str | None = None, since_ns: int = 0) -> Iterator[UsageRecord]:
        """See `Source.records`."""
        begin: str | int = 0 if run_id is not None else f"{since_ns // 1_000_000}-0"
        while True:
            entries = self._do(self._reading.entries(run_id, begin))
            found = [entry for entry in entries if entry[1]]
            yield from self._do(self._reading.latest(found))
            if not entries:
                return
            begin = begin + len(entries) if isinstance(begin, int) else f"({entries[-1][0]}"

    def notes(self, *, run_id: str | None = None) -> Iterator[Note]:
        """See `Source.notes`."""
        after: int | None = 0
        while after is not None:
            page, after = self._do(self._reading.noted(run_id, after))
            yield from page

    def unknowns(self) -> Iterator[Open]:
        """See `Source.unknowns`."""
        for hold in self._do(self._reading.open_calls()):
            yield Open(hold.call_id, hold.about, hold.since_ns, hold.charged.nano, hold.unknown.nano)

    def verdicts(self, run_ids: Iterable[str]) -> Mapping[str, str]:
        """See `Source.verdicts`."""
        return self._do(self._reading.judged(list(run_ids)))

    def close(self) -> None:
        """See `Source.close`."""
        self._lines.close()

    def _do(self, steps: Steps[T]) -> T:
        return self._lines.drive(steps, time.monotonic() + _TIMEOUT)


class _Reading(Asking):
    """What is asked; `Asking` finds the node of a cluster that has it."""

    def __init__(self, target: Target, namespace: str) -> None:
        super().__init__(target, namespace, None, owner=str, beat_every_ns=0, saw_time=lambda _: None)

    def check(self) -> Steps[str | None]:
        """See that it is a ledger this version can read; what it lost."""
        [told] = yield from self._read((("HMGET", self.keys.meta, "app", "schema", "lost"),))
        app, schema, lost = told
        if app is None and lost is None:
            raise LedgerError(
                f"there is no ledger in Redis at {self.where} in the namespace {self.keys.namespace!r}: "
                "--namespace names another"
            )
        if str(schema) != _SCHEMA:
            raise errors.newer(schema, _SCHEMA)
        return None if lost is None else str(lost)

    def entries(self, run_id: str | None, begin: str | int) -> Steps[list[Any]]:
        """The next entries of the usage stream, or of a run's; those that are gone have no fields."""
        if not isinstance(begin, int):
            [page] = yield from self._read((("XRANGE", self.keys.usage, begin, "+", "COUNT", _PAGE),))
            return list(page)
        [ids] = yield from self._read((("LRANGE", self.keys.run(str(run_id)), begin, begin + _PAGE - 1),))
        found = yield from self._read(tuple([("XRANGE", self.keys.usage, one, one) for one in ids]))
        return [each[0] if each else [one, None] for one, each in zip(ids, found, strict=True)]

    def latest(self, entries: list[Any]) -> Steps[list[UsageRecord]]:
        """Those that no later revision stands for, each with the verdict on its run."""
        if not entries:
            return []
        calls, runs = [fields[1] for _, fields in entries], [fields[3] for _, fields in entries]
        asked = (("HMGET", self.keys.verdicts, *runs), ("HMGET", self.keys.revised, *calls))
        verdicts, revised = yield from self._read(asked)
        told = zip(entries, verdicts, revised, strict=True)
        return [wire.record_of(entry, verdict) for entry, verdict, last in told if last in (None, entry[1][5])]

    def noted(self, run_id: str | None, after: int) -> Steps[tuple[list[Note], int | None]]:
        """The notes of a run; or those of the next runs, from a place on, and the place to go on from."""
        run_ids = [run_id]
        if run_id is None:
            [run_ids] = yield from self._read((("LRANGE", self.keys.noted, after, after + _PAGE - 1),))
        stored = yield from self._read(tuple([("HGETALL", self.keys.notes(str(one))) for one in run_ids]))
        told = zip(run_ids, stored, strict=True)
        found = [note for run, each in told if each for note in redis_notes.read(str(run), each)]
        return found, after + len(run_ids) if run_id is None and run_ids else None

    def open_calls(self) -> Steps[list[wire.Hold]]:
        """Every hold that is unknown, oldest first."""
        [ids] = yield from self._read((("ZRANGE", self.keys.unknown, 0, -1),))
        found: list[wire.Hold | None] = []
        for at in range(0, len(ids), _PAGE):
            some = ids[at : at + _PAGE]
            stored = yield from self._raw(tuple([("GET", self.keys.hold(one)) for one in some]))
            found += [wire.hold_of(one, (each, None, None)) for one, each in zip(some, stored, strict=True)]
        return [hold for hold in found if hold is not None and hold.state == "unknown"]

    def judged(self, run_ids: list[str]) -> Steps[dict[str, str]]:
        """Verdicts by run."""
        found: dict[str, str] = {}
        for at in range(0, len(run_ids), _PAGE):
            some = run_ids[at : at + _PAGE]
            [told] = yield from self._read((("HMGET", self.keys.verdicts, *some),))
            found.update({run: verdict for run, verdict in zip(some, told, strict=True) if verdict is not None})
        return found

    def _read(self, commands: Commands) -> Steps[list[Any]]:
        replies = yield from self._raw(commands)
        return [wire.readable(reply) for reply in replies]

    def _raw(self, commands: Commands) -> Steps[list[Any]]:
        if not commands:
            return []
        replies = yield from self._ask(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise errors.answered(reply, self.where)
        return replies
