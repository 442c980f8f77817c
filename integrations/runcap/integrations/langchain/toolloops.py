"""Tool calls as the guard's search for loops wants them: once each, what they carry reduced to digests."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Self

from langchain_core.messages import ToolMessage

from runcap.guardrails.guard import Guard
from runcap.guardrails.run import Run

from .failures import outcome
from .tree import Node


class Sighting:
    """One tool call, from its start to its end; leaving it as a context manager by an exception is a failure.

    `parent` is what it was called in: the node of a graph, as a rule. Attempts of a retry are one call there, and one
    failure.
    """

    __slots__ = ("_agent_id", "_guard", "_name", "_parent", "_run", "_tool_call_id")

    def __init__(self, guard: Guard, run: Run, parent: Node | None, name: str, tool_call_id: str | None) -> None:
        self._guard = guard
        self._run = run
        self._parent = parent
        self._agent_id = parent.shown() if parent is not None else None
        self._name = name
        self._tool_call_id = tool_call_id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            self.failed(error)

    def started(self, arguments: object) -> None:
        """It is about to run.

        Raises:
            LoopHalted: it completes a loop that is halted; it may not run.
        """
        if self._guard.loops is not None and self._is_first("called"):
            self._guard.saw_tool_call(self._run, self._name, digest(arguments), self._agent_id)

    def ended(self, output: Any) -> Any:
        """It ended with this output, which may be the word of a failure; the output."""
        if self._guard.loops is None:
            return output
        if isinstance(output, ToolMessage) and output.status == "error":
            self._failed_with(output.content)
        else:
            self._guard.looping.succeeded(self._run, self._name, self._agent_id)
        return output

    def failed(self, error: BaseException) -> None:
        """It raised. A refusal, a hand-off, an interrupt or a cancellation is no failure of the tool."""
        if self._guard.loops is not None and outcome(error) == "error":
            self._failed_with([type(error).__qualname__, str(error)])

    def _failed_with(self, what: object) -> None:
        if self._is_first("failed"):
            self._guard.looping.failed(self._run, self._name, digest(what), self._agent_id)

    def _is_first(self, what: str) -> bool:
        if self._parent is None or self._tool_call_id is None:
            return True
        return self._parent.is_first(f"{what} {self._tool_call_id}")


def digest(value: object) -> int:
    """The same for equal values, whatever the order of their keys; keyed by the process, so nothing is read off it."""
    try:
        text = json.dumps(value, sort_keys=True, default=repr)
    except (TypeError, ValueError):  # keys that cannot be sorted, or a value that holds itself
        text = repr(value)
    return hash(text)
