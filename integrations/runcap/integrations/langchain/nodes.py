"""The chains, agents and tools under way: when they begin, whose run they spend from, and when they end."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import UUID
from weakref import ref

from runcap.guardrails.errors import Refused
from runcap.guardrails.events import AgentEnded, AgentStarted, Outcome, RunWentOn, ToolEnded, ToolStarted
from runcap.guardrails.guard import Guard
from runcap.guardrails.run import Run
from runcap.guardrails.saved import SavedRun, carry_over, catch_up

from .contents import tell_arguments, tell_result
from .errors import bubbling
from .failures import outcome
from .running import node_here
from .scope import agent_run, scoped_run
from .toolgate import admitted_already, is_in_hand
from .toolloops import Sighting
from .tree import Node, Tree, below, is_first_node_of_graph

_UNSTEERED = (
    "Guard(tiers=, history=), LoopPolicy(nudge=) and Budget(on_breach=, tell_agent=) are carried out by a "
    "BudgetMiddleware: nothing else can change which model an agent calls, with which messages"
)


class Nodes:
    """Follows the tree of runs that LangChain reports, for one guard."""

    def __init__(self, guard: Guard) -> None:
        self.last_run: Run | None = None
        self._guard = guard
        self._tree = Tree()
        self._beginning = threading.RLock()
        guard.add_locator(self._run_here)

    def __len__(self) -> int:
        return len(self._tree)

    def get(self, run_id: UUID | None) -> Node | None:
        """The node of one of LangChain's run ids."""
        return self._tree.get(run_id.hex) if run_id is not None else None

    def run_of(self, parent: Node | None, metadata: Mapping[str, Any]) -> Run | None:
        """Whose run a call below `parent` spends from: the ambient one, the one named in metadata, the root agent's.

        None is the default run.
        """
        if self._guard.unsteered:
            self._guard.say_once(_UNSTEERED)
        run = scoped_run(self._guard, metadata)
        if run is None and parent is not None and parent.run is not None and not parent.run.ended:
            run = parent.run
        return run

    def begin_chain(
        self, run_id: UUID, parent: Node | None, name: str, metadata: Mapping[str, Any], *, resumed: bool = False
    ) -> None:
        """A chain began; the first node of a graph makes its parent an agent."""
        if parent is not None and is_first_node_of_graph(parent, metadata):
            # Parallel branches are all first: one of them begins the agent, the others wait until it has begun.
            with self._beginning:
                if parent.kind == "chain":
                    self._begin_agent(parent, metadata)
        node = self._node(run_id, parent, "chain", name, metadata)
        node.resumed = resumed
        if parent is not None and parent.went_on:
            step = metadata.get("langgraph_step")
            parent.first_step = step if parent.first_step is None else parent.first_step
            node.replayed = step == parent.first_step
        self._add(node, run_id)

    def begin_tool(
        self,
        run_id: UUID,
        parent: Node | None,
        name: str,
        metadata: Mapping[str, Any],
        tool_call_id: str | None,
        arguments: object,
        description: str = "",
    ) -> None:
        """A tool is about to run: count it.

        Raises:
            Refused: its run may make no more tool calls, or is halted for this one.
        """
        node = self._node(run_id, parent, "tool", name, metadata)
        if not self._guard.calls.claim(node.id, self):
            return
        shown = parent.shown() if parent is not None else None
        try:
            run = self._guard.scope(self.run_of(parent, metadata))
            if not is_in_hand(self._guard, tool_call_id):
                node.sighting = Sighting(self._guard, run, parent, name, tool_call_id)
                node.sighting.started(arguments)
            if not admitted_already(self._guard, tool_call_id):
                self._guard.admit_tool(node.id, run, shown)
        except Refused as refused:
            self._guard.calls.unclaim(node.id)
            raise bubbling(refused) from None
        except BaseException:
            self._guard.calls.unclaim(node.id)
            raise
        self.last_run = node.run = run
        self._add(node, run_id)
        started, told = node.started_ns, description or None
        self._guard.emit(ToolStarted(started, run.info, node.id, shown, name, tool_call_id, told))
        tell_arguments(self._guard.sinks, node.id, arguments)

    def go_on(self, owner: Node, blank: Run, saved: SavedRun) -> Run:
        """An agent that was resumed in another process than it paused in: it goes on with its old run."""
        with self._beginning:
            if owner.run is not blank and owner.run is not None:
                return owner.run  # parallel branches are resumed at once
            run = self._guard.open_run(tags=blank.tags, conversation_id=blank.info.conversation_id, saved=saved)
            run.account.before_next(partial(carry_over, saved, blank, self._guard.ledger))
            moved = [node for node in (owner, *below(owner)) if node.run is blank]
            for node in moved:
                node.run = run
            self.last_run = blank.went_on_as = run
        now = self._guard.clock.time_ns()
        for node in moved:
            if node.kind != "chain":
                self._guard.emit(RunWentOn(now, run.info, node.id, blank.id, saved.trace))
        blank.end()
        return run

    def catch_up(self, run: Run, saved: SavedRun) -> None:
        """The same run, kept elsewhere later than what it was restored from here: a sub-agent's record, as a rule."""
        with self._beginning:
            run.account.before_next(partial(catch_up, saved, run, self._guard.ledger))

    def end_tool(self, key: str, output: object) -> None:
        """A tool ended with this output."""
        node = self._tree.get(key)
        if node is not None and node.sighting is not None:
            node.sighting.ended(output)
        if node is not None:
            tell_result(self._guard.sinks, key, output)
        self.end(key, "completed")

    def fail_tool(self, key: str, error: BaseException) -> None:
        """A tool ended by an exception."""
        node = self._tree.get(key)
        if node is not None and node.sighting is not None:
            node.sighting.failed(error)
        self.end(key, outcome(error), type(error).__name__)

    def end(self, key: str, how: Outcome, error_type: str | None = None) -> None:
        """A node ended, and with it whatever below it has not; a node that is not under way is left alone."""
        node = self._tree.remove(key)
        if node is None:
            return
        if how == "interrupted" and node.parent is not None:
            node.parent.paused = True
        if how == "completed" and node.paused:
            how = "interrupted"
        for child in below(node):
            self.end(child.id, "cancelled", "CancelledError")
        for call_id in tuple(node.calls):
            self._guard.calls.reap(call_id, error_type or "CancelledError")
        self._guard.calls.drain()
        self._guard.calls.unclaim(key)
        if node.run is not None and node.kind != "chain":
            self._tell_end(node, node.run, how, error_type)
        if node.run is not None and node.owns_run:
            self._end_run(node.run, how)

    def watch(self, run_id: UUID, key: str) -> ref[object]:
        """Notice when nobody reports the end of something: LangChain's run manager holds the id until then.

        It is the one sign left of a call cancelled within its task, or of a generator dropped without close. The
        callback may run anywhere, even inside the ledger, so it only leaves a note for the guard's next use.
        """
        nodes = ref(self)
        calls = self._guard.calls

        def forget() -> None:
            calls.reap(key)
            alive = nodes()
            if alive is not None:
                alive.end(key, "cancelled", "CancelledError")

        def lost(_: object) -> None:
            calls.defer(forget)

        return ref(run_id, lost)

    def _end_run(self, run: Run, how: Outcome) -> None:
        if how == "interrupted" and run.info.conversation_id != run.id:
            # Whoever interrupted it: a run that a person approves step by step is one run, with one budget.
            run.pause()
            self._guard.paused.put(run.info.conversation_id, run)
        else:
            run.end()

    def _run_here(self) -> Run | None:
        """The run of the tool or node this code runs in, as LangChain's own context tells."""
        node = self.get(node_here())
        return node.run if node is not None else None

    def _node(self, run_id: UUID, parent: Node | None, kind: Any, name: str, metadata: Mapping[str, Any]) -> Node:
        namespace = metadata.get("langgraph_checkpoint_ns")
        return Node(run_id.hex, parent, kind, name, namespace, self._guard.clock.time_ns())

    def _add(self, node: Node, run_id: UUID) -> None:
        if self._tree.add(node):
            node.watch = self.watch(run_id, node.id)

    def _begin_agent(self, node: Node, metadata: Mapping[str, Any]) -> None:
        if node.run is not None:
            node.went_on = node.resumed and any(one.replayed for one in node.upward())
        else:
            node.run = scoped_run(self._guard, metadata)
            if node.run is None:
                node.run, node.owns_run = agent_run(self._guard, metadata, resumed=node.resumed), True
            # A run that the user holds is never paused, and goes on all the same.
            node.went_on = node.resumed and (node.run.paused or not node.owns_run)
            node.run.go_on()
        self.last_run = node.run
        shown = node.parent.shown() if node.parent is not None else None
        self._guard.emit(AgentStarted(node.started_ns, node.run.info, node.id, shown, node.name, node.resumed))
        node.kind = "agent"  # last: whoever sees an agent finds its run and its span there

    def _tell_end(self, node: Node, run: Run, how: Outcome, error_type: str | None) -> None:
        now = self._guard.clock.time_ns()
        if node.kind == "tool":
            event = ToolEnded(time_ns=now, run=run.info, node_id=node.id, outcome=how, error_type=error_type)
            self._guard.emit(event)
            return
        emit, node_id = self._guard.emit, node.id
        run.account.once_paid(lambda: emit(AgentEnded(now, run.info, node_id, how, run.seen, error_type)))
