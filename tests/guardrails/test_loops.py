"""Loops as the core sees them: which repetitions are told, what is halted, and for whom."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcap.exporters import LogSink
from runcap.guardrails import (
    Budget,
    CallRefused,
    Guard,
    Loop,
    LoopHalted,
    LoopPolicy,
    LoopWarned,
    RunStopped,
)
from runcap.guardrails.ledger import LedgerError, MemoryLedger
from runcap.guardrails.loops import LoopWatch
from runcap.guardrails.testing import Recorder

from .helpers import request


@pytest.mark.parametrize(
    ("kwargs", "kind", "says"),
    [
        ({"warn": 1}, ValueError, "warn must be at least 2.*got 1"),
        ({"warn": 0}, ValueError, "got 0"),
        ({"warn": 2.5}, TypeError, "warn must be a whole number, got 2.5"),
        ({"warn": True}, TypeError, "True"),
        ({"warn": None}, TypeError, "None"),
        ({"halt": 1}, ValueError, "halt must be at least 2"),
        ({"halt": "5"}, TypeError, "'5'"),
        ({"halt": True}, TypeError, "True"),
        ({"nudge": "yes"}, TypeError, "nudge must be True or False"),
        ({"exempt": "poll"}, TypeError, r'exempt must be a sequence.*\["poll"\], got \'poll\''),
        ({"exempt": b"poll"}, TypeError, "exempt"),
        ({"exempt": {"poll": 1}}, TypeError, "exempt"),
        ({"exempt": 7}, TypeError, "exempt"),
        ({"exempt": ["poll", 7]}, TypeError, "names of tools, got 7"),
    ],
)
def test_bad_policies_are_named_at_construction(kwargs: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        LoopPolicy(**kwargs)


def test_policies_are_values() -> None:
    assert LoopPolicy() == LoopPolicy(3, None, nudge=False, exempt=[])
    assert LoopPolicy(2, 4, exempt=["a", "b"]) == LoopPolicy(warn=2, halt=4, exempt={"b", "a"})
    with pytest.raises(AttributeError):
        LoopPolicy().warn = 5  # type: ignore[misc]
    with pytest.raises(TypeError, match=r"Guard\.loops must be a LoopPolicy"):
        Guard(Budget(usd=1), loops=3)  # type: ignore[arg-type]
    assert Guard(Budget(usd=1)).loops is None


def told(calls: str, policy: LoopPolicy | None = None) -> list[tuple[int, Loop]]:
    """What is told of a row of calls, a letter each: after how many calls, and what."""
    watch = LoopWatch(policy or LoopPolicy())
    found = [(number, watch.called(letter, ord(letter))) for number, letter in enumerate(calls, 1)]
    return [(number, loop) for number, loop in found if loop is not None]


def test_repeats_and_cycles() -> None:
    assert told("AA") == told("ABAB") == told("ABCABC") == told("ABCABDABE") == []
    assert told("xAAA") == [(4, Loop("repeat", 3, 1, ("A",)))]
    assert told("xABABAB") == [(7, Loop("cycle", 3, 2, ("A", "B")))]
    assert told("xABCABCABC") == [(10, Loop("cycle", 3, 3, ("A", "B", "C")))]
    assert told("AABAABAAB") == [(9, Loop("cycle", 3, 3, ("A", "A", "B")))]
    assert told("ABCDABCDABCD") == []


def test_what_goes_on_is_told_again_after_as_many_more() -> None:
    assert told("A" * 11) == [(number, Loop("repeat", number, 1, ("A",))) for number in (3, 6, 9)]
    assert [number for number, _ in told("AB" * 7)] == [6, 12]
    assert [number for number, _ in told("AAAbAAAA")] == [3, 7]


def test_from_halt_on_every_repetition_is_told() -> None:
    assert [number for number, _ in told("A" * 8, LoopPolicy(warn=3, halt=5))] == [3, 5, 6, 7, 8]
    assert [number for number, _ in told("A" * 4, LoopPolicy(warn=3, halt=2))] == [2, 3, 4]
    policy = LoopPolicy(halt=4)
    assert [policy.halts(times) for times in (3, 4, 5)] == [False, True, True]
    assert not LoopPolicy().halts(10**9)


def test_exempt_tools_neither_count_nor_interrupt() -> None:
    policy = LoopPolicy(exempt=["p"])
    assert told("pppppp", policy) == []
    assert told("ApAppA", policy) == [(6, Loop("repeat", 3, 1, ("A",)))]
    watch = LoopWatch(policy)
    assert [watch.failed("p", 1) for _ in range(5)] == [None] * 5


def test_other_arguments_are_other_calls() -> None:
    watch = LoopWatch(LoopPolicy())
    assert [watch.called("search", number) for number in range(9)] == [None] * 9


def test_errors_count_for_each_tool_until_it_does_otherwise() -> None:
    watch = LoopWatch(LoopPolicy())
    assert [watch.failed("a", 1), watch.failed("b", 1), watch.failed("a", 1), watch.failed("b", 1)] == [None] * 4
    assert watch.failed("a", 1) == Loop("error", 3, 1, ("a",))
    watch.succeeded("b")
    assert [watch.failed("b", 1), watch.failed("b", 1), watch.failed("b", 2), watch.failed("b", 1)] == [None] * 4
    assert watch.failed("a", 1) is watch.failed("a", 1) is None
    assert watch.failed("a", 1) == Loop("error", 6, 1, ("a",))


def test_memory_is_bounded_by_no_number_of_calls_or_names() -> None:
    watch = LoopWatch(LoopPolicy(halt=1000))
    for number in range(5000):
        watch.called(f"tool {number}", number)
        watch.failed(f"tool {number}", number)
    assert (len(watch._last), len(watch._matched), len(watch._errors)) == (3, 4, 64)


def oracle(calls: list[tuple[str, int]], policy: LoopPolicy) -> Loop | None:
    """By definition: how many copies of its last block, itself no repetition, does the row end in?"""
    for period in (3, 2, 1):
        block = calls[-period:]
        if len(block) < period or (period > 1 and len(set(block)) == 1):
            continue
        now, before = copies(calls, period), copies(calls[:-1], period)
        if now > before and now > 1 and (now % policy.warn == 0 or policy.halts(now)):
            return Loop("cycle" if period > 1 else "repeat", now, period, tuple(name for name, _ in block))
    return None


def copies(calls: list[tuple[str, int]], period: int) -> int:
    block, count = calls[-period:], 0
    while block and calls[len(calls) - period * (count + 1) : len(calls) - period * count] == block:
        count += 1
        if period * (count + 1) > len(calls):
            break
    return count if len(block) == period else 0


CALLS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1)), max_size=40)
ROWS = st.lists(st.tuples(CALLS.map(lambda calls: calls[:4]), st.integers(1, 7)), max_size=8).map(
    lambda blocks: [call for block, times in blocks for call in block * times]
)
POLICIES = st.builds(LoopPolicy, st.integers(2, 5), st.none() | st.integers(2, 7))


@given(CALLS | ROWS, POLICIES)
def test_the_watch_tells_what_the_definition_says(calls: list[tuple[str, int]], policy: LoopPolicy) -> None:
    watch = LoopWatch(policy)
    for number, call in enumerate(calls, 1):
        assert watch.called(*call) == oracle(calls[:number], policy)


@given(CALLS | ROWS, POLICIES, st.data())
def test_exempt_calls_change_nothing(calls: list[tuple[str, int]], policy: LoopPolicy, data: st.DataObject) -> None:
    exempting = LoopPolicy(policy.warn, policy.halt, exempt=["p"])
    plain, watch = LoopWatch(policy), LoopWatch(exempting)
    for call in calls:
        for _ in range(data.draw(st.integers(0, 2))):
            assert watch.called("p", 0) is None
        assert watch.called(*call) == plain.called(*call)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.none() | st.integers(0, 1)), max_size=40), POLICIES)
def test_errors_on_end(outcomes: list[tuple[str, int | None]], policy: LoopPolicy) -> None:
    watch = LoopWatch(policy)
    for number, (name, error) in enumerate(outcomes, 1):
        if error is None:
            watch.succeeded(name)
            continue
        own = [other for tool, other in outcomes[:number] if tool == name][::-1]
        times = next((index for index, other in enumerate(own) if other != error), len(own))
        expected = Loop("error", times, 1, (name,))
        assert watch.failed(name, error) == (expected if policy.tells(times) else None)


def test_threads_count_every_call_once() -> None:
    watch, found = LoopWatch(LoopPolicy(warn=100)), list[Loop | None]()

    def work() -> None:
        found.extend(watch.called("a", 1) for _ in range(100))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(loop.times for loop in found if loop) == [100 * number for number in range(1, 9)]


# In a guard


def watching(policy: LoopPolicy | None, **more: Any) -> tuple[Guard, Recorder]:
    seen = Recorder()
    return Guard(Budget(steps=100), loops=policy, sinks=(seen,), **more), seen


def test_a_guard_warns_by_an_event_without_arguments() -> None:
    guard, seen = watching(LoopPolicy())
    with guard.run(task="t") as run:
        assert [guard.saw_tool_call(run, "search", 12345, "agent") for _ in range(2)] == [None, None]
        loop = guard.saw_tool_call(run, "search", 12345, "agent")
        assert loop == Loop("repeat", 3, 1, ("search",))
        (warned,) = seen.of(LoopWarned)
        assert (warned.run, warned.parent_id, warned.loop, warned.halted) == (run.info, "agent", loop, False)
        assert run.stopped is None
        guard.admit(request()).release()
    assert "12345" not in repr(seen.events)


def test_a_guard_without_a_policy_looks_at_nothing() -> None:
    guard, seen = watching(None)
    with guard.run() as run:
        for _ in range(9):
            assert guard.saw_tool_call(run, "search", 1) is guard.looping.failed(run, "search", 1) is None
            guard.looping.succeeded(run, "search")
        assert guard.looping.untold(run, None) is None
        assert run.notes == {}
    assert seen.of(LoopWarned) == []


def test_a_halted_loop_stops_the_run_until_a_top_up() -> None:
    guard, seen = watching(LoopPolicy(halt=3))
    with guard.run() as run:
        guard.saw_tool_call(run, "search", 1)
        guard.saw_tool_call(run, "search", 1)
        with pytest.raises(LoopHalted, match=r"loop: search called 3 times with the same arguments") as caught:
            guard.saw_tool_call(run, "search", 1)
        assert run.stopped == "loop: search called 3 times with the same arguments"
        assert run.stopping
        assert caught.value.run_id == run.id
        for way_out in ("prompt", "LoopPolicy(halt=...)", "exempt=[...]", "run.top_up(...)"):
            assert way_out in str(caught.value)
        with pytest.raises(LoopHalted, match="search called 3 times"):
            guard.admit(request())
        with pytest.raises(LoopHalted):
            guard.admit_tool("t1", run)
        assert guard.saw_tool_call(run, "search", 1) is None  # refused anyway, and by the books
        assert [event.halted for event in seen.of(LoopWarned)] == [True]
        assert [event.reason for event in seen.of(RunStopped)] == [run.stopped]
        assert {event.kind for event in seen.of(CallRefused)} == {"LoopHalted"}

        run.top_up(steps=1)
        guard.admit(request()).release()
        assert [guard.saw_tool_call(run, "search", 1) for _ in range(2)] == [None, None]
        with pytest.raises(LoopHalted):
            guard.saw_tool_call(run, "search", 1)


def test_a_halted_error_is_not_raised_but_stops_the_run() -> None:
    guard, seen = watching(LoopPolicy(halt=3))
    with guard.run() as run:
        found = [guard.looping.failed(run, "search", 7) for _ in range(5)]
        assert found == [None, None, Loop("error", 3, 1, ("search",)), None, None]
        with pytest.raises(LoopHalted, match="search failed 3 times with the same error"):
            guard.admit(request())
    assert [event.halted for event in seen.of(LoopWarned)] == [True]


def test_a_success_ends_a_row_of_errors() -> None:
    guard, seen = watching(LoopPolicy(halt=3))
    with guard.run() as run:
        for _ in range(4):
            guard.looping.failed(run, "search", 7)
            guard.looping.failed(run, "search", 7)
            guard.looping.succeeded(run, "search")
    assert seen.of(LoopWarned) == []


def test_agents_and_runs_are_watched_each_for_itself() -> None:
    guard, seen = watching(LoopPolicy(halt=3))
    with guard.run() as one:
        for agent in ("a", "b", "c", None):
            guard.saw_tool_call(one, "search", 1, agent)
            guard.saw_tool_call(one, "search", 1, agent)
    with guard.run() as other:
        guard.saw_tool_call(other, "search", 1, "a")
    assert seen.of(LoopWarned) == []


def test_the_agents_of_a_run_that_are_watched_are_bounded() -> None:
    guard, seen = watching(LoopPolicy(warn=2))
    with guard.run() as run:
        guard.saw_tool_call(run, "search", 1, "root")
        for number in range(1500):
            guard.saw_tool_call(run, "search", 1, f"sub {number}")
        (agents,) = run.notes.values()
        assert len(agents._by_id) == 1024
    assert run.notes == {}
    assert seen.of(LoopWarned) == []


def test_a_note_for_the_agent_is_given_once_and_only_with_nudge() -> None:
    guard, _ = watching(LoopPolicy(warn=2, nudge=True))
    with guard.run() as run:
        assert guard.looping.untold(run, "a") is None
        guard.saw_tool_call(run, "search", 1, "a")
        loop = guard.saw_tool_call(run, "search", 1, "a")
        assert guard.looping.untold(run, "b") is None
        assert guard.looping.untold(run, "a") == loop is not None
        assert guard.looping.untold(run, "a") is None
    guard, _ = watching(LoopPolicy(warn=2))
    with guard.run() as run:
        guard.saw_tool_call(run, "search", 1, "a")
        guard.saw_tool_call(run, "search", 1, "a")
        assert guard.looping.untold(run, "a") is None


def test_a_ledger_that_fails_to_stop_the_run_lets_no_halted_call_through(caplog: pytest.LogCaptureFixture) -> None:
    class Deaf(MemoryLedger):
        def stop(self, account_id: str, reason: str) -> None:
            raise LedgerError("gone")

    guard, _ = watching(LoopPolicy(halt=2), ledger=Deaf())
    with guard.run() as run:
        guard.saw_tool_call(run, "search", 1)
        with pytest.raises(LoopHalted):
            guard.saw_tool_call(run, "search", 1)
    assert "the ledger does not know yet that a run was stopped; its next call says so: gone" in caplog.text


def test_the_log_has_a_line_a_loop() -> None:
    class Stream:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None: ...

    stream: Any = Stream()
    guard = Guard(Budget(steps=9), loops=LoopPolicy(warn=2), sinks=(LogSink(stream=stream, format="logfmt"),))
    with guard.run() as run:
        for name in ("a", "b", "a", "b"):
            guard.saw_tool_call(run, name, 987654)
    assert "event=loop" in stream.text
    assert "kind=cycle times=2 tools=a,b halted=false" in stream.text
    assert "987654" not in stream.text


def test_of_calls_at_once_one_halts_the_run() -> None:
    guard, seen = watching(LoopPolicy(warn=100, halt=5))
    refused: list[LoopHalted] = []
    with guard.run() as run:

        def work() -> None:
            for _ in range(20):
                try:
                    guard.saw_tool_call(run, "search", 1)
                except LoopHalted as error:
                    refused.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert refused
    assert [event.halted for event in seen.of(LoopWarned)] == [True]
    assert len(seen.of(RunStopped)) == 1
