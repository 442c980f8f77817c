"""Where an agent's call is made."""

from __future__ import annotations

from typing import NamedTuple

from langchain_core.runnables.config import var_child_runnable_config

from runcap.guardrails.run import Run

from .tree import Node


class Place(NamedTuple):
    """The run, the agent by the id it is shown with, whether it is the run's root, and what names its conversation."""

    run: Run
    agent_id: str | None
    root: bool
    conversation: object


def place_of(run: Run, node: Node | None) -> Place:
    """Where this code runs: in a node of an agent that has our middleware.

    The root is the outermost such agent. A graph around it, or an agent without a middleware, can give no last answer.
    """
    agent = next((one for one in node.upward() if one.kind != "chain"), None) if node is not None else None
    if agent is None:
        return Place(run, None, root=True, conversation=_conversation(run.id))
    agent.managed = True
    above = agent.parent.upward() if agent.parent is not None else ()
    return Place(run, agent.id, not any(one.managed for one in above), _conversation(agent.id))


def _conversation(otherwise: str) -> object:
    """The thread, the agent's own part of its checkpoints and its name; without a thread, the one invocation."""
    config = var_child_runnable_config.get() or {}
    metadata = config.get("metadata") or {}
    thread = (config.get("configurable") or {}).get("thread_id")
    if thread is None:
        return otherwise
    namespace = str(metadata.get("langgraph_checkpoint_ns") or "").rpartition("|")[0]
    return str(thread), namespace, metadata.get("lc_agent_name")
