"""The way to the ledger from code that may run on an event loop, which a ledger that does I/O must not block."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from . import offload
from .ledger import Balance, LedgerError
from .offload import may_block
from .refusals import unavailable

if TYPE_CHECKING:
    from .guard import Guard
    from .run import Run

_log = logging.getLogger("runcap")


class Books:
    """A guard's ledger. What ends a call in async code is written on another thread; what admits one is awaited."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.ledger = guard.ledger
        if self.ledger.blocking:
            offload.start()

    def balance(self, account_id: str) -> Balance:
        """An account now; as this process saw it last, where to ask would block a loop or there is no answer."""
        ledger = self.ledger
        if ledger.blocking and not may_block():
            return ledger.peek(account_id)
        try:
            return ledger.balance(account_id)
        except LedgerError as error:
            self._guard.say_once(f"balances are shown as they were seen last: {error}")
            return ledger.peek(account_id)

    def off_loop(self, action: Callable[[], None], call_id: str | None = None) -> Future[None] | None:
        """Do what uses the ledger; where that would block a loop, on another thread, and the future of it."""
        if self.ledger.blocking and not may_block():
            return offload.hand_over(action, call_id)
        action()
        return None

    def ready(self, run: Run, model: str | None = None) -> Run:
        """The run to ask for, with its books in order: another may have taken its place.

        Raises:
            LedgerUnavailable: the ledger did not answer.
        """
        for outer in run.outward():
            outer.account.catch_up()
        return self._guard.scope(run, model)

    async def aready(self, run: Run, model: str | None = None) -> Run:
        """`ready`, without blocking the loop."""
        if not self.ledger.blocking:
            return self.ready(run, model)
        for outer in run.outward():
            await outer.account.acatch_up()
        if self._guard.limits.windowed:
            try:
                await self.ledger.aready()
            except LedgerError as error:
                raise unavailable(run.accounts[0], error, model) from error
        return self._guard.scope(run, model)

    async def give_back(self, call_id: str) -> None:
        """Release a call, though whoever asked for it is cancelled."""
        await asyncio.shield(self._release(call_id))

    async def _release(self, call_id: str) -> None:
        try:
            await self.ledger.arelease(call_id)
        except LedgerError as error:
            _log.warning("runcap: a cancelled call keeps its hold for now: %s", error)
