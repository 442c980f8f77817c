"""docs/attributes.md says what the modules say that hold the names."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from runcap.exporters.otel import semconv

ROOT = Path(__file__).parents[1]


def test_the_page_is_made_of_the_modules() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGE.read_text("utf-8") == generate.page(), "python docs/generate.py"


def test_every_name_is_documented_and_of_a_known_namespace() -> None:
    page = (ROOT / "docs" / "attributes.md").read_text("utf-8")
    source = Path(semconv.__file__).read_text("utf-8")
    names = re.findall(r'^[A-Z_]+: Final = "((?:gen_ai|runcap|error)\.[a-z_.]+)"', source, re.MULTILINE)
    assert len(names) > 80
    for name in names:
        assert f"| `{name}` |" in page
