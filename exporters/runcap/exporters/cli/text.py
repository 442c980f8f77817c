"""Figures and names as the terminal shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from runcap.guardrails.money import NANO, to_usd

NONE = "-"
"""What stands where there is no figure: never a zero."""

_SECOND = 10**9
_MINUTE = 60.0
_HOUR = 3600.0
_DAY = 86_400.0
_DAY_NS = 86_400 * _SECOND


def clean(text: object) -> str:
    """`text` on one line, with what is no printable character escaped: nothing in it can steer a terminal."""
    return "".join(_escaped(char) if not char.isprintable() else char for char in str(text))


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def decimals(largest_nano: int) -> int:
    """How many decimals a column of dollars needs whose largest entry is this."""
    if largest_nano >= 1_000 * NANO:
        return 2
    return 4 if largest_nano >= NANO else 6


def money(nano: int | None, places: int) -> str:
    """`$1.2345`; what is too small to show but not nothing is `<$0.0001`; `-` for None."""
    if nano is None:
        return NONE
    step = 10 ** (9 - places)
    if 0 < abs(nano) * 2 < step:
        return f"<${to_usd(step):f}"
    shown = to_usd(round(Fraction(abs(nano), step)) * step)
    return f"{'-' if nano < 0 else ''}${shown:,.{places}f}"


def dollars(nano: int | None) -> str | None:
    """Every digit, as JSON and CSV have it: `"0.0125"`; None for None."""
    return None if nano is None else f"{to_usd(nano):f}"


def count(number: int) -> str:
    """`1,234,567`."""
    return f"{number:,}"


def percent(part: int, whole: int) -> str:
    """`12.3 %`; `-` of nothing."""
    return NONE if whole == 0 else f"{Decimal(part) * 100 / Decimal(whole):.1f} %"


def ratio(part: int, whole: int) -> float | None:
    """A share from 0 to 1, to six places; None of nothing."""
    return None if whole == 0 else round(part / whole, 6)


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 call`, `2,000 calls`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def day(time_ns: int) -> str:
    """The day in UTC, `2026-11-26`."""
    return _day(time_ns // _DAY_NS)


@lru_cache(1_024)
def _day(number: int) -> str:
    return _time(number * _DAY_NS).strftime("%Y-%m-%d")


def moment(time_ns: int) -> str:
    """`2026-11-26 12:00:00`, in UTC."""
    return _time(time_ns).strftime("%Y-%m-%d %H:%M:%S")


def iso(time_ns: int | None) -> str | None:
    """As JSON has it, to the microsecond, in UTC."""
    return None if not time_ns else _time(time_ns).isoformat(timespec="microseconds")


def _time(time_ns: int) -> datetime:
    seconds, rest = divmod(time_ns, _SECOND)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1_000)


def lasted(seconds: float) -> str:
    """`0.25 s`, `3 min 5 s`, `2 h 10 min`, `4 d`."""
    if seconds < _MINUTE:  # below zero where clocks differ
        return f"{max(0.0, seconds):.2f} s"
    if seconds < _HOUR:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < _DAY:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{int(seconds // _DAY)} d"
