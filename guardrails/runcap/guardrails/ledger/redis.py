"""A ledger in Redis: any number of machines, one round trip to reserve and one to settle."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from ..amounts import ZERO, Amounts
from ..clock import Clock, new_id
from .base import Account, Balance, Grant, LedgerError, Offer, Refusal, Settlement
from .heart import check_seconds
from .lasting import DEAD_AFTER, HEARTBEAT, Ending, Lasting
from .notes import Note
from .records import About, Outcome, UsageRecord
from .redis_clients import AsyncLines, Lines, Steps
from .redis_errors import Unanswered, too_late
from .redis_scripts import all_scripts
from .redis_steps import PAGE, Asking
from .redis_target import Target
from .redis_wire import check_amounts, record_of
from .timekeeper import elapsed_ns
from .unknowns import UnknownCall

T = TypeVar("T")

TIMEOUT = 2.0
"""Seconds an operation takes at most, connecting and all."""

_NAME = re.compile(r"[^\s{}]{1,200}")


class RedisLedger(Lasting):
    """See `Ledger`. For any number of machines; every operation is one Lua script, by Redis' own time.

    What Redis acknowledged and then lost (a restart without `appendfsync always`, a failover to a replica that lagged)
    is noticed by whoever wrote it. From then on every reservation of every client is refused, until somebody has
    looked at the provider's bill and says `reopen()`; what ends calls is still taken. A client that is new, and finds
    nothing at all, cannot know that something was there: `epoch` tells it.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`, as redis-py understands them. Of a cluster, any node: the
            ledger goes to the one that has its keys.
        namespace: whose ledger this is, among several in one Redis. All its keys begin with `{runcap:NAMESPACE}:`.
        timeout: seconds within which an operation succeeds or is refused, connecting and all (but for the look-up of
            a host's name, which the system does in its own time).
        heartbeat: seconds between two signs of life of this process; None for none but `beat()`.
        dead_after: seconds of silence after which a process counts as dead; its holds are unknown from then on.
        epoch: the `epoch` of the ledger, where it is known to exist: if all of its data is gone, that is noticed even
            by a fleet that was not running meanwhile.
        clock: where the time of this process comes from; the ledger's own time is Redis'.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: an argument is out of its range. Redis itself is not asked before the first operation.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "runcap",
        timeout: float = TIMEOUT,
        heartbeat: float | None = HEARTBEAT,
        dead_after: float = DEAD_AFTER,
        epoch: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_seconds("timeout", timeout)
        if not isinstance(namespace, str) or not _NAME.fullmatch(namespace):
            raise ValueError(f"namespace must be a name without spaces and braces, got {namespace!r}")
        if epoch is not None and (not isinstance(epoch, str) or not _NAME.fullmatch(epoch)):
            raise ValueError(f"epoch must be what ledger.epoch says, got {epoch!r}")
        if not isinstance(url, str):
            raise TypeError(
                f'RedisLedger takes a URL, e.g. RedisLedger("redis://localhost:6379"); got {type(url).__name__}'
            )
        all_scripts()  # reads files: not to be done later, on an event loop
        self._timeout = timeout
        self._target = Target(url, timeout)
        self._lines, self._async_lines = Lines(self._target), AsyncLines(self._target)
        super().__init__(clock=clock, heartbeat=heartbeat, dead_after=dead_after)
        self._asking = Asking(
            self._target,
            namespace,
            epoch,
            owner=lambda: self.owner,
            beat_every_ns=self._dead_after_ns // 4,
            saw_time=self._timekeeper.saw,
        )

    def __repr__(self) -> str:
        return f"RedisLedger({self._target.where!r}, namespace={self._asking.keys.namespace!r})"

    @property
    def epoch(self) -> str | None:
        """Which life of the ledger this is, None before the first operation. `reopen()` begins another."""
        return self._asking.known.epoch

    # The sync face

    def reserve(
        self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...], about: About | None = None
    ) -> Grant | Refusal:
        """See `Ledger.reserve`.

        Raises:
            LedgerError: Redis was not reached in time, lost data, or cannot be trusted to keep it.
        """
        if self._outbox:
            with self._within():
                self._flush()
                return self._reserve(call_id, offers, accounts, about)
        return self._reserve(call_id, offers, accounts, about)

    def top_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        """See `Ledger.top_up`.

        Raises:
            LedgerError: Redis was not reached in time, or lost data.
        """
        check_amounts(extra)
        return self._run(self._asking.top_up(account_id, key, extra, new_id()))

    def stop(self, account_id: str, reason: str) -> None:
        """See `Ledger.stop`.

        Raises:
            LedgerError: Redis was not reached in time.
        """
        self._run(self._asking.stop(account_id, reason))

    def balance(self, account_id: str) -> Balance:
        """See `Ledger.balance`.

        Raises:
            LedgerError: Redis was not reached in time.
        """
        return self.peek(account_id) if self._interrupts() else self._run(self._asking.balance(account_id))

    def peek(self, account_id: str) -> Balance:
        """See `Ledger.peek`."""
        return self._asking.known.balance(account_id)

    def close(self, account_id: str) -> Balance | None:
        """See `Ledger.close`.

        Raises:
            LedgerError: Redis was not reached in time.
        """
        if self._interrupts():
            return None
        try:
            return self._run(self._asking.close(account_id))
        except LedgerError:
            self._later(partial(self._close, account_id))
            raise

    def _close(self, account_id: str) -> Balance | None:
        return self._run(self._asking.close(account_id))

    def settle(
        self, call_id: str, charge: Amounts, unknown: Amounts = ZERO, outcome: Outcome | None = None
    ) -> Settlement | None:
        """See `Lasting.settle`."""
        check_amounts(charge, unknown)
        return super().settle(call_id, charge, unknown, outcome)

    def ready(self) -> None:
        """Look at the ledger before it is used: whether it is there, is ours, and can be trusted.

        Raises:
            LedgerError: it is not.
        """
        self._run(self._asking.ready())

    def reopen(self) -> bool:
        """Go on after data was lost, with what is there; whether any was.

        Call it once the bill was looked at: what was spent may be more than the ledger says. `stop()` or a smaller
        cap make up for the difference.

        Raises:
            LedgerError: Redis was not reached in time.
        """
        return self._run(self._asking.reopen())

    def now_ns(self, clock: Clock) -> int:
        """See `Ledger.now_ns`: Redis' time, as the last answer told it. Asks for it where nothing was asked before."""
        now = self._asking.known.time_ns()
        if now is None:
            self._run(self._asking.ready())
            now = self._time_ns()
        return self._timekeeper.check(now, elapsed_ns())

    def unknowns(self) -> list[UnknownCall]:
        """See `Lasting.unknowns`."""
        return [hold.unknown_call() for hold in self._run(self._asking.unknowns())]

    def records(
        self,
        *,
        run_id: str | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
        all: bool = False,
    ) -> Iterator[UsageRecord]:
        """See `Lasting.records`. Read a page at a time, so that nobody waits for whoever reads them.

        Times are those at which Redis wrote them, in milliseconds.
        """
        begin: str | int = 0 if run_id is not None else f"{-(-(since_ns or 0) // 1_000_000)}-0"
        end = "+" if until_ns is None else f"({-(-until_ns // 1_000_000)}-0"
        while True:
            page = self._run(self._asking.page(run_id, begin, end))
            for entry_id, fields, verdict, latest in page:
                if fields is None or not (all or latest):
                    continue
                record = record_of((entry_id, fields), verdict)
                if (since_ns or 0) <= record.ended_ns and (until_ns is None or record.ended_ns < until_ns):
                    yield record
            if not page:
                return
            begin = begin + len(page) if isinstance(begin, int) else f"({page[-1][0]}"

    # The async face

    async def aready(self) -> None:
        """`ready`, without blocking the loop. `now_ns` needs no answer of Redis any more after it.

        Raises:
            LedgerError: the ledger is not there, not ours, or cannot be trusted.
        """
        await self._arun(self._asking.ready())

    async def areserve(
        self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...], about: About | None = None
    ) -> Grant | Refusal:
        """See `Ledger.reserve`.

        Raises:
            LedgerError: as `reserve`.
        """
        until = time.monotonic() + self._timeout
        if self._outbox:
            await self._aflush(until)
        try:
            answer = await self._arun(self._asking.reserve(call_id, offers, accounts, about), until)
        except (Unanswered, asyncio.CancelledError, GeneratorExit):
            self._undo(call_id)
            raise
        self._heart.start()
        return answer

    async def asettle(
        self, call_id: str, charge: Amounts, unknown: Amounts = ZERO, outcome: Outcome | None = None
    ) -> Settlement | None:
        """See `Ledger.settle`; written later also where whoever asked is cancelled.

        Raises:
            LedgerError: it could not be written now.
        """
        check_amounts(charge, unknown)
        return await self._aend(Ending(call_id, charge.held_part(), unknown.held_part(), outcome))

    async def arelease(self, call_id: str, outcome: Outcome | None = None) -> Settlement | None:
        """See `Ledger.release`; as `asettle`.

        Raises:
            LedgerError: it could not be written now.
        """
        return await self._aend(Ending(call_id, None, ZERO, outcome))

    async def atop_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        """See `Ledger.top_up`.

        Raises:
            LedgerError: as `top_up`.
        """
        check_amounts(extra)
        return await self._arun(self._asking.top_up(account_id, key, extra, new_id()))

    async def astop(self, account_id: str, reason: str) -> None:
        """See `Ledger.stop`.

        Raises:
            LedgerError: as `stop`.
        """
        await self._arun(self._asking.stop(account_id, reason))

    async def abalance(self, account_id: str) -> Balance:
        """See `Ledger.balance`.

        Raises:
            LedgerError: as `balance`.
        """
        return await self._arun(self._asking.balance(account_id))

    async def adispose(self) -> None:
        """`dispose`, without blocking the loop; closes the connections of the running loop as well."""
        await asyncio.to_thread(self.dispose)
        await self._async_lines.close()

    # Inside

    def _reserve(
        self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...], about: About | None
    ) -> Grant | Refusal:
        try:
            answer = self._run(self._asking.reserve(call_id, offers, accounts, about))
        except Unanswered:
            self._undo(call_id)
            raise
        self._heart.start()
        return answer

    def _run(self, steps: Steps[T]) -> T:
        return self._in_turn(self._lines.drive, steps, self._until())

    async def _arun(self, steps: Steps[T], until: float | None = None) -> T:
        self._check_fork()
        return await self._async_lines.drive(steps, until or time.monotonic() + self._timeout)

    def _until(self) -> float:
        until: float | None = getattr(self._inside, "until", None)
        return time.monotonic() + self._timeout if until is None else until

    @contextmanager
    def _within(self) -> Iterator[None]:
        """One deadline for everything this thread does inside."""
        if getattr(self._inside, "until", None) is not None:
            yield
            return
        self._inside.until = time.monotonic() + self._timeout
        try:
            yield
        finally:
            self._inside.until = None

    def _end(self, ending: Ending) -> Settlement | None:
        if not self._outbox:
            return super()._end(ending)
        with self._within():
            return super()._end(ending)

    async def _aend(self, ending: Ending) -> Settlement | None:
        until = time.monotonic() + self._timeout
        try:
            if self._outbox:
                await self._aflush(until)
            return await self._arun(self._asking.end(ending), until)
        except (LedgerError, asyncio.CancelledError, GeneratorExit):
            self._outbox.append(partial(self._book, ending))
            self._heart.hurry()
            raise

    def _flush(self) -> None:
        if self._outbox:
            with self._within():
                super()._flush()

    async def _aflush(self, until: float) -> None:
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await asyncio.to_thread(self._flush)
        except TimeoutError as error:
            raise too_late(self._target.where, self._timeout) from error

    def _book(self, ending: Ending) -> Settlement | None:
        return self._run(self._asking.end(ending))

    def _beat(self) -> None:
        self._run(self._asking.beat())

    def _bury(self) -> int:
        """Each step has a deadline of its own: there may be many."""
        silent_us, count, passed, more = self._dead_after_ns // 1_000, 0, 0, True
        while more:
            holds, more = self._run(self._asking.aged(silent_us, passed))
            buried = sum(self._run(self._asking.bury(hold, silent_us)) for hold in holds)
            count, passed = count + buried, max(0, passed + PAGE - buried)
        return count

    def _judge(self, run_id: str, verdict: str) -> None:
        self._run(self._asking.judge(run_id, verdict))

    def _add_notes(self, number: int, notes: Sequence[Note]) -> None:
        self._run(self._asking.note(number, notes))

    def _notes_page(self, run_id: str | None, after: int) -> tuple[list[Note], int | None]:
        return self._run(self._asking.notes(run_id, after))

    def _time_ns(self) -> int:
        return self._asking.known.time_ns() or self._clock.time_ns()

    def _disconnect(self) -> None:
        if os.getpid() == self._pid:
            self._retire()
            self._async_lines.let_go()
        else:
            self._asking.open.clear()
            self._async_lines.abandon()
        self._asking.known.new_owner()
        self._lines.close()

    def _retire(self) -> None:
        if not self._asking.known.met:
            return
        try:
            self._run(self._asking.leave())
        except LedgerError:
            return  # it falls silent, which says the same a little later
