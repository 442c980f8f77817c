"""Whether a hook runs on the loop itself: LangChain asks before each event, and is told no where the hook would block.

Under a ledger that does I/O only what admits a call waits for it: the start of a model call or of a tool. All else
hands over what it has to book, and stays in the context and in the task it belongs to; see `barrier`.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import NamedTuple

from langchain_core.callbacks import AsyncCallbackManager
from langchain_core.callbacks.manager import ahandle_event

from runcap.guardrails.inflight import remember_task

from .marked import Marked

_MANAGER = {
    AsyncCallbackManager.on_chat_model_start.__code__: "on_chat_model_start",
    AsyncCallbackManager.on_llm_start.__code__: "on_llm_start",
    AsyncCallbackManager.on_tool_start.__code__: "on_tool_start",
}
_EVENT = ahandle_event.__code__
_FRAMES = 3
_ADMITS = frozenset(_MANAGER.values())


def is_inline(*, guard: object | None) -> bool:
    """Asked by a handler whose ledger does I/O. The call of a model that `guard` guards is admitted by the model.

    `guard` None takes any guarded model's word.
    """
    asked = _asked_for(sys._getframe(2))  # noqa: SLF001 - nothing else tells which event asks
    if asked.event is not None and asked.event not in _ADMITS:
        return True
    if isinstance(asked.serialized, Marked) and (guard is None or any(one is guard for one in asked.serialized.guards)):
        return True
    if asked.in_task:
        remember_task()  # the hook will run on a thread
    return False


def event_asked_for() -> str | None:
    """Asked by a handler: before which event LangChain asks; None where that is not told."""
    return _asked_for(sys._getframe(2)).event  # noqa: SLF001 - see above


class _Asked(NamedTuple):
    """Which event, and of what. `in_task`: in the task of the call itself, not in one that LangChain made for hooks."""

    event: str | None = None
    serialized: object = None
    in_task: bool = False


def _asked_for(frame: FrameType | None) -> _Asked:
    for _ in range(_FRAMES):
        if frame is None:
            break
        if frame.f_code is _EVENT:
            told = frame.f_locals
            return _Asked(told.get("event_name"), next(iter(told.get("args") or ()), None))
        if frame.f_code in _MANAGER:
            return _Asked(_MANAGER[frame.f_code], frame.f_locals.get("serialized"), in_task=True)
        frame = frame.f_back
    return _Asked()
