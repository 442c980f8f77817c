"""Every error of runcap.

    RuncapError
      Refused                 a call was not made; carries the numbers and the way out
        BudgetExceeded        the run (or a limit) is at its cap
        BudgetBusy            the money is held by calls in flight; a later try may fit
        UnpricedModel         a cap in dollars, and no price for the model
        UnboundedCall         a strict budget, and a request that bounds its own cost no further
        LedgerUnavailable     the cap could not be checked

Bad arguments are plain `ValueError` and `TypeError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from .money import show_usd, to_usd


class RuncapError(Exception):
    """Base of everything runcap raises on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalDetails:
    """The numbers behind a refusal. Amounts are in the unit's own integers, `usd` in nano-dollars."""

    reason: str
    way_out: str
    run_id: str
    scope: str = "run"
    unit: str | None = None
    cap: int = 0
    spent: int = 0
    held: int = 0
    unknown: int = 0
    needed: int = 0
    model: str | None = None

    def show(self, amount: int) -> str:
        """An amount as a person reads it: dollars, seconds, or a bare count."""
        if self.unit == "usd":
            return show_usd(amount)
        return f"{amount:,} s" if self.unit == "seconds" else f"{amount:,}"


class Refused(RuncapError):
    """A call was refused before it was made. Nothing was sent and nothing is charged.

    `cap`, `spent`, `held`, `unknown` and `needed` are `Decimal` dollars when `unit` is `"usd"`, otherwise ints
    (tokens, steps, tool calls, whole seconds). `details` has the raw integers.
    """

    def __init__(self, details: RefusalDetails) -> None:
        super().__init__(details)
        self.details = details

    def __str__(self) -> str:
        d = self.details
        numbers = ""
        if d.unit is not None:
            numbers = f": {d.unit} cap {d.show(d.cap)}, spent {d.show(d.spent)}"
            if d.unit in ("usd", "tokens"):
                numbers += f", held {d.show(d.held)}, unknown {d.show(d.unknown)}"
            numbers += f", this call needs {d.show(d.needed)}" if d.needed else ""
        return f"{d.reason} ({d.scope} {d.run_id}){numbers}. {d.way_out}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def _amount(self, value: int) -> Decimal | int:
        return to_usd(value) if self.details.unit == "usd" else value

    @property
    def run_id(self) -> str:
        """The run whose call was refused."""
        return self.details.run_id

    @property
    def scope(self) -> str:
        """`"run"`, or the limit's scope."""
        return self.details.scope

    @property
    def unit(self) -> str | None:
        """What ran out: `usd`, `tokens`, `steps`, `tool_calls`, `seconds`; None where no cap was the cause."""
        return self.details.unit

    @property
    def cap(self) -> Decimal | int:
        """The cap's value."""
        return self._amount(self.details.cap)

    @property
    def spent(self) -> Decimal | int:
        """What was settled."""
        return self._amount(self.details.spent)

    @property
    def held(self) -> Decimal | int:
        """What calls in flight hold."""
        return self._amount(self.details.held)

    @property
    def unknown(self) -> Decimal | int:
        """What may have been billed and was never confirmed."""
        return self._amount(self.details.unknown)

    @property
    def needed(self) -> Decimal | int:
        """What this call would have needed."""
        return self._amount(self.details.needed)


class BudgetExceeded(Refused):
    """The cap has no room for this call, and no call in flight will make any."""


class BudgetBusy(Refused):
    """There would be room once the calls in flight settle at their expected cost. The run is not stopped."""


class UnpricedModel(Refused):
    """No price is known for this model, and a cap in dollars cannot be kept without one."""


class UnboundedCall(Refused):
    """`Budget(strict=True)`, and the request does not bound its own cost."""


class LedgerUnavailable(Refused):
    """The ledger could not answer, so the cap could not be checked; the call is refused."""
