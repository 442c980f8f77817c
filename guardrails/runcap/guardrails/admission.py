"""Reserving, and deciding what the ledger's answer means.

A grant is a grant. What to make of a refusal is one generator, `decide`: it yields steps and is sent their answers, so
that threads and tasks share one logic.
"""

from __future__ import annotations

from .amounts import HELD_UNITS, UNITS, ZERO, Amounts
from .ledger import About, Account, Balance, Grant, Ledger, LedgerError, Offer, Refusal
from .refusals import CAP_PREFIX, is_final, refused, unavailable
from .steps import Ask, Patience, Seat, Steps, Stop, Wait, adrive, drive


class Reservation:
    """What is asked of the ledger for one call: to hold an offer in every account.

    `as_is` is the call as it was asked for, `degraded` what else could be made of it. `patience` says how long it may
    wait for money that calls in flight hold; None is not at all. `waiting_since` is the clock's reading when it began
    to wait, None if it never did. `stops` is False where whoever asks has other ways left: a refusal for want of money
    then stops nothing. `about` is what a ledger that lasts keeps of it.
    """

    __slots__ = ("about", "accounts", "as_is", "call_id", "degraded", "model", "patience", "stops", "waiting_since")

    def __init__(self, call_id: str, as_is: Offer, accounts: tuple[Account, ...], model: str | None = None) -> None:
        self.call_id = call_id
        self.as_is = as_is
        self.degraded: tuple[Offer, ...] = ()
        self.accounts = accounts
        self.model = model
        self.about: About | None = None
        self.patience: Patience | None = None
        self.waiting_since: float | None = None
        self.stops = True

    @property
    def least(self) -> Amounts:
        """The smallest room the call can be made in."""
        offer = self.degraded[-1] if self.degraded else self.as_is
        return offer.least.plus(offer.spare) if offer.spare is not ZERO else offer.least

    def renew(self) -> None:
        """Look at the call once more: while it waited, others may have shown how large it is.

        Raises:
            Refused: it can no longer be made.
        """

    def ask(self, *offers: Offer) -> Ask:
        """Ask for the first of these offers that fits."""
        return Ask(self.call_id, offers, self.accounts, self.about)


def reserve(reservation: Reservation, ledger: Ledger) -> Grant:
    """Reserve, wait if need be, and decide what the answer means where it is no grant.

    Raises:
        Refused: see `decide`.
    """
    answer = None
    if _queue_to_join(reservation) is None:
        try:
            answer = ledger.reserve(reservation.call_id, (reservation.as_is,), reservation.accounts, reservation.about)
        except LedgerError as error:
            raise unavailable(reservation.accounts[0], error, reservation.model) from error
    return answer if isinstance(answer, Grant) else drive(decide(reservation, answer), ledger)


async def areserve(reservation: Reservation, ledger: Ledger) -> Grant:
    """`reserve`, without blocking the loop."""
    answer = None
    if _queue_to_join(reservation) is None:
        try:
            answer = await ledger.areserve(
                reservation.call_id, (reservation.as_is,), reservation.accounts, reservation.about
            )
        except LedgerError as error:
            raise unavailable(reservation.accounts[0], error, reservation.model) from error
    return answer if isinstance(answer, Grant) else await adrive(decide(reservation, answer), ledger)


def decide(reservation: Reservation, answer: Refusal | None) -> Steps[Grant]:
    """What it means that the ledger refused. None: it was not asked, for others wait already and come first.

    As long as calls in flight may make room, wait for them; then take what can be had.

    Raises:
        BudgetExceeded: nothing fits, or the run is stopped; a run whose cap is the cause is stopped from now on.
        BudgetBusy: it would fit once the calls in flight settle, and it may not wait or has waited in vain.
        LedgerUnavailable: the ledger could not answer.
        Refused: `reservation.renew` says so.
    """
    try:
        last = yield from _taking_turns(reservation, answer)
        if isinstance(last, Grant):
            return last
        if _ends_run(last) and (reservation.stops or UNITS.index(str(last.unit)) >= HELD_UNITS):
            yield Stop(last.account.id, CAP_PREFIX + str(last.unit))
    except LedgerError as error:
        raise unavailable(reservation.accounts[0], error, reservation.model) from error
    in_vain = reservation.patience is not None and reservation.patience.over and _may_fit(last.balance, last.needed)
    raise refused(last, reservation.model, in_vain=in_vain)


def _taking_turns(reservation: Reservation, answer: Refusal | None) -> Steps[Grant | Refusal]:
    """Wait and try, until the call is granted or there is nothing left to wait for."""
    patience = reservation.patience
    seat = None if patience is None else Seat(patience)
    try:
        while True:
            account_id = _worth_waiting_for(reservation, answer)
            if answer is not None and account_id is None:
                if answer.unit is None or not reservation.degraded:
                    return answer
                answer = yield reservation.ask(*reservation.degraded)
                if isinstance(answer, Grant) or _worth_waiting_for(reservation, answer) is None:
                    return answer
                continue
            if seat is not None and account_id is not None:
                if reservation.waiting_since is None:
                    reservation.waiting_since = seat.patience.clock.monotonic()
                yield Wait(seat, account_id)
                if not seat.is_first and not seat.patience.over:
                    continue
                reservation.renew()
            answer = yield reservation.ask(reservation.as_is)
            if isinstance(answer, Grant):
                return answer
    finally:
        if seat is not None:
            seat.leave()


def _queue_to_join(reservation: Reservation) -> str | None:
    """The account that others wait for already, so that this call has to stand in line."""
    patience = reservation.patience
    if patience is None or not patience.room:
        return None
    account_id = patience.room.occupied(account.id for account in reservation.accounts)
    return None if account_id is None or account_id in patience.excused or patience.over else account_id


def _worth_waiting_for(reservation: Reservation, answer: Refusal | None) -> str | None:
    """The account in which calls in flight may yet leave room enough; None where it is of no use to wait."""
    patience = reservation.patience
    if patience is None or patience.over:
        return None
    if answer is None:
        return _queue_to_join(reservation)
    if answer.unit is None or UNITS.index(answer.unit) >= HELD_UNITS or answer.account.id in patience.excused:
        return None
    return answer.account.id if _may_fit(answer.balance, reservation.least) else None


def _ends_run(refusal: Refusal) -> bool:
    # A limit stops nobody: it may be raised, its window ends, and a smaller call of another run may fit.
    return is_final(refusal) and refusal.account.scope == "run"


def _may_fit(balance: Balance, least: Amounts) -> bool:
    """There would be room if whatever is in flight cost nothing."""
    if not balance.in_flight:
        return False
    free = balance._replace(held=Amounts())
    return free.lacking(least) is None
