"""What a top-up adds to a run's caps."""

from __future__ import annotations

from .amounts import ZERO, Amounts
from .budget import MAX_COUNT
from .money import Money, to_nano


def check_top_up(*, usd: Money | None = None, steps: int = 0, tool_calls: int = 0, tokens: int = 0) -> Amounts:
    """What a top-up adds.

    Raises:
        ValueError, TypeError: nothing to add, or no amount.
    """
    nano = 0 if usd is None else to_nano(usd, "top_up(usd)")
    for name, value in (("steps", steps), ("tool_calls", tool_calls), ("tokens", tokens)):
        if type(value) is not int or not 0 <= value <= MAX_COUNT:
            raise ValueError(f"top_up({name}) must be a whole number from 0 to 2**53, got {value!r}")
    extra = Amounts(nano=nano, tokens=tokens, steps=steps, tool_calls=tool_calls)
    if extra == ZERO:
        raise ValueError('top_up needs something to add, e.g. top_up(usd="0.25", key="approval-17")')
    return extra
