"""The callback handler: meters, traces and caps any LangChain runnable it is attached to."""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID
from weakref import ref

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import LLMResult

from runcap.exporters import OTelSink
from runcap.guardrails.budget import Budget
from runcap.guardrails.errors import Refused
from runcap.guardrails.events import AgentEnded, AgentStarted, Outcome, ToolEnded, ToolStarted
from runcap.guardrails.guard import Guard
from runcap.guardrails.permit import Permit
from runcap.guardrails.run import Run

from .errors import bubbling
from .failures import billing, outcome
from .messages import Walk, Walks, answer_digest, base_size
from .request import describe, model_of, provider_of
from .scope import agent_run, scoped_run
from .tree import Node, Tree, below, is_first_node_of_graph
from .usage import is_cache_hit, message_of, read_response, read_usage, text_of

_log = logging.getLogger("runcap")
_TEXT_LLM_START = AsyncCallbackManager.on_llm_start.__code__

Hook = TypeVar("Hook", bound=Callable[..., None])


@dataclass(slots=True)
class _Note:
    """What the handler remembers of a call in flight."""

    end: bytes
    base: bytes
    watch: ref[object]


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
        if isinstance(guard, Budget):
            guard = Guard(guard)
        if not isinstance(guard, Guard):
            raise TypeError(
                f'BudgetCallbackHandler needs a Budget or a Guard, e.g. BudgetCallbackHandler(Budget(usd="0.50")); '
                f"got {type(guard).__name__}"
            )
        guard.add_default_sinks((OTelSink(),))
        self.guard = guard
        self._tree = Tree()
        self._last: Run | None = None
        self._beginning = threading.RLock()

    @property
    def run_inline(self) -> bool:  # type: ignore[override]
        """True while the ledger does no I/O: the hooks then run on the loop itself, in the call's own task."""
        # An inline handler starves all others of one event, the async start of text models (langchain-core 1.7,
        # AsyncCallbackManager.on_llm_start runs either kind, never both). For that event alone the answer is no.
        frame = sys._getframe(1)
        back = frame.f_back
        if frame.f_code is _TEXT_LLM_START or (back is not None and back.f_code is _TEXT_LLM_START):
            return False
        return not self.guard.ledger.blocking

    @property
    def ignore_retriever(self) -> bool:
        """Retrievers are not metered."""
        return True

    @property
    def last_run(self) -> Run | None:
        """The run that was used last: what it cost, also after it ended. None before the first call."""
        return self._last

    # Chains and graphs

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: dict[str, Any],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note who called whom; a graph is recognised by its first node."""
        self.guard.drain()
        metadata = metadata or {}
        parent = self._parent(parent_run_id)
        if parent is not None and is_first_node_of_graph(parent, metadata):
            # Parallel branches are all first: one of them begins the agent, the others wait until it has begun.
            with self._beginning:
                if parent.kind == "chain":
                    self._begin_agent(parent, metadata)
        name = str(kwargs.get("name") or "chain")
        now = self.guard.clock.time_ns()
        self._watch(Node(run_id.hex, parent, "chain", name, metadata.get("langgraph_checkpoint_ns"), now), run_id)

    @_never_raises
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain or graph ended; a graph whose node raised an interrupt ends here too, and is paused."""
        self._end_node(run_id.hex, "completed")

    @_never_raises
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain or graph ended by an exception: an error, a refusal, a hand-off, an interrupt or a cancellation."""
        self._end_node(run_id.hex, outcome(error), type(error).__name__)

    # Tools

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
        self.guard.drain()
        metadata = metadata or {}
        parent = self._parent(parent_run_id)
        name = str((serialized or {}).get("name") or kwargs.get("name") or "tool")
        now = self.guard.clock.time_ns()
        node = Node(run_id.hex, parent, "tool", name, metadata.get("langgraph_checkpoint_ns"), now)
        if not self.guard.claim(node.id, self):
            return
        shown = parent.shown() if parent is not None else None
        try:
            run = self._run(parent, metadata) or self.guard.default_run
            self.guard.admit_tool(node.id, run, shown)
        except Refused as refused:
            self.guard.unclaim(node.id)
            raise bubbling(refused) from None
        self._last = node.run = run
        self._watch(node, run_id)
        call = kwargs.get("tool_call_id")
        event = ToolStarted(
            time_ns=now, run=run.info, node_id=node.id, parent_id=shown, name=name, tool_call_id=call and str(call)
        )
        self.guard.emit(event)

    @_never_raises
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool ended."""
        self._end_node(run_id.hex, "completed")

    @_never_raises
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool ended by an exception; a hand-off or an interrupt is no error."""
        self._end_node(run_id.hex, outcome(error), type(error).__name__)

    # Models

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
        """Admit the call.

        Raises:
            Refused: it does not fit, or its cost cannot be kept under the cap; nothing is sent.
        """
        self._begin_call(serialized, messages[0], run_id, parent_run_id, metadata, invocation_params)

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
        messages = [HumanMessage(prompt) for prompt in prompts]
        self._begin_call(serialized, messages, run_id, parent_run_id, metadata, invocation_params)

    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **kwargs: Any) -> None:
        """Meter a stream, so that an aborted one is charged for what came."""
        permit = self.guard.permit(run_id.hex)
        if permit is not None:
            message = getattr(chunk, "message", None)
            calls = getattr(message, "tool_call_chunks", None) or ()
            permit.seen(_size(token) + sum(_size(call.get("args")) for call in calls))

    def on_stream_event(self, event: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Meter a stream of content-block events."""
        permit = self.guard.permit(run_id.hex)
        if permit is not None and isinstance(event, Mapping):
            delta = event.get("delta")
            if isinstance(delta, Mapping):
                fields = delta.get("fields") or delta
                permit.seen(sum(_size(fields.get(part)) for part in ("text", "reasoning", "args")))

    @_never_raises
    def on_llm_end(
        self, response: LLMResult, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Settle the call from the usage it reported."""
        permit = self._end_call(run_id, parent_run_id)
        if permit is None:
            return
        message = message_of(response)
        told = read_response(response, message)
        usage = read_usage(message)
        if is_cache_hit(message):
            permit.free(told)
        elif usage is not None:
            self._remember(permit, message, usage.input_tokens, usage.output_tokens)
            permit.settle(usage, told)
        else:
            answer = message.text if message is not None else text_of(response)
            permit.abandon(response=told, answer_bytes=_size(answer))

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
        """Settle a failed or aborted call: from its usage, as never billed, or as unknown beyond what was seen."""
        permit = self._end_call(run_id, parent_run_id)
        if permit is None:
            return
        kind, bill = type(error).__name__, billing(error)
        message = message_of(response)
        usage = read_usage(message)
        if usage is not None and usage.input_tokens:
            permit.settle(usage, read_response(response, message), error_type=kind)
        elif bill == "never" and not permit.streamed:
            permit.release(kind)
        else:
            permit.abandon(kind, response=read_response(response, message), prompt_billed=bill != "failed")

    # Inside

    def _parent(self, parent_run_id: UUID | None) -> Node | None:
        return self._tree.get(parent_run_id.hex) if parent_run_id is not None else None

    def _run(self, parent: Node | None, metadata: Mapping[str, Any]) -> Run | None:
        """Ambient, named in metadata, the root agent's, or None for the default run."""
        run = scoped_run(self.guard, metadata)
        if run is None and parent is not None and parent.run is not None and not parent.run.ended:
            run = parent.run
        return run

    def _begin_agent(self, node: Node, metadata: Mapping[str, Any]) -> None:
        if node.run is None:
            node.run = scoped_run(self.guard, metadata)
        if node.run is None:
            node.run, node.owns_run = agent_run(self.guard, metadata), True
        self._last = node.run
        shown = node.parent.shown() if node.parent is not None else None
        event = AgentStarted(
            time_ns=node.started_ns, run=node.run.info, node_id=node.id, parent_id=shown, name=node.name
        )
        self.guard.emit(event)
        node.kind = "agent"  # last: whoever sees an agent finds its run and its span there

    def _watch(self, node: Node, run_id: UUID) -> None:
        # LangChain's run manager holds the id as long as the node is under way, so its death is the one sign left
        # where no hook reports the end (a cancelled call, a generator dropped without close).
        if self._tree.add(node):
            node.watch = ref(run_id, self._when_lost(node.id))

    def _when_lost(self, key: str) -> Callable[[object], None]:
        # A weak reference's callback may run anywhere, even inside the ledger: it only leaves a note.
        handler = ref(self)
        guard = self.guard

        def lost(_: object) -> None:
            guard.defer(lambda: _forget(handler(), guard, key))

        return lost

    def end_lost(self, key: str) -> None:
        """End a node that nobody will report on any more."""
        self._end_node(key, "cancelled", "CancelledError")

    def _end_node(self, key: str, how: Outcome, error_type: str | None = None) -> None:
        node = self._tree.remove(key)
        if node is None:
            return
        if how == "interrupted" and node.parent is not None:
            node.parent.paused = True
        if how == "completed" and node.paused:
            how = "interrupted"
        for child in below(node):
            self._end_node(child.id, "cancelled", "CancelledError")
        for call_id in tuple(node.calls):
            self.guard.reap(call_id, error_type or "CancelledError")
        self.guard.drain()
        self.guard.unclaim(key)
        if node.run is None or node.kind == "chain":
            return
        now, info = self.guard.clock.time_ns(), node.run.info
        if node.kind == "tool":
            self.guard.emit(ToolEnded(time_ns=now, run=info, node_id=key, outcome=how, error_type=error_type))
            return
        balance = node.run.balance
        self.guard.emit(
            AgentEnded(time_ns=now, run=info, node_id=key, outcome=how, balance=balance, error_type=error_type)
        )
        if node.owns_run:
            node.run.end()

    def _begin_call(
        self,
        serialized: Mapping[str, Any] | None,
        messages: Sequence[BaseMessage],
        run_id: UUID,
        parent_run_id: UUID | None,
        metadata: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
    ) -> None:
        self.guard.drain()
        key = run_id.hex
        if not self.guard.claim(key, self):
            return
        metadata, params = metadata or {}, params or {}
        parent = self._parent(parent_run_id)
        try:
            run = self._run(parent, metadata)
            walk = self._walk(run, messages, metadata, params)
            request = describe(
                call_id=key,
                parent_id=parent.shown() if parent is not None else None,
                serialized=serialized or {},
                params=params,
                metadata=metadata,
                walk=walk,
            )
            permit = self.guard.admit(request, run)
        except Refused as refused:
            self.guard.unclaim(key)
            raise bubbling(refused) from None
        permit.note = _Note(walk.end, walk.base, ref(run_id, self._when_lost(key)))
        self._last = permit.run
        if parent is not None:
            parent.calls.add(key)
        self.guard.reap_with_task(permit)

    def _walk(
        self, run: Run | None, messages: Sequence[BaseMessage], metadata: Mapping[str, Any], params: Mapping[str, Any]
    ) -> Walk:
        base = base_size(model_of(params, metadata), provider_of(metadata), params)
        walks = (run or self.guard.default_run).notes.setdefault(Walks, Walks())
        return walks.walk(base, messages, self.guard.measured)

    def _end_call(self, run_id: UUID, parent_run_id: UUID | None) -> Permit | None:
        parent = self._parent(parent_run_id)
        if parent is not None:
            parent.calls.discard(run_id.hex)
        return self.guard.permit(run_id.hex, ended=True)

    def _remember(self, permit: Permit, message: BaseMessage | None, input_tokens: int, output_tokens: int) -> None:
        note = permit.note
        if isinstance(note, _Note) and input_tokens:
            self.guard.measured.put(note.end, input_tokens)
            if isinstance(message, AIMessage):
                self.guard.measured.put(answer_digest(note.base, message), output_tokens)


def _forget(handler: BudgetCallbackHandler | None, guard: Guard, key: str) -> None:
    guard.reap(key)
    if handler is not None:
        handler.end_lost(key)


def _size(part: object) -> int:
    if isinstance(part, str):
        return len(part) if part.isascii() else len(part.encode("utf-8", "surrogatepass"))
    if isinstance(part, list):
        return sum(_size(block.get("text") if isinstance(block, Mapping) else block) for block in part)
    return 0
