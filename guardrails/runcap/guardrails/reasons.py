"""Why a call is not made, beyond what the ledger says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from .errors import BudgetExceeded, RefusalDetails, Refused
from .ledger import Ledger, LedgerError
from .ratecard import RateCard
from .request import Request
from .run import Run

if TYPE_CHECKING:
    from .guard import Guard

_log = logging.getLogger("runcap")


def turn_away_late(call_id: str, run: Run, guard: Guard, model: str | None = None) -> None:
    """Give back what was granted to a call whose run ended between the choice of it and the reservation.

    Raises:
        BudgetExceeded: it did.
    """
    if not run.ended:
        return
    guard.books.off_loop(partial(_give_back, call_id, run, guard.ledger))
    way_out = "Calls belong inside the run; guard.run() begins another"
    raise BudgetExceeded(RefusalDetails(reason="the run is over", way_out=way_out, run_id=run.id, model=model))


def _give_back(call_id: str, run: Run, ledger: Ledger) -> None:
    try:
        ledger.release(call_id)
        for outer in run.outward():
            if outer.ended:
                outer.account.turn_away()
    except LedgerError as error:
        _log.warning("runcap: a call that was turned away keeps its hold: %s", error)


def missing(card: RateCard, request: Request) -> str | None:
    """What the request will be billed for and the card has no price for."""
    if not card.prices_output:
        return "output tokens"
    if request.audio and not card.prices_audio_output:
        return "audio output"
    return "audio input" if request.prompt.audio and not card.prices_audio_input else None


def hints(refused: Refused, *, shared: bool, request: Request | None) -> Iterator[str]:
    """What is worth saying about the cause, beyond the numbers."""
    details = refused.details
    if (
        details.unit in ("usd", "tokens")
        and details.needed > details.cap
        and request is not None
        and request.output_cap
    ):
        yield f"This call alone may exceed the cap; its max_tokens is {request.output_cap:,}"
    if details.unknown > details.spent:
        yield "Most of it is unknown: calls were cut off, or reported no usage (see ChatOpenAI(stream_usage=True))"
    if shared and isinstance(refused, BudgetExceeded) and details.scope == "run":
        yield "This is the default run, shared by every call outside an agent: guard.run() gives each task its own"
