"""What stands on spans, told by the guard alone."""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from runcap.exporters import OTelSink
from runcap.guardrails import Budget, Guard, Run, Usage
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.events import AgentEnded, AgentStarted, Outcome
from runcap.guardrails.permit import Permit
from runcap.guardrails.request import Request


class Told:
    """A guard, and the spans it makes."""

    def __init__(self, budget: Budget | None = None, sampler: Any = None, **sink: Any) -> None:
        self.exporter = InMemorySpanExporter()
        tracers = TracerProvider(sampler=sampler)
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.sink = OTelSink(tracers, **sink)
        self.guard = Guard(budget or Budget(usd=1), sinks=(self.sink,))
        self.made = 0

    def admit(self, run: Run | None = None, **more: Any) -> Permit:
        self.made += 1
        told: dict[str, Any] = {"model": "gpt-4o", "provider": "openai", "prompt": Prompt(), "output_cap": 100}
        return self.guard.admit(Request(call_id=f"c{self.made}", **(told | more)), run)

    def agent(self, run: Run, node_id: str, *, resumed: bool = False, name: str = "helper") -> None:
        self.guard.emit(AgentStarted(self.guard.clock.time_ns(), run.info, node_id, None, name, resumed))

    def agent_ends(self, run: Run, node_id: str, outcome: Outcome = "completed") -> None:
        self.guard.emit(AgentEnded(self.guard.clock.time_ns(), run.info, node_id, outcome, run.seen))

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def attributes(self, index: int = -1) -> dict[str, Any]:
        return dict(self.spans[index].attributes or {})


def test_only_tags_that_are_allowed_are_on_spans() -> None:
    for allowed, shown in (({}, {"user", "task"}), ({"tags": ("ticket",)}, {"ticket"}), ({"tags": ()}, set())):
        told = Told(**allowed)
        with told.guard.run(user="ada", task="refund", ticket="4711"):
            told.admit().settle(Usage(1, 1))
        tags = {name.removeprefix("runcap.tag.") for name in told.attributes() if name.startswith("runcap.tag.")}
        assert tags == shown


def test_tags_must_be_names() -> None:
    with pytest.raises(TypeError, match="'user'"):
        OTelSink(tags="user")


def test_every_span_says_operation_conversation_and_agent() -> None:
    told = Told(agent_name="nobody")
    told.admit().settle(Usage(1, 1))
    call = told.attributes()
    assert (call["gen_ai.operation.name"], call["gen_ai.agent.name"]) == ("chat", "nobody")
    assert call["gen_ai.conversation.id"] == told.guard.default_run.id


def test_cache_writes_by_their_former_name_on_request() -> None:
    for legacy in (False, True):
        told = Told(legacy_names=legacy)
        told.admit().settle(Usage(10, 1, cache_write_tokens=7))
        assert told.attributes()["gen_ai.usage.cache_write.input_tokens"] == 7
        assert told.attributes().get("gen_ai.usage.cache_creation.input_tokens") == (7 if legacy else None)


def test_a_model_in_this_process_is_no_client() -> None:
    told = Told(Budget(steps=9))
    told.admit(provider="llamacpp", model="local").settle(Usage(1, 1))
    told.admit().settle(Usage(1, 1))
    assert [span.kind for span in told.spans] == [SpanKind.INTERNAL, SpanKind.CLIENT]


def test_a_call_that_ends_as_unknown_says_so_on_its_span_and_what_it_cost_later() -> None:
    told = Told()
    run = told.guard.open_run()
    told.agent(run, "a")
    permit = told.admit(run, parent_id="a")
    permit.abandon("TimeoutError")
    permit.settle(Usage(3, 4))
    told.agent_ends(run, "a")
    call, agent = told.spans
    [unknown] = call.events
    assert unknown.name == "runcap.call.unknown"
    assert dict(unknown.attributes or {})["runcap.call.unknown_usd"] == told.attributes(0)["runcap.call.unknown_usd"]
    [late] = agent.events
    assert late.name == "runcap.call.reconciled"
    assert dict(late.attributes or {})["gen_ai.usage.output_tokens"] == 4


def test_the_first_chunk_of_a_stream_is_timed() -> None:
    told = Told()
    permit = told.admit(stream=True)
    permit.seen(3)
    first = permit.first_chunk_ns
    permit.seen(3)
    permit.settle(Usage(1, 2))
    assert first is not None
    assert told.attributes()["gen_ai.response.time_to_first_chunk"] == (first - permit.started_ns) / 1e9
    told.admit().settle(Usage(1, 2))
    assert "gen_ai.response.time_to_first_chunk" not in told.attributes()


def test_an_agent_adds_up_by_model() -> None:
    told = Told()
    run = told.guard.open_run()
    told.agent(run, "a")
    told.admit(run, parent_id="a").settle(Usage(1_000, 10, cache_read_tokens=400, reasoning_tokens=6))
    told.admit(run, parent_id="a", model="gpt-4o-mini").settle(Usage(2_000, 20))
    told.admit(run, parent_id="a", model="gpt-4o-mini").settle(Usage(2_000, 20))
    told.agent_ends(run, "a")
    whole, by_model = told.attributes(), json.loads(told.attributes()["runcap.total.by_model"])
    assert (whole["runcap.total.calls"], whole["runcap.total.input_tokens"]) == (3, 5_000)
    assert (whole["runcap.total.cache_read_tokens"], whole["runcap.total.reasoning_tokens"]) == (400, 6)
    assert {model: (one["calls"], one["input_tokens"]) for model, one in by_model.items()} == {
        "gpt-4o": (1, 1_000),
        "gpt-4o-mini": (2, 4_000),
    }
    assert sum(one["cost_usd"] for one in by_model.values()) == pytest.approx(whole["runcap.total.cost_usd"])


@pytest.mark.parametrize("resumed", [True, False])
def test_a_resumed_agent_links_to_where_it_was_interrupted(resumed: bool) -> None:
    told = Told()
    before, after = (told.guard.open_run(conversation_id="thread 1") for _ in range(2))
    other = told.guard.open_run(conversation_id="thread 2")
    told.agent(before, "a")
    told.agent_ends(before, "a", "interrupted")
    told.agent(other, "b", resumed=True)
    told.agent_ends(other, "b")
    told.agent(after, "c", resumed=resumed)
    told.agent_ends(after, "c")
    first, unrelated, second = told.spans
    assert not unrelated.links
    assert [link.context for link in second.links] == ([first.context] if resumed else [])


def test_nothing_is_made_where_nothing_is_sampled_and_money_is_the_same() -> None:
    told = Told(sampler=ALWAYS_OFF)
    with told.guard.run() as run:
        permit = told.admit()
        with told.guard.sinks.around_call(permit.call_id):
            permit.settle(Usage(1_000_000, 0))
    assert told.spans == ()
    assert run.spent_usd is not None
    assert run.spent_usd > 0
    assert told.sink.open_spans == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_end_what_its_parent_began() -> None:
    told = Told()
    run = told.guard.open_run()
    told.agent(run, "a")
    pid = os.fork()
    if pid == 0:
        told.agent_ends(run, "a")
        os._exit(0 if not told.spans and not told.sink.open_spans else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    told.agent_ends(run, "a")
    assert [span.name for span in told.spans] == ["invoke_agent helper"]


def test_ten_thousand_runs_leave_memory_flat() -> None:
    told = Told(Budget(usd=1, steps=9))

    def runs(count: int, first: int) -> int:
        for number in range(first, first + count):
            run = told.guard.open_run(conversation_id=f"thread {number}")
            told.agent(run, f"n{number}")
            permit = told.admit(run, parent_id=f"n{number}")
            with told.guard.sinks.around_call(permit.call_id):
                permit.settle(Usage(10, 1))
            told.agent_ends(run, f"n{number}", "interrupted" if number % 2 else "completed")
            run.end()
        told.exporter.clear()
        gc.collect()
        return sys.getallocatedblocks()

    before = runs(2_500, 0)  # what is kept of the most recent is full
    after = runs(7_500, 2_500)
    assert told.sink.open_spans == 0
    assert after - before < 1_000, f"{after - before:,} blocks more"
