"""The way to the ledger from code that may run on an event loop, which a ledger that does I/O must not block."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

from . import offload
from .checks import check_tags
from .clock import Clock
from .ledger import Account, Balance, LedgerError
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

    def limits(self, tags: Mapping[str, str]) -> tuple[Balance, ...]:
        """See `Guard.limit_balances`. Where to ask would block a loop, as this process saw them last."""
        ledger = self.ledger
        if not ledger.blocking or may_block():
            return tuple(_beside(one, ledger.balance(one.id)) for one in self._limited(tags, ledger.now_ns))
        return tuple(_beside(one, ledger.peek(one.id)) for one in self._limited(tags, lambda clock: clock.time_ns()))

    async def alimits(self, tags: Mapping[str, str]) -> tuple[Balance, ...]:
        """`limits`, without blocking the loop."""
        if self._guard.limits.windowed:
            await self.ledger.aready()
        accounts = self._limited(tags, self.ledger.now_ns)
        return tuple([_beside(one, await self.ledger.abalance(one.id)) for one in accounts])

    def _limited(self, tags: Mapping[str, str], now_ns: Callable[[Clock], int]) -> tuple[Account, ...]:
        check_tags(tags)
        limits = self._guard.limits
        return limits.accounts(tags, now_ns(self._guard.clock) if limits.windowed else 0, "-", None)

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

    def take_back(self, call_id: str, run: Run, model: str | None) -> None:
        """Release what was granted to a run that went on as another, so that the same call may be reserved there.

        Raises:
            LedgerUnavailable: it may still be held, and would be granted as it is.
        """
        try:
            self.ledger.release(call_id)
        except LedgerError as error:
            raise unavailable(run.accounts[0], error, model) from error

    async def atake_back(self, call_id: str, run: Run, model: str | None) -> None:
        """`take_back`, without blocking the loop."""
        try:
            await self.ledger.arelease(call_id)
        except LedgerError as error:
            raise unavailable(run.accounts[0], error, model) from error

    async def give_back(self, call_id: str) -> None:
        """Release a call, though whoever asked for it is cancelled."""
        await asyncio.shield(self._release(call_id))

    async def _release(self, call_id: str) -> None:
        try:
            await self.ledger.arelease(call_id)
        except LedgerError as error:
            _log.warning("runcap: a cancelled call keeps its hold for now: %s", error)


def _beside(account: Account, balance: Balance) -> Balance:
    """With the caps of this guard: the ledger has those of whoever called last."""
    return balance._replace(caps=account.caps)
