"""A tool call that was counted before LangChain reports its start: by the middleware, which can answer for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

from runcap.guardrails.guard import Guard


@dataclass(slots=True)
class _Admitted:
    guard: Guard
    tool_call_id: str
    outer: _Admitted | None
    started: bool = False


_admitted: ContextVar[_Admitted | None] = ContextVar("runcap_admitted_tool", default=None)


@contextmanager
def admitted(guard: Guard, tool_call_id: str) -> Iterator[None]:
    """Inside, the first start of this tool call is not counted again; a retry of it is."""
    token = _admitted.set(_Admitted(guard, tool_call_id, _admitted.get()))
    try:
        yield
    finally:
        with suppress(ValueError):  # a coroutine that nobody awaits may be finished in a copy of its context
            _admitted.reset(token)


def is_in_hand(guard: Guard, tool_call_id: str | None) -> bool:
    """This start is of a tool call that the middleware sees to, be it a retry."""
    known = _admitted.get()
    while known is not None:
        if known.guard is guard and known.tool_call_id == tool_call_id:
            return True
        known = known.outer
    return False


def admitted_already(guard: Guard, tool_call_id: str | None) -> bool:
    """This start is the one that was counted before; True once."""
    known = _admitted.get()
    while known is not None:
        if known.guard is guard and known.tool_call_id == tool_call_id and not known.started:
            known.started = True
            return True
        known = known.outer
    return False
