"""What the user sets: the caps of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

from .amounts import Caps
from .money import MAX_NANO, Money, to_nano, to_usd

OnBreach = Literal["raise", "finish", "ask"]
"""How an agent ends at its cap."""

MAX_COUNT = 2**53
"""The largest number every ledger keeps exactly."""


@dataclass(frozen=True, slots=True, init=False)
class Budget:
    """Caps on one run. Each defaults to none; at least one is given.

    Args:
        usd: dollars of model calls, finest a nano-dollar.
        steps: model calls admitted, by whomever in the run; every attempt counts.
        tool_calls: tool calls admitted.
        tokens: input plus output tokens.
        seconds: wall clock from the run's start to the last admission.
        warn_at: shares of any cap, between 0 and 1, at which a `BudgetWarned` event is emitted, once each.
        max_wait: seconds a call may wait for money that calls in flight hold; None for as long as they may settle, 0
            for not at all. Waiting takes a middleware or a guarded model.
        min_output_tokens: the smallest output cap a call is cut to when the rest of the budget affords no more.
        on_breach: how an agent with a `BudgetMiddleware` ends at its cap. `"raise"` raises `BudgetExceeded`. `"finish"`
            keeps room for one last answer, without tools, in which the agent says what is done and what is left.
            `"ask"` interrupts the graph with the numbers, and goes on with what the answer adds to the caps.
        finish_max_input: tokens of prompt that a last answer is kept room for, at most.
        tell_agent: the agent is told in its next prompt when a share of `warn_at` is reached.
        strict: refuse calls whose cost the request does not bound (see "What a cap guarantees" in the README).

    Raises:
        TypeError: a cap of the wrong type.
        ValueError: no cap at all, or a cap that is zero, negative, not finite or absurdly large.
    """

    usd: Decimal | None
    steps: int | None
    tool_calls: int | None
    tokens: int | None
    seconds: float | None
    warn_at: tuple[float, ...]
    max_wait: float | None
    min_output_tokens: int
    on_breach: OnBreach
    finish_max_input: int
    tell_agent: bool
    strict: bool

    def __init__(
        self,
        *,
        usd: Money | None = None,
        steps: int | None = None,
        tool_calls: int | None = None,
        tokens: int | None = None,
        seconds: float | None = None,
        warn_at: Sequence[float] = (0.8,),
        max_wait: float | None = None,
        min_output_tokens: int = 256,
        on_breach: OnBreach = "raise",
        finish_max_input: int = 16_000,
        tell_agent: bool = False,
        strict: bool = False,
    ) -> None:
        if usd is None and steps is None and tool_calls is None and tokens is None and seconds is None:
            raise ValueError(
                "Budget needs at least one cap: usd, steps, tool_calls, tokens or seconds, "
                'e.g. Budget(usd="0.50", steps=25)'
            )
        _set(self, "usd", None if usd is None else dollars(usd, "Budget.usd"))
        _set(self, "steps", count(steps, "Budget.steps"))
        _set(self, "tool_calls", count(tool_calls, "Budget.tool_calls"))
        _set(self, "tokens", count(tokens, "Budget.tokens"))
        _set(self, "seconds", _seconds(seconds, "seconds"))
        _set(self, "max_wait", _seconds(max_wait, "max_wait", zero=True))
        _set(self, "min_output_tokens", count(min_output_tokens, "Budget.min_output_tokens"))
        _set(self, "warn_at", shares(warn_at, "Budget.warn_at"))
        if on_breach not in get_args(OnBreach):
            raise ValueError(f'Budget.on_breach must be "raise", "finish" or "ask", got {on_breach!r}')
        _set(self, "on_breach", on_breach)
        _set(self, "finish_max_input", count(finish_max_input, "Budget.finish_max_input"))
        _set(self, "tell_agent", _flag(tell_agent, "tell_agent"))
        _set(self, "strict", _flag(strict, "strict"))

    @property
    def caps(self) -> Caps:
        """The caps a ledger keeps (all but the clock), dollars in nano-dollars."""
        nano = None if self.usd is None else to_nano(self.usd, "usd")
        return Caps(nano=nano, tokens=self.tokens, steps=self.steps, tool_calls=self.tool_calls)

    @property
    def watched(self) -> tuple[tuple[int, float], ...]:
        """Each capped unit with each share of it to warn at; a cap can be raised, but not come or go."""
        capped = [unit for unit, cap in enumerate(self.caps) if cap is not None]
        return tuple((unit, share) for share in self.warn_at for unit in capped)


def _set(budget: Budget, name: str, value: object) -> None:
    object.__setattr__(budget, name, value)


def dollars(value: Money, name: str) -> Decimal:
    """A cap in dollars.

    Raises:
        TypeError, ValueError: it is none; see `money.to_nano`.
    """
    nano = to_nano(value, name)
    if nano == 0:
        raise ValueError(f"{name} must be above zero, got {value!r}; to forbid model calls altogether, attach none")
    return to_usd(min(nano, MAX_NANO))


def count(value: object, name: str) -> int | None:
    """A cap in whole numbers; None is none.

    Raises:
        TypeError, ValueError: it is no whole number, or not between 1 and 2**53.
    """
    if value is None:
        return None
    if type(value) is not int:
        raise TypeError(f"{name} must be a whole number, got {value!r} ({type(value).__name__})")
    if not 1 <= value <= MAX_COUNT:
        raise ValueError(f"{name} must be at least 1 and at most 2**53, got {value}")
    return value


def _flag(value: object, name: str) -> bool:
    if type(value) is not bool:
        raise TypeError(f"Budget.{name} must be True or False, got {value!r}")
    return value


def _seconds(value: object, name: str, *, zero: bool = False) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Budget.{name} must be a number of seconds, got {value!r} ({type(value).__name__})")
    if not math.isfinite(value) or value < 0 or not (value or zero):
        least = "zero or more" if zero else "above zero"
        raise ValueError(f"Budget.{name} must be finite and {least}, got {value!r}")
    return float(value)


def shares(values: Sequence[float], name: str) -> tuple[float, ...]:
    """Shares of a cap to warn at, in order.

    Raises:
        TypeError, ValueError: not a sequence, or one is not between 0 and 1.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of shares such as (0.5, 0.8), got {values!r}")
    for share in values:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise ValueError(f"{name} holds shares between 0 and 1, got {share!r}")
    return tuple(sorted({float(share) for share in values}))
