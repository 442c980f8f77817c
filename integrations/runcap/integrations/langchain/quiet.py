"""What LangChain does around a refusal that a user would take for a fault: kept quiet, and nothing else is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Coroutine

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager

from runcap.guardrails.errors import Refused

_MANAGER = logging.getLogger("langchain_core.callbacks.manager")
_STARTS = frozenset({AsyncCallbackManager.on_chat_model_start.__code__, AsyncCallbackManager.on_llm_start.__code__})
_SYNC_STARTS = frozenset({CallbackManager.on_chat_model_start.__code__, CallbackManager.on_llm_start.__code__})
_TEXT_START = AsyncCallbackManager.on_llm_start.__code__
_HANDLERS = ("BudgetCallbackHandler", "BudgetHook")
_PENDING = ("inline_tasks", "non_inline_tasks")


class _NoRefusals(logging.Filter):
    """Drops `Error in BudgetCallbackHandler...`: a refusal is raised to the caller and is no error of the handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a refusal of ours."""
        told = record.args
        if not isinstance(told, tuple) or len(told) != 3 or told[0] not in _HANDLERS:  # noqa: PLR2004
            return True
        return not str(told[2]).startswith(_kinds())


def _kinds() -> tuple[str, ...]:
    return tuple(f"{kind.__name__}(" for kind in Refused.__subclasses__())


_FILTER = _NoRefusals()


def hush_refusals() -> None:
    """Keep LangChain from logging refusals as errors; once however often it is asked."""
    _MANAGER.addFilter(_FILTER)


def close_pending() -> None:
    """Close the start hooks of other handlers that LangChain will drop because this one refuses.

    Its async manager makes the coroutines of all handlers first; when an inline one raises, the others are never
    awaited, and Python warns of each in a random line of the user's program.
    """
    frame = sys._getframe(1)  # noqa: SLF001 - the coroutines are nowhere else to be had
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code in _SYNC_STARTS:
            return  # a sync call, perhaps inside another call's hook: those others are not dropped
        if frame.f_code in _STARTS:
            for name in _PENDING:
                for pending in frame.f_locals.get(name) or ():
                    _close(pending)
            return


def is_start_of_text_llm() -> bool:
    """Asked by a handler whether to run inline: LangChain is about to start text models in async code.

    An inline handler starves all others of that one event (langchain-core 1.7, AsyncCallbackManager.on_llm_start runs
    either kind, never both), so for it alone the answer is no.
    """
    frame = sys._getframe(2)  # noqa: SLF001 - nothing else tells which event asks
    back = frame.f_back
    return frame.f_code is _TEXT_START or (back is not None and back.f_code is _TEXT_START)


def _close(pending: object) -> None:
    if isinstance(pending, Coroutine) and not getattr(pending, "cr_running", False) and pending.cr_frame is not None:  # type: ignore[attr-defined]
        pending.close()
