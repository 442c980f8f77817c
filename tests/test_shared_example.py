"""`examples/shared_budget.py`, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from .guardrails.redis_server import RedisServer

ROOT = Path(__file__).parents[1]


def run(*options: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / "shared_budget.py"), *options]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def check(shown: str, *, usd: str, workers: int) -> None:
    """One line a worker, the cap held and nearly used up, and the provider, ledger and records agree."""
    lines = re.findall(r"^ (\d+) +(\d+) +(\d+) +\$([\d.]+) .*halted", shown, flags=re.MULTILINE)
    assert len(lines) == workers
    assert sum(int(calls) > 0 for _, _, calls, _ in lines) > 1, "no race: one process did it all"
    [(bill, calls)] = re.findall(r"own bill: \$([\d.]+) for (\d+) calls", shown)
    assert Decimal(usd) * 9 / 10 < Decimal(bill) <= Decimal(usd)
    assert f"processes spent ${bill} of it" in shown
    assert f"records: {calls} calls, ${bill}" in shown
    assert "HALTED: budget exceeded (team support/day/" in shown


@pytest.mark.parametrize("options", [(), ("--workers", "2", "--usd", "0.03")], ids=str)
def test_a_file_holds_the_cap(options: Sequence[str]) -> None:
    check(run(*options), usd="0.03" if options else "0.05", workers=2 if options else 4)


@pytest.mark.redis
def test_redis_holds_the_cap() -> None:
    with RedisServer() as server:
        check(run("--redis", server.url), usd="0.05", workers=4)


def test_a_file_is_gone_on_with(tmp_path: Path) -> None:
    file = str(tmp_path / "budget.db")
    options = ("--file", file, "--workers", "2", "--usd", "0.02")
    first = run(*options)
    second = run(*options)
    assert re.search(r"own bill: \$0 for 0 calls|own bill: \$0\.00\d* for [12] calls", second), second
    assert Decimal(re.findall(r"spent \$([\d.]+) of it", second)[0]) >= Decimal(
        re.findall(r"spent \$([\d.]+) of it", first)[0]
    )
