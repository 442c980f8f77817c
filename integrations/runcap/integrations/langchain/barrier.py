"""Async code finds a call in the books when it is over, also where a callback ended it on the loop.

A hook that runs inline cannot wait for a ledger, and one that LangChain puts on a thread is lost where its task is
cancelled just then. So the inline hook hands the end of the call over, and this handler, which LangChain awaits after
the inline ones, waits until it is booked.
"""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.tracers.context import register_configure_hook

from runcap.guardrails import offload

from .inline import event_asked_for


class Barrier(AsyncCallbackHandler):
    """Waits for ends of calls that were handed over. In sync code there are none."""

    @property
    def run_inline(self) -> bool:  # type: ignore[override]
        """After all inline handlers where a call ends; elsewhere without making LangChain pause for it.

        At the start of a text model LangChain runs either kind, never both.
        """
        return event_asked_for() not in ("on_llm_start", "on_llm_end", "on_llm_error")

    @property
    def ignore_llm(self) -> bool:
        """Nothing to wait for."""
        return not offload.is_busy()

    @property
    def ignore_chat_model(self) -> bool:
        """Starts are none of its business."""
        return True

    ignore_agent = ignore_chain = ignore_retriever = ignore_chat_model

    async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is over."""

    async def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Wait until it is booked."""
        for done in offload.of(run_id.hex):
            await offload.until(done)

    async def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Wait until it is booked."""
        for done in offload.of(run_id.hex):
            await offload.until(done)


class _Hook:
    """Asked by LangChain for the handler to add, each time it configures a call."""

    def __init__(self) -> None:
        self._barrier: Barrier | None = None

    def get(self) -> Barrier | None:
        """None until some guard's ledger does I/O."""
        return self._barrier

    def raise_up(self) -> None:
        """Add it to every call from now on."""
        self._barrier = self._barrier or Barrier()


BARRIER = _Hook()
register_configure_hook(cast("Any", BARRIER), inheritable=True)
