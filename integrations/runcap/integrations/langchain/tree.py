"""The runs LangChain reports, as a tree: who called whom, which of them are agents, and whose run they spend from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal
from weakref import ref

from runcap.guardrails.run import Run

if TYPE_CHECKING:
    from .toolloops import Sighting

Kind = Literal["chain", "agent", "tool"]


class Node:
    """A chain, agent or tool that has started and not ended."""

    __slots__ = (
        *("calls", "children", "id", "kind", "name", "namespace"),
        *("first_step", "replayed", "resumed", "went_on"),
        *("managed", "owns_run", "parent", "paused", "run", "seen", "sighting", "started_ns", "watch"),
    )

    def __init__(
        self, node_id: str, parent: Node | None, kind: Kind, name: str, namespace: object, started_ns: int
    ) -> None:
        self.id = node_id
        self.parent = parent
        self.kind: Kind = kind
        self.name = name
        self.namespace = namespace
        self.started_ns = started_ns
        self.run: Run | None = parent.run if parent is not None else None
        self.owns_run = False
        self.managed = False
        self.paused = False
        self.resumed = False
        """A graph that was called to go on where its thread stopped."""
        self.went_on = False
        """An agent that goes on with a run that was paused; its first step is one that was made before."""
        self.first_step: object = None
        self.replayed = False
        """It is made once more, for the answer to a question that was asked in it. What it counts was counted."""
        self.children: dict[str, Node] = {}
        self.calls: set[str] = set()
        self.watch: ref[object] | None = None
        self.sighting: Sighting | None = None
        self.seen: dict[str, object] = {}

    def is_first(self, what: str) -> bool:
        """True the first time this is asked of this node."""
        token = object()
        return self.seen.setdefault(what, token) is token

    def shown(self) -> str | None:
        """The id of the nearest agent or tool, this one included."""
        node = next((one for one in self.upward() if one.kind != "chain"), None)
        return None if node is None else node.id

    def upward(self) -> Iterator[Node]:
        """This node and those it is in, inside out."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


class Tree:
    """All nodes under way, by LangChain's run id. Every operation is a single dict operation, safe across threads."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, node_id: str | None) -> Node | None:
        """The node, None where it is not under way."""
        return self._nodes.get(node_id) if node_id is not None else None

    def add(self, node: Node) -> bool:
        """Take a node in; False where it is known already (a handler attached twice)."""
        if self._nodes.setdefault(node.id, node) is not node:
            return False
        if node.parent is not None:
            node.parent.children[node.id] = node
        return True

    def remove(self, node_id: str) -> Node | None:
        """Take a node out, None where it has been already."""
        node = self._nodes.pop(node_id, None)
        if node is not None and node.parent is not None:
            node.parent.children.pop(node_id, None)
        return node


def below(node: Node) -> Iterator[Node]:
    """The nodes under this one that have not ended, innermost first."""
    for child in list(node.children.values()):
        yield from below(child)
        yield child


def is_first_node_of_graph(parent: Node, metadata: Mapping[str, Any]) -> bool:
    """A LangGraph node announces its graph: it runs in a checkpoint namespace that its parent is not in yet."""
    return (
        parent.kind == "chain"
        and "langgraph_node" in metadata
        and metadata.get("langgraph_checkpoint_ns") != parent.namespace
    )
