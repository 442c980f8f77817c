"""The one process-wide hook: it hears of every LangChain call, and passes on those that a guard owns.

A guard owns what is called inside `with auto_attach(guard):`, and every agent that has its middleware, with all that
happens in it: summarisers, routers and sub-agents call models where no middleware sees them. Registered once, when the
first of these attach points is made; until then it costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple, cast
from uuid import UUID
from weakref import WeakKeyDictionary, WeakSet

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers.context import register_configure_hook

from .handler import BudgetCallbackHandler
from .inline import is_inline
from .marked import Marked
from .quiet import is_start_of_text_llm
from .running import node_here
from .scope import goes_on

_Handlers = tuple[BudgetCallbackHandler, ...]


class Origin(NamedTuple):
    """Where a call of a guarded model came from: told to the handlers, but not to the model's own methods."""

    serialized: Marked | None
    parent_run_id: UUID | None
    metadata: dict[str, Any]


_origin: ContextVar[Origin | None] = ContextVar("runcap_origin", default=None)


def last_origin() -> Origin | None:
    """Of the guarded call that was announced last in this context."""
    return _origin.get()


def parent_of(told: UUID | None) -> UUID | None:
    """Who called. A call given callbacks of its own has no parent for LangChain: it is the node or tool around it."""
    if told is not None:
        return told
    return node_here()


class BudgetHook(BaseCallbackHandler):
    """Passes on to the handlers of the guards that own a call. `attached` own everything it hears of."""

    raise_error = True

    def __init__(self, attached: _Handlers = ()) -> None:
        self.attached = attached

    @property
    def run_inline(self) -> bool:  # type: ignore[override]
        """True where the hook does no I/O."""
        if is_start_of_text_llm():
            return False
        return not (_blocking or any(one.guard.ledger.blocking for one in self.attached)) or is_inline(guard=None)

    @property
    def ignore_llm(self) -> bool:
        """Nobody listens."""
        return not (self.attached or _owners)

    @property
    def ignore_agent(self) -> bool:
        """Nobody listens."""
        return self.ignore_llm

    @property
    def ignore_retriever(self) -> bool:
        """Retrievers are not metered."""
        return True

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Pass it on; of an agent nobody owns yet, remember whose node this is."""
        if (kwargs.get("metadata") or {}).get("ls_integration") == _AGENT and "langgraph_node" not in kwargs[
            "metadata"
        ]:
            _own(run_id, _middleware_of_caller())
        if parent_run_id is not None and "langgraph_node" in (kwargs.get("metadata") or ()):
            _graphs[run_id] = _Graph(parent_run_id, kwargs.get("metadata") or {}, str(kwargs.get("name") or "node"))
        if goes_on(inputs):
            _resumed.add(run_id)
        parent_run_id = parent_of(parent_run_id)
        for one in self._begin(run_id, parent_run_id):
            one.on_chain_start(serialized, inputs, run_id=run_id, parent_run_id=parent_run_id, **kwargs)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Pass it on."""
        for one in self._of(run_id):
            one.on_chain_end(outputs, run_id=run_id, **kwargs)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Pass it on."""
        for one in self._of(run_id):
            one.on_chain_error(error, run_id=run_id, **kwargs)

    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Pass it on."""
        parent_run_id = parent_of(parent_run_id)
        for one in self._begin(run_id, parent_run_id):
            one.on_tool_start(serialized, input_str, run_id=run_id, parent_run_id=parent_run_id, **kwargs)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Pass it on."""
        for one in self._of(run_id):
            one.on_tool_end(output, run_id=run_id, **kwargs)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Pass it on."""
        for one in self._of(run_id):
            one.on_tool_error(error, run_id=run_id, **kwargs)

    def on_chat_model_start(
        self, serialized: Any, messages: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Pass it on; of a guarded model's call, remember where it came from."""
        if isinstance(serialized, Marked):
            _origin.set(Origin(serialized, parent_run_id, kwargs.get("metadata") or {}))
        parent_run_id = parent_of(parent_run_id)
        for one in self._begin(run_id, parent_run_id):
            one.on_chat_model_start(serialized, messages, run_id=run_id, parent_run_id=parent_run_id, **kwargs)

    def on_llm_start(
        self, serialized: Any, prompts: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Pass it on."""
        parent_run_id = parent_of(parent_run_id)
        for one in self._begin(run_id, parent_run_id):
            one.on_llm_start(serialized, prompts, run_id=run_id, parent_run_id=parent_run_id, **kwargs)

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Pass it on."""
        for one in self._of(run_id):
            one.on_llm_new_token(token, run_id=run_id, **kwargs)

    def on_stream_event(self, event: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Pass it on."""
        for one in self._of(run_id):
            one.on_stream_event(event, run_id=run_id, **kwargs)

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Pass it on."""
        for one in self._of(run_id):
            one.on_llm_end(response, run_id=run_id, **kwargs)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Pass it on."""
        for one in self._of(run_id):
            one.on_llm_error(error, run_id=run_id, **kwargs)

    def _begin(self, run_id: UUID, parent_run_id: UUID | None) -> _Handlers:
        """Who owns what begins: who is attached here, and who owns its parent."""
        above = _owners.get(parent_run_id, ()) if parent_run_id is not None and _owners else ()
        owners = self.attached
        for one in (*above, *_owners.get(run_id, ())) if _owners else ():
            if not _has(owners, one):
                owners = (*owners, one)
        if owners:
            _owners[run_id] = owners
        return owners

    def _of(self, run_id: UUID) -> _Handlers:
        return _owners.get(run_id, ())


class _Graph(NamedTuple):
    run_id: UUID
    metadata: dict[str, Any]
    node: str


# Weakly by LangChain's own run ids: its run managers hold the very id as long as a run lasts.
_owners: WeakKeyDictionary[UUID, _Handlers] = WeakKeyDictionary()
_graphs: WeakKeyDictionary[UUID, _Graph] = WeakKeyDictionary()
_resumed: WeakSet[UUID] = WeakSet()


# Those who own the agents they are in; and those of them whose ledgers do I/O.
_middlewares: WeakKeyDictionary[object, BudgetCallbackHandler] = WeakKeyDictionary()
_blocking: WeakSet[object] = WeakSet()

_AGENT = "langchain_create_agent"
_FRAMES = 16


def own_agents_with(middleware: object, handler: BudgetCallbackHandler) -> None:
    """Every agent with this middleware belongs to this handler's guard, from its start."""
    _middlewares[middleware] = handler
    if handler.guard.ledger.blocking:
        _blocking.add(middleware)


def _middleware_of_caller() -> _Handlers:
    """The handlers of an agent's middlewares, at its start: other middlewares may call models before any of its nodes.

    The graph that is starting is told to no handler; it is in the frames of those who ask.
    """
    frame = sys._getframe(2)  # noqa: SLF001 - see above
    for _ in range(_FRAMES):
        back = frame.f_back
        if back is None:
            return ()
        frame = back
        nodes = getattr(frame.f_locals.get("self"), "nodes", None)
        if isinstance(nodes, dict):
            return tuple(handler for node in nodes.values() if (handler := _handler_of(node)) is not None)
    return ()


def _handler_of(node: object) -> BudgetCallbackHandler | None:
    bound = getattr(node, "bound", None)
    hook = getattr(bound, "func", None) or getattr(bound, "afunc", None)
    owner = getattr(hook, "__self__", None)
    return None if owner is None else _middlewares.get(owner)


def _own(run_id: UUID, handlers: _Handlers) -> None:
    if handlers:
        _owners[run_id] = handlers


def own_agent(handler: BudgetCallbackHandler) -> None:
    """Called in a node of an agent: from now on, everything in that agent belongs to this handler's guard."""
    node_id = node_here()
    graph = _graphs.get(node_id) if node_id is not None else None
    if node_id is None or graph is None:
        return
    of_graph, of_node = _owners.get(graph.run_id, ()), _owners.get(node_id, ())
    if not _has(of_graph, handler):
        _owners[graph.run_id] = (*of_graph, handler)
    if not _has(of_node, handler):
        _owners[node_id] = (*of_node, handler)
        name = str(graph.metadata.get("lc_agent_name") or "LangGraph")
        above = {key: value for key, value in graph.metadata.items() if not key.startswith("langgraph_")}
        inputs: Any = None if graph.run_id in _resumed else {}
        handler.on_chain_start(None, inputs, run_id=graph.run_id, name=name, metadata=above)
        handler.on_chain_start(
            None, {}, run_id=node_id, parent_run_id=graph.run_id, name=graph.node, metadata=graph.metadata
        )


def _has(handlers: _Handlers, wanted: BudgetCallbackHandler) -> bool:
    return any(one.guard is wanted.guard for one in handlers)


class _Hooks:
    """Asked by LangChain for the handler to add, each time it configures a call: this context's, or the shared one."""

    def __init__(self) -> None:
        self._here: ContextVar[BudgetHook | None] = ContextVar("runcap_hook", default=None)
        self._everywhere: BudgetHook | None = None

    def get(self) -> BudgetHook | None:
        """The handler to add; None where no guard can be concerned."""
        return self._here.get() or self._everywhere

    def register(self) -> None:
        """Hear of every call from now on, in every context and thread."""
        if self._everywhere is None:
            self._everywhere = BudgetHook()

    def attach(self, handler: BudgetCallbackHandler) -> Callable[[], None]:
        """Let this handler own what is called in this context, until what is returned is called."""
        before = self._here.get()
        attached = before.attached if before is not None else ()
        hook = before if before is not None and _has(attached, handler) else BudgetHook((*attached, handler))
        self._here.set(hook)

        def detach() -> None:
            if self._here.get() is hook:
                self._here.set(before)

        return detach


HOOKS = _Hooks()
register_configure_hook(cast("ContextVar[Any]", HOOKS), inheritable=True)
