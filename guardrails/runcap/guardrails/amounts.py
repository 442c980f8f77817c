"""Quantities a ledger keeps: dollars, tokens, steps and tool calls, side by side."""

from __future__ import annotations

from typing import NamedTuple

UNITS = ("usd", "tokens", "steps", "tool_calls")
"""The public names of the fields of `Amounts`, in order."""

HELD_UNITS = 2
"""The first two units are held and then settled; the others count at once, when a call is admitted."""


_new = tuple.__new__  # a named tuple's own constructor costs three times as much, and every call makes a dozen


class Amounts(NamedTuple):
    """A quantity in every unit; `nano` is nano-dollars."""

    nano: int = 0
    tokens: int = 0
    steps: int = 0
    tool_calls: int = 0

    def plus(self, other: Amounts) -> Amounts:
        """The sum, unit by unit."""
        nano, tokens, steps, tool_calls = self
        more, more_tokens, more_steps, more_calls = other
        return _new(Amounts, (nano + more, tokens + more_tokens, steps + more_steps, tool_calls + more_calls))

    def minus(self, other: Amounts) -> Amounts:
        """The difference, unit by unit; may be negative."""
        nano, tokens, steps, tool_calls = self
        less, less_tokens, less_steps, less_calls = other
        return _new(Amounts, (nano - less, tokens - less_tokens, steps - less_steps, tool_calls - less_calls))

    def held_part(self) -> Amounts:
        """Only what is held until settled: dollars and tokens."""
        return _new(Amounts, (self[0], self[1], 0, 0))

    def counted_part(self) -> Amounts:
        """Only what counts at once: steps and tool calls."""
        return _new(Amounts, (0, 0, self[2], self[3]))

    def at_least_zero(self) -> Amounts:
        """Negative units raised to zero."""
        return Amounts(*(max(0, value) for value in self))


ZERO = Amounts()


class Caps(NamedTuple):
    """A cap in every unit; None is no cap."""

    nano: int | None = None
    tokens: int | None = None
    steps: int | None = None
    tool_calls: int | None = None

    def plus(self, extra: Amounts) -> Caps:
        """Raised by `extra`; a unit without a cap stays without one."""
        return Caps(*(None if cap is None else cap + more for cap, more in zip(self, extra, strict=True)))


NO_CAPS = Caps()
