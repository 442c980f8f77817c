"""Where a report reads from: a ledger's file, Redis, or an export. Whatever it is, it is only read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from runcap.guardrails.ledger import About, LedgerError, UsageRecord
from runcap.guardrails.ledger.notes import Note

SCHEMES = ("redis://", "rediss://", "unix://")

_SQLITE = b"SQLite format 3\0"


class Open(NamedTuple):
    """A call that may have been billed beyond what was charged."""

    call_id: str
    about: About
    since_ns: int
    charged_nano: int
    unknown_nano: int


class Source(ABC):
    """What can be read of a ledger. `name` is how it is shown, without passwords; `warnings` is what to know of it."""

    name: str
    warnings: tuple[str, ...] = ()

    @abstractmethod
    def records(self, *, run_id: str | None = None, since_ns: int = 0) -> Iterator[UsageRecord]:
        """Of each call the latest revision, in the order they were written; those written from `since_ns` on."""

    @abstractmethod
    def notes(self, *, run_id: str | None = None) -> Iterator[Note]:
        """What happened beside the calls: refusals, loops, warnings and the like."""

    @abstractmethod
    def unknowns(self) -> Iterator[Open]:
        """Calls whose cost is not fully known, oldest first."""

    @abstractmethod
    def verdicts(self, run_ids: Iterable[str]) -> Mapping[str, str]:
        """The verdicts on runs, as far as there are any."""

    def close(self) -> None:  # noqa: B027 - not all have anything to let go of
        """Let go of files and connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_source(where: str, namespace: str) -> Source:
    """What `where` names: a SQLite file, a URL of Redis, a JSONL export.

    Raises:
        LedgerError: there is nothing, or it is no ledger.
        ImportError: redis-py is not installed.
        ValueError: a URL that is none of Redis'.
    """
    if where.startswith(SCHEMES):
        from .from_redis import RedisSource  # noqa: PLC0415 - an extra

        return RedisSource(where, namespace)
    if "://" in where:
        raise LedgerError("a ledger is a file, or a URL that begins with redis://, rediss:// or unix://")
    path = Path(where)
    try:
        with path.open("rb") as file:
            start = file.read(4_096)
    except FileNotFoundError:
        raise LedgerError(f"{path} does not exist") from None
    except OSError as error:
        raise LedgerError(f"{path} cannot be read: {error.strerror}") from None
    return _of_file(path, start)


def _of_file(path: Path, start: bytes) -> Source:
    from .from_jsonl import JsonlSource  # noqa: PLC0415 - they build on this module
    from .from_sqlite import SQLiteSource  # noqa: PLC0415

    if start.startswith(_SQLITE):
        return SQLiteSource(path)
    if start.lstrip()[:1] == b"{" or not start.strip():
        return JsonlSource(path)
    raise LedgerError(
        f'{path} is neither a SQLiteLedger\'s file nor an export of records (ledger.export(file, "jsonl"))'
    )
