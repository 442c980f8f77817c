from __future__ import annotations

import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "ask_for_more.py"), *options]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))}
    return subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=120, check=False)


def bill(done: subprocess.CompletedProcess[str]) -> tuple[Decimal, int]:
    found = re.search(r"own bill: \$([\d.]+) for (\d+) calls", done.stdout)
    assert found is not None, done.stdout
    return Decimal(found[1]), int(found[2])


def test_the_run_goes_on_with_its_old_spend() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.findall(r"^  cap      (.+)$", done.stdout, flags=re.MULTILINE) == ["0.02", "0.04"]
    spent = [Decimal(one) for one in re.findall(r"^  spent    (.+)$", done.stdout, flags=re.MULTILINE)]
    assert Decimal("0.01") < spent[0] <= Decimal("0.02") < spent[1] <= Decimal("0.04")
    assert len(set(re.findall(r"run (\w{32})", done.stdout))) == 1, "one run, in three processes"
    assert "ANSWER: There is one seat left to Lisbon, on day 17." in done.stdout
    cost, calls = bill(done)
    assert f"ended: ${cost} in {calls} steps, 2 top-ups" in done.stdout
    assert cost <= Decimal("0.06")


def test_the_answer_may_be_no() -> None:
    done = run("--more", "0")
    assert done.returncode == 0, done.stderr
    assert "DECLINED: budget exceeded" in done.stdout
    cost, _ = bill(done)
    assert cost <= Decimal("0.02")


def test_enough_is_not_asked_about() -> None:
    done = run("--usd", "1")
    assert "asks for more" not in done.stdout
    assert "0 top-ups" in done.stdout
