"""Every Python snippet of the README runs, in order, against the scripted provider."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from runcap.guardrails.testing import Reply, ScriptedProvider

ROOT = Path(__file__).parents[1]


def test_the_snippets_run() -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(snippets) >= 3
    with ScriptedProvider(Reply(text="hello yourself")) as provider:
        env = os.environ | {
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": provider.openai_url,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        }
        command = [sys.executable, "-c", "\n".join(snippets)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"0\.\d+ 1 Usage\(input_tokens=\d+, output_tokens=\d+, .*\)", first)
    assert re.fullmatch(r"0\.\d+ 1\.\d+ 0", second)
    assert provider.received == 4
