"""The example's trace, taken by real OTLP receivers over gRPC and HTTP, and read back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest

from .conftest import ROOT, Downstream, OtelTap, Rotel, wait_for

pytestmark = pytest.mark.receiver


def run_example(endpoint: str, protocol: str) -> str:
    env = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    command = [sys.executable, str(ROOT / "examples" / "runaway_agent.py"), "--usd", "0.02"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(tap: OtelTap | Downstream, printed: str) -> None:
    bill = re.search(r"own bill: \$([\d.]+) for (\d+) calls", printed)
    assert bill is not None
    cost, calls = Decimal(bill[1]), int(bill[2])
    spans: list[dict[str, Any]] = wait_for(
        lambda: spans if len(spans := tap.spans()) >= 2 * calls + 1 else None, "the trace"
    )
    assert len(spans) == 2 * calls + 1
    root = next(span for span in spans if span["name"] == "invoke_agent travel_agent")
    chats = [span for span in spans if span["name"] == "chat gpt-4o"]
    tools = [span for span in spans if span["name"] == "execute_tool search_flights"]
    assert (len(chats), len(tools)) == (calls, calls)
    assert {span["traceId"] for span in spans} == {root["traceId"]}
    assert root["parentSpanId"] == ""
    assert {span["parentSpanId"] for span in chats + tools} == {root["spanId"]}
    assert {span["kind"] for span in chats} == {3}  # CLIENT
    assert {span["kind"] for span in [root, *tools]} == {1}  # INTERNAL
    for span in spans:
        told = span["attributes"]
        assert told["gen_ai.operation.name"] in ("chat", "execute_tool", "invoke_agent")
        assert told["gen_ai.agent.name"] == "travel_agent"
        assert told["gen_ai.conversation.id"] == root["attributes"]["gen_ai.conversation.id"]
    told = chats[0]["attributes"]
    assert told["gen_ai.provider.name"] == "openai"
    assert told["gen_ai.usage.cost.currency"] == "USD"
    assert told["runcap.guarantee"] == "hard"
    assert isinstance(told["gen_ai.usage.input_tokens"], int)
    assert isinstance(told["gen_ai.usage.cost.amount"], float)
    total = sum(Decimal(str(span["attributes"]["gen_ai.usage.cost.amount"])) for span in chats)
    assert total == cost == Decimal(str(root["attributes"]["runcap.total.cost_usd"]))
    assert root["status"]["code"] == 2
    assert root["attributes"]["error.type"] == "BudgetExceeded"
    assert [event["name"] for event in root["events"]] == [
        "runcap.budget.warned",
        "runcap.run.stopped",
        "runcap.refused",
    ]
    assert root["events"][2]["runcap.refused.cap"] == 0.02
    assert "Lisbon" not in str(spans)


def test_oteltap_over_http(oteltap: OtelTap) -> None:
    check(oteltap, run_example(oteltap.endpoint, "http/protobuf"))


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_rotel_takes_it_and_passes_it_on(downstream: Downstream, rotel: Rotel, protocol: str) -> None:
    port = rotel.grpc_port if protocol == "grpc" else rotel.http_port
    check(downstream, run_example(f"http://127.0.0.1:{port}", protocol))
