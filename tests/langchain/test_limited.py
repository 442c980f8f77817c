"""Agents under limits: which way is left when a limit has no room, and what spans say of it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runcap.exporters import OTelSink
from runcap.guardrails import Budget, BudgetExceeded, Guard, Limit, MemoryLedger, SQLiteLedger, Tier
from runcap.guardrails.events import RunEnded, TierSwitched
from runcap.guardrails.testing import Recorder, Reply
from runcap.integrations.langchain import BudgetCallbackHandler, BudgetMiddleware, guard_model

from .conftest import LOOK_UP, USER, Caller, Serve, looping, openai

TAGS: Any = {"metadata": {"runcap": {"user": "ada"}}}


def test_an_agent_goes_down_a_tier_where_only_that_fits_a_limit(serve: Serve, caller: Caller) -> None:
    def script(number: int, body: Mapping[str, Any]) -> Reply:
        return Reply(text="done", output_tokens=10) if "mini" in body["model"] else looping(900)(number, body)  # type: ignore[operator]

    provider, seen = serve(script), Recorder()
    guard = Guard(
        Budget(usd=1),
        limits=[Limit("user", usd="0.02", per="total")],
        tiers=[Tier(openai(provider)), Tier(openai(provider, model="gpt-4o-mini"), at=0.9)],
        ledger=MemoryLedger(),
        sinks=(seen,),
    )
    agent: Any = create_agent(openai(provider), [LOOK_UP], middleware=[BudgetMiddleware(guard)])
    assert caller.invoke(agent, USER, TAGS)["messages"][-1].text == "done"
    assert provider.cost_usd <= Decimal("0.02")
    assert [one.forced for one in seen.of(TierSwitched)] == [True]
    assert [one.balance.stopped for one in seen.of(RunEnded)] == [None]


def test_spans_say_whose_limit_it_was(serve: Serve, caller: Caller) -> None:
    provider, exporter, tracers = serve(looping(900)), InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    guard = Guard(
        Budget(usd=1),
        limits=[Limit("user", steps=2, per="month", warn_at=(0.5,))],
        ledger=MemoryLedger(),
        sinks=(OTelSink(tracers),),
    )
    agent: Any = create_agent(openai(provider), [LOOK_UP])
    with pytest.raises(BudgetExceeded, match="wait for the next month"):
        caller.invoke(agent, USER, {**TAGS, "callbacks": [BudgetCallbackHandler(guard)]})
    [root] = [span for span in exporter.get_finished_spans() if span.name.startswith("invoke_agent")]
    events = {event.name: dict(event.attributes or {}) for event in root.events}
    assert events["runcap.refused"]["runcap.refused.scope"] == "user"
    assert (events["runcap.refused"]["runcap.refused.cap"], events["runcap.refused"]["runcap.refused.unit"]) == (
        2,
        "steps",
    )
    assert events["runcap.budget.warned"]["runcap.budget.scope"] == "user"
    assert "runcap.run.stopped" not in events
    assert (root.attributes or {})["runcap.tag.user"] == "ada"


@pytest.mark.parametrize("style", ["invoke", "stream"])
def test_an_answer_cut_by_a_limit_inside_a_tool_call_names_the_limit(
    serve: Serve, caller: Caller, tmp_path: Path, style: str
) -> None:
    provider = serve(Reply(tool_calls=[("look_up", {"query": "x" * 4000})], output_tokens=1000))
    limits = [Limit("user", usd="0.006", per="total")]
    with SQLiteLedger(tmp_path / "l.db", heartbeat=None) as ledger:
        guard = Guard(Budget(usd=1), limits=limits, ledger=ledger, sinks=())
        model = guard_model(openai(provider), guard).bind_tools([LOOK_UP])
        with guard.run(user="ada"), pytest.raises(BudgetExceeded, match="cut inside a tool call") as info:
            getattr(caller, style)(model, "hi")
    assert info.value.scope == "user"
    assert info.value.spent == provider.cost_usd
    assert 'Limit("user", usd=...)' in str(info.value)
