"""Where a run is on its way to its cap: what is kept for its last answer, pauses, records, warnings."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runcap.guardrails import Budget, BudgetBusy, BudgetExceeded, Guard, MemoryLedger, Usage
from runcap.guardrails import paused as paused_runs
from runcap.guardrails.amounts import Amounts
from runcap.guardrails.course import LAST_OUTPUT, Course, Purpose
from runcap.guardrails.events import BudgetWarned, RunEnded
from runcap.guardrails.run import Run
from runcap.guardrails.saved import SavedRun, carry_over, catch_up, restore
from runcap.guardrails.testing import ManualClock, Recorder

from .helpers import guard, request

ROOT, LAST = Purpose(root=True), Purpose(last=True, root=True)


def root_request(**more: Any) -> Any:
    return request(purpose=ROOT, may_clamp=True, **more)


def last_request(**more: Any) -> Any:
    return request(purpose=LAST, may_clamp=True, **more)


# The last answer

CALLS = st.lists(
    st.tuples(st.integers(0, 12_000), st.integers(256, 4_000), st.floats(0, 1), st.sampled_from(["settle", "abandon"])),
    min_size=1,
    max_size=30,
)
CAPS = st.one_of(
    st.builds(lambda cents: {"usd": Decimal(cents) / 1_000}, st.integers(2, 400)),
    st.builds(lambda tokens: {"tokens": tokens}, st.integers(1_000, 200_000)),
    st.builds(lambda steps: {"steps": steps}, st.integers(1, 20)),
    st.builds(
        lambda cents, steps: {"usd": Decimal(cents) / 1_000, "steps": steps}, st.integers(2, 400), st.integers(1, 20)
    ),
)


def make_call(g: Guard, call: tuple[int, int, float, str]) -> int | None:
    """The call's prompt; None where it was refused."""
    prompt, cap, share, how = call
    try:
        permit = g.admit(root_request(input_tokens=prompt, output_cap=cap))
    except BudgetExceeded:
        return None
    if how == "abandon":
        permit.abandon("CancelledError")
    else:
        permit.settle(Usage(prompt, int(share * (permit.output_cap or cap))))
    return prompt


def give_last_answer(g: Guard, prompt: int) -> None:
    run = g.default_run
    permit = g.admit(last_request(input_tokens=prompt, output_cap=4_000))
    cap = permit.output_cap
    assert cap is not None
    assert run.min_output_tokens <= cap <= LAST_OUTPUT
    permit.settle(Usage(prompt, cap))
    balance = run.balance
    for unit in range(4):
        most = balance.caps[unit]
        assert most is None or balance.used[unit] <= most


@given(calls=CALLS, caps=CAPS)
@settings(max_examples=150, deadline=None)
def test_there_is_always_room_for_the_last_answer(calls: Any, caps: dict[str, Any]) -> None:
    g = Guard(Budget(**caps, on_breach="finish"), sinks=())
    prompts = [prompt for call in calls if (prompt := make_call(g, call)) is not None]
    if prompts:
        give_last_answer(g, prompts[-1])


@given(calls=CALLS, caps=CAPS)
@settings(max_examples=25, deadline=None)
def test_there_is_room_for_it_whatever_threads_do(calls: Any, caps: dict[str, Any]) -> None:
    g = Guard(Budget(**caps, on_breach="finish"), sinks=())
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda call: _while_busy(g, call), calls))
    prompts = [prompt for prompt in made if prompt is not None]
    if prompts:
        give_last_answer(g, min(prompts))


def _while_busy(g: Guard, call: tuple[int, int, float, str]) -> int | None:
    try:
        return make_call(g, call)
    except BudgetBusy:
        return None


def test_a_sub_agents_call_keeps_the_roots_last_answer_free() -> None:
    g = guard(usd="0.05", on_breach="finish")
    g.admit(root_request(input_tokens=1_000)).settle(Usage(1_000, 10))
    kept = g.default_run.spare
    assert kept.steps == 1
    assert kept.nano > 0
    permit = g.admit(request(input_tokens=0, output_cap=16_000, may_clamp=True))
    free = g.default_run.balance.free(0)
    assert free is not None
    assert free >= kept.nano
    permit.settle(Usage(0, permit.output_cap or 0))


def test_a_small_budget_is_not_kept_whole_for_its_end() -> None:
    """A full last answer on this prompt is 1.6 cents: of a cap of two, a short one is kept."""
    g = guard(usd="0.02", on_breach="finish")
    g.admit(root_request(input_tokens=1_000)).settle(Usage(1_000, 10))
    assert g.default_run.spare.nano <= 20_000_000 * 0.3
    g = guard(usd="1", on_breach="finish")
    g.admit(root_request(input_tokens=1_000)).settle(Usage(1_000, 10))
    assert g.default_run.spare == Amounts(
        nano=(1_250 + LAST_OUTPUT) * 2_500 + LAST_OUTPUT * 10_000, tokens=3_298, steps=1
    )


def test_the_prompt_kept_room_for_is_bounded() -> None:
    g = guard(usd="5", on_breach="finish", finish_max_input=2_000)
    g.admit(root_request(input_tokens=50_000)).settle(Usage(50_000, 10))
    assert g.default_run.spare == Amounts(
        nano=2_000 * 2_500 + LAST_OUTPUT * 10_000, tokens=2_000 + LAST_OUTPUT, steps=1
    )


@pytest.mark.parametrize("on_breach", ["raise", "ask"])
def test_nothing_is_kept_where_there_is_no_last_answer(on_breach: Any) -> None:
    g = guard(steps=2, on_breach=on_breach)
    for _ in range(2):
        g.admit(root_request()).settle(Usage(0, 1))
    assert g.default_run.spare == Amounts()


def test_the_last_answer_is_claimed_once_and_again_after_a_top_up() -> None:
    course = Course()
    assert [course.claim_last(), course.claim_last()] == [True, False]
    course.begin_anew("k", Amounts(steps=1))
    assert [course.claim_last(), course.claim_last()] == [True, False]


def test_the_last_answer_is_no_way_around_a_stop() -> None:
    g = guard(steps=5, on_breach="finish")
    g.default_run.stop("enough")
    with pytest.raises(BudgetExceeded, match="run stopped: enough"):
        g.admit(last_request())


# Records


def spent_run() -> tuple[Guard, Run]:
    g = guard(usd="0.05", steps=9)
    run = g.default_run
    g.admit(request()).settle(Usage(0, 100))
    g.admit(request()).abandon("CancelledError")
    g.admit_tool("t1")
    run.top_up(usd="0.01", steps=2, key="k")
    return g, run


def test_a_saved_run_is_restored_as_it_was() -> None:
    _, run = spent_run()
    saved, other = SavedRun.of(run), guard(usd="0.05", steps=9)
    twin = other.open_run(saved=saved)
    assert twin.id == run.id
    assert (twin.balance.spent, twin.balance.unknown) == (run.balance.spent, run.balance.unknown)
    assert twin.balance.in_flight == 0
    other.admit(request(), twin).settle(Usage(0, 100))
    assert twin.balance.caps == run.balance.caps
    assert twin.steps == run.steps + 1
    assert not twin.top_up(usd="0.01", key="k")
    assert SavedRun.of(twin).top_ups == saved.top_ups


def test_restoring_twice_books_once() -> None:
    _, run = spent_run()
    saved, ledger = SavedRun.of(run), MemoryLedger()
    restore(saved, run, ledger)
    restore(saved, run, ledger)
    assert ledger.balance(f"run:{run.id}").spent == run.balance.spent


def test_what_was_in_flight_is_restored_as_unknown() -> None:
    g = guard()
    permit = g.admit(request())
    saved = SavedRun.of(g.default_run)
    permit.settle(Usage(0, 1))
    twin = guard().open_run(saved=saved)
    assert twin.unknown_usd == Decimal("0.01")
    assert twin.held_usd == 0


def test_a_later_record_adds_what_came_since() -> None:
    g, run = spent_run()
    earlier, other = SavedRun.of(run, "there"), guard(usd="0.05", steps=9)
    g.admit(request()).settle(Usage(0, 50))
    run.top_up(steps=3, key="later")
    later = SavedRun.of(run, "there")
    twin = other.open_run(saved=earlier)
    for record in (earlier, later, later, earlier):
        catch_up(record, twin, other.ledger)
    assert twin.balance.spent == run.balance.spent
    assert twin.balance.unknown == run.balance.unknown
    assert dict(twin.course.top_ups) == dict(run.course.top_ups)


def test_what_was_spent_before_it_was_known_which_run_goes_on_is_carried_over() -> None:
    _, run = spent_run()
    other = guard(usd="0.05", steps=9)
    blank = other.open_run()
    other.admit(request(), blank).settle(Usage(0, 10))
    saved = SavedRun.of(run)
    twin = other.open_run(saved=saved)
    carry_over(saved, blank, other.ledger)
    assert twin.balance.spent == run.balance.spent.plus(blank.balance.spent)


# Pauses


def test_a_pause_does_not_count() -> None:
    clock = ManualClock(start_ns=0)  # a clock that reads zero is a clock all the same
    g = Guard(Budget(seconds=60), sinks=(), clock=clock)
    run = g.default_run
    run.pause()
    clock.advance(1_000)
    assert run.paused
    assert run.elapsed() == 0
    run.pause()
    clock.advance(1_000)
    run.go_on()
    run.go_on()
    assert not run.paused
    clock.advance(59)
    g.admit(request()).settle(Usage(0, 1))
    assert run.seconds_left() == 1
    clock.advance(1)
    with pytest.raises(BudgetExceeded, match="seconds cap"):
        g.admit(request())


def test_paused_runs_wait_by_thread() -> None:
    g = guard()
    first, second = g.open_run(), g.open_run()
    g.paused.put("1", first)
    g.paused.put("2", second)
    assert len(g.paused) == 2
    assert g.paused.take("1") is first
    assert g.paused.take("1") is None
    second.end()
    assert g.paused.take("2") is None
    assert len(g.paused) == 0


def test_a_run_that_waits_in_anothers_place_ends_it() -> None:
    g = guard()
    first, second = g.open_run(), g.open_run()
    g.paused.put("1", first)
    g.paused.put("1", first)
    assert not first.ended
    g.paused.put("1", second)
    assert first.ended
    assert g.paused.take("1") is second


def test_too_many_paused_runs_end_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paused_runs, "_KEPT", 3)
    seen = Recorder()
    g = guard(seen, usd="0.05")
    runs = [g.open_run() for _ in range(5)]
    for number, run in enumerate(runs):
        g.paused.put(str(number), run)
    assert [run.ended for run in runs] == [True, True, False, False, False]
    assert len(seen.of(RunEnded)) == 2


# What the user sets


@pytest.mark.parametrize(
    ("given_", "error", "says"),
    [
        ({"on_breach": "stop"}, ValueError, 'must be "raise", "finish" or "ask", got \'stop\''),
        ({"on_breach": None}, ValueError, "on_breach"),
        ({"finish_max_input": 0}, ValueError, "finish_max_input must be at least 1"),
        ({"finish_max_input": 1.5}, TypeError, "finish_max_input must be a whole number"),
        ({"tell_agent": 1}, TypeError, "tell_agent must be True or False"),
        ({"tell_agent": "yes"}, TypeError, "tell_agent must be True or False"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(given_: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Budget(steps=1, **given_)


def test_on_warning_must_be_callable() -> None:
    wrong: Any = "call me"
    with pytest.raises(TypeError, match="on_warning"):
        Guard(Budget(steps=1), on_warning=wrong)


# Warnings


def test_on_warning_is_called_once_a_share() -> None:
    told: list[BudgetWarned] = []
    g = Guard(Budget(steps=10, warn_at=(0.5, 0.8)), sinks=(), on_warning=told.append)
    for _ in range(10):
        g.admit(request()).settle(Usage(0, 1))
    assert [(one.unit, one.share) for one in told] == [("steps", 0.5), ("steps", 0.8)]


def test_what_on_warning_raises_is_said_once_and_touches_no_call(caplog: pytest.LogCaptureFixture) -> None:
    def fails(warned: BudgetWarned) -> None:
        raise RuntimeError("a pager that is off")

    seen = Recorder()
    g = Guard(Budget(steps=10, warn_at=(0.2, 0.5, 0.8)), sinks=(seen,), on_warning=fails)
    with caplog.at_level(logging.WARNING, logger="runcap"):
        for _ in range(10):
            g.admit(request()).settle(Usage(0, 1))
    assert len(seen.of(BudgetWarned)) == 3
    assert g.default_run.steps == 10
    assert len([one for one in caplog.records if "RuntimeError" in one.getMessage()]) == 1
    assert "pager" not in caplog.text


def test_the_agent_is_told_where_it_is_to_be() -> None:
    for tells in (True, False):
        g = guard(steps=4, warn_at=(0.5,), tell_agent=tells)
        for _ in range(4):
            g.admit(request()).settle(Usage(0, 1))
        assert g.default_run.course.unsaid == (["50% of the budget of this run (steps) is used."] if tells else [])
