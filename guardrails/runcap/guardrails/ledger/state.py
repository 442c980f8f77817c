"""An account's figures, and what a reservation does to them: one rule for every ledger that decides in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..amounts import NO_CAPS, UNITS, ZERO, Amounts, Caps
from .base import Account, Balance, Offer, Refusal

_new = tuple.__new__  # see amounts


@dataclass(slots=True, eq=False)
class State:
    """An account. `given` are the caps that came with the last call, `caps` those with the top-ups."""

    id: str
    given: Caps = NO_CAPS
    caps: Caps = NO_CAPS
    extra: Amounts = ZERO
    spent: Amounts = ZERO
    held: Amounts = ZERO
    unknown: Amounts = ZERO
    expected: Amounts = ZERO
    in_flight: int = 0
    stopped: str | None = None

    def balance(self) -> Balance:
        """A snapshot."""
        figures = (self.id, self.caps, self.spent, self.held, self.unknown, self.expected, self.in_flight, self.stopped)
        return _new(Balance, figures)

    def give(self, caps: Caps) -> None:
        """The caps a call came with."""
        if self.given is not caps:
            self.given = caps
            self.caps = caps.plus(self.extra)

    def top_up(self, extra: Amounts) -> None:
        """Raise the caps, and let the account go on."""
        self.extra = self.extra.plus(extra)
        self.caps = self.given.plus(self.extra)
        self.stopped = None

    def room(self, wanted: Amounts, least: Amounts, spare: Amounts) -> Amounts | None:
        """`wanted`, cut to what is free beside `spare`; None where not even `least` is."""
        cut = None
        for unit, cap in enumerate(self.caps):
            if cap is None:
                continue
            free = cap - self.spent[unit] - self.held[unit] - self.unknown[unit] - spare[unit]
            if free >= wanted[unit]:
                continue
            if least[unit] > max(free, 0):
                return None
            cut = cut or list(wanted)
            cut[unit] = max(free, 0)
        return wanted if cut is None else Amounts(*cut)

    def hold(self, amount: Amounts, expected: Amounts) -> None:
        """Steps and tool calls count at once; dollars and tokens are held."""
        nano, tokens, steps, tool_calls = amount
        if steps or tool_calls:
            spent_nano, spent_tokens, spent_steps, spent_calls = self.spent
            self.spent = _new(Amounts, (spent_nano, spent_tokens, spent_steps + steps, spent_calls + tool_calls))
        if nano or tokens:
            held, before = self.held, self.expected
            self.held = _new(Amounts, (held[0] + nano, held[1] + tokens, 0, 0))
            self.expected = _new(Amounts, (before[0] + expected[0], before[1] + expected[1], 0, 0))
            self.in_flight += 1

    def land(self, amount: Amounts, expected: Amounts, nano: int, tokens: int) -> None:
        """A hold is over, and this was spent."""
        spent, held, before = self.spent, self.held, self.expected
        self.spent = _new(Amounts, (spent[0] + nano, spent[1] + tokens, spent[2], spent[3]))
        self.held = _new(Amounts, (held[0] - amount[0], held[1] - amount[1], 0, 0))
        self.expected = _new(Amounts, (before[0] - expected[0], before[1] - expected[1], 0, 0))
        self.in_flight -= 1

    def charge(self, nano: int, tokens: int) -> None:
        """Add to what is spent."""
        spent = self.spent
        self.spent = _new(Amounts, (spent[0] + nano, spent[1] + tokens, spent[2], spent[3]))


def decide(
    call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...], states: Sequence[State], *, dead: bool
) -> tuple[int, Amounts] | Refusal:
    """The first offer that every account has room for, by its index, and for how much. Changes nothing.

    `dead`: the call was released before it was reserved.
    """
    last = offers[-1]
    if last.last == "spent" and not dead:
        return 0, last.most
    for account, state in zip(accounts, states, strict=True):
        if dead or (state.stopped is not None and not last.passes(state.stopped)):
            return Refusal(call_id, account, state.balance(), None, last.least)
    for index, offer in enumerate(offers):
        amount: Amounts | None = offer.most
        for state in states:
            amount = amount and state.room(amount, offer.least, offer.spare)
        if amount is not None:
            return index, amount
    return no_room(call_id, last.least.plus(last.spare), accounts, [state.balance() for state in states])


def no_room(call_id: str, least: Amounts, accounts: tuple[Account, ...], balances: Sequence[Balance]) -> Refusal:
    """The refusal of a call that no offer fits for: the first account that lacks room, and in which unit."""
    for account, balance in zip(accounts, balances, strict=True):
        unit = balance.lacking(least)
        if unit is not None:
            return Refusal(call_id, account, balance, unit, least)
    raise AssertionError(
        f"an offer that every account has room for was not granted: {dict(zip(UNITS, least, strict=True))}"
    )
