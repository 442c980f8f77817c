"""A run's own account in the ledger: read, stopped, brought up to date, and closed once the run is over and idle."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from . import forks
from .amounts import Amounts
from .checks import storable
from .errors import LedgerUnavailable
from .ledger import Account, Balance, LedgerError
from .offload import is_worker, may_block, until, wait
from .refusals import unavailable

if TYPE_CHECKING:
    from .guard import Guard

_log = logging.getLogger("runcap")


class RunAccount:
    """See the module. Safe across threads; blocks no loop unless it says so."""

    def __init__(self, guard: Guard, account: Account) -> None:
        self._guard = guard
        self._account = account
        self._final: Balance | None = None
        self._open = [True]  # popping is atomic: whoever pops closes it
        self._closing: Future[None] | None = None
        self._catching_up: Future[None] | None = None
        self._owed: set[Future[None]] = set()
        self._unbooked: deque[Callable[[], None]] = deque()
        self._booking = forks.lock()

    @property
    def balance(self) -> Balance:
        """Its figures; on a thread whose loop is running, as this process saw them last."""
        if self._owed and may_block() and not is_worker():
            wait(*self._owed.copy())
        return self._final or self._guard.books.balance(self._account.id)

    @property
    def seen(self) -> Balance:
        """Its figures as this process saw them last: never any I/O."""
        return self._final or self._guard.ledger.peek(self._account.id)

    def owes(self, done: Future[None] | None) -> None:
        """Something was handed over that changes what the books say of the run."""
        if done is not None:
            self._owed.add(done)
            done.add_done_callback(self._owed.discard)

    def once_paid(self, action: Callable[[], None]) -> None:
        """Do something after what was handed over so far is booked."""
        owed = self._owed.copy()  # in one step: a finalizer may add to it anywhere
        if not owed or is_worker():
            action()
            return

        def act() -> None:
            wait(*owed)
            action()

        self.owes(self._guard.books.off_loop(act))

    def stop(self, reason: str, then: Callable[[], None]) -> None:
        """Refuse whatever comes next; `then` is called once the ledger was told, if it could be."""

        def tell() -> None:
            try:
                self.catch_up()
            except LedgerUnavailable as error:
                cause = error.__cause__
                _log.warning(
                    "runcap: the ledger does not know yet that a run was stopped; its next call says so: %s", cause
                )
            then()

        self._unbooked.append(partial(self._guard.ledger.stop, self._account.id, storable(reason)))
        self._catching_up = self._guard.books.off_loop(tell)
        self.owes(self._catching_up)

    def top_up(self, key: str, extra: Amounts) -> bool:
        """Raise its caps. May block.

        Raises:
            LedgerUnavailable: the ledger did not answer.
        """
        self.catch_up()
        try:
            return self._guard.ledger.top_up(self._account.id, storable(key), extra)
        except LedgerError as error:
            raise unavailable(self._account, error) from error

    async def atop_up(self, key: str, extra: Amounts) -> bool:
        """`top_up`, without blocking the loop."""
        await self.acatch_up()
        try:
            return await self._guard.ledger.atop_up(self._account.id, storable(key), extra)
        except LedgerError as error:
            raise unavailable(self._account, error) from error

    def judge(self, run_id: str, verdict: str) -> None:
        """Keep the verdict, where records are kept."""
        ledger = self._guard.ledger
        if ledger.lasting:
            self.owes(self._guard.books.off_loop(partial(ledger.judge, run_id, storable(verdict))))

    def before_next(self, action: Callable[[], None]) -> None:
        """Something has to be booked before the next call, which waits for it."""
        self._unbooked.append(action)
        self._catching_up = self._guard.books.off_loop(self._try_to_catch_up)

    def catch_up(self) -> None:
        """Book what has to be booked before the next call. May block.

        Raises:
            LedgerUnavailable: the ledger did not answer.
        """
        if not self._unbooked:
            return
        with self._booking:
            while self._unbooked:
                try:
                    self._unbooked[0]()
                except LedgerError as error:
                    raise unavailable(self._account, error) from error
                self._unbooked.popleft()

    def _try_to_catch_up(self) -> None:
        with suppress(LedgerUnavailable):  # the next call will say so
            self.catch_up()

    async def acatch_up(self) -> None:
        """`catch_up`, without blocking the loop."""
        await until(self._catching_up)
        if self._unbooked:
            await asyncio.to_thread(self.catch_up)

    def close_when_idle(self) -> None:
        """The run is over: free the account once nothing is in flight, keeping its last balance here."""
        if self._final is not None or self._guard.ledger.peek(self._account.id).in_flight:
            return
        try:
            self._open.pop()
        except IndexError:
            return
        self._closing = self._guard.books.off_loop(self._close)

    async def closed(self) -> None:
        """Wait until it is closed, if that has begun."""
        for done in self._owed.copy():
            await until(done)
        await until(self._closing)

    def turn_away(self) -> None:
        """A call was granted while the run ended: whatever account that left behind goes again. May block."""
        if self._final is None:
            self.close_when_idle()
        elif not self._guard.ledger.balance(self._account.id).in_flight:
            self._guard.ledger.close(self._account.id)

    def correct(self, charged: Amounts, unknown: Amounts, charge: Amounts) -> None:
        """A call's usage arrived after the account was closed: its last balance says so."""
        final = self._final
        if final is not None:
            spent = final.spent.plus(charge).minus(charged)
            left = final.unknown.minus(unknown)
            self._final = Balance(final.account_id, final.caps, spent, final.held, left, stopped=final.stopped)

    def _close(self) -> None:
        ledger, account_id = self._guard.ledger, self._account.id
        self._final = ledger.peek(account_id)  # until it is known for good: the account is gone before that is said
        try:
            self._final = ledger.close(account_id)
        except LedgerError as error:
            _log.warning("runcap: the account of a run that is over stays in the ledger: %s", error)
            return
        if self._final is None:  # a call is in flight elsewhere, or a finalizer interrupted the ledger
            self._open.append(True)
            self._guard.calls.defer(self.close_when_idle)
