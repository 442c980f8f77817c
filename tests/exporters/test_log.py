from __future__ import annotations

import io

import pytest

from runcap.exporters import LogSink
from runcap.guardrails import Budget, BudgetExceeded, Guard, Usage
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.request import Request


def test_lines_for_calls_warnings_refusals_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    guard = Guard(Budget(usd="0.02"), sinks=(LogSink(stream=stream),))

    def request(number: int) -> Request:
        return Request(
            call_id=str(number),
            model="gpt-4o",
            provider="openai",
            prompt=Prompt(),
            output_cap=1000,
            output_ceiling=None,
        )

    with guard.run(budget=None, run="refund", **{"cost center=": "x"}) as run, pytest.raises(BudgetExceeded):
        for number in range(3):
            guard.admit(request(number)).settle(Usage(0, 900))
        guard.admit_tool("t")
    run.succeed()
    lines = stream.getvalue().splitlines()
    assert any("event=call" in line and "cost=$0.009" in line and "tag.run=refund" in line for line in lines)
    assert any("event=budget" in line and "share=0.8" in line for line in lines)
    assert any("event=refused" in line and "unit=usd" in line and "cap=$0.02" in line for line in lines)
    assert any('event="run ended"' in line and "spent=$0.018" in line for line in lines)
    assert all(f"run={run.id}" in line for line in lines)
    assert capsys.readouterr().out == ""
