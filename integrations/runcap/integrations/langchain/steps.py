"""What steering an agent's call wants done, one thing at a time; carried out in a thread's manner or in a task's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig

from langchain.agents.middleware import ModelRequest
from runcap.guardrails.course import Purpose
from runcap.guardrails.run import Run

from .carrying import carrying

Handler = Callable[[ModelRequest[Any]], Any]
AsyncHandler = Callable[[ModelRequest[Any]], Awaitable[Any]]


class Step(Protocol):
    """Something to be done."""

    def apply(self, handler: Handler) -> Any:
        """Do it; may block the thread."""
        ...

    async def aapply(self, handler: AsyncHandler) -> Any:
        """Do it without blocking the loop."""
        ...


Steps = Generator[Step, Any, Any]

_ASIDE: RunnableConfig = {"tags": ["nostream"], "metadata": {"lc_source": "summarization"}}
"""How LangChain marks what is no answer of the agent's: it is not streamed to whoever reads the agent."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Make the call in this way."""

    request: ModelRequest[Any]
    purpose: Purpose

    def apply(self, handler: Handler) -> Any:
        """Call what is further in."""
        with carrying(self.request.model, self.purpose):
            return handler(self.request)

    async def aapply(self, handler: AsyncHandler) -> Any:
        """Call what is further in."""
        with carrying(self.request.model, self.purpose):
            return await handler(self.request)


@dataclass(frozen=True, slots=True)
class Tell:
    """Ask a model past everything further in. `bound` is the model with its tools, where it has any."""

    model: BaseChatModel
    messages: list[Any]
    purpose: Purpose
    bound: Runnable[Any, Any] | None = None
    aside: bool = True
    """It is no answer of the agent's, and not to be streamed to whoever reads the agent."""

    def apply(self, handler: Handler) -> AIMessage:
        """Its answer."""
        with carrying(self.model, self.purpose):
            answer: AIMessage = (self.bound or self.model).invoke(self.messages, self._config)
        return answer

    async def aapply(self, handler: AsyncHandler) -> AIMessage:
        """Its answer."""
        with carrying(self.model, self.purpose):
            answer: AIMessage = await (self.bound or self.model).ainvoke(self.messages, self._config)
        return answer

    @property
    def _config(self) -> RunnableConfig | None:
        return _ASIDE if self.aside else None


@dataclass(frozen=True, slots=True)
class TopUp:
    """Raise the run's caps."""

    run: Run
    extra: Mapping[str, Any]
    key: str

    def apply(self, handler: Handler) -> bool:
        """See `Run.top_up`."""
        return self.run.top_up(**self.extra, key=self.key)

    async def aapply(self, handler: AsyncHandler) -> bool:
        """See `Run.atop_up`."""
        return await self.run.atop_up(**self.extra, key=self.key)
