"""What admission wants done, one thing at a time: ask the ledger, stop an account, wait for one's turn.

Whoever decides yields these and is sent the answers; `drive` carries them out for threads, `adrive` for tasks.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from .clock import Clock
from .ledger import About, Account, Grant, Ledger, LedgerError, Offer, Refusal
from .waiting import TaskWaiter, ThreadWaiter, WaitingRoom

T = TypeVar("T")


class Operation(Protocol):
    """Something to be done."""

    def apply(self, ledger: Ledger) -> Any:
        """Do it; may block the thread."""
        ...

    async def aapply(self, ledger: Ledger) -> Any:
        """Do it without blocking the loop."""
        ...


HEARTBEAT = 1.0
"""Seconds after which the first in a queue tries again unasked: a hold may have ended where nobody could tell."""

FIRST_POLL = 0.01
"""The same where the ledger is shared, the first time; then twice as long each time, up to the heartbeat."""


class Patience(NamedTuple):
    """How to wait. `until` is a reading of the clock; accounts in `excused` are never waited for."""

    room: WaitingRoom
    clock: Clock
    until: float | None = None
    excused: frozenset[str] = frozenset()
    polls: bool = False
    """The ledger is shared: other processes end calls, and wake nobody here."""

    def rest(self, tries: int, *, first: bool) -> float | None:
        """Seconds to rest for at the most. Only the first in a queue tries unasked: the first time, the second, ..."""
        left = None if self.until is None else max(0.0, self.until - self.clock.monotonic())
        if not first:
            return left
        beat = min(HEARTBEAT, FIRST_POLL * 2.0 ** min(tries, 16)) if self.polls else HEARTBEAT
        return beat if left is None else min(left, beat)

    @property
    def over(self) -> bool:
        """It has waited as long as it may."""
        return self.until is not None and self.clock.monotonic() >= self.until


@dataclass(frozen=True, slots=True)
class Ask:
    """Reserve one of these offers."""

    call_id: str
    offers: tuple[Offer, ...]
    accounts: tuple[Account, ...]
    about: About | None = None

    def apply(self, ledger: Ledger) -> Grant | Refusal:
        """See `Ledger.reserve`."""
        return ledger.reserve(self.call_id, self.offers, self.accounts, self.about)

    async def aapply(self, ledger: Ledger) -> Grant | Refusal:
        """See `Ledger.reserve`."""
        return await ledger.areserve(self.call_id, self.offers, self.accounts, self.about)


@dataclass(frozen=True, slots=True)
class Stop:
    """Refuse whatever comes next on this account."""

    account_id: str
    reason: str

    def apply(self, ledger: Ledger) -> None:
        """See `Ledger.stop`."""
        ledger.stop(self.account_id, self.reason)

    async def aapply(self, ledger: Ledger) -> None:
        """See `Ledger.stop`."""
        await ledger.astop(self.account_id, self.reason)


@dataclass(slots=True)
class Seat:
    """A place in a queue; it is taken in the manner of whoever drives, a thread or a task."""

    patience: Patience
    account_id: str | None = None
    waiter: ThreadWaiter | TaskWaiter | None = None
    tries: int = 0

    def move(self, account_id: str, waiter: ThreadWaiter | TaskWaiter) -> bool:
        """Stand in this account's queue. True where it was not there before and is the first."""
        if self.account_id == account_id:
            return False
        self.leave()
        self.account_id, self.waiter = account_id, waiter
        self.patience.room.join(account_id, waiter)
        return self.patience.room.is_first(account_id, waiter)

    def leave(self) -> None:
        """Stand in no queue."""
        if self.account_id is not None and self.waiter is not None:
            self.patience.room.leave(self.account_id, self.waiter)
        self.account_id = None

    def rest(self) -> float | None:
        """Seconds to rest for."""
        self.tries += 1
        return self.patience.rest(self.tries - 1, first=self.is_first)

    @property
    def is_first(self) -> bool:
        """It is this one's turn."""
        return (
            self.account_id is not None
            and self.waiter is not None
            and self.patience.room.is_first(self.account_id, self.waiter)
        )


@dataclass(frozen=True, slots=True)
class Wait:
    """Stand in an account's queue until it is one's turn to try."""

    seat: Seat
    account_id: str

    def apply(self, ledger: Ledger) -> None:
        """Block the thread."""
        seat = self.seat
        waiter = seat.waiter or ThreadWaiter(seat.patience.clock)
        # A settle may have come between the refusal and the joining, so whoever is first at once tries at once.
        if isinstance(waiter, ThreadWaiter) and not seat.move(self.account_id, waiter):
            waiter.rest(seat.rest())

    async def aapply(self, ledger: Ledger) -> None:
        """Let the loop go on."""
        seat = self.seat
        waiter = seat.waiter or TaskWaiter(seat.patience.clock)
        if isinstance(waiter, TaskWaiter) and not seat.move(self.account_id, waiter):
            await waiter.arest(seat.rest())


Steps = Generator[Operation, Any, T]


def drive(steps: Generator[Any, Any, T], subject: Any, thrown: type[Exception] = LedgerError) -> T:
    """Run to the end on this thread, each operation applied to `subject`: a ledger, as a rule.

    What an operation raises of `thrown` is thrown into the steps; whoever decides there, decides what it means.
    """
    with closing(steps):
        try:
            operation = next(steps)
            while True:
                try:
                    answer = operation.apply(subject)
                except thrown as error:
                    operation = steps.throw(error)
                else:
                    operation = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result


async def adrive(steps: Generator[Any, Any, T], subject: Any, thrown: type[Exception] = LedgerError) -> T:
    """`drive`, in this task."""
    with closing(steps):
        try:
            operation = next(steps)
            while True:
                try:
                    answer = await operation.aapply(subject)
                except thrown as error:
                    operation = steps.throw(error)
                else:
                    operation = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
