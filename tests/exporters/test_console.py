"""What `ConsoleSink` keeps of runs, and says of them in plain lines; test_console_live.py has real terminals."""

from __future__ import annotations

import io
import re
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from runcap.exporters import ConsoleSink
from runcap.exporters.console_lines import lines
from runcap.exporters.console_runs import Runs
from runcap.exporters.console_view import View
from runcap.guardrails import (
    AgentStarted,
    Budget,
    BudgetExceeded,
    CallReconciled,
    Event,
    Guard,
    Limit,
    Loop,
    LoopPolicy,
    LoopWarned,
    MemoryLedger,
    PrefixBroken,
    RefusalDetails,
    RunPaused,
    RunStarted,
    RunStopped,
    RunToppedUp,
    Sink,
    TierSwitched,
    ToolEnded,
    ToolStarted,
    Usage,
)
from runcap.guardrails.events import RunInfo
from runcap.guardrails.testing import ManualClock, Recorder, ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware

from ..guardrails.helpers import request
from ..langchain.conftest import LOOK_UP, USER, looping, openai

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)  # control characters, halves of pairs, all of it


def plain(guard_of: Any) -> list[str]:
    """The lines of what a guard is made to do, without their time."""
    stream = io.StringIO()
    with ConsoleSink(stream) as sink:
        assert not sink.is_live
        guard_of(sink)
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in stream.getvalue().splitlines()]


def test_a_run_in_plain_lines() -> None:
    def work(sink: ConsoleSink) -> None:
        guard = Guard(Budget(usd="0.02", steps=9), sinks=(sink,))
        with guard.run(task="refund") as run:
            guard.emit(ToolStarted(0, run.info, "t", None, "look_up"))
            guard.emit(ToolEnded(0, run.info, "t", "error", "KeyError"))
            for _ in range(2):
                guard.admit(request()).settle(Usage(0, 900))
            for _ in range(50):
                with pytest.raises(BudgetExceeded):
                    guard.admit(request())
            run.top_up(usd="0.02")
            guard.admit(request()).abandon("TimeoutError")
        run.fail("too late to be said")

    said = plain(work)
    name = said[0][: said[0].index(":")]
    assert re.fullmatch(r"run [0-9a-f]{8}", name)
    ended = f"{name} task=refund: ended, 3 of 9 steps, 1,800 tokens, $0.018 of $0.04 and $0.01 unknown, "
    assert said[-1].startswith(ended)
    assert said[-1].endswith(" s, 50 refused")
    assert said[:-1] == [
        f"{name}: task=refund started, cap $0.02, 9 steps",
        f"{name}: tool look_up",
        f"{name}: a tool failed with KeyError",
        f"{name}: step 1 of 9: gpt-4o, 900 tokens, $0.009; spent $0.009 of $0.02",
        f"{name}: step 2 of 9: gpt-4o, 900 tokens, $0.009; spent $0.018 of $0.02",
        f"{name}: 80% of the usd cap used",
        f"{name}: stopped: at its usd cap",
        f"{name}: refused: BudgetExceeded (usd, run)",
        f"{name}: topped up, $0.018 of $0.04",
        f"{name}: step 3 of 9: gpt-4o, 0 tokens, $0, TimeoutError; spent $0.018 of $0.04 and $0.01 unknown",
        f"{name}: a call ended without usage: its cost is unknown",
    ]


def test_a_real_agent_by_its_name() -> None:
    def work(sink: ConsoleSink) -> None:
        with ScriptedProvider(looping(), keep_alive=False) as provider:
            middleware = BudgetMiddleware(Guard(Budget(usd="0.05", steps=2), sinks=(sink,)))
            agent: Any = create_agent(openai(provider), [LOOK_UP], middleware=[middleware], name="refunds")
            with pytest.raises(BudgetExceeded):
                agent.invoke(USER)

    said = plain(work)
    assert re.fullmatch(r"refunds [0-9a-f]{8}: agent refunds", said[1])
    assert sum("tool look_up" in line for line in said) == 2
    assert sum(": step " in line for line in said) == 2
    assert "ended, 2 of 2 steps" in said[-1]
    assert said[-1].endswith("1 refused, stopped at its steps cap")
    assert "find it" not in "".join(said)
    assert "try 0" not in "".join(said)


def test_many_threads_lose_no_line_and_tear_none() -> None:
    def work(sink: ConsoleSink) -> None:
        guard = Guard(Budget(usd="1"), sinks=(sink,))

        def some() -> None:
            for _ in range(50):
                with guard.run(task="x"):
                    guard.admit(request()).settle(Usage(0, 1))

        threads = [threading.Thread(target=some) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    said = plain(work)
    assert len(said) == 400 * 3
    assert sum(": ended, 1 steps, 1 tokens, $0.00001 of $1, " in line for line in said) == 400


def test_after_close_nothing_is_written() -> None:
    stream = io.StringIO()
    sink = ConsoleSink(stream)
    guard = Guard(Budget(steps=9), sinks=(sink,))
    guard.admit(request()).settle(Usage(0, 1))
    sink.close(60)
    before = stream.getvalue()
    assert "not ended, 1 of 9 steps" in before
    guard.admit(request()).settle(Usage(0, 1))
    sink.close(60)
    assert stream.getvalue() == before


def into(runs: Runs) -> Sink:
    def sink(event: Event) -> None:
        runs.take(event, 0.0)

    return sink


def watched(**budget: Any) -> tuple[Guard, Runs]:
    runs = Runs()
    return Guard(Budget(**budget), sinks=(into(runs),)), runs


def test_figures_of_calls_in_flight_of_nested_runs_and_of_late_ones() -> None:
    guard, runs = watched(usd="0.05", steps=9)
    with guard.run() as outer, guard.run(budget=Budget(usd="0.03")) as inner:
        permit = guard.admit(request())
        of_outer, of_inner = runs.rows(1.0, 8)
        assert (of_outer.held, of_outer.step, of_outer.cap) == (10_000_000, 1, 50_000_000)
        assert (of_inner.held, of_inner.step, of_inner.cap) == (10_000_000, 1, 30_000_000)
        permit.settle(Usage(0, 900))
        guard.admit(request()).abandon("TimeoutError")
        of_outer, of_inner = runs.rows(1.0, 8)
        for row in (of_outer, of_inner):
            assert (row.held, row.spent, row.unknown, row.tokens) == (0, 9_000_000, 10_000_000, 900)
        inner.top_up(usd="0.01")
        assert runs.rows(1.0, 8)[1].cap == 40_000_000
        late = guard.admit(request())
        inner.end()
        assert len(runs) == 1
        late.settle(Usage(0, 900))
        assert len(runs) == 1  # it does not come back
        assert (runs.rows(1.0, 8)[0].spent, runs.rows(1.0, 8)[0].held) == (18_000_000, 0)
        assert outer.balance.spent.nano == 18_000_000
    assert len(runs) == 0
    assert not runs.are_busy


def test_memory_is_bounded() -> None:
    guard, runs = watched(steps=9)
    for number in range(3_000):
        guard.named_run(str(number))
    assert len(runs) == 500
    for number in range(3_000):
        guard.named_run(str(number)).end()
    assert len(runs) == 0
    assert len(runs._ended) == 1_000


def test_a_run_that_goes_on_under_its_id_is_shown_again() -> None:
    guard, runs = watched(steps=9)
    guard.named_run("one").end()
    assert len(runs) == 0
    guard.admit(request(), guard.named_run("one"))
    assert runs.rows(0.0, 8)[0].step == 1


def test_warnings_are_the_last_few_and_of_a_loop_its_last_count() -> None:
    guard, runs = watched(usd="0.05")
    guard = Guard(guard.budget, loops=LoopPolicy(warn=2), sinks=(into(runs),))
    with guard.run() as run:
        for _ in range(6):
            guard.saw_tool_call(run, "look_up", 1)
        guard.emit(PrefixBroken(0, run.info, None, "tools", 1234, None))
        guard.emit(TierSwitched(0, run.info, None, "gpt-4o", "gpt-4o-mini", 0.5))
        (row,) = runs.rows(0.0, 8)
        assert row.tier == "gpt-4o-mini"
        assert row.warnings == (
            "loop: look_up called 6 times with the same arguments",
            "prefix broken at tools, 1,234 tokens read again",
            "goes on with gpt-4o-mini at 50% of its dollars",
        )
        run.stop("by hand")
        (row,) = runs.rows(0.0, 8)
        assert row.state == "stopped by hand"
        assert len(row.warnings) == 3


def test_a_limits_figures_are_none_of_the_runs() -> None:
    runs, seen = Runs(), Recorder()
    guard = Guard(
        Budget(usd="1"),
        limits=[Limit("user", usd="0.02", per="day")],
        ledger=MemoryLedger(),
        sinks=(into(runs), seen),
        clock=ManualClock(),
    )
    with guard.run(user="ada"):
        guard.admit(request()).settle(Usage(0, 900))
        guard.admit(request()).settle(Usage(0, 900))
        (row,) = runs.rows(0.0, 8)
        assert row.cap == 1_000_000_000
        assert row.warnings == ("80% of the usd cap of the limit on user used",)


INFO = st.builds(
    RunInfo,
    id=ANY_TEXT,
    conversation_id=ANY_TEXT,
    parent_id=st.none() | ANY_TEXT,
    tags=st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3),
    budget=st.just(Budget(usd="0.05", steps=3)) | st.none(),
)


def noisy(info: RunInfo, text: str) -> list[Event]:
    """Events with a text wherever one may stand."""
    details = RefusalDetails(reason=text, way_out=text, run_id=text, scope=text, model=text)
    return [
        RunStarted(0, info),
        AgentStarted(0, info, "a", None, text),
        ToolStarted(0, info, "t", None, text),
        ToolEnded(0, info, "t", "error", text),
        LoopWarned(0, info, None, Loop("repeat", 3, 1, (text,)), halted=False),
        TierSwitched(0, info, None, text, text, 0.5),
        PrefixBroken(0, info, None, text, 1, None),
        RunPaused(0, info, None, details),
        CallReconciled(0, info, text, Usage(1, 1), None),
        RunStopped(0, info, text),
    ]


@given(INFO, ANY_TEXT)
def test_no_text_breaks_a_line_or_the_view(info: RunInfo, text: str) -> None:
    runs = Runs()
    stream = io.StringIO()
    with ConsoleSink(stream) as sink:
        for event in noisy(info, text):
            sink(event)
            state = runs.take(event, 0.0)
            assert state is not None
            assert all(line.isprintable() for line in lines(state, event, 0.0))
    assert len(stream.getvalue().split("\n")) == len([line for line in stream.getvalue().splitlines() if line]) + 1
    console = Console(file=io.StringIO(), width=50, height=20, force_terminal=True, color_system="truecolor")
    area = View(console).area(runs.rows(1.0, 8), 0)
    assert len(area) == 3
    for line in area:
        bare = re.sub(r"\x1b\[[0-9;]*m", "", line)
        assert bare.isprintable()
        assert cell_len(bare) < 50


@given(st.lists(st.integers(0, 10**12), min_size=3, max_size=3), st.integers(1, 10**12))
def test_the_bar_is_as_long_as_ever_and_shows_what_there_is(amounts: list[int], cap: int) -> None:
    runs = Runs()
    runs.take(RunStarted(0, RunInfo("r", "r")), 0.0)
    (row,) = runs.rows(0.0, 8)
    spent, held, unknown = amounts
    row = row._replace(spent=spent, held=held, unknown=unknown, cap=cap)
    for width in (24, 10):
        console = Console(file=io.StringIO(), width=200)
        bar = View(console)._bar(row, width).plain
        assert len(bar) == width
        assert [sign in bar for sign in "█▓░"] == [amount > 0 for amount in amounts]


def test_where_the_encoding_has_no_blocks_signs_stand_for_them() -> None:
    runs = Runs()
    runs.take(RunStarted(0, RunInfo("r", "r", budget=Budget(usd=1))), 0.0)
    (row,) = runs.rows(0.0, 8)
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, width=200, force_terminal=True, color_system=None)
    (_, figures) = View(console).area([row._replace(spent=500_000_000, held=1)], 0)
    assert figures.startswith("  ############=........... $0.50 of $1.00 50%")
    assert Text.from_ansi(figures).plain.isascii()


def test_a_console_of_ones_own() -> None:
    file = io.StringIO()
    with ConsoleSink(console=Console(file=file, force_terminal=True, width=100, _environ={})) as sink:
        assert sink.is_live
        guard = Guard(Budget(steps=9), sinks=(sink,))
        with guard.run(task="x"):
            guard.admit(request()).settle(Usage(0, 1))
    assert "task=x: ended, 1 of 9 steps" in file.getvalue()
    assert not ConsoleSink(console=Console(file=file)).is_live
    assert not ConsoleSink(console=Console(file=file, force_terminal=True, _environ={"TERM": "dumb"})).is_live


@pytest.mark.parametrize("refresh", [0, -1, 61, "8", True, None])
def test_a_bad_refresh_is_named(refresh: Any) -> None:
    with pytest.raises(ValueError, match=f"refresh must be .* got {refresh!r}"):
        ConsoleSink(io.StringIO(), refresh=refresh)


def test_a_stream_or_a_console() -> None:
    with pytest.raises(TypeError, match="not both"):
        ConsoleSink(io.StringIO(), console=Console())


def test_a_topped_up_run_says_a_second_refusal() -> None:
    def work(sink: ConsoleSink) -> None:
        guard = Guard(Budget(steps=1), sinks=(sink,))
        with guard.run() as run:
            for _ in range(2):
                guard.admit(request()).settle(Usage(0, 1))
                for _ in range(3):
                    with pytest.raises(BudgetExceeded):
                        guard.admit(request())
                run.top_up(steps=1)

    assert sum("refused: BudgetExceeded (steps, run)" in line for line in plain(work)) == 2


def test_events_of_every_kind_are_taken() -> None:
    info = RunInfo("r", "r")
    balance = Guard(Budget(steps=1)).run().balance
    for event in (*noisy(info, "x"), RunToppedUp(0, info, "k", balance)):
        assert Runs().take(event, 0.0) is not None
