"""The ladder of models: which rung a run stands on as its money goes. Down only; a top-up lets it climb again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from .ledger import Balance

SwitchAt = Literal["any", "turn"]
"""When a share of the money may move a run down: at any call, or only where a user's turn begins."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One rung of a ladder of models, dearest first: `[Tier(frontier), Tier(mid, at=0.6), Tier(small, at=0.85)]`.

    Args:
        model: a chat model of the framework in use, or a name it can make one of.
        at: entered when this share of the run's dollars is spent or expected in flight. A tier is entered before that
            where the next call fits only there; one without `at` is entered only then.

    Raises:
        TypeError, ValueError: no model, or `at` is no share.
    """

    model: Any
    at: float | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.model is None or self.model == "":
            raise TypeError(f"Tier needs a model or the name of one, got {self.model!r}")
        if self.at is None:
            return
        if isinstance(self.at, bool) or not isinstance(self.at, (int, float)):
            raise TypeError(f"Tier.at must be a share of the run's dollars such as 0.6, got {self.at!r}")
        if not 0 < self.at < 1:
            raise ValueError(f"Tier.at must be a share of the run's dollars between 0 and 1, got {self.at!r}")


def checked_tiers(tiers: Sequence[Tier], switch_at: str, *, dollars: bool) -> tuple[Tier, ...]:
    """The ladder, if it is one.

    Raises:
        TypeError, ValueError: it is none; the message names what is wrong and the fix.
    """
    if switch_at not in ("any", "turn"):
        raise ValueError(f'Guard.switch_at must be "any" or "turn", got {switch_at!r}')
    if isinstance(tiers, Tier) or not isinstance(tiers, Sequence) or not all(isinstance(one, Tier) for one in tiers):
        raise TypeError(f"Guard.tiers must be a sequence of Tier, e.g. [Tier(a), Tier(b, at=0.6)]; got {tiers!r}")
    if not tiers:
        return ()
    if not dollars:
        raise ValueError("Guard.tiers needs dollars to go by: Budget(usd=...)")
    if tiers[0].at is not None:
        raise ValueError(f"the first of Guard.tiers is where a run begins: it takes no at, got at={tiers[0].at}")
    shares = [tier.at for tier in tiers[1:] if tier.at is not None]
    if any(one >= other for one, other in pairwise(shares)):
        raise ValueError(f"Guard.tiers go down as the money goes: each at must be above the one before, got {shares}")
    return tuple(tiers)


def rung_at(tiers: Sequence[Tier], share: float) -> int:
    """The rung that a share of the money calls for."""
    return max((index for index, tier in enumerate(tiers) if tier.at is not None and share >= tier.at), default=0)


def share_used(balances: Sequence[Balance]) -> float:
    """The largest share of any cap in dollars that is spent, unknown, or expected of calls in flight."""
    shares = [
        (one.spent.nano + one.unknown.nano + one.expected.nano) / one.caps.nano for one in balances if one.caps.nano
    ]
    return max(shares, default=0.0)
