"""Calls that may have been billed beyond what was charged: listed, and resolved by hand or by rule. Never dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from ..amounts import Amounts
from ..budget import MAX_COUNT
from ..money import Money, to_nano, to_usd
from .records import About, Outcome, UsageRecord

Rule = Literal["seen", "expected", "all"]
"""What an unknown call is settled at: what was charged so far; its expected cost; all that was held for it."""

RULES: tuple[Rule, ...] = ("seen", "expected", "all")

Judge = Callable[["UnknownCall"], Money | None]
"""A rule of one's own: what the call cost in dollars, None to leave it as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownCall:
    """A call whose cost is not fully known. `charged` counts as cost, `unknown` only against the caps.

    `since_ns` is when it was reserved; `expected` what it was expected to cost. `record` is the last revision of its
    usage record.
    """

    call_id: str
    about: About
    accounts: tuple[str, ...]
    since_ns: int
    charged: Amounts
    unknown: Amounts
    expected: Amounts
    record: UsageRecord | None = None

    @property
    def charged_usd(self) -> Decimal:
        """`charged` in dollars."""
        return to_usd(self.charged.nano)

    @property
    def unknown_usd(self) -> Decimal:
        """`unknown` in dollars."""
        return to_usd(self.unknown.nano)

    def by_rule(self, rule: Rule) -> Amounts:
        """What the rule settles it at, never below what was charged."""
        if rule == "all":
            return self.charged.plus(self.unknown)
        if rule == "expected":
            nano, tokens = max(self.charged.nano, self.expected.nano), max(self.charged.tokens, self.expected.tokens)
            return Amounts(nano, tokens)
        return self.charged

    def at(self, usd: Money, tokens: int | None) -> Amounts:
        """What a person says it cost; the tokens as charged unless given.

        Raises:
            TypeError, ValueError: no amount of dollars, or no count.
        """
        if tokens is not None and (type(tokens) is not int or not 0 <= tokens <= MAX_COUNT):
            raise ValueError(f"tokens must be a count from 0 to 2**53, got {tokens!r}")
        return Amounts(to_nano(usd, "usd"), self.charged.tokens if tokens is None else tokens)

    def resolution(self, charge: Amounts, by: str) -> Outcome:
        """The revision that says what became of it."""
        last = self.record
        return Outcome(
            about=self.about,
            state="settled",
            usage=None if last is None else last.usage,
            cost_nano=charge.nano,
            price_source=by,
            latency_ns=None if last is None else last.latency_ns,
            error_type=None if last is None else last.error_type,
            resolved_by=by,
        )


def check_rule(rule: object) -> None:
    """Check the name of a rule, or that it is a function.

    Raises:
        ValueError: it is neither.
    """
    if rule not in RULES and not callable(rule):
        raise ValueError(f'a rule must be "seen", "expected", "all", or a function of an UnknownCall; got {rule!r}')
