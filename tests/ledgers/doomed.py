"""Children that kill themselves at one certain point of a ledger's step."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args

from runcap.guardrails.amounts import ZERO, Amounts, Caps
from runcap.guardrails.ledger import About, Account, Outcome, SQLiteLedger, base
from runcap.guardrails.usage import Usage

from .spec import AnyLedger, Spec, end_of, fork, main, say
from .worker import SHARED, offer

Deed = Literal["begin", "reserve", "settle", "settle with a rest", "release", "reconcile", "bury", "top up"]
DEEDS: tuple[Deed, ...] = get_args(Deed)
"""The first opens a new ledger, and reserves; the others are one step."""

Mark = Literal["line", "statement", "write"]
"""Before a line of the ledger's code; before a SQL statement; in the middle of a write to the log."""

NEVER = sys.maxsize

_LEDGERS = str(Path(base.__file__).parent)
_FRAME, _FRAME_HEAD = 24 + 4096, 24
"""How a write-ahead log grows: by a page and what says which page it is."""

_RUN = "run:doomed"
_ACCOUNTS = (Account(_RUN, Caps(nano=1_000)), Account(SHARED, Caps(nano=1_000), "team"))
_ABOUT = About("doomed", tags={"team": "core"})


def boundaries(spec: Spec, deed: Deed, mark: Mark, at_most: int) -> None:
    """Do one thing to many ledgers alike, each in a child that kills itself a little later than the one before.

    Says `dies AT` of each, and `did AT` where it was told that the deed was done. The first dies before it, the last
    after it.
    """
    spec.warm_up()
    reader, writer = os.pipe()
    end_of(fork(partial(_doomed, spec, deed, mark, NEVER - 1, writer)))
    total = int(os.read(reader, 32))
    every = _torn(total) if mark == "write" else list(range(1, total + 1))
    chosen = [every[n * len(every) // at_most - 1] for n in range(1, at_most + 1)] if len(every) > at_most else every
    say("total", len(every))
    for at in (0, *chosen, NEVER):
        ending = end_of(fork(partial(_doomed, spec, deed, mark, at, writer)))
        say("dies" if ending in (-signal.SIGKILL, -signal.SIGXFSZ) else "wrong", at)


def _torn(total: int) -> list[int]:
    """How many bytes of a transaction get to the log: of each frame a few, the head, half the page, all."""
    cuts = (at + part for at in range(0, total, _FRAME) for part in (1, _FRAME_HEAD, 2_000, _FRAME))
    return [cut for cut in cuts if cut < total]


def _doomed(spec: Spec, deed: Deed, mark: Mark, at: int, writer: int) -> None:
    ledger, act = _prepared(deed, spec.at(at)) if deed == "begin" else _prepared(deed, spec.begin(at))
    if at == 0 and mark != "write":
        _die()
    with _LIMITS[mark](ledger, at) as count:
        act()
    os.write(writer, str(count()).encode())
    say("did", at)
    _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _prepared(deed: Deed, spec: Spec) -> tuple[AnyLedger | None, Callable[[], object]]:
    """A ledger with some books already, and the deed."""
    if deed == "begin":
        return None, lambda: spec.open().reserve("new", (offer(100, 60),), _ACCOUNTS, _ABOUT)
    ledger = spec.open()
    ledger.reserve("old", (offer(50, 30),), _ACCOUNTS, _ABOUT)
    ledger.settle("old", Amounts(25), ZERO, _outcome("settled", 25))
    if deed not in ("reserve", "top up"):
        ledger.reserve("new", (offer(100, 60),), _ACCOUNTS, _ABOUT)
    if deed == "reconcile":
        ledger.settle("new", Amounts(10), Amounts(30), _outcome("unknown", 10))
    if deed == "bury":
        time.sleep(0.005)  # by Redis' own time
        survivor = spec.survivor()
        return survivor, survivor.beat
    deeds: dict[Deed, Callable[[], object]] = {
        "reserve": lambda: ledger.reserve("new", (offer(100, 60),), _ACCOUNTS, _ABOUT),
        "settle": lambda: ledger.settle("new", Amounts(40), ZERO, _outcome("settled", 40)),
        "settle with a rest": lambda: ledger.settle("new", Amounts(10), Amounts(30), _outcome("unknown", 10)),
        "release": lambda: ledger.release("new", _outcome("released", 0)),
        "reconcile": lambda: ledger.settle("new", Amounts(40), ZERO, _outcome("settled", 40)),
        "top up": lambda: ledger.top_up(SHARED, "key", Amounts(7)),
    }
    return ledger, deeds[deed]


def _outcome(state: str, cost: int) -> Outcome:
    return Outcome(_ABOUT, state, Usage(7, 3), cost, "test")


Count = Callable[[], int]


@contextmanager
def _lines(ledger: AnyLedger | None, at: int) -> Iterator[Count]:
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(_LEDGERS):
            return None
        if event == "line":
            count += 1
            if count == at:
                _die()
        return trace

    sys.settrace(trace)
    yield lambda: count
    sys.settrace(None)


@contextmanager
def _statements(ledger: AnyLedger | None, at: int) -> Iterator[Count]:
    assert isinstance(ledger, SQLiteLedger)
    count = 0

    def trace(statement: str) -> None:
        nonlocal count
        count += 1
        if count == at:
            _die()

    [connection] = ledger._file._open_here
    connection.set_trace_callback(trace)
    yield lambda: count
    connection.set_trace_callback(None)


@contextmanager
def _writes(ledger: AnyLedger | None, at: int) -> Iterator[Count]:
    """Nothing but the log grows, and the kernel kills whoever makes a file longer than is allowed."""
    assert isinstance(ledger, SQLiteLedger)
    log = Path(f"{ledger._file.path}-wal")
    before = log.stat().st_size
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if at < NEVER - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before + at, before + at))
    yield lambda: log.stat().st_size - before


_LIMITS: dict[Mark, Callable[[AnyLedger | None, int], Any]] = {
    "line": _lines,
    "statement": _statements,
    "write": _writes,
}


if __name__ == "__main__":
    main(boundaries)
