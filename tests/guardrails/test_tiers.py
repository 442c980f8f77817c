from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcap.guardrails import Balance, Budget, Guard, Tier
from runcap.guardrails.amounts import NO_CAPS, Amounts
from runcap.guardrails.course import Course
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.tiers import rung_at, share_used

from .helpers import request

LADDER = (Tier("frontier"), Tier("mid", at=0.6), Tier("small", at=0.85))

Told = list[tuple[str, str | None]]


def telling(told: Told, tier: str) -> Callable[[str | None], None]:
    return lambda before: told.append((tier, before))


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"model": None}, TypeError, "needs a model or the name of one, got None"),
        ({"model": ""}, TypeError, "needs a model or the name of one, got ''"),
        ({"model": "m", "at": "0.6"}, TypeError, "share of the run's dollars such as 0.6, got '0.6'"),
        ({"model": "m", "at": True}, TypeError, "such as 0.6, got True"),
        ({"model": "m", "at": 0}, ValueError, "between 0 and 1, got 0"),
        ({"model": "m", "at": 1}, ValueError, "between 0 and 1, got 1"),
        ({"model": "m", "at": 60}, ValueError, "between 0 and 1, got 60"),
        ({"model": "m", "at": float("nan")}, ValueError, "between 0 and 1, got nan"),
    ],
)
def test_a_bad_tier_is_named(given: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        Tier(**given)


@pytest.mark.parametrize(
    ("tiers", "kind", "says"),
    [
        (Tier("m"), TypeError, r"sequence of Tier, e\.g\. \[Tier\(a\), Tier\(b, at=0\.6\)\]; got Tier"),
        (["gpt-4o"], TypeError, r"sequence of Tier, .* got \['gpt-4o'\]"),
        ("gpt-4o", TypeError, "sequence of Tier, .* got 'gpt-4o'"),
        ({Tier("m")}, TypeError, "sequence of Tier"),
        (None, TypeError, "sequence of Tier, .* got None"),
        ([Tier("m", at=0.5)], ValueError, "where a run begins: it takes no at, got at=0.5"),
        ([Tier("a"), Tier("b", at=0.8), Tier("c", at=0.6)], ValueError, r"above the one before, got \[0.8, 0.6\]"),
        ([Tier("a"), Tier("b", at=0.6), Tier("c", at=0.6)], ValueError, r"above the one before, got \[0.6, 0.6\]"),
        (
            [Tier("a"), Tier("b", at=0.8), Tier("c"), Tier("d", at=0.7)],
            ValueError,
            r"above the one before, got \[0.8, 0.7\]",
        ),
    ],
)
def test_what_is_no_ladder_is_named(tiers: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        Guard(Budget(usd=1), tiers=tiers)


def test_a_ladder_needs_dollars() -> None:
    with pytest.raises(ValueError, match=r"Guard\.tiers needs dollars to go by: Budget\(usd=\.\.\.\)"):
        Guard(Budget(steps=10), tiers=LADDER)


@pytest.mark.parametrize("switch_at", ["never", "", None])
def test_when_to_switch_is_one_of_two(switch_at: Any) -> None:
    with pytest.raises(ValueError, match=r'switch_at must be "any" or "turn", got'):
        Guard(Budget(usd=1), tiers=LADDER, switch_at=switch_at)


def test_ladders_that_are_some() -> None:
    assert Guard(Budget(usd=1), tiers=list(LADDER), switch_at="turn").tiers == LADDER
    assert Guard(Budget(steps=1), tiers=[]).tiers == Guard(Budget(steps=1)).tiers == ()
    assert len(Guard(Budget(usd=1), tiers=[Tier("a"), Tier("b"), Tier("c", at=0.9)]).tiers) == 3


@pytest.mark.parametrize(
    ("share", "rung"), [(0.0, 0), (0.5999, 0), (0.6, 1), (0.8499, 1), (0.85, 2), (1.0, 2), (1.7, 2)]
)
def test_the_rung_of_a_share(share: float, rung: int) -> None:
    assert rung_at(LADDER, share) == rung


def test_a_tier_without_a_share_is_passed_over() -> None:
    tiers = (Tier("a"), Tier("b"), Tier("c", at=0.5), Tier("d"))
    assert [rung_at(tiers, share) for share in (0.4, 0.5, 1.0)] == [0, 2, 2]
    assert rung_at((), 1.0) == rung_at(tiers[:2], 1.0) == 0


def balance(cap: int | None, *, spent: int = 0, unknown: int = 0, expected: int = 0, held: int = 0) -> Balance:
    return Balance(
        "run:1",
        NO_CAPS._replace(nano=cap),
        Amounts(nano=spent),
        Amounts(nano=held),
        Amounts(nano=unknown),
        Amounts(nano=expected),
    )


def test_the_share_is_what_is_spent_unknown_or_expected() -> None:
    assert share_used([balance(100, spent=10, unknown=20, expected=30, held=90)]) == pytest.approx(0.6)


def test_the_largest_share_of_all_caps_counts() -> None:
    assert share_used([balance(100, spent=10), balance(20, spent=10), balance(None, spent=99)]) == 0.5
    assert share_used([balance(None, spent=5)]) == share_used([]) == 0.0


def test_calls_in_flight_count_as_expected() -> None:
    guard = Guard(Budget(usd="0.05"), sinks=())
    with guard.run() as run:
        guard.typical_output.add("gpt-4o", 100)
        permit = guard.admit(request(output_cap=1000, prompt=Prompt(measured=4000)))
        assert share_used([run.balance]) == pytest.approx((4000 * 2.5e-6 + 100 * 10e-6) / 0.05)
        assert run.held_usd > run.balance.expected.nano / 10**9
        permit.release()
        assert share_used([run.balance]) == 0.0


def test_a_run_goes_down_once_for_each_rung() -> None:
    course, told = Course(), Told()
    for rung, tier in [(0, "frontier"), (0, "frontier"), (1, "mid"), (1, "mid"), (0, "frontier"), (2, "small")]:
        course.descend(rung, tier, telling(told, tier))
    assert told == [("mid", "frontier"), ("small", "mid")]
    assert (course.rung, course.tier) == (2, "small")


def test_anew_after_a_top_up() -> None:
    course, told = Course(), Told()
    course.descend(0, "frontier", telling(told, "frontier"))
    course.descend(2, "small", telling(told, "small"))
    assert course.claim_last()
    assert not course.claim_last()
    course.begin_anew("key", Amounts(nano=5))
    assert (course.rung, course.tier, course.top_ups) == (0, None, {"key": Amounts(nano=5)})
    assert course.claim_last()
    course.descend(0, "frontier", telling(told, "frontier"))
    assert course.tier == "frontier"
    course.descend(1, "mid", telling(told, "mid"))
    assert told == [("small", "frontier"), ("mid", "frontier")]


@given(st.lists(st.floats(0, 1.2), max_size=60))
def test_however_the_share_moves_a_run_never_goes_up(shares: list[float]) -> None:
    course, told, rungs = Course(), Told(), [0]
    for share in shares:
        rung = max(course.rung, rung_at(LADDER, share))
        course.descend(rung, str(LADDER[rung].model), telling(told, str(LADDER[rung].model)))
        rungs.append(course.rung)
    assert rungs == sorted(rungs)
    assert rungs[-1] == rung_at(LADDER, max(shares, default=0))
    assert len(told) == len({tier for tier, _ in told}) == len(set(rungs)) - 1
    assert course.tier == (LADDER[rungs[-1]].model if shares else None)


def test_threads_go_down_together_and_it_is_told_once() -> None:
    for _ in range(50):
        course, told, gate = Course(), Told(), threading.Barrier(8)
        course.descend(0, "frontier", telling(told, "frontier"))

        def go(course: Course = course, told: Told = told, gate: threading.Barrier = gate) -> None:
            gate.wait()
            for rung in (0, 1, 2, 1, 0):
                course.descend(rung, str(LADDER[rung].model), telling(told, str(LADDER[rung].model)))

        threads = [threading.Thread(target=go) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (course.rung, course.tier) == (2, "small")
        assert max(told)[0] == "small"
        assert len(told) == len({tier for tier, _ in told}) <= 2
