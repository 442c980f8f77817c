"""What the ledger's refusals are called, and their numbers."""

from __future__ import annotations

from collections.abc import Sequence

from .amounts import HELD_UNITS, UNITS, Amounts
from .errors import BudgetBusy, BudgetExceeded, LedgerUnavailable, LoopHalted, RefusalDetails, Refused
from .ledger import Account, Balance, LedgerError, Refusal

CAP_PREFIX = "cap:"
"""What a run stopped by its own cap gives as the reason, before the cap's name."""

LOOP_PREFIX = "loop:"
"""What a run stopped for a loop gives as the reason, before the loop."""


def is_final(refusal: Refusal) -> bool:
    """No call in flight can make room: the account is at its cap for good."""
    if refusal.unit is None:
        return False
    return UNITS.index(refusal.unit) >= HELD_UNITS or refusal.balance.in_flight == 0


def refused(refusal: Refusal, model: str | None, *, in_vain: bool = False) -> Refused:
    """The error for a refusal. `in_vain`: it has waited for calls in flight as long as it may."""
    if refusal.unit is None:
        return _stopped(refusal, model)
    if in_vain or _fits_once_settled(refusal):
        way_out = "Calls in flight hold the rest: try again when they are done, make fewer at once (max_concurrency)"
        way_out += ", or allow a longer Budget(max_wait=...)" if in_vain else ""
        reason = "budget busy, waited in vain" if in_vain else "budget busy"
        return BudgetBusy(details(reason, refusal, refusal.unit, way_out, model))
    return BudgetExceeded(
        details("budget exceeded", refusal, refusal.unit, _more(refusal.unit, refusal.account), model)
    )


def _more(unit: str, account: Account) -> str:
    if account.scope != "run":
        until = next((f" the next {per}" for per in ("day", "month") if f"/{per}/" in account.id), "")
        wait = f", or wait for{until}" if until else ""
        return f'The way out: a larger Limit("{account.scope}", {unit}=...){wait}'
    return f'The way out: a larger Budget({unit}=...), or run.top_up({unit}=...) inside "with guard.run() as run:"'


def _stopped(refusal: Refusal, model: str | None) -> Refused:
    reason = refusal.balance.stopped
    if reason is None:
        return BudgetExceeded(details("call already ended", refusal, None, "Its id was released before it came", model))
    if reason.startswith(CAP_PREFIX):
        unit = reason.removeprefix(CAP_PREFIX)
        return BudgetExceeded(details("budget exceeded before", refusal, unit, _more(unit, refusal.account), model))
    if reason.startswith(LOOP_PREFIX):
        return loop_halted(refusal.account, reason, model)
    return BudgetExceeded(details(f"run stopped: {reason}", refusal, None, "run.top_up(...) lets it go on", model))


def loop_halted(account: Account, reason: str, model: str | None = None) -> LoopHalted:
    """The error for a call of a run that was stopped for a loop."""
    way_out = (
        "The agent repeats itself: change its prompt or the tool, raise LoopPolicy(halt=...), or name a tool that "
    )
    way_out += 'may repeat in LoopPolicy(exempt=[...]). run.top_up(...) inside "with guard.run() as run:" lets it go on'
    run_id = account_name(account)
    return LoopHalted(RefusalDetails(reason=reason, way_out=way_out, run_id=run_id, scope=account.scope, model=model))


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


def scarcest(accounts: Sequence[Account], balances: Sequence[Balance]) -> Account:
    """Which of the accounts of a call had the smallest part of a cap left after it was granted."""

    def left(pair: tuple[Account, Balance]) -> float:
        balance = pair[1]
        return min(((balance.free(unit) or 0) / (balance.caps[unit] or 1) for unit in _capped(balance)), default=1.0)

    return min(zip(accounts, balances, strict=True), key=left)[0]


def _capped(balance: Balance) -> list[int]:
    return [unit for unit in range(HELD_UNITS) if balance.caps[unit] is not None]


def cut_short(balance: Balance, account: Account, output_cap: int | None, model: str | None) -> BudgetExceeded:
    """The error for an answer that was cut inside a tool call: paid for, and of no use."""
    capped = next((UNITS[unit] for unit in _capped(balance)), None)
    what = "what is left of the budget" if output_cap is None else f"the {output_cap:,} output tokens left to it"
    way_out = _more(capped, account) if capped else "Let the run go on"
    numbers = unit_numbers(balance, Amounts(), capped) if capped else {}
    return BudgetExceeded(
        RefusalDetails(
            reason=f"an answer was cut inside a tool call by {what}",
            way_out=way_out,
            run_id=account_name(account),
            scope=account.scope,
            unit=capped,
            model=model,
            **numbers,
        )
    )


def account_name(account: Account) -> str:
    """The id people know: the run's own, or the limited tag's value and window."""
    return account.id.partition(":")[2].removeprefix(f"{account.scope}=")


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
