"""The ledger: the record of money. Reserve, then settle or release; what may have been billed stays as unknown.

The life of a hold: `reserve` -> held -> `settle` (spent, and perhaps an unknown rest) or `release`. A settled rest is
reconciled by settling the same call once more. The ledger decides nothing but whether an offer fits, in one atomic
step over every account, so that a store across a network costs one round trip and nothing races between check and hold.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from ..amounts import HELD_UNITS, NO_CAPS, UNITS, ZERO, Amounts, Caps
from ..clock import Clock
from .notes import Note
from .records import About, Outcome


class Offer(NamedTuple):
    """One way a call could be made.

    `most` is the dearest it can cost, `least` the smallest hold it can still be made with (its output clamped),
    `expected` what it will likely cost. `spare` has to be free beside the hold, for the run's last answer; `last` says
    that the call is that answer, which is granted on an account that was stopped by its cap or as a loop. `"spent"`
    says that the call was made already: the only offer, granted in full whatever the account's caps and state, and
    leaves the caps as they are.
    """

    most: Amounts
    least: Amounts
    expected: Amounts
    spare: Amounts = ZERO
    last: bool | Literal["spent"] = False

    def passes(self, stopped: str) -> bool:
        """It may be made on an account that was stopped for this reason."""
        return bool(self.last) and stopped.startswith(LAST_AFTER)


LAST_AFTER = ("cap:", "loop:")
"""How the reasons begin for which a run is stopped and may still give its last answer."""


class Account(NamedTuple):
    """What a hold is charged to: a run's budget, or a limit's window. The caps come along with each call."""

    id: str
    caps: Caps = NO_CAPS
    scope: str = "run"


_FINAL_FIRST = (*range(HELD_UNITS, len(UNITS)), *range(HELD_UNITS))


class Balance(NamedTuple):
    """An account at an instant. `expected` is the expected cost of what is held; `caps` include top-ups."""

    account_id: str
    caps: Caps = NO_CAPS
    spent: Amounts = ZERO
    held: Amounts = ZERO
    unknown: Amounts = ZERO
    expected: Amounts = ZERO
    in_flight: int = 0
    stopped: str | None = None

    @property
    def used(self) -> Amounts:
        """Spent, held and unknown together: what the cap is compared with."""
        return self.spent.plus(self.held).plus(self.unknown)

    def free(self, unit: int) -> int | None:
        """What is left of a cap (never below zero), None without a cap. `unit` is an index into `UNITS`."""
        cap = self.caps[unit]
        if cap is None:
            return None
        left = cap - self.spent[unit] - self.held[unit] - self.unknown[unit]
        return max(left, 0)

    def lacking(self, needed: Amounts) -> str | None:
        """A unit in which `needed` does not fit, as a name of `UNITS`; None if all fit.

        Steps and tool calls come first: no call in flight gives them back.
        """
        for unit in _FINAL_FIRST:
            free = self.free(unit)
            if needed[unit] and free is not None and needed[unit] > free:
                return UNITS[unit]
        return None


class Grant(NamedTuple):
    """A reservation made: which offer (by index), for how much, and the accounts after it."""

    call_id: str
    offer: int
    amount: Amounts
    balances: tuple[Balance, ...]


class Refusal(NamedTuple):
    """No offer fits. `account` is the first that has no room, `unit` what it lacks (None: it is stopped or dead)."""

    call_id: str
    account: Account
    balance: Balance
    unit: str | None
    needed: Amounts


class Settlement(NamedTuple):
    """What a settle or a release changed, and the accounts after it."""

    call_id: str
    charged: Amounts
    unknown: Amounts
    balances: tuple[Balance, ...]


class Ledger(Protocol):
    """What every ledger does, in a sync and an async face.

    `blocking` says whether the sync face does I/O; a handler runs inline on an event loop only while it does not.
    `shared` says whether other processes end calls too: whoever waits for room then has to look by himself. `lasting`
    says whether usage records are kept. All operations are idempotent by their ids. A ledger that cannot answer raises
    `LedgerError`; a lasting one then still carries out what ends a call, once it can.
    """

    blocking: bool
    shared: bool
    lasting: bool

    def reserve(
        self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...], about: About | None = None
    ) -> Grant | Refusal:
        """Grant the first offer whose `least` and `spare` are free in every account, holding `min(most, free - spare)`.

        Steps and tool calls count at once; dollars and tokens are held. A call id that holds already gets its grant
        again; one that was released before it was known is refused. A lasting ledger keeps `about` beside the hold.
        """
        ...

    def settle(
        self, call_id: str, charge: Amounts, unknown: Amounts = ZERO, outcome: Outcome | None = None
    ) -> Settlement | None:
        """Charge a held call in full, keep `unknown` of the hold as unknown, and free the rest.

        Settling a call that left an unknown rest replaces both by the new figures (reconciliation). None where the
        call is final already, or its outcome will be booked by the thread that holds the ledger. A lasting ledger
        appends `outcome` to its records, in the same step.
        """
        ...

    def release(self, call_id: str, outcome: Outcome | None = None) -> Settlement | None:
        """Free a hold that was never billed; steps stay counted. An id not known leaves a tombstone."""
        ...

    def top_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        """Raise an account's caps, once per key, and un-stop it. False where the key was used before."""
        ...

    def stop(self, account_id: str, reason: str) -> None:
        """Refuse every reservation on this account from now on, until a top-up. The first reason stays."""
        ...

    def balance(self, account_id: str) -> Balance:
        """The account now; an account never used is empty."""
        ...

    def peek(self, account_id: str) -> Balance:
        """The account as this process saw it last, without I/O."""
        ...

    def close(self, account_id: str) -> Balance | None:
        """End an account that has no call in flight; its unknowns end with it, and live on in the other accounts.

        Its last balance; None where it could not be closed now (a call is in flight, perhaps in another process, or a
        finalizer interrupted the ledger): ask again.
        """
        ...

    def judge(self, run_id: str, verdict: str) -> None:
        """Keep a run's verdict beside its records. The latest stands."""
        ...

    def note(self, note: Note) -> None:
        """Keep what happened in a run, added up with what is alike. Only a lasting ledger is told. Never raises."""
        ...

    def now_ns(self, clock: Clock) -> int:
        """What time it is where windows of limits begin and end, in nanoseconds since the epoch.

        `clock` is the guard's; a ledger that many machines share has one of its own.

        Raises:
            LedgerError: the clock jumped, so that nobody knows which window it is.
        """
        ...

    async def aready(self) -> None:
        """Have what `now_ns` needs, so that it does no I/O."""
        ...

    async def areserve(
        self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...], about: About | None = None
    ) -> Grant | Refusal:
        """`reserve`, without blocking the loop."""
        ...

    async def asettle(
        self, call_id: str, charge: Amounts, unknown: Amounts = ZERO, outcome: Outcome | None = None
    ) -> Settlement | None:
        """`settle`, without blocking the loop."""
        ...

    async def arelease(self, call_id: str, outcome: Outcome | None = None) -> Settlement | None:
        """`release`, without blocking the loop."""
        ...

    async def atop_up(self, account_id: str, key: str, extra: Amounts) -> bool:
        """`top_up`, without blocking the loop."""
        ...

    async def astop(self, account_id: str, reason: str) -> None:
        """`stop`, without blocking the loop."""
        ...

    async def abalance(self, account_id: str) -> Balance:
        """`balance`, without blocking the loop."""
        ...


class LedgerError(Exception):
    """A ledger could not answer. Admission turns it into `LedgerUnavailable`; settling logs it and goes on."""
