"""What a sink may do beside being told what happened: be around a call or a tool, take content, name a trace."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable


class Content(NamedTuple):
    """What was said in a call or a tool: the one thing here that carries content, told only to sinks that ask for it.

    `kind` says what `value` is, in the shapes of the GenAI semantic conventions, ready for JSON: `"system"` (parts),
    `"input"` and `"output"` (messages: role and parts), `"tools"` (definitions), `"arguments"`, `"result"`. `of_id` is
    the call's id, or the tool's node id.
    """

    of_id: str
    kind: Literal["system", "input", "output", "tools", "arguments", "result"]
    value: Any


@runtime_checkable
class TakesContent(Protocol):
    """A sink that may ask for content: what was asked before a call's end is told, what was answered too."""

    @property
    def takes_content(self) -> bool:
        """It does; asked once."""
        ...

    def take_content(self, content: Content) -> None:
        """Take it, until the event that ends the call or the tool."""
        ...


@runtime_checkable
class Surrounds(Protocol):
    """A sink that is entered around what the caller runs, on its thread and in its context: to make a span current."""

    def around_call(self, call_id: str) -> AbstractContextManager[object]:
        """Around the model call itself; of a stream, around each step of it."""
        ...

    def around_tool(self, tool_call_id: str) -> AbstractContextManager[object]:
        """Around a tool call, from before its start is told."""
        ...


@runtime_checkable
class Traces(Protocol):
    """A sink that knows where a run is traced, in a form that another process can link to."""

    def trace_of(self, run_id: str) -> str | None:
        """A W3C `traceparent` of the run's outermost agent; None where it has none."""
        ...
