"""One run and all beneath it, as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from runcap.guardrails.ledger import UsageRecord
from runcap.guardrails.ledger.notes import Note

from .asked import began_ns
from .sources import Source
from .spending import Spend

_LATEST = 5


@dataclass(slots=True)
class Node:
    """A run. `own` is what its own calls cost, `total` with its sub-runs. Times are None where nothing is known."""

    run_id: str
    parent_run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    verdict: str | None = None
    first_ns: int | None = None
    last_ns: int | None = None
    calls: list[UsageRecord] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    own: Spend = field(default_factory=Spend)
    total: Spend = field(default_factory=Spend)

    def all(self) -> Iterator[Node]:
        """Itself, and all beneath."""
        yield self
        for child in self.children:
            yield from child.all()

    def saw(self, first_ns: int, last_ns: int) -> None:
        """Something happened in it."""
        self.first_ns = first_ns if self.first_ns is None else min(self.first_ns, first_ns)
        self.last_ns = last_ns if self.last_ns is None else max(self.last_ns, last_ns)


class UnknownRun(LookupError):
    """No run of this id, or several that begin so. The message names what there is."""


def trace_of(source: Source, run: str) -> Node:
    """The run of this id, or the only one whose id begins so.

    Raises:
        LedgerError: the ledger cannot be read.
        UnknownRun: there is none, or more than one.
    """
    nodes = _known(source)
    run_id = _chosen(nodes, run)
    beneath: dict[str, list[str]] = {}
    for node in nodes.values():
        if node.parent_run_id is not None:
            beneath.setdefault(node.parent_run_id, []).append(node.run_id)
    wanted = _beneath(run_id, beneath)
    for one in wanted:
        _read(source, nodes[one])
    silent = [one for one in wanted if not nodes[one].calls]
    for one, verdict in source.verdicts(silent).items():
        nodes[one].verdict = verdict
    for one in reversed(wanted):  # children before their parents
        _close(nodes[one], nodes.get(str(nodes[one].parent_run_id)) if one != run_id else None)
    return nodes[run_id]


def _known(source: Source) -> dict[str, Node]:
    """Every run of the ledger, with its parent and when something happened in it."""
    nodes: dict[str, Node] = {}
    for note in source.notes():
        _see(nodes, note.run_id, note.parent_run_id, note.tags).saw(note.first_ns, note.last_ns)
    for record in source.records():
        about = record.about
        _see(nodes, about.run_id, about.parent_run_id, about.tags).saw(began_ns(record), record.ended_ns)
    for parent in [node.parent_run_id for node in nodes.values()]:
        if parent is not None:
            nodes.setdefault(parent, Node(parent))
    return nodes


def _see(nodes: dict[str, Node], run_id: str, parent: str | None, tags: Mapping[str, str]) -> Node:
    node = nodes.get(run_id)
    if node is None:
        node = nodes[run_id] = Node(run_id, parent, tags)
    return node


def _chosen(nodes: Mapping[str, Node], run: str) -> str:
    if run in nodes:
        return run
    found = sorted(run_id for run_id in nodes if run_id.startswith(run))
    if len(found) == 1:
        return found[0]
    latest = sorted((node for node in nodes.values() if node.last_ns), key=lambda node: -(node.last_ns or 0))[:_LATEST]
    if found:
        raise UnknownRun(f"{len(found)} runs begin with {run!r}: {', '.join(found[:_LATEST])}")
    told = ", ".join(node.run_id for node in latest)
    raise UnknownRun(
        f"no run {run!r} in this ledger; the latest are: {told}" if told else "this ledger has no runs yet"
    )


def _beneath(run_id: str, beneath: Mapping[str, list[str]]) -> list[str]:
    """The run and all beneath it, each before its children, and once though they were a circle."""
    found, seen = [run_id], {run_id}
    for one in found:
        for child in beneath.get(one, ()):
            if child not in seen:
                seen.add(child)
                found.append(child)
    return found


def _read(source: Source, node: Node) -> None:
    node.calls = sorted(source.records(run_id=node.run_id), key=lambda one: (began_ns(one), one.ended_ns))
    node.notes = sorted(source.notes(run_id=node.run_id), key=lambda one: one.first_ns)
    for record in node.calls:
        node.own.add(record)
        node.verdict = record.verdict


def _close(node: Node, parent: Node | None) -> None:
    node.total.merge(node.own)
    node.children.sort(key=lambda child: child.first_ns or 0)
    if parent is not None:
        parent.total.merge(node.total)
        parent.children.append(node)
        if node.first_ns is not None and node.last_ns is not None:
            parent.saw(node.first_ns, node.last_ns)
