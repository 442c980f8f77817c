"""A ledger in one SQLite file: any number of processes of one machine, and it is there after a crash."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, ParamSpec, TypeVar

from ..amounts import ZERO, Amounts
from ..clock import Clock
from . import sqlite_notes
from . import sqlite_owners as owners
from . import sqlite_rows as rows
from .base import Account, Balance, Grant, LedgerError, Offer, Refusal, Settlement
from .heart import check_seconds
from .lasting import DEAD_AFTER, HEARTBEAT, Ending, Lasting
from .notes import Note
from .records import About, Outcome, UsageRecord
from .sqlite_file import File, checked_path
from .sqlite_rows import Hold
from .state import decide
from .timekeeper import elapsed_ns
from .unknowns import UnknownCall

P = ParamSpec("P")
T = TypeVar("T")

Synchronous = Literal["FULL", "NORMAL"]

TIMEOUT = 10.0
"""Seconds an operation waits for other processes at most."""

_PAGE = 1_000
_FOREVER_NS = 2**63 - 1


class SQLiteLedger(Lasting):
    """See `Ledger`. One file, one transaction for each step, in write-ahead logging.

    Args:
        path: the file; made where there is none. It has to be on a local disk: SQLite's locks do not hold on network
            file systems (`RedisLedger` is for more than one machine).
        synchronous: `"FULL"` waits for the disk at each step, so that nothing is lost even when the power fails.
            `"NORMAL"` is faster and loses nothing when a process dies, but what was written in the last moments
            before a power failure may be gone, and with it what they had spent of a cap.
        timeout: seconds to wait for other processes, before a call is refused because its cap cannot be checked.
        heartbeat: seconds between two signs of life of a process that uses the file; None for none but `beat()`.
        dead_after: seconds of silence after which a process counts as dead; its holds are unknown from then on.
        clock: where time comes from.

    Raises:
        LedgerError: the file is no ledger, a newer one, or cannot be written.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "FULL",
        timeout: float = TIMEOUT,
        heartbeat: float | None = HEARTBEAT,
        dead_after: float = DEAD_AFTER,
        clock: Clock | None = None,
    ) -> None:
        check_seconds("timeout", timeout)
        if synchronous not in ("FULL", "NORMAL"):
            raise ValueError(f'synchronous must be "FULL" or "NORMAL", got {synchronous!r}')
        self._file = File(checked_path(path), synchronous, timeout)
        self._pool: ThreadPoolExecutor | None = None
        self._last_beat_ns: int | None = None
        self._open: set[str] = set()
        super().__init__(clock=clock, heartbeat=heartbeat, dead_after=dead_after)
        with self._file.writing() as connection:
            connection.execute("DELETE FROM owners WHERE id = ''")  # a file that cannot be written is told of now
            self._last_entry(connection)

    def __repr__(self) -> str:
        return f"SQLiteLedger({str(self._file.path)!r})"

    # The sync face

    def reserve(
        self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...], about: About | None = None
    ) -> Grant | Refusal:
        """See `Ledger.reserve`.

        Raises:
            LedgerError: the file could not be written in time.
        """
        return self._took(self._ask(call_id, offers, accounts, about))

    def top_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        """See `Ledger.top_up`.

        Raises:
            LedgerError: the file could not be written in time.
        """
        return bool(self._in_turn(self._file.write, rows.top_up, self._saw, account_id, key, extra, self._time_ns()))

    def stop(self, account_id: str, reason: str) -> None:
        """See `Ledger.stop`.

        Raises:
            LedgerError: the file could not be written in time.
        """
        self._in_turn(self._file.write, rows.stop, self._saw, account_id, reason)

    def balance(self, account_id: str) -> Balance:
        """See `Ledger.balance`.

        Raises:
            LedgerError: the file could not be read in time.
        """
        if self._interrupts():
            return self.peek(account_id)
        with self._turn(), self._file.reading() as connection:
            row = rows.row_of(connection, account_id)
            balance = Balance(account_id) if row is None else row.balance()
            self._saw((balance,))
            return balance

    def close(self, account_id: str) -> Balance | None:
        """See `Ledger.close`.

        Raises:
            LedgerError: the file could not be written in time.
        """
        if self._interrupts():
            return None
        try:
            self._flush()
            return self._shut(account_id)
        except LedgerError:
            self._later(partial(self._shut, account_id))
            raise

    def _shut(self, account_id: str) -> Balance | None:
        with self._turn(), self._file.writing() as connection:
            row = rows.row_of(connection, account_id)
            if row is None:
                return Balance(account_id)
            if row.in_flight:
                self._saw((row.balance(),))
                return None
            connection.execute("DELETE FROM top_ups WHERE account = ?", (row.n,))
            connection.execute("DELETE FROM accounts WHERE n = ?", (row.n,))
            self._saw((Balance(account_id),))
            return row.balance()

    def now_ns(self, clock: Clock) -> int:
        """See `Ledger.now_ns`: the machine's clock, unless it jumped, or lies before the last entry of the file."""
        return self._timekeeper.check(clock.time_ns(), elapsed_ns())

    def unknowns(self) -> list[UnknownCall]:
        """See `Lasting.unknowns`."""
        with self._turn(), self._file.reading() as connection:
            return [rows.unknown_call(connection, hold) for hold in rows.unknown_holds(connection)]

    def records(
        self,
        *,
        run_id: str | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
        all: bool = False,
    ) -> Iterator[UsageRecord]:
        """See `Lasting.records`. Read a page at a time, so that nobody waits for whoever reads them."""
        begin, end = since_ns or 0, _FOREVER_NS if until_ns is None else until_ns
        after: int | None = 0
        while after is not None:
            with self._turn(), self._file.reading() as connection:
                page, after = rows.usage_page(
                    connection, after, _PAGE, run_id=run_id, since_ns=begin, until_ns=end, every_revision=all
                )
            yield from page

    # The async face

    async def aready(self) -> None:
        """See `Ledger.aready`; nothing is needed."""

    async def areserve(
        self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...], about: About | None = None
    ) -> Grant | Refusal:
        """See `Ledger.reserve`; on a thread of the ledger's own."""
        try:
            return self._took(await self._elsewhere(self._ask, call_id, offers, accounts, about))
        except (asyncio.CancelledError, GeneratorExit):
            self._undo(call_id)  # it goes on there, and nobody is here any more who will end the call
            raise

    async def asettle(
        self, call_id: str, charge: Amounts, unknown: Amounts = ZERO, outcome: Outcome | None = None
    ) -> Settlement | None:
        """See `Ledger.settle`; on a thread of the ledger's own, and also where whoever asked is cancelled."""
        return await self._elsewhere(self.settle, call_id, charge, unknown, outcome)

    async def arelease(self, call_id: str, outcome: Outcome | None = None) -> Settlement | None:
        """See `Ledger.release`; as `asettle`."""
        return await self._elsewhere(self.release, call_id, outcome)

    async def atop_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        """See `Ledger.top_up`; on a thread of the ledger's own."""
        return await self._elsewhere(self.top_up, account_id, key, extra)

    async def astop(self, account_id: str, reason: str) -> None:
        """See `Ledger.stop`; on a thread of the ledger's own."""
        await self._elsewhere(self.stop, account_id, reason)

    async def abalance(self, account_id: str) -> Balance:
        """See `Ledger.balance`; on a thread of the ledger's own."""
        return await self._elsewhere(self.balance, account_id)

    # Inside

    async def _elsewhere(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._check_fork()
        if self._pool is None:  # one thread: the file takes one writer at a time anyway
            self._pool = ThreadPoolExecutor(1, "runcap-sqlite")
        done = asyncio.get_running_loop().run_in_executor(self._pool, partial(operation, *args, **kwargs))
        return await asyncio.shield(done)

    def _ask(
        self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...], about: About | None
    ) -> Grant | Refusal:
        self._flush()
        try:
            answer = self._in_turn(self._file.write, self._reserve, self._saw_answer, call_id, offers, accounts, about)
        except BaseException:
            self._last_beat_ns = None  # a sign of life that was part of it was rolled back
            raise
        self._heart.start()
        return answer

    def _took(self, answer: Grant | Refusal) -> Grant | Refusal:
        """Whoever asked has the answer. A grant that nobody takes is an orphan, once it is old."""
        if isinstance(answer, Grant) and (answer.amount[0] or answer.amount[1]):
            self._open.add(answer.call_id)
        return answer

    def _reserve(
        self,
        connection: sqlite3.Connection,
        call_id: str,
        offers: tuple[Offer, ...],
        accounts: tuple[Account, ...],
        about: About | None,
    ) -> Grant | Refusal:
        now = self._time_ns()
        self._sign_if_due(connection, now)
        states, held, dead = rows.asked(connection, call_id, accounts, recap=offers[0].last != "spent")
        if held:
            return rows.granted_before(connection, call_id, states)
        answer = decide(call_id, offers, accounts, states, dead=dead)
        if isinstance(answer, Refusal):
            return answer
        index, amount = answer
        expected, balances, charged_to = offers[index].expected, [], []
        for state in states:
            state.hold(amount, expected)
            balances.append(state.balance())
            charged_to.append((state.n, state.id))
        rows.write_held(connection, states)
        if amount[0] or amount[1]:
            note = None if about is None else about.to_json()
            hold = Hold(call_id, self.owner, "held", index, amount, expected, ZERO, ZERO, now, 0, charged_to, note)
            rows.write_hold(connection, hold)
        return Grant(call_id, index, amount, tuple(balances))

    def _saw_answer(self, answer: Grant | Refusal) -> None:
        self._saw((answer.balance,) if isinstance(answer, Refusal) else answer.balances)

    def _book(self, ending: Ending) -> Settlement | None:
        settlement = self._in_turn(self._file.write, self._end_call, self._saw_settled, ending)
        self._open.discard(ending.call_id)
        return settlement

    def _saw_settled(self, settlement: Settlement | None) -> None:
        if settlement is not None:
            self._saw(settlement.balances)

    def _end_call(self, connection: sqlite3.Connection, ending: Ending) -> Settlement | None:
        hold = rows.hold_of(connection, ending.call_id)
        if hold is None:
            if ending.charge is None:
                owners.bury_early(connection, ending.call_id, self._time_ns())
            return None
        return self._settle(connection, hold, ending.charge or ZERO, ending.unknown, ending.outcome)

    def _settle(
        self, connection: sqlite3.Connection, hold: Hold, charge: Amounts, unknown: Amounts, outcome: Outcome | None
    ) -> Settlement:
        charged_to = rows.charged_rows(connection, hold)
        nano, tokens = charge[0] - hold.charged[0], charge[1] - hold.charged[1]
        for row in charged_to:
            if hold.state == "held":
                row.land(hold.amount, hold.expected, nano, tokens)
            else:
                row.charge(nano, tokens)
        left = any(unknown)
        if left or hold.state != "held":
            for row in charged_to:
                row.unknown = row.unknown.plus(unknown).minus(hold.unknown)
                rows.write_row(connection, row)
        else:
            rows.write_landed(connection, charged_to)
        if left:
            rest = hold._replace(state="unknown", charged=charge, unknown=unknown, revision=hold.revision + 1)
            rows.write_hold(connection, rest)
        else:
            connection.execute("DELETE FROM holds WHERE call_id = ?", (hold.call_id,))
        if outcome is not None:
            rows.append_usage(connection, hold.call_id, hold.revision, self._time_ns(), outcome, unknown)
        return Settlement(hold.call_id, charge, unknown, tuple([row.balance() for row in charged_to]))

    def _beat(self) -> None:
        self._file.check()
        with self._turn(), self._file.writing() as connection:
            self._sign(connection, self._time_ns())

    def _sign(self, connection: sqlite3.Connection, now: int) -> None:
        owners.sign(connection, self.owner, now, self._dead_after_ns)
        self._last_beat_ns = now

    def _sign_if_due(self, connection: sqlite3.Connection, now: int) -> None:
        last = self._last_beat_ns
        if last is None or abs(now - last) > self._dead_after_ns // 4:
            self._sign(connection, now)

    def _bury(self) -> int:
        with self._turn(), self._file.reading() as connection:
            if not self._of_the_dead(connection):
                return 0
        return len(self._in_turn(self._file.write, self._bury_all, self._saw_buried))

    def _bury_all(self, connection: sqlite3.Connection) -> list[Settlement]:
        holds, buried = self._of_the_dead(connection), []
        for hold in holds:
            outcome = Outcome(About.from_json(hold.about), "unknown", resolved_by="owner died")
            rest = hold.amount.held_part()
            buried.append(self._settle(connection, hold, ZERO, rest, outcome if hold.about else None))
        for owner in {hold.owner for hold in holds} - {self.owner}:
            owners.forget(connection, owner)
        return buried

    def _saw_buried(self, buried: list[Settlement]) -> None:
        for settlement in buried:
            self._saw(settlement.balances)

    def _of_the_dead(self, connection: sqlite3.Connection) -> list[Hold]:
        return owners.held_by_the_dead(connection, self.owner, self._open, self._time_ns(), self._dead_after_ns)

    def _judge(self, run_id: str, verdict: str) -> None:
        with self._turn(), self._file.writing() as connection:
            values = (run_id, verdict, self._time_ns())
            connection.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", values)

    def _add_notes(self, number: int, notes: Sequence[Note]) -> None:
        with self._turn(), self._file.writing() as connection:  # whole or not at all: none is written twice
            sqlite_notes.add(connection, notes)

    def _notes_page(self, run_id: str | None, after: int) -> tuple[list[Note], int | None]:
        with self._turn(), self._file.reading() as connection:
            return sqlite_notes.page(connection, run_id, after)

    def _last_entry(self, connection: sqlite3.Connection) -> None:
        last = connection.execute("SELECT ended_ns FROM usage ORDER BY n DESC LIMIT 1").fetchone()
        if last is not None:
            self._timekeeper.saw(last[0])

    def _disconnect(self) -> None:
        if os.getpid() != self._pid:
            self._pool = None
            self._last_beat_ns = None
            self._open.clear()
            self._file.abandon()
            return
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
        self._retire()
        self._file.close()

    def _retire(self) -> None:
        self._last_beat_ns = None
        try:
            with self._turn(), self._file.writing() as connection:
                owners.forget(connection, self.owner)
        except LedgerError:
            return  # it falls silent, which says the same a little later
