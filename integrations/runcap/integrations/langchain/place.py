"""Where an agent's call is made."""

from __future__ import annotations

from typing import NamedTuple

from runcap.guardrails.run import Run

from .running import configurable_here, metadata_here
from .tree import Node


class Place(NamedTuple):
    """The run, the agent by the id it is shown with, whether it is the run's root, and what names its conversation.

    A conversation that has a thread may go on in another run.
    """

    run: Run
    agent_id: str | None
    root: bool
    conversation: object
    outlives_run: bool = False


def place_of(run: Run, node: Node | None) -> Place:
    """Where this code runs: in a node of an agent that has our middleware.

    The root is the outermost such agent under the cap of the run. A graph around it, or an agent without a middleware,
    can give no last answer.
    """
    agent = next((one for one in node.upward() if one.kind != "chain"), None) if node is not None else None
    thread = _thread()
    if agent is None:
        return Place(run, None, root=True, conversation=thread or run.id, outlives_run=thread is not None)
    agent.managed = True
    above = agent.parent.upward() if agent.parent is not None else ()
    root = not any(one.managed and one.run is not None and one.run.course is run.course for one in above)
    return Place(run, agent.id, root, thread or agent.id, outlives_run=thread is not None)


def _thread() -> object:
    """The thread, the agent's own part of its checkpoints and its name; None without a thread."""
    thread, metadata = configurable_here().get("thread_id"), metadata_here()
    if thread is None:
        return None
    namespace = str(metadata.get("langgraph_checkpoint_ns") or "").rpartition("|")[0]
    return str(thread), namespace, metadata.get("lc_agent_name")
