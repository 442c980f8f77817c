"""Money: nano-dollar integers inside, exact `Decimal` dollars at the edge.

Integers add up exactly in any order, and stay exact in a Redis Lua number up to 2**53 nano-dollars ($9,007,199).
"""

from __future__ import annotations

from decimal import ROUND_DOWN, Context, Decimal, InvalidOperation

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""

MAX_NANO = 2**53
"""The largest sum held exactly by every ledger, about nine million dollars."""

_TYPES = "a str, int, float or Decimal of dollars"

Money = Decimal | str | int | float
"""What a dollar argument may be. A float is read by its shortest repr, down to a nano-dollar: 0.1 is ten cents."""

_EXACT = Context(prec=60)


def parse_decimal(value: object, name: str) -> Decimal:
    """Read a finite, non-negative number exactly.

    Raises:
        TypeError: `value` is none of the types of `Money` (a bool is none).
        ValueError: it is no number, not finite, or negative.
    """
    if isinstance(value, bool) or not isinstance(value, (Decimal, str, int, float)):
        raise TypeError(f"{name} must be {_TYPES}, got {value!r} ({type(value).__name__})")
    try:
        parsed = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    except InvalidOperation:
        raise ValueError(f'{name} must be a number of dollars such as "0.50", got {value!r}') from None
    if not parsed.is_finite():
        raise ValueError(f"{name} must be finite, got {value!r}")
    if parsed < 0:
        raise ValueError(f"{name} must not be negative, got {value!r}")
    return parsed


def to_nano(value: object, name: str) -> int:
    """Dollars to nano-dollars, exactly.

    Raises:
        TypeError: `value` is none of the types of `Money`.
        ValueError: it is negative, not finite, finer than a nano-dollar, or above nine million dollars.
    """
    parsed = parse_decimal(value, name)
    if parsed > MAX_NANO // NANO:
        raise ValueError(f"{name} must be at most ${MAX_NANO // NANO:,} (kept exactly in every ledger), got {value!r}")
    nano = _EXACT.multiply(parsed, Decimal(NANO))
    if isinstance(value, float):
        nano = nano.to_integral_value(ROUND_DOWN)  # 0.1 + 0.2 means thirty cents, whatever a float makes of it
    if nano != nano.to_integral_value():
        raise ValueError(f"{name} must not be finer than a nano-dollar (0.000000001), got {value!r}")
    return int(nano)


def to_usd(nano: int) -> Decimal:
    """Nano-dollars to dollars, exactly, whatever the caller's decimal context."""
    return _EXACT.divide(Decimal(nano), Decimal(NANO))


def show_usd(nano: int) -> str:
    """`$0.5`, `$0.000292`: every digit, for messages that must add up."""
    usd = to_usd(nano)
    return f"-${-usd:f}" if usd < 0 else f"${usd:f}"
