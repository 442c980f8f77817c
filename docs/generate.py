"""Makes docs/attributes.md of the modules that hold the names: `python docs/generate.py`. A test sees that it was."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from runcap.exporters.otel import semconv, semconv_content, semconv_metrics
from runcap.exporters.otel.semconv_metrics import Metric

PAGE = Path(__file__).with_name("attributes.md")

HEAD = """# Attributes, events and metrics

Made by `python docs/generate.py` of `exporters/runcap/exporters/otel/semconv*.py`; edit those. Spans are
`invoke_agent {agent}` (INTERNAL), `chat {model}` (CLIENT; INTERNAL for a model in this process) and
`execute_tool {tool}` (INTERNAL). What is not known is absent, never zero. No content, unless it is asked for.
"""


def page() -> str:
    """The page's text."""
    parts = [HEAD]
    for title, names in sections(Path(semconv.__file__)):
        parts += [f"\n## {title}\n", *table(("name", "type", "what it says"), names)]
    parts.append("\n## Content, where it is asked for\n")
    for _, names in sections(Path(semconv_content.__file__)):
        parts += table(("name", "type", "what it says"), names)
    parts.append("\n## Metrics\n")
    rows = [
        (f"`{one.name}`", f"{one.kind}, {one.unit}", f"{one.about}. By {by(one)}") for one in semconv_metrics.METRICS
    ]
    parts += table(("name", "instrument, unit", "what it counts"), rows)
    return "\n".join(parts) + "\n"


def by(metric: Metric) -> str:
    """Its attributes."""
    return ", ".join(f"`{name}`" for name in metric.attributes)


def sections(path: Path) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """The documented names of a module, by the comments above them."""
    source = path.read_text("utf-8")
    lines, title, names = source.splitlines(), "", list[tuple[str, str, str]]()
    body = ast.parse(source).body
    for node, after in pairwise(body):
        above = lines[node.lineno - 2]
        if above.startswith("# "):
            if names:
                yield title, names
            title, names = above[2:].rstrip("."), []
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Constant) and isinstance(after, ast.Expr):
            kind, _, about = " ".join(str(ast.literal_eval(after.value)).split()).partition(": ")
            if about:
                names.append((f"`{node.value.value}`", kind, about))
    if names:
        yield title, names


def table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
