"""What ledgers that outlive a process have in common.

Whoever holds money says so by a heartbeat: the holds of an owner that fell silent become unknown. What ends a call and
cannot be written now is kept and written as soon as it can be. Unknown calls are listed and resolved.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, ParamSpec, Self, TextIO, TypeVar
from weakref import WeakSet

from .. import forks
from ..amounts import ZERO, Amounts
from ..clock import Clock, SystemClock, new_id
from ..money import Money
from ..recent import Recent
from .base import Balance, LedgerError, Settlement
from .export import Format, write_records
from .heart import Heart, check_seconds
from .noted import Noted
from .pending import Pending
from .records import Outcome, UsageRecord
from .timekeeper import Timekeeper
from .unknowns import Judge, Rule, UnknownCall, check_rule

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("runcap")

_SEEN = 65_536
"""How many accounts' last balances are remembered."""

HEARTBEAT = 5.0
"""Seconds between two heartbeats of a process."""

DEAD_AFTER = 60.0
"""Seconds of silence after which an owner counts as dead. One that was only asleep settles its calls all the same."""

_TRIES = 20
"""How often an entry is tried that the ledger refuses though it can be reached."""

_EVERY: WeakSet[Lasting] = WeakSet()


class Ending(NamedTuple):
    """How a call ends. `charge` is None for a release."""

    call_id: str
    charge: Amounts | None
    unknown: Amounts = ZERO
    outcome: Outcome | None = None


class Lasting(Noted):
    """The part of `SQLiteLedger` and `RedisLedger` that does not depend on where the books are."""

    blocking = True
    shared = True
    lasting = True

    def __init__(self, *, clock: Clock | None, heartbeat: float | None, dead_after: float) -> None:
        check_seconds("heartbeat", heartbeat)
        check_seconds("dead_after", dead_after)
        if heartbeat is not None and dead_after < 2 * heartbeat:
            raise ValueError(f"dead_after must be at least twice the heartbeat ({heartbeat} s), got {dead_after}")
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._dead_after_ns = int(dead_after * 1e9)
        self._heartbeat = heartbeat
        self._seen: Recent[str, Balance] = Recent(_SEEN)
        self._inside = threading.local()
        self._outbox: deque[Callable[[], object]] = deque()
        self._flushing = forks.lock()
        self._timekeeper = Timekeeper()
        self._refused = 0
        self._begin_process()
        _EVERY.add(self)

    # What a store does

    @abstractmethod
    def _book(self, ending: Ending) -> Settlement | None:
        """Write the end of a call, with its record, in one step."""

    @abstractmethod
    def _beat(self) -> None:
        """Say that this owner is alive."""

    @abstractmethod
    def _bury(self) -> int:
        """Make the holds of owners that fell silent unknown; how many."""

    @abstractmethod
    def _judge(self, run_id: str, verdict: str) -> None:
        """Keep a run's verdict."""

    @abstractmethod
    def unknowns(self) -> list[UnknownCall]:
        """Every call that may have been billed beyond what was charged, oldest first."""

    @abstractmethod
    def records(
        self, *, run_id: str | None = None, since_ns: int | None = None, until_ns: int | None = None, all: bool = False
    ) -> Iterator[UsageRecord]:
        """The usage records, in the order they were written; of each call the latest revision unless `all`."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Let go of files and connections."""

    # What callers do

    def settle(
        self, call_id: str, charge: Amounts, unknown: Amounts = ZERO, outcome: Outcome | None = None
    ) -> Settlement | None:
        """See `Ledger.settle`. What cannot be written now is written later.

        Raises:
            LedgerError: it could not be written now.
        """
        return self._end(Ending(call_id, charge.held_part(), unknown.held_part(), outcome))

    def release(self, call_id: str, outcome: Outcome | None = None) -> Settlement | None:
        """See `Ledger.release`. What cannot be written now is written later.

        Raises:
            LedgerError: it could not be written now.
        """
        return self._end(Ending(call_id, None, ZERO, outcome))

    def judge(self, run_id: str, verdict: str) -> None:
        """See `Ledger.judge`. Never raises: what cannot be written now is written later."""
        self._soon(partial(self._judge, run_id, verdict))

    def peek(self, account_id: str) -> Balance:
        """See `Ledger.peek`."""
        return self._seen.get(account_id) or Balance(account_id)

    def resolve(self, call_id: str, *, usd: Money, tokens: int | None = None, by: str = "hand") -> Settlement | None:
        """Say what an unknown call cost: it is charged that much in place of what was charged, and no longer unknown.

        Raises:
            KeyError: no unknown call has this id.
            LedgerError: the ledger could not be reached.
        """
        call = next((one for one in self.unknowns() if one.call_id == call_id), None)
        if call is None:
            raise KeyError(f"no unknown call {call_id!r}: ledger.unknowns() lists them")
        charge = call.at(usd, tokens)
        return self.settle(call_id, charge, outcome=call.resolution(charge, by))

    def resolve_all(self, rule: Rule | Judge, *, older_than: float = 0.0) -> int:
        """Resolve every unknown call reserved more than `older_than` seconds ago by a rule; how many were.

        Args:
            rule: `"seen"` settles a call at what was charged so far, `"expected"` at its expected cost, `"all"` at all
                that was held for it; a function of an `UnknownCall` gives dollars, or None to leave it.
            older_than: seconds; younger calls are left alone, for their usage may yet arrive.

        Raises:
            ValueError: no such rule.
            LedgerError: the ledger could not be reached.
        """
        check_rule(rule)
        latest, count = self._time_ns() - int(older_than * 1e9), 0
        for call in self.unknowns():
            charge = _charge(call, rule) if call.since_ns <= latest else None
            if charge is not None:
                by = rule if isinstance(rule, str) else getattr(rule, "__name__", "rule")
                self.settle(call.call_id, charge, outcome=call.resolution(charge, by))
                count += 1
        return count

    def export(
        self,
        file: TextIO,
        format: Format = "jsonl",
        *,
        run_id: str | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
        all: bool = False,
    ) -> int:
        """Write the usage records to an open text file, as JSON lines or CSV; how many. The rest as for `records`.

        Raises:
            ValueError: `format` is neither `"jsonl"` nor `"csv"`.
            LedgerError: the ledger could not be reached.
        """
        return write_records(self.records(run_id=run_id, since_ns=since_ns, until_ns=until_ns, all=all), file, format)

    def beat(self) -> None:
        """Say that this process lives, write what is still to be written, look after the holds of the dead.

        A thread does it every few seconds once the ledger is used; whoever turned that off calls it himself.

        Raises:
            LedgerError: the ledger could not be reached.
        """
        try:
            self._flush()
        except LedgerError as error:
            self._beat()  # where this fails too, nothing is wrong with what was to be written
            self._doubt(error)
            raise
        self._refused = 0
        self._beat()
        self._bury()
        self._write_notes()

    def _doubt(self, error: LedgerError) -> None:
        """The ledger answers, and yet refuses an entry. It may not keep the others from being written for ever."""
        self._refused += 1
        if self._refused >= _TRIES and self._flushing.acquire(blocking=False):
            try:
                self._give_up(error)
            finally:
                self._flushing.release()

    def _give_up(self, why: object) -> None:
        self._refused = 0
        if self._outbox:
            self._outbox.popleft()
            _log.error("runcap: an entry was given up, and the call it ends keeps its hold: %s", why)

    def accept_clock(self) -> None:
        """The clock jumped and is right now: go by it."""
        self._timekeeper.accept()

    def dispose(self) -> None:
        """Write what is still to be written, and let go of files, connections and threads. May be used again after."""
        self._check_fork()
        self._heart.stop()
        try:
            self._flush()
        except LedgerError as error:
            _log.warning("runcap: %d entries could not be written to the ledger: %s", len(self._outbox), error)
        else:
            self._write_notes()
        if self._noted:
            _log.warning("runcap: %d notes could not be written to the ledger", len(self._noted))
        self._disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.dispose()

    # Inside

    def _begin_process(self) -> None:
        self._pid = os.getpid()
        self.owner = new_id()
        self._outbox.clear()
        self._noted = Pending()
        self._heart = Heart(self._heartbeat, self.beat)

    def _check_fork(self) -> None:
        """A child has no claim on what its parent holds, and no thread that says it lives."""
        if os.getpid() != self._pid:
            self._disconnect()
            self._begin_process()

    def is_ours(self) -> bool:
        """This process opened it; a forked child did not."""
        return os.getpid() == self._pid

    def _time_ns(self) -> int:
        return self._clock.time_ns()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One operation of this thread.

        Raises:
            LedgerError: a finalizer interrupted another one.
        """
        if self._interrupts():
            raise self._torn()
        self._check_fork()
        self._inside.turn = True
        try:
            yield
        finally:
            self._inside.turn = False

    def _in_turn(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`_turn` around an operation, written out for speed.

        Raises:
            LedgerError: as `_turn`.
        """
        if self._interrupts():
            raise self._torn()
        self._check_fork()
        self._inside.turn = True
        try:
            return operation(*args, **kwargs)
        finally:
            self._inside.turn = False

    @staticmethod
    def _torn() -> LedgerError:
        return LedgerError("a model call was made by a finalizer that interrupted the ledger")

    def _interrupts(self) -> bool:
        """The garbage collector ran a finalizer in the middle of an operation of this very thread."""
        return getattr(self._inside, "turn", False)

    def _end(self, ending: Ending) -> Settlement | None:
        self._check_fork()
        if self._interrupts():
            self._outbox.append(partial(self._book, ending))
            return None
        try:
            self._flush()
            return self._book(ending)
        except LedgerError:
            self._later(partial(self._book, ending))
            raise

    def _undo(self, call_id: str) -> None:
        """A call may have been reserved, or be yet, and nobody knows of it."""
        self._later(partial(self._book, Ending(call_id, None)))

    def _later(self, action: Callable[[], object]) -> None:
        self._outbox.append(action)
        self._heart.hurry()

    def _soon(self, action: Callable[[], object]) -> None:
        self._check_fork()
        self._outbox.append(action)
        if self._interrupts():
            return
        try:
            self._flush()
        except LedgerError as error:
            self._heart.hurry()
            _log.warning("runcap: the ledger will be told later: %s", error)

    def _flush(self) -> None:
        """Write what could not be written before, in order.

        Raises:
            LedgerError: it still cannot be.
        """
        self._check_fork()
        if not self._outbox or not self._flushing.acquire(blocking=False):
            return
        try:
            while self._outbox:
                self._write_first()
        finally:
            self._flushing.release()

    def _write_first(self) -> None:
        try:
            self._outbox[0]()
        except LedgerError:
            raise
        except Exception as error:  # noqa: BLE001 - no ledger that cannot be reached: it never can be written
            self._give_up(type(error).__name__)
        else:
            self._outbox.popleft()

    def _saw(self, balances: tuple[Balance, ...]) -> None:
        for balance in balances:
            self._seen.put(balance.account_id, balance)


def _dispose_of_all() -> None:
    """The program ends: what could not be written yet is tried for the last time."""
    for ledger in tuple(_EVERY):
        if ledger.is_ours():
            ledger.dispose()


atexit.register(_dispose_of_all)


def _charge(call: UnknownCall, rule: Rule | Judge) -> Amounts | None:
    if isinstance(rule, str):
        return call.by_rule(rule)
    usd = rule(call)
    return None if usd is None else call.at(usd, None)
