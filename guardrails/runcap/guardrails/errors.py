"""Every error of runcap.

    RuncapError
      Refused                 a call was not made; carries the numbers and the way out
        BudgetExceeded        the run (or a limit) is at its cap
        BudgetBusy            the money is held by calls in flight; a later try may fit
        UnpricedModel         a cap in dollars, and no price for the model
        UnboundedCall         a strict budget, and a request that bounds its own cost no further
        LedgerUnavailable     the cap could not be checked
        MissingTag            a limit on a tag that the run does not carry
        LoopHalted            the agent repeats itself, and its `LoopPolicy` halts that

Bad arguments are plain `ValueError` and `TypeError`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Self

from .money import show_usd, to_usd


class RuncapError(Exception):
    """Base of everything runcap raises on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalDetails:
    """The numbers behind a refusal: `usd` in whole nano-dollars, `seconds` as floats, the other units as counts."""

    reason: str
    way_out: str
    run_id: str
    scope: str = "run"
    unit: str | None = None
    cap: float = 0
    spent: float = 0
    held: int = 0
    unknown: int = 0
    needed: int = 0
    model: str | None = None

    def show(self, amount: float) -> str:
        """An amount as a person reads it: dollars, seconds, or a bare count."""
        if self.unit == "usd":
            return show_usd(int(amount))
        return f"{amount:,.1f} s" if self.unit == "seconds" else f"{amount:,}"


class Refused(RuncapError):
    """A call was refused before it was made. Nothing was sent and nothing is charged.

    `cap`, `spent`, `held`, `unknown` and `needed` are `Decimal`: dollars, tokens, steps, tool calls or seconds, as
    `unit` says. `details` has the raw numbers.
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

    def _amount(self, value: float) -> Decimal:
        return to_usd(int(value)) if self.details.unit == "usd" else Decimal(str(value))

    def hinting(self, hint: str) -> Self:
        """The same refusal, whose way out says more."""
        return type(self)(replace(self.details, way_out=f"{self.details.way_out}. {hint}"))

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
    def cap(self) -> Decimal:
        """The cap's value."""
        return self._amount(self.details.cap)

    @property
    def spent(self) -> Decimal:
        """What was settled."""
        return self._amount(self.details.spent)

    @property
    def held(self) -> Decimal:
        """What calls in flight hold."""
        return self._amount(self.details.held)

    @property
    def unknown(self) -> Decimal:
        """What may have been billed and was never confirmed."""
        return self._amount(self.details.unknown)

    @property
    def needed(self) -> Decimal:
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


class MissingTag(Refused):
    """A limit is on a tag that the run does not carry, so that nobody knows what to charge."""


class LoopHalted(Refused):
    """The run was stopped because an agent of it repeats itself (`LoopPolicy(halt=...)`)."""
