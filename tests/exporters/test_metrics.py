"""Metrics of real agents: exact counts and sums, the advised buckets, no content."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import APIStatusError
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.util.genai import _instruments as official
from pydantic import SecretStr

from runcap.exporters import OTelSink
from runcap.exporters.otel import semconv_metrics as sm
from runcap.guardrails import Budget, BudgetExceeded, Guard
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.guardrails.testing.provider import Script
from runcap.integrations.langchain import BudgetCallbackHandler

from .metering import Watch, metrics_of, only, tokens

Serve = Callable[[Script], ScriptedProvider]
USER: Any = {"messages": [("user", "secret prompt")]}


@tool
def look_up(query: str) -> str:
    """Look something up."""
    return f"secret finding for {query}"


TWO_CALLS = [Reply(tool_calls=[("look_up", {"query": "secret question"})]), Reply(text="secret answer")]


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[ScriptedProvider] = []

    def start(script: Script) -> ScriptedProvider:
        running.append(ScriptedProvider(script, keep_alive=False).__enter__())
        return running[-1]

    yield start
    for provider in running:
        provider.__exit__(None, None, None)


def openai(provider: ScriptedProvider, **more: Any) -> ChatOpenAI:
    defaults: dict[str, Any] = {"model": "gpt-4o", "max_tokens": 1000, "max_retries": 0, "stream_usage": True}
    return ChatOpenAI(base_url=provider.openai_url, api_key=SecretStr("none"), **(defaults | more))


# Agents


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_agents_calls_add_up_to_the_providers_own_bill(serve: Serve, asynchronous: bool) -> None:
    provider = serve(TWO_CALLS)
    watch = Watch(usd=1)
    agent = create_agent(openai(provider), [look_up], name="helper")
    if asynchronous:
        asyncio.run(agent.ainvoke(USER, watch.config))
    else:
        agent.invoke(USER, watch.config)
    found = watch.read()
    call = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o",
    }
    assert only(found["gen_ai.client.operation.duration"])[:2] == (call, 2)
    cost = only(found["gen_ai.client.operation.cost"])
    assert cost[:2] == (call, 2)
    assert cost.sum == pytest.approx(float(provider.cost_usd), abs=1e-12)
    assert tokens(found["gen_ai.client.token.usage"]) == {
        "input": (2, sum(one.input_tokens for one in provider.served)),
        "output": (2, sum(one.output_tokens for one in provider.served)),
    }
    agent_time, tool_time = only(found["gen_ai.invoke_agent.duration"]), only(found["gen_ai.execute_tool.duration"])
    assert agent_time[:2] == (
        {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "helper", "runcap.outcome": "completed"},
        1,
    )
    assert tool_time.attributes["gen_ai.tool.name"] == "look_up"
    assert agent_time.sum > tool_time.sum > 0
    assert only(found["runcap.runs"])[1:] == (1, 1)
    assert only(found["runcap.budget.utilization"]).sum == pytest.approx(cost.sum)
    assert "secret" not in repr(found)


def test_unsampled_spans_still_give_exactmetrics_of(serve: Serve) -> None:
    provider = serve(TWO_CALLS)
    watch = Watch(usd=1)
    guard = Guard(Budget(usd=1), sinks=(OTelSink(TracerProvider(sampler=ALWAYS_OFF), watch.provider),))
    agent = create_agent(openai(provider), [look_up], name="helper")
    agent.invoke(USER, {"callbacks": [BudgetCallbackHandler(guard)]})
    found = watch.read()
    assert only(found["gen_ai.client.operation.cost"]).sum == pytest.approx(float(provider.cost_usd), abs=1e-12)
    for name in ("gen_ai.client.operation.cost", "gen_ai.execute_tool.duration", "gen_ai.invoke_agent.duration"):
        assert only(found[name]).attributes["gen_ai.agent.name"] == "helper"


def test_a_streams_first_chunk_is_timed(serve: Serve) -> None:
    provider = serve(Reply(text="a fine answer", output_tokens=20))
    watch = Watch(usd=1)
    for _ in openai(provider).stream("hi", watch.config):
        pass
    openai(provider).invoke("hi", watch.config)
    found = watch.read()
    first, whole = only(found["gen_ai.client.operation.time_to_first_chunk"]), found["gen_ai.client.operation.duration"]
    assert first.number == 1
    assert sum(one.number for one in whole) == 2
    assert 0 < first.sum < sum(one.sum for one in whole)


def test_calls_that_fail_are_told_by_their_errors_type(serve: Serve) -> None:
    provider = serve([Reply(status=400), Reply(status=500), Reply(status=500)])
    watch = Watch(usd=1)
    model = openai(provider)
    for _ in range(3):
        with pytest.raises(APIStatusError):
            model.invoke("secret prompt", watch.config)
    found = watch.read()
    by_type = {one.attributes["error.type"]: one.number for one in found["gen_ai.client.operation.duration"]}
    assert by_type == {"OpenAIInvalidRequestError": 1, "OpenAIAPIError": 2}
    assert "gen_ai.client.token.usage" not in found, "nothing was reported: absent, not zero"
    assert "gen_ai.client.operation.cost" not in found, "nothing was charged"
    assert only(found["runcap.calls.unknown"])[1:] == (1, 2)
    assert only(found["runcap.calls.unknown.cost"]).sum == pytest.approx(float(watch.guard.default_run.unknown_usd))
    assert "secret" not in repr(found)


async def test_a_cancelled_call_is_told(serve: Serve) -> None:
    gate, asked = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def answer(number: int, body: Any) -> Reply:
        loop.call_soon_threadsafe(asked.set)
        return Reply(text="late", gate=gate)

    provider = serve(answer)
    watch = Watch(usd=1)
    call = asyncio.ensure_future(openai(provider).ainvoke("hi", watch.config))
    await asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    gate.set()
    watch.guard.calls.drain()
    found = watch.read()
    assert only(found["gen_ai.client.operation.duration"]).attributes["error.type"] == "CancelledError"
    assert only(found["gen_ai.client.operation.cost"]).sum == pytest.approx(watch.spent)
    assert "gen_ai.client.token.usage" not in found


def test_usage_that_nobody_reports_is_absent_and_its_charge_is_the_ledgers(serve: Serve) -> None:
    provider = serve(Reply(text="a fine answer", usage=False))
    watch = Watch(usd=1)
    openai(provider).invoke("hi", watch.config)
    found = watch.read()
    assert "gen_ai.client.token.usage" not in found
    assert only(found["gen_ai.client.operation.cost"]).sum == pytest.approx(watch.spent)
    assert only(found["runcap.calls.unknown"]).number == 1


def test_an_answer_from_the_cache_is_no_call(serve: Serve) -> None:
    provider = serve(Reply(text="cached", output_tokens=500))
    watch = Watch(usd=1)
    set_llm_cache(InMemoryCache())
    try:
        for _ in range(3):
            openai(provider).invoke("hi", watch.config)
    finally:
        set_llm_cache(None)
    found = watch.read()
    assert provider.received == 1
    assert tokens(found["gen_ai.client.token.usage"])["output"] == (1, 500)
    assert only(found["gen_ai.client.operation.duration"]).number == 1
    cost = only(found["gen_ai.client.operation.cost"])
    assert cost.number == 1
    assert cost.sum == pytest.approx(float(provider.cost_usd), abs=1e-12)
    assert only(found["runcap.calls.cached"]).sum == 2


def test_refusals_and_the_stop_of_a_run(serve: Serve) -> None:
    provider = serve(lambda number, body: Reply(tool_calls=[("look_up", {"query": f"try {number}"})]))
    watch = Watch(steps=2)
    with pytest.raises(BudgetExceeded):
        create_agent(openai(provider), [look_up], name="helper").invoke(USER, watch.config)
    found = watch.read()
    kind = {"runcap.refused.kind": "BudgetExceeded", "runcap.refused.unit": "steps", "runcap.refused.scope": "run"}
    assert only(found["runcap.refusals"]) == (kind, 1, 1)
    assert only(found["runcap.run.stops"]).attributes == {"runcap.run.stopped": "cap:steps"}
    assert only(found["runcap.budget.warnings"])[0]["runcap.budget.unit"] == "steps"
    agent = only(found["gen_ai.invoke_agent.duration"]).attributes
    assert (agent["runcap.outcome"], agent["error.type"]) == ("refused", "BudgetExceeded")
    assert only(found["runcap.budget.utilization"]) == ({"runcap.budget.unit": "steps"}, 1, 1.0)


def test_buckets_are_the_advised_ones(serve: Serve) -> None:
    provider = serve(TWO_CALLS)
    watch = Watch(usd=1)
    create_agent(openai(provider), [look_up], name="helper").invoke(USER, watch.config)
    for _ in openai(provider).stream("hi", watch.config):
        pass
    bounds = {
        metric.name: list(point.explicit_bounds)
        for metric in metrics_of(watch.reader)
        for point in metric.data.data_points
        if hasattr(point, "explicit_bounds")
    }
    seconds = official._GEN_AI_CLIENT_OPERATION_DURATION_BUCKETS
    assert bounds == {
        "gen_ai.client.token.usage": official._GEN_AI_CLIENT_TOKEN_USAGE_BUCKETS,
        "gen_ai.client.operation.duration": seconds,
        "gen_ai.client.operation.time_to_first_chunk": seconds,
        "gen_ai.execute_tool.duration": official._GEN_AI_EXECUTE_TOOL_DURATION_BUCKETS,
        "gen_ai.invoke_agent.duration": official._GEN_AI_INVOKE_AGENT_DURATION_BUCKETS,
        "gen_ai.client.operation.cost": list(sm.COST_BUCKETS),
        "runcap.budget.utilization": list(sm.SHARE_BUCKETS),
    }
