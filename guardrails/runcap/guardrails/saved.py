"""A run as it can be kept elsewhere and gone on with: what it has cost, and what was added to its caps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .amounts import ZERO, Amounts
from .ledger import Account, Ledger, LedgerError, Offer, Refusal

if TYPE_CHECKING:
    from .run import Run


class SavedRun(NamedTuple):
    """Its id, what it has spent and what is unknown of it, and each top-up by its key."""

    run_id: str
    spent: Amounts
    unknown: Amounts
    top_ups: Mapping[str, Amounts]
    keeper: str = ""
    """Whose record it is: the guard it ran under."""
    trace: str | None = None
    """Where it was traced, as a sink says it; see `sinks.Traces`."""

    @classmethod
    def of(cls, run: Run, keeper: str = "") -> SavedRun:
        """A run as it stands. What is in flight counts as unknown: nobody will settle it where the run is restored."""
        balance = run.seen
        return cls(run.id, balance.spent, balance.unknown.plus(balance.held), dict(run.course.top_ups), keeper)


def restore(saved: SavedRun, run: Run, ledger: Ledger) -> None:
    """Book what a ledger does not know of a saved run; one that has seen all its steps is left as it is."""
    balance, known = ledger.balance(_account(saved)), _knows(saved, ledger)
    if run.course.known is None:  # it may be tried again
        run.course.known = known
    if not known:
        spent = saved.spent.minus(balance.spent).at_least_zero()
        unknown = saved.unknown.minus(balance.unknown).at_least_zero()
        _book(saved, f"restored:{saved.run_id}:{saved.spent}:{saved.unknown}", spent, unknown, ledger)


def catch_up(saved: SavedRun, run: Run, ledger: Ledger) -> None:
    """Book what a later record of a restored run has beyond the one it was restored from."""
    known = run.course.restored
    if known is None and ledger.shared:
        run.course.known = _knows(saved, ledger)
    if run.course.known:
        return
    spent, unknown = (known.spent, known.unknown) if known is not None else (ZERO, ZERO)
    more_spent = saved.spent.minus(spent).at_least_zero()
    more_unknown = saved.unknown.minus(unknown).at_least_zero()
    news = {key: extra for key, extra in saved.top_ups.items() if key not in run.course.top_ups}
    if any(more_spent) or any(more_unknown) or news:
        call_id = f"restored:{saved.run_id}:{saved.spent}:{saved.unknown}"
        _book(saved, call_id, more_spent, more_unknown, ledger)
        latest = saved._replace(spent=spent.plus(more_spent), unknown=unknown.plus(more_unknown))
        run.course.restored = latest
        run.course.top_ups.update(news)


def carry_over(saved: SavedRun, blank: Run, ledger: Ledger) -> None:
    """Book what was spent before it was known which run goes on."""
    before = SavedRun.of(blank)
    if any(before.spent) or any(before.unknown):
        _book(saved, f"carried:{blank.id}", before.spent, before.unknown, ledger)


def _book(saved: SavedRun, call_id: str, spent: Amounts, unknown: Amounts, ledger: Ledger) -> None:
    """Book it, whatever became of the run meanwhile.

    Raises:
        LedgerError: it could not be: the next call of the run may not be made either.
    """
    account_id, counted = _account(saved), spent.counted_part()
    # Held at a token at least: what counts at once alone leaves no hold to settle.
    offer = Offer(counted.plus(Amounts(tokens=1)), counted, ZERO, last="spent")
    if isinstance(ledger.reserve(call_id, (offer,), (Account(account_id),)), Refusal):
        raise LedgerError("what the run has spent elsewhere cannot be booked, for it was stopped here")
    ledger.settle(call_id, spent.held_part(), unknown.held_part())
    for key, extra in saved.top_ups.items():
        ledger.top_up(account_id, key, extra)


def _knows(saved: SavedRun, ledger: Ledger) -> bool:
    """Steps and tool calls only grow: a ledger that has fewer was not there when they were made."""
    has, needs = ledger.balance(_account(saved)).spent.counted_part(), saved.spent.counted_part()
    return any(has) and needs.minus(has).at_least_zero() == ZERO


def _account(saved: SavedRun) -> str:
    return f"run:{saved.run_id}"
