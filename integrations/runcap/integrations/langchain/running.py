"""What LangChain's own context tells of the code that is running: whose node it is, its thread, its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from langchain_core.runnables.config import var_child_runnable_config


def node_here() -> UUID | None:
    """The run id of the node or tool this code runs in; None outside of any."""
    callbacks = (var_child_runnable_config.get() or {}).get("callbacks")
    return getattr(callbacks, "parent_run_id", None)


def metadata_here() -> Mapping[str, Any]:
    """Its config's metadata."""
    return (var_child_runnable_config.get() or {}).get("metadata") or {}


def configurable_here() -> Mapping[str, Any]:
    """Its config's configurable part: the thread, and what LangGraph keeps there for itself."""
    return (var_child_runnable_config.get() or {}).get("configurable") or {}
