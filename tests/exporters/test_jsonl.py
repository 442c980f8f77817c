from __future__ import annotations

import io
import json
import multiprocessing
import os
import threading
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from langchain.agents import create_agent

from runcap.exporters import JSONLSink
from runcap.guardrails import Budget, BudgetExceeded, Guard, RunStarted, Usage
from runcap.guardrails.events import RunInfo
from runcap.guardrails.testing import ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware

from ..guardrails.helpers import request
from ..langchain.conftest import LOOK_UP, USER, looping, openai
from .test_console import ANY_TEXT, INFO, noisy


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_a_run_of_a_real_agent(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with ScriptedProvider(looping(), keep_alive=False) as provider, JSONLSink(path) as sink:
        guard = Guard(Budget(usd="0.05", steps=2), sinks=(sink,))
        agent: Any = create_agent(openai(provider), [LOOK_UP], middleware=[BudgetMiddleware(guard)], name="a")
        with guard.run(task="refund") as run, pytest.raises(BudgetExceeded):
            agent.invoke(USER)
        told = rows(path)
        billed = provider.cost_usd
    kinds = [row["type"] for row in told]
    assert kinds[:4] == ["run_started", "agent_started", "call_started", "call_ended"]
    assert kinds[-1] == "run_ended"
    for row in told:
        assert row["schema"] == 1
        assert (row["run"], row["tags"], row["parent_run"]) == (run.id, {"task": "refund"}, None)
        assert abs(datetime.fromisoformat(row["time"]).timestamp() * 1e9 - row["time_ns"]) < 10_000
    assert told[0]["budget"] == {"usd": "0.05", "steps": 2}
    ended = [row for row in told if row["type"] == "call_ended"]
    assert sum(Decimal(row["cost_usd"]) for row in ended) == billed
    assert Decimal(told[-1]["balance"]["spent"]["usd"]) == billed
    assert ended[0]["usage"]["output_tokens"] == 100
    assert "cost_nano" not in ended[0]
    (refused,) = (row for row in told if row["type"] == "call_refused")
    assert refused["kind"] == "BudgetExceeded"
    assert refused["details"]["unit"] == "steps"
    assert "find it" not in path.read_text()
    assert "try 0" not in path.read_text()


def write_some(path: str) -> None:
    guard = Guard(Budget(usd="1"), sinks=(JSONLSink(path),))
    for _ in range(50):
        with guard.run(task="x" * 2_000):
            guard.admit(request()).settle(Usage(0, 1))


def test_processes_and_threads_that_share_a_file_tear_no_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_some, args=(str(path),)) for _ in range(3)]
    for process in processes:
        process.start()
    threads = [threading.Thread(target=write_some, args=(str(path),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(rows(path)) == 6 * 50 * 4


def test_it_appends_and_writes_nothing_after_close(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    event = RunStarted(1, RunInfo("r", "c"))
    for _ in range(2):
        with JSONLSink(path) as sink:
            sink(event)
        sink(event)
        sink.close()
    assert len(rows(path)) == 2


def test_a_disk_that_is_full_costs_a_line_and_no_call(caplog: pytest.LogCaptureFixture) -> None:
    sink = JSONLSink("/dev/full")
    guard = Guard(Budget(usd="1"), sinks=(sink,))
    for _ in range(3):
        guard.admit(request()).settle(Usage(0, 1))
    (said,) = (record.getMessage() for record in caplog.records)
    assert "JSONLSink" in said
    assert "OSError" in said
    sink.close()


def test_after_a_line_that_was_torn_the_next_begins_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    event, write = RunStarted(1, RunInfo("r", "c")), os.write
    with JSONLSink(path) as sink:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="wrote 9 of"):
            patch.setattr(os, "write", lambda file, raw: write(file, raw[:9]))  # what a full disk does
            sink(event)
        sink(event)
    torn, whole, end = path.read_text().split("\n")
    assert (len(torn), end) == (9, "")
    assert json.loads(whole)["run"] == "r"


@given(INFO, ANY_TEXT)
def test_no_text_breaks_a_line(info: RunInfo, text: str) -> None:
    stream = io.StringIO()
    sink = JSONLSink(stream)
    events = noisy(info, text)
    for event in events:
        sink(event)
    assert stream.getvalue().isascii()
    lines = stream.getvalue().splitlines()
    assert len(lines) == len(events)
    assert all(json.loads(line)["schema"] == 1 for line in lines)
    json.dumps([json.loads(line) for line in lines], ensure_ascii=False).encode()  # no half of a surrogate pair is left


@pytest.mark.parametrize("target", [None, 3, io.BytesIO()])
def test_a_bad_target_is_named(target: Any) -> None:
    with pytest.raises(TypeError, match=f"path or an open text stream, got {type(target).__name__}"):
        JSONLSink(target)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        JSONLSink(tmp_path / "missing" / "events.jsonl")
