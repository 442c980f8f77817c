"""A run as it can be kept elsewhere and gone on with: what it has cost, and what was added to its caps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .amounts import ZERO, Amounts
from .ledger import Account, Ledger, Offer

if TYPE_CHECKING:
    from .run import Run


class SavedRun(NamedTuple):
    """Its id, what it has spent and what is unknown of it, and each top-up by its key."""

    run_id: str
    spent: Amounts
    unknown: Amounts
    top_ups: Mapping[str, Amounts]

    @classmethod
    def of(cls, run: Run) -> SavedRun:
        """A run as it stands. What is in flight counts as unknown: nobody will settle it where the run is restored."""
        balance = run.balance
        return cls(run.id, balance.spent, balance.unknown.plus(balance.held), dict(run.course.top_ups))


def restore(saved: SavedRun, ledger: Ledger) -> None:
    """Book a saved run into a ledger that may not know it; a ledger that does is left as it is."""
    account_id = f"run:{saved.run_id}"
    if any(ledger.balance(account_id).used):
        return
    call_id = f"restored:{saved.run_id}"
    counted = saved.spent.counted_part()
    # Held at a token at least: what counts at once alone leaves no hold to settle.
    offer = Offer(counted.plus(Amounts(tokens=1)), counted, ZERO)
    ledger.reserve(call_id, (offer,), (Account(account_id),))
    ledger.settle(call_id, saved.spent.held_part(), saved.unknown.held_part())
    for key, extra in saved.top_ups.items():
        ledger.top_up(account_id, key, extra)
