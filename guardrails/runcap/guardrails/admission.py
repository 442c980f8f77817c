"""Reserving, and deciding what the ledger's answer means.

A grant is a grant. What to make of a refusal is one generator, `decide`: each step yields what it wants of the ledger
and is sent the answer. One logic, two drivers: `drive` for sync callers, `adrive` for async ones. No clock is read.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from .amounts import HELD_UNITS, UNITS, Amounts
from .errors import BudgetBusy, BudgetExceeded, LedgerUnavailable, RefusalDetails, Refused
from .ledger import Account, Balance, Grant, Ledger, LedgerError, Offer, Refusal

T = TypeVar("T")

CAP_PREFIX = "cap:"
"""What a run stopped by its own cap gives as the reason, before the cap's name."""


class Operation(Protocol):
    """Something asked of the ledger."""

    def apply(self, ledger: Ledger) -> Any:
        """Do it now."""
        ...

    async def aapply(self, ledger: Ledger) -> Any:
        """Do it without blocking the loop."""
        ...


class Reservation(NamedTuple):
    """What is asked of the ledger for one call: to hold the first offer that fits in every account."""

    call_id: str
    offers: tuple[Offer, ...]
    accounts: tuple[Account, ...]
    model: str | None = None


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


Steps = Generator[Operation, Any, T]


def drive(steps: Steps[T], ledger: Ledger) -> T:
    """Run to the end against the ledger's sync face."""
    try:
        operation = next(steps)
        while True:
            try:
                answer = operation.apply(ledger)
            except LedgerError as error:
                operation = steps.throw(error)
            else:
                operation = steps.send(answer)
    except StopIteration as done:
        result: T = done.value
        return result


async def adrive(steps: Steps[T], ledger: Ledger) -> T:
    """Run to the end against the ledger's async face."""
    try:
        operation = next(steps)
        while True:
            try:
                answer = await operation.aapply(ledger)
            except LedgerError as error:
                operation = steps.throw(error)
            else:
                operation = steps.send(answer)
    except StopIteration as done:
        result: T = done.value
        return result


def reserve(reservation: Reservation, ledger: Ledger) -> Grant:
    """Reserve, and decide what the answer means where it is no grant.

    Raises:
        Refused: see `decide`.
    """
    try:
        answer = ledger.reserve(reservation.call_id, reservation.offers, reservation.accounts)
    except LedgerError as error:
        raise unavailable(reservation.accounts[0], error, reservation.model) from error
    return answer if isinstance(answer, Grant) else drive(decide(reservation, answer), ledger)


async def areserve(reservation: Reservation, ledger: Ledger) -> Grant:
    """`reserve`, without blocking the loop."""
    try:
        answer = await ledger.areserve(reservation.call_id, reservation.offers, reservation.accounts)
    except LedgerError as error:
        raise unavailable(reservation.accounts[0], error, reservation.model) from error
    return answer if isinstance(answer, Grant) else await adrive(decide(reservation, answer), ledger)


def decide(reservation: Reservation, answer: Refusal) -> Steps[Grant]:
    """What it means that the ledger refused.

    Raises:
        BudgetExceeded: nothing fits, or the run is stopped; a run whose cap is the cause is stopped from now on.
        BudgetBusy: it would fit once the calls in flight settle at their expected cost.
        LedgerUnavailable: the ledger could not answer.
    """
    try:
        if _final(answer):
            yield Stop(answer.account.id, CAP_PREFIX + str(answer.unit))
    except LedgerError as error:
        raise unavailable(reservation.accounts[0], error, reservation.model) from error
    raise _refused(answer, reservation.model)


def _final(refusal: Refusal) -> bool:
    """No call in flight can make room: the account is at its cap for good."""
    if refusal.unit is None:
        return False
    return UNITS.index(refusal.unit) >= HELD_UNITS or refusal.balance.in_flight == 0


def _refused(refusal: Refusal, model: str | None) -> Refused:
    if refusal.unit is None:
        return _stopped(refusal, model)
    if _fits_once_settled(refusal):
        way_out = "Calls in flight hold the rest: try again when they are done, or make fewer at once (max_concurrency)"
        return BudgetBusy(details("budget busy", refusal, refusal.unit, way_out, model))
    return BudgetExceeded(details("budget exceeded", refusal, refusal.unit, _more(refusal.unit), model))


def _more(unit: str) -> str:
    return f'The way out: a larger Budget({unit}=...), or run.top_up({unit}=...) inside "with guard.run() as run:"'


def _stopped(refusal: Refusal, model: str | None) -> BudgetExceeded:
    reason = refusal.balance.stopped
    if reason is None:
        return BudgetExceeded(details("call already ended", refusal, None, "Its id was released before it came", model))
    if reason.startswith(CAP_PREFIX):
        unit = reason.removeprefix(CAP_PREFIX)
        return BudgetExceeded(details("budget exceeded before", refusal, unit, _more(unit), model))
    return BudgetExceeded(details(f"run stopped: {reason}", refusal, None, "run.top_up(...) lets it go on", model))


def _fits_once_settled(refusal: Refusal) -> bool:
    balance = refusal.balance
    if not balance.in_flight:
        return False
    likely = balance.spent.plus(balance.unknown).plus(balance.expected)
    for unit in range(HELD_UNITS):
        cap = balance.caps[unit]
        if cap is not None and likely[unit] + refusal.needed[unit] > cap:
            return False
    return UNITS.index(str(refusal.unit)) < HELD_UNITS


def details(reason: str, refusal: Refusal, unit: str | None, way_out: str, model: str | None = None) -> RefusalDetails:
    """The numbers of a refusal, in one unit."""
    balance, account = refusal.balance, refusal.account
    numbers = unit_numbers(balance, refusal.needed, unit) if unit in UNITS else {}
    return RefusalDetails(
        reason=reason,
        way_out=way_out,
        run_id=account_name(account),
        scope=account.scope,
        unit=unit,
        model=model,
        **numbers,
    )


def unit_numbers(balance: Balance, needed: Amounts, unit: str | None) -> dict[str, int]:
    """One unit's figures of a balance."""
    index = UNITS.index(str(unit))
    return {
        "cap": balance.caps[index] or 0,
        "spent": balance.spent[index],
        "held": balance.held[index],
        "unknown": balance.unknown[index],
        "needed": needed[index],
    }


def account_name(account: Account) -> str:
    """The id people know: the run's own, without the account's prefix."""
    return account.id.partition(":")[2]


def unavailable(account: Account, error: LedgerError, model: str | None = None) -> LedgerUnavailable:
    """The refusal for a ledger that did not answer."""
    return LedgerUnavailable(
        RefusalDetails(
            reason=f"the cap could not be checked: {error}",
            way_out="Calls are refused while the ledger cannot be reached",
            run_id=account_name(account),
            scope=account.scope,
            model=model,
        )
    )
