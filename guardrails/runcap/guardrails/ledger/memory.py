"""A ledger in this process's memory: exact under any number of threads and tasks, gone with the process."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from ..amounts import NO_CAPS, UNITS, ZERO, Amounts, Caps
from ..recent import Recent
from .base import Account, Balance, Grant, LedgerError, Offer, Refusal, Settlement

P = ParamSpec("P")
T = TypeVar("T")

_REMEMBERED = 65_536
"""How many tombstones are kept: ids released before they were reserved, whose reservation must land dead."""


@dataclass(slots=True, eq=False)
class _State:
    """An account. `given` are the caps that came with the last call, `caps` those with the top-ups."""

    id: str
    given: Caps = NO_CAPS
    caps: Caps = NO_CAPS
    extra: Amounts = ZERO
    spent: Amounts = ZERO
    held: Amounts = ZERO
    unknown: Amounts = ZERO
    expected: Amounts = ZERO
    in_flight: int = 0
    stopped: str | None = None
    keys: set[str] = field(default_factory=set)

    def balance(self) -> Balance:
        figures = (self.id, self.caps, self.spent, self.held, self.unknown, self.expected, self.in_flight, self.stopped)
        return _new(Balance, figures)

    def room(self, wanted: Amounts, least: Amounts, spare: Amounts) -> Amounts | None:
        """`wanted`, cut to what is free beside `spare`; None where not even `least` is."""
        cut = None
        for unit, cap in enumerate(self.caps):
            if cap is None:
                continue
            free = cap - self.spent[unit] - self.held[unit] - self.unknown[unit] - spare[unit]
            if free >= wanted[unit]:
                continue
            if least[unit] > max(free, 0):
                return None
            cut = cut or list(wanted)
            cut[unit] = max(free, 0)
        return wanted if cut is None else Amounts(*cut)

    def hold(self, amount: Amounts, expected: Amounts) -> None:
        """Steps and tool calls count at once; dollars and tokens are held."""
        nano, tokens, steps, tool_calls = amount
        spent = self.spent
        self.spent = _new(Amounts, (spent[0], spent[1], spent[2] + steps, spent[3] + tool_calls))
        if nano or tokens:
            self.held = _new(Amounts, (self.held[0] + nano, self.held[1] + tokens, 0, 0))
            self.expected = _new(Amounts, (self.expected[0] + expected[0], self.expected[1] + expected[1], 0, 0))
            self.in_flight += 1

    def land(self, amount: Amounts, expected: Amounts) -> None:
        """A hold is over."""
        self.held = _new(Amounts, (self.held[0] - amount[0], self.held[1] - amount[1], 0, 0))
        self.expected = _new(Amounts, (self.expected[0] - expected[0], self.expected[1] - expected[1], 0, 0))
        self.in_flight -= 1

    def charge(self, nano: int, tokens: int) -> None:
        """Add to what is spent."""
        spent = self.spent
        self.spent = _new(Amounts, (spent[0] + nano, spent[1] + tokens, spent[2], spent[3]))


_new = tuple.__new__  # see amounts


@dataclass(slots=True)
class _Hold:
    grant: Grant
    expected: Amounts
    states: list[_State]
    charged: Amounts = ZERO
    unknown: Amounts = ZERO
    in_flight: bool = True


class MemoryLedger:
    """See `Ledger`. Not shared: after a fork the child is refused, for two copies of one budget are two budgets."""

    blocking = False
    shared = False

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._accounts: dict[str, _State] = {}
        self._holds: dict[str, _Hold] = {}
        self._dead: Recent[str, str] = Recent(_REMEMBERED)
        self._lock = threading.RLock()
        self._busy = False
        self._late: deque[Callable[[], object]] = deque()

    def reserve(self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...]) -> Grant | Refusal:
        """See `Ledger.reserve`.

        Raises:
            LedgerError: in a forked child.
        """
        if os.getpid() != self._pid:
            raise LedgerError("a MemoryLedger does not outlive a fork; give the child a Guard of its own")
        with self._lock:
            answer = None if self._busy else self._locked(self._reserve, call_id, offers, accounts)
        if answer is None:
            raise LedgerError("a model call was made by a finalizer that interrupted the ledger")
        return answer

    def settle(self, call_id: str, charge: Amounts, unknown: Amounts = ZERO) -> Settlement | None:
        """See `Ledger.settle`."""
        return self._locked(self._settle, call_id, charge, unknown)

    def release(self, call_id: str) -> Settlement | None:
        """See `Ledger.release`."""
        return self._locked(self._release, call_id)

    def top_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        """See `Ledger.top_up`."""
        return bool(self._locked(self._top_up, account_id, key, extra))

    def stop(self, account_id: str, reason: str) -> None:
        """See `Ledger.stop`."""
        self._locked(self._stop, account_id, reason)

    def balance(self, account_id: str) -> Balance:
        """See `Ledger.balance`."""
        with self._lock:  # also in the middle of an operation that a finalizer of this thread interrupted
            if not self._busy:
                self._book_late()
            state = self._accounts.get(account_id)
            return Balance(account_id) if state is None else state.balance()

    def close(self, account_id: str) -> Balance | None:
        """See `Ledger.close`."""
        with self._lock:
            return None if self._busy else self._locked(self._close, account_id)

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

    def _locked(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        with self._lock:
            if self._busy:
                # The garbage collector ran a finalizer (an abandoned stream's) in the middle of an operation of this
                # very thread. To go on would tear the books: it is booked right after.
                self._late.append(partial(operation, *args, **kwargs))
                return None
            self._busy = True
            try:
                self._book_late()
                return operation(*args, **kwargs)
            finally:
                try:
                    self._book_late()
                finally:
                    self._busy = False

    def _book_late(self) -> None:
        while self._late:
            self._late.popleft()()

    def _reserve(self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...]) -> Grant | Refusal:
        held = self._holds.get(call_id)
        if held is not None:
            return held.grant
        states = [self._state(account) for account in accounts]
        dead = call_id in self._dead
        for account, state in zip(accounts, states, strict=True):
            if dead or (state.stopped is not None and not offers[-1].passes(state.stopped)):
                return Refusal(call_id, account, state.balance(), None, offers[-1].least)
        for index, offer in enumerate(offers):
            amount: Amounts | None = offer.most
            for state in states:
                amount = amount and state.room(amount, offer.least, offer.spare)
            if amount is not None:
                return self._hold(call_id, index, offer, amount, states)
        return _no_room(call_id, offers[-1].least.plus(offers[-1].spare), accounts, states)

    def _hold(self, call_id: str, index: int, offer: Offer, amount: Amounts, states: list[_State]) -> Grant:
        for state in states:
            state.hold(amount, offer.expected)
        grant = Grant(call_id, index, amount, tuple([state.balance() for state in states]))
        if amount[0] or amount[1]:
            self._holds[call_id] = _Hold(grant, offer.expected, states)
        return grant

    def _settle(self, call_id: str, charge: Amounts, unknown: Amounts) -> Settlement | None:
        hold = self._holds.get(call_id)
        if hold is None:
            return None
        charge, unknown = charge.held_part(), unknown.held_part() if any(unknown) else ZERO
        nano, tokens = charge[0] - hold.charged[0], charge[1] - hold.charged[1]
        for state in hold.states:
            if hold.in_flight:
                state.land(hold.grant.amount, hold.expected)
            state.charge(nano, tokens)
            if unknown is not hold.unknown:
                state.unknown = state.unknown.plus(unknown).minus(hold.unknown)
        hold.charged, hold.unknown, hold.in_flight = charge, unknown, False
        if not any(unknown):
            del self._holds[call_id]
        return Settlement(call_id, charge, unknown, tuple([state.balance() for state in hold.states]))

    def _release(self, call_id: str) -> Settlement | None:
        if call_id in self._holds:
            return self._settle(call_id, ZERO, ZERO)
        self._dead.put(call_id, call_id)
        return None

    def _top_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        state = self._known(account_id)
        if key in state.keys:
            return False
        state.keys.add(key)
        state.extra = state.extra.plus(extra)
        state.caps = state.given.plus(state.extra)
        state.stopped = None
        return True

    def _stop(self, account_id: str, reason: str) -> None:
        state = self._known(account_id)
        if state.stopped is None:
            state.stopped = reason

    def _close(self, account_id: str) -> Balance:
        state = self._accounts.pop(account_id, None)
        if state is None:
            return Balance(account_id)
        balance = state.balance()
        for call_id, hold in list(self._holds.items()):
            if state in hold.states:
                hold.states = [other for other in hold.states if other is not state]
                if not hold.states:
                    del self._holds[call_id]
        return balance

    def _known(self, account_id: str) -> _State:
        state = self._accounts.get(account_id)
        if state is None:
            state = self._accounts[account_id] = _State(account_id)
        return state

    def _state(self, account: Account) -> _State:
        state = self._known(account.id)
        if state.given is not account.caps:
            state.given = account.caps
            state.caps = account.caps.plus(state.extra)
        return state


def _no_room(call_id: str, least: Amounts, accounts: tuple[Account, ...], states: list[_State]) -> Refusal:
    for account, state in zip(accounts, states, strict=True):
        balance = state.balance()
        unit = balance.lacking(least)
        if unit is not None:
            return Refusal(call_id, account, balance, unit, least)
    raise AssertionError(
        f"an offer that every account has room for was not granted: {dict(zip(UNITS, least, strict=True))}"
    )
