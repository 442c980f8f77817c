from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*options: str, script: str = "runaway_agent", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / f"{script}.py"), *options]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))}
    return subprocess.run(command, env=quiet | env, capture_output=True, text=True, timeout=120, check=False)


def test_the_agent_is_halted_at_its_cap_and_says_so() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    spent = re.search(r"Spent \$([\d.]+) of \$0\.05 in (\d+) steps and \2 tool calls", done.stdout)
    assert spent is not None
    assert 0.04 < float(spent[1]) <= 0.05
    steps = int(spent[2])
    assert len(re.findall(r"^step +\d+ ", done.stdout, flags=re.MULTILINE)) == steps
    assert len(re.findall(r"^  chat gpt-4o  \d+ in, \d+ out, \$", done.stdout, flags=re.MULTILINE)) == steps
    assert f"invoke_agent travel_agent  {steps} calls" in done.stdout
    assert f"own bill: ${spent[1]} for {steps} calls" in done.stdout
    assert "HALTED: budget exceeded" in done.stdout


def test_steps_halt_it_too() -> None:
    done = run("--usd", "1", "--steps", "3")
    assert "steps cap 3, spent 3" in done.stdout
    assert "in 3 steps" in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [(("--usd", "lots"), "Budget.usd must be a number"), (("--model", "openai:gpt-4o"), "cannot use openai:gpt-4o")],
)
def test_bad_options_are_named(options: tuple[str, ...], says: str) -> None:
    done = run(*options)
    assert done.returncode != 0
    assert says in done.stderr


def test_the_agent_goes_down_its_ladder_and_ends_by_itself() -> None:
    done = run(script="tiered_agent")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    steps = re.findall(
        r"^step +(\d+)  (\S+) +\$0\.\d{5}   \[#+ *\] \$(0\.\d{5}) of \$0\.0200$", done.stdout, re.MULTILINE
    )
    assert [int(number) for number, _, _ in steps] == list(range(1, 22))
    names = [name for _, name, _ in steps]
    assert names == sorted(names, key=["gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano"].index)
    assert len(set(names)) == 3
    assert re.findall(r"^ +down from (\S+) to (\S+): \d+% of the cap is used$", done.stdout, re.MULTILINE) == [
        ("gpt-4.1", "gpt-4.1-mini"),
        ("gpt-4.1-mini", "gpt-4.1-nano"),
    ]
    assert "FINISHED on gpt-4.1-nano: Sales grew in all 20 regions." in done.stdout
    spent = re.search(r"Spent \$([\d.]+) of \$0\.02 in 21 steps\.", done.stdout)
    assert spent is not None
    assert float(steps[-1][2]) == pytest.approx(float(spent[1]), abs=1e-5)
    assert float(spent[1]) <= 0.02
    assert f"own bill: ${spent[1]} for 21 calls" in done.stdout


def test_without_its_ladder_it_is_halted_before_it_is_done() -> None:
    done = run("--no-tiers", script="tiered_agent")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "HALTED: budget exceeded" in done.stdout
    assert {*re.findall(r"^step +\d+  (\S+) ", done.stdout, re.MULTILINE)} == {"gpt-4.1"}
