"""A run's trace: as a tree of text, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text
from rich.tree import Tree

from runcap.guardrails.ledger import UsageRecord
from runcap.guardrails.ledger.notes import Note

from .asked import began_ns
from .screen import Screen
from .text import clean, count, decimals, dollars, iso, lasted, moment, money, plural
from .tracing import Node

SCHEMA = 1
"""The version of a trace's shape."""

_STATES = {"settled": "", "released": "released", "unknown": "unknown"}
_WORDS = {"tier": "tier", "loop": "loop", "paused": "paused", "stopped": "stopped", "prefix": "prefix broken"}


def show(node: Node, screen: Screen) -> None:
    """The tree: runs, sub-runs, calls and what else happened, by time."""
    places = decimals(node.total.nano)
    if node.parent_run_id is not None:
        screen.line(f"a sub-run of {node.parent_run_id}", "dim")
    tree = Tree(_title(node, places), guide_style="dim" if screen.live else "")
    _grow(tree, node, places, _Widths(node))
    screen.show(tree)


class _Widths:
    """How wide the columns of calls are."""

    def __init__(self, top: Node) -> None:
        calls = [call for node in top.all() for call in node.calls]
        self.model = max((len(clean(call.about.model or "?")) for call in calls), default=0)
        self.step = max((len(str(len(node.calls))) for node in top.all()), default=1)


def _grow(tree: Tree, node: Node, places: int, widths: _Widths) -> None:
    steps = {call.call_id: n for n, call in enumerate(node.calls, 1)}
    for what in _in_order(node):
        if isinstance(what, Node):
            _grow(tree.add(_title(what, places, node.tags)), what, places, widths)
        elif isinstance(what, Note):
            tree.add(_note(what, places))
        else:
            tree.add(_call(what, steps[what.call_id], places, widths))


def _in_order(node: Node) -> Iterator[Node | Note | UsageRecord]:
    timed: list[tuple[int, int, Node | Note | UsageRecord]] = [
        *((began_ns(call), 0, call) for call in node.calls),
        *((note.first_ns, 1, note) for note in node.notes),
        *((child.first_ns or 0, 2, child) for child in node.children),
    ]
    for _, _, what in sorted(timed, key=lambda one: one[:2]):
        yield what


def _title(node: Node, places: int, known: Mapping[str, str] = {}) -> Text:
    """What is to be said of a run; of its tags, those that the run around it has not."""
    total = node.total
    title = Text(f"run {clean(node.run_id)}", style="bold", overflow="fold")
    parts = [clean(f"{name}={value}") for name, value in node.tags.items() if known.get(name) != value]
    if node.verdict is not None or node.parent_run_id is None:
        title.append(f"  {clean(node.verdict or 'no verdict')}", _colour(node.verdict))
    title.append("  " + " ".join(parts) if parts else "", "not bold cyan")
    figures = [money(total.cost_nano, places) if total.calls else None, plural(total.calls, "call")]
    if total.unknown_nano:
        figures.append(f"{money(total.unknown_nano, places)} unknown")
    if total.unpriced:
        figures.append(f"{total.unpriced:,} without a price")
    figures.append(f"{count(total.input)} in / {count(total.output)} out")
    if node.first_ns is not None and node.last_ns is not None:
        figures.append(f"{moment(node.first_ns)} UTC, {lasted((node.last_ns - node.first_ns) / 1e9)}")
    title.append("\n" + "  ".join(part for part in figures if part), "not bold")
    return title


def _colour(verdict: str | None) -> str:
    if verdict is None:
        return "not bold dim"
    return "green" if verdict == "succeeded" else "red"


def _call(call: UsageRecord, step: int, places: int, widths: _Widths) -> Text:
    about, usage = call.about, call.usage
    line = Text(f"{step:>{widths.step}}  {clean(about.model or '?'):<{widths.model}}", overflow="fold")
    line.append(f"  {money(call.cost_nano, places):>{places + 4}}")
    tokens = "no usage"
    if usage is not None:
        cached = f" ({count(usage.cache_read_tokens)} cached)" if usage.cache_read_tokens else ""
        thought = f" ({count(usage.reasoning_tokens)} reasoning)" if usage.reasoning_tokens else ""
        tokens = f"{count(usage.input_tokens)} in{cached} / {count(usage.output_tokens)} out{thought}"
    parts = [tokens, lasted(call.latency_ns / 1e9) if call.latency_ns is not None else None]
    parts += [f"tier {about.tier}" if about.tier else None, f"attempt {about.attempt}" if about.attempt > 1 else None]
    line.append("".join(f"  {clean(part)}" for part in parts if part))
    told = [_STATES.get(call.state, call.state), call.error_type]
    told += [f"{money(call.unknown_nano, places)} unknown" if call.unknown_nano else None]
    told += [f"resolved: {call.resolved_by}" if call.resolved_by else None]
    line.append("".join(f"  {clean(part)}" for part in told if part), "yellow" if call.state == "unknown" else "dim")
    return line


def _note(note: Note, places: int) -> Text:
    parts = [_WORDS.get(note.kind, note.kind), note.what, note.scope, note.unit]
    parts += [f"{count(note.tokens)} tokens" if note.tokens else None]
    parts += [money(note.cost_nano, places) if note.cost_nano is not None else None]
    parts += [f"{note.count:,} times" if note.count > 1 else None]
    return Text("!  " + "  ".join(clean(part) for part in parts if part), style="yellow", overflow="fold")


def to_json(node: Node, ledger: str) -> str:
    """One object; dollars are decimal strings, tokens integers, what is not known is null."""
    return json.dumps({"schema": SCHEMA, "ledger": ledger, "run": document(node)}, indent=2) + "\n"


def document(node: Node) -> dict[str, Any]:
    """A run, with all beneath it."""
    return {
        "run": node.run_id,
        "parent": node.parent_run_id,
        "tags": dict(node.tags),
        "verdict": node.verdict,
        "first": iso(node.first_ns),
        "last": iso(node.last_ns),
        "cost_usd": dollars(node.total.cost_nano),
        "unknown_usd": dollars(node.total.unknown_nano),
        "own_cost_usd": dollars(node.own.cost_nano),
        "calls_beneath": node.total.calls,
        "unpriced_calls": node.total.unpriced,
        "input_tokens": node.total.input,
        "output_tokens": node.total.output,
        "calls": [call.row() for call in node.calls],
        "notes": [_noted(note) for note in node.notes],
        "subruns": [document(child) for child in node.children],
    }


def _noted(note: Note) -> dict[str, Any]:
    return {
        "kind": note.kind,
        "what": note.what,
        "scope": note.scope,
        "unit": note.unit,
        "model": note.model,
        "count": note.count,
        "tokens": note.tokens,
        "cost_usd": dollars(note.cost_nano),
        "first": iso(note.first_ns),
        "last": iso(note.last_ns),
    }
