"""`BudgetMiddleware`: the whole of runcap for an agent made by `create_agent`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Self, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import ToolMessage

from runcap.guardrails.budget import Budget
from runcap.guardrails.errors import BudgetBusy, BudgetExceeded, LoopHalted, Refused
from runcap.guardrails.guard import Guard
from runcap.guardrails.recent import Recent
from runcap.guardrails.run import Run
from runcap.guardrails.steps import adrive, drive

from .attachment import Attachment, check_guard
from .errors import bubbling
from .handler import BudgetCallbackHandler
from .hook import HOOKS, own_agent, own_agents_with
from .model import guard_model, is_guarded
from .place import Place, place_of
from .running import metadata_here, node_here
from .toolgate import admitted
from .toolloops import Sighting
from .tree import Node

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest

    from .asking import STATE, AskingState, last_question, read_record, record_of, resumed_from
    from .steering import Steering
except ImportError as error:
    raise ImportError("BudgetMiddleware needs langchain: pip install 'runcap[langchain]'") from error

_KEPT = 64


class BudgetMiddleware(AgentMiddleware[Any, Any, Any]):
    """Holds an agent to a budget: `create_agent(model, tools, middleware=[..., BudgetMiddleware(budget)])`.

    Each invocation of the agent is a run with the whole budget, unless it is inside `with guard.run()` or a larger run.
    A model call that does not fit waits while calls in flight may leave room, and then gets the output cap that what
    is left affords. At the cap the agent ends with `BudgetExceeded`. A tool call beyond the cap is answered by a
    ToolMessage, so that no call is left unanswered in the agent's state.

    What the agent's other middlewares, tools and sub-agents spend belongs to the run too. The place in the list is
    free: last, every attempt of a retry is seen for what it is; so it is first, for models are guarded wherever a
    middleware puts another in.

    Raises:
        TypeError: neither a Guard nor a Budget.
    """

    def __new__(cls, guard: Guard | Budget) -> Self:
        """One that keeps a run's spend in checkpoints, where its budget asks for more."""
        budget = guard.budget if isinstance(guard, Guard) else guard
        asks = cls is BudgetMiddleware and getattr(budget, "on_breach", None) == "ask"
        return super().__new__(cast("type[Self]", _Asking) if asks else cls)

    def __init__(self, guard: Guard | Budget) -> None:
        super().__init__()
        self.guard = check_guard(guard, "BudgetMiddleware")
        self.tools = []
        self._attachment = Attachment.of(self.guard)
        self._handler = BudgetCallbackHandler(self.guard)
        self._models: Recent[int, tuple[object, Any]] = Recent(_KEPT)
        self._request_class = _guarding_requests(self._guarded)
        self._steering = Steering(self.guard, self._guarded)
        self.guard.unsteered = False
        HOOKS.register()
        own_agents_with(self, self._handler)

    @property
    def last_run(self) -> Run:
        """See `BudgetCallbackHandler.last_run`."""
        return self._handler.last_run

    def before_agent(self, state: Any, runtime: Any) -> None:
        """The agent belongs to the guard, in case its start was not seen for what it is."""
        own_agent(self._handler)

    async def abefore_agent(self, state: Any, runtime: Any) -> None:
        """See `before_agent`."""
        own_agent(self._handler)

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        """Let a guarded model make the call.

        Raises:
            Refused: it does not fit.
        """
        guarding, place = self._guarding(request), self._place(request.state)
        if self._steering.has_nothing_to_do(place):
            return handler(guarding)
        return drive(self._steering.steer(guarding, place), handler, Exception)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        """See `wrap_model_call`."""
        guarding, place = self._guarding(request), self._place(request.state)
        if self._steering.has_nothing_to_do(place):
            return await handler(guarding)
        return await adrive(self._steering.steer(guarding, place), handler, Exception)

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Count the tool call; answer for it where it may not be made.

        Raises:
            Refused: something in it was refused, and the agent may go on all the same.
        """
        run, node = self._where()
        try:
            with _bubbling():
                sighting = self._sighted(request, run, node)
                if _is_new(node):
                    self.guard.admit_tool(self.guard.new_id(), run, _shown(node))
            call_id = str(request.tool_call.get("id"))
            with admitted(self.guard, call_id), sighting, self.guard.sinks.around_tool(call_id):
                return sighting.ended(handler(request))
        except (BudgetExceeded, BudgetBusy, LoopHalted) as refused:
            return _answer(request, run, refused)

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """See `wrap_tool_call`."""
        run, node = self._where()
        try:
            with _bubbling():
                sighting = self._sighted(request, run, node)
                if _is_new(node):
                    await self.guard.aadmit_tool(self.guard.new_id(), run, _shown(node))
            call_id = str(request.tool_call.get("id"))
            with admitted(self.guard, call_id), sighting, self.guard.sinks.around_tool(call_id):
                return sighting.ended(await handler(request))
        except (BudgetExceeded, BudgetBusy, LoopHalted) as refused:
            return _answer(request, run, refused)

    def _place(self, state: Any) -> Place:
        """Where a model call is made. An agent that is resumed begins here, in the middle."""
        run, node = self._where()
        return place_of(self._resumed(state, run, node), node)

    def _resumed(self, state: Any, run: Run, node: Node | None) -> Run:
        """The run to go on with."""
        return run

    def _where(self) -> tuple[Run, Node | None]:
        """Whose tool call this is: the run, and the node it is made in."""
        own_agent(self._handler)
        nodes = self._attachment.nodes
        node = nodes.get(node_here())
        run = self.guard.scope(nodes.run_of(node, metadata_here()))
        return run, node

    def _sighted(self, request: Any, run: Run, node: Node | None) -> Sighting:
        call_id, name = request.tool_call.get("id"), str(request.tool_call.get("name"))
        sighting = Sighting(self.guard, run, node, name, None if call_id is None else str(call_id))
        if _is_new(node):
            sighting.started(request.tool_call.get("args"))
        return sighting

    def _guarding(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        given = {one.name: getattr(request, one.name) for one in fields(request)}
        return self._request_class(**{**given, "model": self._guarded(request.model)})

    def _guarded(self, model: Any) -> Any:
        if not isinstance(model, BaseChatModel) or is_guarded(model, self.guard):
            return model
        known = self._models.get(id(model))
        if known is None or known[0] is not model:
            known = (model, guard_model(model, self.guard))
            self._models.put(id(model), known)
        return known[1]


class _Asking(BudgetMiddleware):
    """The same where a run that is at its cap asks for more: its spend is kept in the agent's checkpoints."""

    state_schema = AskingState

    @property
    def name(self) -> str:
        """As it is known."""
        return BudgetMiddleware.__name__

    def before_agent(self, state: Any, runtime: Any) -> Any:
        """A new invocation: whatever run is in the checkpoint is over."""
        super().before_agent(state, runtime)
        return {STATE: {}}

    async def abefore_agent(self, state: Any, runtime: Any) -> Any:
        """See `before_agent`."""
        return self.before_agent(state, runtime)

    def before_model(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Keep what the run has cost."""
        run = self._where()[0].capped
        return {STATE: record_of(run, self._steering.keeper, self.guard.sinks.trace_of(run.id))}

    async def abefore_model(self, state: Any, runtime: Any) -> dict[str, Any]:
        """See `before_model`."""
        return self.before_model(state, runtime)

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        """See `BudgetMiddleware`. Resumed elsewhere, it goes on from what the question says was spent."""
        place = resumed_from()
        if place is not None:
            self._went_on(place[0].get_tuple(place[1]), request.state)
        return super().wrap_model_call(request, handler)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        """See `wrap_model_call`."""
        place = resumed_from()
        if place is not None:
            self._went_on(await place[0].aget_tuple(place[1]), request.state)
        return await super().awrap_model_call(request, handler)

    def _went_on(self, checkpoint: Any, state: Any) -> None:
        run, node = self._where()
        run = self._resumed(state, run, node)
        self._resumed({STATE: last_question(checkpoint).get("record")}, run, node)

    def _resumed(self, state: Any, run: Run, node: Node | None) -> Run:
        saved = read_record(state.get(STATE)) if isinstance(state, Mapping) else None
        if saved is None or node is None:
            return run
        if saved.run_id == run.id:
            if saved.keeper != self._steering.keeper:
                self._attachment.nodes.catch_up(run, saved)
            return run
        owner = next((one for one in node.upward() if one.owns_run and one.run is run), None)
        if owner is None:
            return run  # a run that the user named; the checkpoint is of another
        return self._attachment.nodes.go_on(owner, run, saved)


@contextmanager
def _bubbling() -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        raise bubbling(refused) from None


def _is_new(node: Node | None) -> bool:
    """A tool call that is made once more as its graph goes on was counted before."""
    return node is None or not node.replayed


def _shown(node: Node | None) -> str | None:
    return node.shown() if node is not None else None


def _answer(request: Any, run: Run, refused: Refused) -> ToolMessage:
    """A ToolMessage in place of the tool's, where the run is over anyway: its next model call says so aloud."""
    finishes = run.on_breach == "finish"
    busy = isinstance(refused, BudgetBusy)
    over = finishes if busy else run.halted or refused.unit == "seconds"
    passed_off = getattr(request.tool, "return_direct", False) and not finishes
    if passed_off or not over:
        raise refused
    call = request.tool_call
    text = f"Not done: the budget of this run is used up ({refused.unit or 'stopped'})."
    if busy:
        text = f"Not done: other calls hold what is left of the budget of this run ({refused.unit})."
    if isinstance(refused, LoopHalted):
        text = "Not done: calls repeat themselves; the run was halted as a loop."
    return ToolMessage(text, tool_call_id=call.get("id") or "", name=call.get("name"), status="error")


def _guarding_requests(guarded: Callable[[Any], Any]) -> type[ModelRequest[Any]]:
    """A request that guards whichever model a middleware further in puts into it: fallbacks, routers, selectors."""

    class _Request(ModelRequest[Any]):
        def override(self, **overrides: Any) -> ModelRequest[Any]:
            if "model" in overrides:
                overrides["model"] = guarded(overrides["model"])
            return super().override(**overrides)

    _Request.__name__ = _Request.__qualname__ = ModelRequest.__name__
    return _Request
