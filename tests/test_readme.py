"""Every Python snippet of the README and the docs runs, in order, against the scripted provider."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runcap.guardrails.testing import Reply, ScriptedProvider

ROOT = Path(__file__).parents[1]


def test_the_snippets_run(tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(snippets) >= 3
    with ScriptedProvider(Reply(text="hello yourself")) as provider:
        env = os.environ | {
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": provider.openai_url,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        }
        command = [sys.executable, "-c", "\n".join(snippets)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    middleware, attached, callback, run, record = done.stdout.splitlines()
    for told in (middleware, callback):
        assert re.fullmatch(r"0\.\d+ 1 Usage\(input_tokens=\d+, output_tokens=\d+, .*\)", told)
    assert re.fullmatch(r"0\.\d+", attached)
    assert re.fullmatch(r"0\.\d+ 1\.\d+ 0", run)
    assert re.fullmatch(r"gpt-4o 0\.\d+ settled succeeded", record)
    assert provider.received == 9


PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "```python" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_snippets_of_a_page_run(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    for name, content in re.findall(r"```yaml\n# (\S+)\n(.*?)```", text, flags=re.DOTALL):
        (tmp_path / name).write_text(content)
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert snippets
    command = [sys.executable, "-W", "error", "-c", "\n".join(snippets)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
