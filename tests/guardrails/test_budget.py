from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcap.guardrails import Budget, Guard, PriceBook
from runcap.guardrails.money import MAX_NANO, show_usd, to_nano, to_usd


@pytest.mark.parametrize(
    ("kwargs", "kind", "says"),
    [
        ({}, ValueError, "at least one cap"),
        ({"usd": "NaN"}, ValueError, "finite"),
        ({"usd": float("nan")}, ValueError, "finite"),
        ({"usd": float("inf")}, ValueError, "finite"),
        ({"usd": -1}, ValueError, "negative"),
        ({"usd": 0}, ValueError, "above zero"),
        ({"usd": "ten"}, ValueError, "'ten'"),
        ({"usd": 10**12}, ValueError, r"at most \$9,007,199"),
        ({"usd": "0.0000000001"}, ValueError, "nano-dollar"),
        ({"usd": True}, TypeError, "True"),
        ({"usd": [1]}, TypeError, "list"),
        ({"steps": 0}, ValueError, "at least 1"),
        ({"steps": -3}, ValueError, "-3"),
        ({"steps": 2.5}, TypeError, "whole number"),
        ({"steps": "25"}, TypeError, "'25'"),
        ({"steps": True}, TypeError, "True"),
        ({"tokens": 2**60}, ValueError, "2\\*\\*53"),
        ({"tool_calls": 0}, ValueError, "tool_calls"),
        ({"seconds": float("nan")}, ValueError, "finite"),
        ({"seconds": 0}, ValueError, "above zero"),
        ({"seconds": "60"}, TypeError, "seconds"),
        ({"usd": 1, "warn_at": (0.8, 1.5)}, ValueError, "1.5"),
        ({"usd": 1, "warn_at": "0.8"}, TypeError, "sequence"),
        ({"usd": 1, "strict": "yes"}, TypeError, "strict"),
    ],
)
def test_bad_budgets_are_named_at_construction(kwargs: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        Budget(**kwargs)


def test_dollars_are_exact_whatever_they_come_as() -> None:
    assert Budget(usd=0.1).usd == Budget(usd="0.10").usd == Decimal("0.1")
    assert Budget(usd=1).caps.nano == 1_000_000_000
    assert Budget(usd=0.1 + 0.2).usd == Decimal("0.3")
    assert Budget(usd=1 / 3).caps.nano == 333_333_333


def test_the_guard_takes_a_budget_only() -> None:
    with pytest.raises(TypeError, match="needs a Budget"):
        Guard("0.50")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unscoped"):
        Guard(Budget(usd=1), unscoped="maybe")  # type: ignore[arg-type]


def test_tags_are_strings() -> None:
    guard = Guard(Budget(usd=1), sinks=())
    with pytest.raises(TypeError, match="tag user"):
        guard.run(user=7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="budget must be a Budget"):
        guard.run(budget="1")  # type: ignore[arg-type]


def test_bad_overrides_are_named() -> None:
    with pytest.raises(ValueError, match="price of 'mine' is wrong: input"):
        PriceBook(overrides={"mine": {"input": "-1", "output": "2"}})
    with pytest.raises(ValueError, match="ouput"):
        PriceBook(overrides={"mine": {"input": "1", "ouput": "2"}})


@given(st.integers(0, MAX_NANO - 10**9))
def test_nano_dollars_round_trip_in_any_decimal_context(nano: int) -> None:
    with localcontext() as context:
        context.prec = 5
        assert to_nano(to_usd(nano), "usd") == nano


def test_money_is_shown_in_full() -> None:
    assert show_usd(292_000) == "$0.000292"
    assert show_usd(100_000_000_000) == "$100"
    assert show_usd(-500_000_000) == "-$0.5"
