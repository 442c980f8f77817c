"""The layout that lets `guardrails/` be a source root without clobbering anybody's `guardrails` package."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
SOURCES = ("guardrails", "integrations", "exporters")


def test_runcap_is_a_namespace_package() -> None:
    assert not [str(source) for name in SOURCES if (source := ROOT / name / "runcap" / "__init__.py").exists()]
    assert not [str(source) for name in SOURCES if (source := ROOT / name / "__init__.py").exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"]))
    return Path(built)


def test_the_wheel_owns_runcap_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"runcap", "runcap-0.1.0.dist-info"}
    for module in ("guardrails/guard.py", "guardrails/testing/provider.py", "exporters/otel/sink.py"):
        assert f"runcap/{module}" in names
    for part in SOURCES:
        assert f"runcap/{part}/py.typed" in names


def test_beside_a_package_that_owns_guardrails_nothing_is_clobbered(wheel: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "guardrails"
    theirs.mkdir()
    (theirs / "__init__.py").write_text("OWNER = 'guardrails-ai'\n")
    before = (theirs / "__init__.py").read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    assert (theirs / "__init__.py").read_bytes() == before
    assert sorted(path.name for path in theirs.iterdir()) == ["__init__.py"]
    code = (
        "import guardrails, runcap.guardrails, runcap.exporters, runcap.integrations.langchain as lc;"
        "print(guardrails.OWNER, runcap.guardrails.__file__)"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    owner, where = done.stdout.split()
    assert owner == "guardrails-ai"
    assert where.startswith(str(tmp_path))


def test_the_core_imports_no_framework() -> None:
    code = (
        "import sys, runcap.guardrails, runcap.guardrails.testing;"
        "print([name for name in ('langchain_core', 'langgraph', 'opentelemetry', 'structlog') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
