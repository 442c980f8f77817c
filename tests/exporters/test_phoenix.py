"""The runaway agent's trace in Arize Phoenix: taken over gRPC, understood, and read back from its REST API."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ..waiting import free_port, wait_for
from .conftest import ROOT, stop

pytestmark = pytest.mark.phoenix


def _python() -> str:
    """The Python that has arize-phoenix: what `PHOENIX_PYTHON` names, or ours."""
    if named := os.environ.get("PHOENIX_PYTHON"):
        return named
    try:
        importlib.metadata.distribution("arize-phoenix")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("arize-phoenix is not installed, and PHOENIX_PYTHON names no Python that has it")
    return sys.executable


class Phoenix:
    def __init__(self, folder: Path) -> None:
        self.grpc_port, self._port, self._log = free_port(), free_port(), folder / "log"
        settings = {
            "PHOENIX_WORKING_DIR": str(folder),
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(self._port),
            "PHOENIX_GRPC_PORT": str(self.grpc_port),
            "PHOENIX_TELEMETRY_ENABLED": "false",
        }
        command = [_python(), "-m", "phoenix.server.main", "serve"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
        wait_for(lambda: self.process.poll() is not None or self.spans() is not None, "Phoenix", seconds=180)
        assert self.process.poll() is None, self._log.read_text()[-2000:]

    def spans(self) -> list[dict[str, Any]] | None:
        """Those of the project that all spans go to by default; None while it does not answer."""
        url = f"http://127.0.0.1:{self._port}/v1/projects/default/spans?limit=1000"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                told: dict[str, list[dict[str, Any]]] = json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            return None
        return sorted(told["data"], key=lambda span: str(span["start_time"]))


@pytest.fixture
def phoenix(tmp_path: Path) -> Iterator[Phoenix]:
    server = Phoenix(tmp_path)
    yield server
    stop(server.process)


def test_phoenix_understands_the_trace(phoenix: Phoenix) -> None:
    env = os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{phoenix.grpc_port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_METRICS_EXPORTER": "none",  # Phoenix takes traces only
    }
    command = [sys.executable, str(ROOT / "examples" / "runaway_agent.py"), "--usd", "0.02"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    [(bill, calls)] = re.findall(r"own bill: \$([\d.]+) for (\d+) calls", done.stdout)
    number = 2 * int(calls) + 1
    spans = wait_for(lambda: spans if len(spans := phoenix.spans() or []) >= number else None, "the trace")

    # The kinds are Phoenix's own: it knows what each span is, though nothing of ours says so in its words.
    root = spans[0]
    assert (root["name"], root["span_kind"], root["parent_id"]) == ("invoke_agent travel_agent", "AGENT", None)
    assert (root["status_code"], root["status_message"]) == ("ERROR", "BudgetExceeded")
    below = [("chat gpt-4o", "LLM"), ("execute_tool search_flights", "TOOL")] * int(calls)
    assert [(span["name"], span["span_kind"]) for span in spans[1:]] == below
    assert {span["parent_id"] for span in spans[1:]} == {root["context"]["span_id"]}
    assert {span["context"]["trace_id"] for span in spans} == {root["context"]["trace_id"]}
    assert {span["attributes"]["session.id"] for span in spans} == {root["attributes"]["gen_ai.conversation.id"]}

    chats = [span["attributes"] for span in spans if span["span_kind"] == "LLM"]
    assert sum(Decimal(str(chat["gen_ai.usage.cost.amount"])) for chat in chats) == Decimal(bill)
    assert {chat["llm.model_name"] for chat in chats} == {"gpt-4o"}
    for ours, theirs in (("input", "prompt"), ("output", "completion")):
        tokens = [chat[f"llm.token_count.{theirs}"] for chat in chats]
        assert tokens == [chat[f"gen_ai.usage.{ours}_tokens"] for chat in chats]
        assert sum(tokens) == root["attributes"][f"runcap.total.{ours}_tokens"]
