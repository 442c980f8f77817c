"""The callback handler: meters, traces and caps any LangChain runnable it is attached to."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import LLMResult

from runcap.guardrails.budget import Budget
from runcap.guardrails.guard import Guard
from runcap.guardrails.run import Run

from .attachment import Attachment, check_guard
from .failures import outcome
from .inline import is_inline
from .marked import Marked
from .quiet import is_start_of_text_llm
from .scope import goes_on
from .settling import size_of, size_of_chunk

_log = logging.getLogger("runcap")

Hook = TypeVar("Hook", bound=Callable[..., None])


def _never_raises(hook: Hook) -> Hook:
    """An end hook that raises would lose an answer already paid for: whatever goes wrong is logged by its type."""

    @functools.wraps(hook)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - see above
            _log.warning("runcap: %s failed with %s; the call keeps its hold", hook.__name__, type(error).__name__)

    return guarded  # type: ignore[return-value]


class BudgetCallbackHandler(BaseCallbackHandler):
    """Attach it with `config={"callbacks": [handler]}` or in a model's constructor.

    A call that does not fit the budget raises `BudgetExceeded` before anything is sent. Every call under a root agent
    or graph spends from that invocation's own run, sub-agents included; calls outside any agent share the guard's
    default run. One handler may serve any number of threads, tasks and agents.

    A callback cannot set an output cap, nor see retries inside the client: give the model `max_tokens` and
    `max_retries=0`, and the cap is hard. Other calls are held at their expected cost and marked so.

    Args:
        guard: a `Guard`, or a `Budget` to make one of.

    Raises:
        TypeError: it is neither.
    """

    raise_error = True

    def __init__(self, guard: Guard | Budget) -> None:
        self.guard = check_guard(guard, "BudgetCallbackHandler")
        attached = Attachment.of(self.guard)
        self._nodes = attached.nodes
        self._calls = attached.calls

    @property
    def run_inline(self) -> bool:  # type: ignore[override]
        """True where the hook does no I/O: it then runs on the loop itself, in the call's own task."""
        if is_start_of_text_llm():
            return False
        return not self.guard.ledger.blocking or is_inline(guard=self.guard)

    @property
    def ignore_retriever(self) -> bool:
        """Retrievers are not metered."""
        return True

    @property
    def last_run(self) -> Run:
        """The run that was used last: what it cost, also after it ended. Before the first call, the default run."""
        return self._nodes.last_run or self.guard.default_run

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note who called whom; a graph is recognised by its first node."""
        self.guard.calls.drain()
        name = str(kwargs.get("name") or "chain")
        parent = self._nodes.get(parent_run_id)
        self._nodes.begin_chain(run_id, parent, name, metadata or {}, resumed=goes_on(inputs))

    @_never_raises
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain or graph ended; a graph whose node raised an interrupt ends here too, and is paused."""
        self._nodes.end(run_id.hex, "completed")

    @_never_raises
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain or graph ended by an exception: an error, a refusal, a hand-off, an interrupt or a cancellation."""
        self._nodes.end(run_id.hex, outcome(error), type(error).__name__)

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Count the tool call.

        Raises:
            Refused: its run may make no more; the tool is not run.
        """
        self.guard.calls.drain()
        told = serialized or {}
        name = str(told.get("name") or kwargs.get("name") or "tool")
        call = kwargs.get("tool_call_id")
        parent = self._nodes.get(parent_run_id)
        given = kwargs.get("inputs")
        arguments = input_str if given is None else given
        call_id, description = None if call is None else str(call), str(told.get("description") or "")
        self._nodes.begin_tool(run_id, parent, name, metadata or {}, call_id, arguments, description)

    @_never_raises
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool ended."""
        self._nodes.end_tool(run_id.hex, output)

    @_never_raises
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool ended by an exception; a hand-off or an interrupt is no error."""
        self._nodes.fail_tool(run_id.hex, error)

    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        invocation_params: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Admit the call; a model that this same guard guards sees to that itself.

        Raises:
            Refused: it does not fit, or its cost cannot be kept under the cap; nothing is sent.
        """
        if isinstance(serialized, Marked) and any(one is self.guard for one in serialized.guards):
            return
        parent = self._nodes.get(parent_run_id)
        self._calls.begin(run_id, parent, messages[0], serialized or {}, metadata or {}, invocation_params or {})

    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        invocation_params: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Admit the call of a text model.

        Raises:
            Refused: as for chat models.
        """
        parent, messages = self._nodes.get(parent_run_id), [HumanMessage(prompt) for prompt in prompts]
        self._calls.begin(run_id, parent, messages, serialized or {}, metadata or {}, invocation_params or {})

    @_never_raises
    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **kwargs: Any) -> None:
        """Meter a stream, so that an aborted one is charged for what came."""
        message = getattr(chunk, "message", None)
        counted = message if getattr(message, "usage_metadata", None) else None
        self._calls.stream(run_id, size_of_chunk(token, message), counted)

    @_never_raises
    def on_stream_event(self, event: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Meter a stream of content-block events."""
        delta = event.get("delta") if isinstance(event, Mapping) else None
        if isinstance(delta, Mapping):
            fields = delta.get("fields") or delta
            self._calls.stream(run_id, sum(size_of(fields.get(part)) for part in ("text", "reasoning", "args")))

    @_never_raises
    def on_llm_end(
        self, response: LLMResult, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Settle the call from the usage it reported."""
        self._calls.end(run_id, self._nodes.get(parent_run_id), response)

    @_never_raises
    def on_llm_error(
        self,
        error: BaseException,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        response: LLMResult | None = None,
        **kwargs: Any,
    ) -> None:
        """Settle a failed or aborted call."""
        self._calls.fail(run_id, self._nodes.get(parent_run_id), error, response)
