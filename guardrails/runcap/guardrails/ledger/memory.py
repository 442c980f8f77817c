"""A ledger in this process's memory: exact under any number of threads and tasks, gone with the process."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from .. import forks
from ..amounts import ZERO, Amounts
from ..clock import Clock
from ..recent import Recent
from .base import Account, Balance, Grant, LedgerError, Offer, Refusal, Settlement
from .notes import Note
from .records import About, Outcome
from .state import State, decide

P = ParamSpec("P")
T = TypeVar("T")

_new = tuple.__new__  # see amounts

_REMEMBERED = 65_536
"""How many tombstones are kept: ids released before they were reserved, whose reservation must land dead."""


@dataclass(slots=True)
class _Hold:
    grant: Grant
    expected: Amounts
    states: list[State]
    charged: Amounts = ZERO
    unknown: Amounts = ZERO
    in_flight: bool = True


class MemoryLedger:
    """See `Ledger`. Not shared: after a fork the child is refused, for two copies of one budget are two budgets."""

    blocking = False
    shared = False
    lasting = False

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._accounts: dict[str, State] = {}
        self._top_up_keys: dict[str, set[str]] = {}
        self._holds: dict[str, _Hold] = {}
        self._dead: Recent[str, str] = Recent(_REMEMBERED)
        self._lock = forks.rlock()
        self._busy = False
        self._late: deque[Callable[[], object]] = deque()

    def reserve(
        self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...], about: About | None = None
    ) -> Grant | Refusal:
        """See `Ledger.reserve`.

        Raises:
            LedgerError: in a forked child.
        """
        if os.getpid() != self._pid:
            raise LedgerError("a MemoryLedger does not outlive a fork; give the child a Guard of its own")
        with self._lock:
            if self._busy:
                raise LedgerError("a model call was made by a finalizer that interrupted the ledger")
            self._busy = True
            try:
                if self._late:
                    self._book_late()
                return self._reserve(call_id, offers, accounts)
            finally:
                self._finish()

    def settle(
        self, call_id: str, charge: Amounts, unknown: Amounts = ZERO, outcome: Outcome | None = None
    ) -> Settlement | None:
        """See `Ledger.settle`."""
        with self._lock:
            if self._busy:  # see _locked, which this is, written out for speed
                self._late.append(partial(self._settle, call_id, charge, unknown))
                return None
            self._busy = True
            try:
                if self._late:
                    self._book_late()
                return self._settle(call_id, charge, unknown)
            finally:
                self._finish()

    def release(self, call_id: str, outcome: Outcome | None = None) -> Settlement | None:
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

    def peek(self, account_id: str) -> Balance:
        """See `Ledger.peek`."""
        return self.balance(account_id)

    def close(self, account_id: str) -> Balance | None:
        """See `Ledger.close`."""
        with self._lock:
            return None if self._busy else self._locked(self._close, account_id)

    async def aready(self) -> None:
        """See `Ledger.aready`; nothing is needed."""

    async def areserve(
        self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...], about: About | None = None
    ) -> Grant | Refusal:
        """See `Ledger.reserve`; nothing here blocks."""
        return self.reserve(call_id, offers, accounts)

    async def asettle(
        self, call_id: str, charge: Amounts, unknown: Amounts = ZERO, outcome: Outcome | None = None
    ) -> Settlement | None:
        """See `Ledger.settle`; nothing here blocks."""
        return self.settle(call_id, charge, unknown)

    async def arelease(self, call_id: str, outcome: Outcome | None = None) -> Settlement | None:
        """See `Ledger.release`; nothing here blocks."""
        return self.release(call_id)

    async def atop_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        """See `Ledger.top_up`; nothing here blocks."""
        return self.top_up(account_id, key, extra)

    async def astop(self, account_id: str, reason: str) -> None:
        """See `Ledger.stop`; nothing here blocks."""
        self.stop(account_id, reason)

    async def abalance(self, account_id: str) -> Balance:
        """See `Ledger.balance`; nothing here blocks."""
        return self.balance(account_id)

    def now_ns(self, clock: Clock) -> int:
        """See `Ledger.now_ns`."""
        return clock.time_ns()

    def judge(self, run_id: str, verdict: str) -> None:
        """See `Ledger.judge`; this ledger keeps no records."""

    def note(self, note: Note) -> None:
        """See `Ledger.note`; this ledger keeps none."""

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
                self._finish()

    def _finish(self) -> None:
        try:
            if self._late:
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
        if offers[0].last == "spent":
            states = [self._known(account.id) for account in accounts]
        else:
            states = [self._state(account) for account in accounts]
        answer = decide(call_id, offers, accounts, states, dead=call_id in self._dead)
        if isinstance(answer, Refusal):
            return answer
        index, amount = answer
        expected, balances = offers[index].expected, []
        for state in states:
            state.hold(amount, expected)
            balances.append(state.balance())
        grant = _new(Grant, (call_id, index, amount, tuple(balances)))
        if amount[0] or amount[1]:
            self._holds[call_id] = _Hold(grant, expected, states)
        return grant

    def _settle(self, call_id: str, charge: Amounts, unknown: Amounts) -> Settlement | None:
        hold = self._holds.get(call_id)
        if hold is None:
            return None
        charge, unknown = charge.held_part(), unknown.held_part() if any(unknown) else ZERO
        nano, tokens = charge[0] - hold.charged[0], charge[1] - hold.charged[1]
        balances = []
        for state in hold.states:
            if hold.in_flight:
                state.land(hold.grant.amount, hold.expected, nano, tokens)
            else:
                state.charge(nano, tokens)
            if unknown is not hold.unknown:
                state.unknown = state.unknown.plus(unknown).minus(hold.unknown)
            balances.append(state.balance())
        if any(unknown):
            hold.charged, hold.unknown, hold.in_flight = charge, unknown, False
        else:
            del self._holds[call_id]
        return _new(Settlement, (call_id, charge, unknown, tuple(balances)))

    def _release(self, call_id: str) -> Settlement | None:
        if call_id in self._holds:
            return self._settle(call_id, ZERO, ZERO)
        self._dead.put(call_id, call_id)
        return None

    def _top_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        keys = self._top_up_keys.setdefault(account_id, set())
        if key in keys:
            return False
        keys.add(key)
        self._known(account_id).top_up(extra)
        return True

    def _stop(self, account_id: str, reason: str) -> None:
        state = self._known(account_id)
        if state.stopped is None:
            state.stopped = reason

    def _close(self, account_id: str) -> Balance | None:
        state = self._accounts.get(account_id)
        if state is not None and state.in_flight:
            return None
        self._top_up_keys.pop(account_id, None)
        self._accounts.pop(account_id, None)
        if state is None:
            return Balance(account_id)
        balance = state.balance()
        for call_id, hold in list(self._holds.items()):
            if state in hold.states:
                hold.states = [other for other in hold.states if other is not state]
                if not hold.states:
                    del self._holds[call_id]
        return balance

    def _known(self, account_id: str) -> State:
        state = self._accounts.get(account_id)
        if state is None:
            state = self._accounts[account_id] = State(account_id)
        return state

    def _state(self, account: Account) -> State:
        account_id, caps, _ = account
        state = self._accounts.get(account_id) or self._known(account_id)
        if state.given is not caps:
            state.give(caps)
        return state
