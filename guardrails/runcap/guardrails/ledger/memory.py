"""A ledger in this process's memory: exact under any number of threads and tasks, gone with the process."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ..amounts import HELD_UNITS, NO_CAPS, UNITS, ZERO, Amounts, Caps
from ..recent import Recent
from .base import Account, Balance, Grant, LedgerError, Offer, Refusal, Settlement

T = TypeVar("T")

_REMEMBERED = 65_536
"""How many tombstones are kept: ids released before they were reserved, whose reservation must land dead."""

_EMPTY = Balance("")


@dataclass(slots=True)
class _State:
    caps: Caps = NO_CAPS
    extra: Amounts = ZERO
    spent: Amounts = ZERO
    held: Amounts = ZERO
    unknown: Amounts = ZERO
    expected: Amounts = ZERO
    in_flight: int = 0
    stopped: str | None = None
    keys: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Hold:
    grant: Grant
    expected: Amounts
    accounts: list[str]
    charged: Amounts = ZERO
    unknown: Amounts = ZERO
    in_flight: bool = True


class MemoryLedger:
    """See `Ledger`. Not shared: after a fork the child is refused, for two copies of one budget are two budgets."""

    blocking = False

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._accounts: dict[str, _State] = {}
        self._holds: dict[str, _Hold] = {}
        self._dead: Recent[str, str] = Recent(_REMEMBERED)
        self._lock = threading.Lock()
        self._local = threading.local()
        self._late: deque[Callable[[], object]] = deque()

    def reserve(self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...]) -> Grant | Refusal:
        """See `Ledger.reserve`.

        Raises:
            LedgerError: in a forked child.
        """
        if os.getpid() != self._pid:
            raise LedgerError("a MemoryLedger does not outlive a fork; give the child a Guard of its own")
        answer = self._locked(lambda: self._reserve(call_id, offers, accounts))
        if answer is None:
            raise LedgerError("a model call was made by a finalizer that interrupted the ledger")
        return answer

    def settle(self, call_id: str, charge: Amounts, unknown: Amounts = ZERO) -> Settlement | None:
        """See `Ledger.settle`."""
        return self._locked(lambda: self._settle(call_id, charge, unknown))

    def release(self, call_id: str) -> Settlement | None:
        """See `Ledger.release`."""
        return self._locked(lambda: self._release(call_id))

    def top_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        """See `Ledger.top_up`."""
        return bool(self._locked(lambda: self._top_up(account_id, key, extra)))

    def stop(self, account_id: str, reason: str) -> None:
        """See `Ledger.stop`."""
        self._locked(lambda: self._stop(account_id, reason))

    def balance(self, account_id: str) -> Balance:
        """See `Ledger.balance`."""
        return self._balance(account_id) if self._inside else self._locked(lambda: self._balance(account_id)) or _EMPTY

    def close(self, account_id: str) -> Balance | None:
        """See `Ledger.close`."""
        return None if self._inside else self._locked(lambda: self._close(account_id))

    async def areserve(self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...]) -> Grant | Refusal:
        """See `Ledger.reserve`; nothing here blocks."""
        return self.reserve(call_id, offers, accounts)

    async def asettle(self, call_id: str, charge: Amounts, unknown: Amounts = ZERO) -> Settlement | None:
        """See `Ledger.settle`; nothing here blocks."""
        return self.settle(call_id, charge, unknown)

    async def arelease(self, call_id: str) -> Settlement | None:
        """See `Ledger.release`; nothing here blocks."""
        return self.release(call_id)

    async def atop_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        """See `Ledger.top_up`; nothing here blocks."""
        return self.top_up(account_id, key, extra)

    async def astop(self, account_id: str, reason: str) -> None:
        """See `Ledger.stop`; nothing here blocks."""
        self.stop(account_id, reason)

    @property
    def _inside(self) -> bool:
        return getattr(self._local, "inside", False)

    def _locked(self, operation: Callable[[], T]) -> T | None:
        if self._inside:
            # The garbage collector ran a finalizer (an abandoned stream's) in the middle of an operation of this very
            # thread. Waiting would deadlock and going on would tear the books: it is booked right after.
            self._late.append(operation)
            return None
        self._local.inside = True
        try:
            with self._lock:
                self._book_late()
                return operation()
        finally:
            self._local.inside = False
            if self._late:
                self._locked(_nothing)

    def _book_late(self) -> None:
        while self._late:
            self._late.popleft()()

    def _reserve(self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...]) -> Grant | Refusal:
        held = self._holds.get(call_id)
        if held is not None:
            return held.grant
        states = [self._state(account) for account in accounts]
        refusal = self._blocked(call_id, offers, accounts)
        if refusal is not None:
            return refusal
        for index, offer in enumerate(offers):
            amount = offer.most
            for account in accounts:
                amount = _clamped(amount, offer.least, self._balance(account.id))
            if _covers(amount, offer.least):
                return self._hold(call_id, index, offer, amount, accounts, states)
        return self._no_room(call_id, offers, accounts)

    def _blocked(self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...]) -> Refusal | None:
        for account in accounts:
            balance = self._balance(account.id)
            if balance.stopped is not None or call_id in self._dead:
                return Refusal(call_id, account, balance, None, offers[-1].least)
        return None

    def _no_room(self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...]) -> Refusal:
        least = offers[-1].least
        for account in accounts:
            balance = self._balance(account.id)
            unit = balance.lacking(least)
            if unit is not None:
                return Refusal(call_id, account, balance, unit, least)
        raise AssertionError("an offer that every account has room for was not granted")

    def _hold(
        self,
        call_id: str,
        index: int,
        offer: Offer,
        amount: Amounts,
        accounts: tuple[Account, ...],
        states: list[_State],
    ) -> Grant:
        held, counted = amount.held_part(), amount.counted_part()
        in_flight = any(held)
        for state in states:
            state.spent = state.spent.plus(counted)
            state.held = state.held.plus(held)
            if in_flight:
                state.expected = state.expected.plus(offer.expected.held_part())
                state.in_flight += 1
        grant = Grant(call_id, index, amount, tuple(self._balance(account.id) for account in accounts))
        if in_flight:
            ids = [account.id for account in accounts]
            self._holds[call_id] = _Hold(grant, offer.expected.held_part(), ids)
        return grant

    def _settle(self, call_id: str, charge: Amounts, unknown: Amounts) -> Settlement | None:
        hold = self._holds.get(call_id)
        if hold is None:
            return None
        charge, unknown = charge.held_part(), unknown.held_part()
        for state in self._land(hold):
            state.spent = state.spent.plus(charge).minus(hold.charged)
            state.unknown = state.unknown.plus(unknown).minus(hold.unknown)
        hold.charged, hold.unknown, hold.in_flight = charge, unknown, False
        return self._finish(call_id, hold)

    def _release(self, call_id: str) -> Settlement | None:
        if call_id in self._holds:
            return self._settle(call_id, ZERO, ZERO)
        self._dead.put(call_id, call_id)
        return None

    def _land(self, hold: _Hold) -> list[_State]:
        states = [self._accounts[account_id] for account_id in hold.accounts]
        if hold.in_flight:
            for state in states:
                state.held = state.held.minus(hold.grant.amount.held_part())
                state.expected = state.expected.minus(hold.expected)
                state.in_flight -= 1
        return states

    def _finish(self, call_id: str, hold: _Hold) -> Settlement:
        balances = tuple(self._balance(account_id) for account_id in hold.accounts)
        if not any(hold.unknown):
            del self._holds[call_id]
        return Settlement(call_id, hold.charged, hold.unknown, balances)

    def _top_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        state = self._accounts.setdefault(account_id, _State())
        if key in state.keys:
            return False
        state.keys.add(key)
        state.extra = state.extra.plus(extra)
        state.stopped = None
        return True

    def _stop(self, account_id: str, reason: str) -> None:
        state = self._accounts.setdefault(account_id, _State())
        if state.stopped is None:
            state.stopped = reason

    def _close(self, account_id: str) -> Balance:
        balance = self._balance(account_id)
        if self._accounts.pop(account_id, None) is None:
            return balance
        for call_id, hold in list(self._holds.items()):
            if account_id in hold.accounts:
                hold.accounts.remove(account_id)
                if not hold.accounts:
                    del self._holds[call_id]
        return balance

    def _state(self, account: Account) -> _State:
        state = self._accounts.get(account.id)
        if state is None:
            state = self._accounts[account.id] = _State()
        state.caps = account.caps
        return state

    def _balance(self, account_id: str) -> Balance:
        state = self._accounts.get(account_id)
        if state is None:
            return Balance(account_id)
        return Balance(
            account_id,
            state.caps.plus(state.extra),
            state.spent,
            state.held,
            state.unknown,
            state.expected,
            state.in_flight,
            state.stopped,
        )


def _nothing() -> None:
    """An operation for the sake of those that came late."""


def _clamped(amount: Amounts, least: Amounts, balance: Balance) -> Amounts:
    """`amount` cut to what is free, in the held units only; below `least` where even that is not free."""
    values = list(amount)
    for unit in range(len(UNITS)):
        free = balance.free(unit)
        if free is None:
            continue
        if unit < HELD_UNITS or free < least[unit]:
            values[unit] = min(values[unit], free)
    return Amounts(*values)


def _covers(amount: Amounts, least: Amounts) -> bool:
    return all(got >= wanted for got, wanted in zip(amount, least, strict=True))
