"""Attach a guard to LangChain calls without touching the code that makes them."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from runcap.guardrails.budget import Budget
from runcap.guardrails.guard import Guard
from runcap.guardrails.run import Run

from .attachment import check_guard
from .handler import BudgetCallbackHandler
from .hook import HOOKS


class auto_attach:  # noqa: N801 - used as a function: `with auto_attach(guard):`
    """`with auto_attach(guard):` or `async with`: every LangChain call inside is metered, traced and capped.

    It does what `BudgetCallbackHandler` does, for calls of this context and of the tasks and threads that carry it,
    also where code passes `callbacks` of its own. Nested, each guard holds what is inside of it. Nothing stays behind.

    Raises:
        TypeError: neither a Guard nor a Budget.
    """

    def __init__(self, guard: Guard | Budget) -> None:
        self._handler = BudgetCallbackHandler(check_guard(guard, "auto_attach"))
        self._detach: list[Callable[[], None]] = []

    @property
    def guard(self) -> Guard:
        """The guard."""
        return self._handler.guard

    @property
    def last_run(self) -> Run:
        """See `BudgetCallbackHandler.last_run`."""
        return self._handler.last_run

    def __enter__(self) -> Self:
        self._detach.append(HOOKS.attach(self._handler))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._detach.pop()()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, tb)
