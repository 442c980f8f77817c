"""`guard_model`: a chat model of the same class, whose every attempt is admitted first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableParallel,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase, RunnableEachBase
from langchain_core.runnables.configurable import RunnableConfigurableAlternatives, RunnableConfigurableFields
from langchain_core.runnables.passthrough import RunnableAssign

from runcap.guardrails.budget import Budget
from runcap.guardrails.guard import Guard

from .attachment import check_guard
from .guarded import Asked, GuardedCalls
from .hook import HOOKS
from .marked import Marked

M = TypeVar("M", bound=Runnable[Any, Any])

_GUARD = "_runcap_guard"
_guards: WeakValueDictionary[int, Guard] = WeakValueDictionary()
_classes = threading.RLock()


def guard_model(model: M, guard: Guard | Budget) -> M:
    """A copy of a chat model that spends from `guard` and never beyond it; the model itself stays as it is.

    It is of the same class, and does all that the model does: tools, structured output, streams, batches. A call that
    does not fit waits while calls in flight may still leave room; then its output cap is lowered to what is left. The
    client's own retries are taken over (openai, anthropic), so that each attempt is admitted.

    What a model was bound into (`bind_tools`, `with_retry`, `with_fallbacks`, a chain, configurable fields) may be
    given too: every model in it is guarded, but for those that functions of one's own call.

    Raises:
        TypeError: there is no chat model to guard, or `guard` is neither a Guard nor a Budget.
    """
    checked = check_guard(guard, "guard_model")
    found: list[BaseChatModel] = []
    made = _walk(model, checked, found)
    if not found:
        raise TypeError(
            f"guard_model needs a chat model, or a binding or chain of one; got {type(model).__name__}. For text "
            "models, init_chat_model(configurable_fields=...) and anything else: BudgetCallbackHandler or auto_attach"
        )
    return cast("M", made)


def is_guarded(model: object, guard: Guard) -> bool:
    """This guard guards it already."""
    return any(base.__dict__.get(_GUARD) is guard for base in type(model).__mro__)


def _walk(given: Any, guard: Guard, found: list[BaseChatModel]) -> Any:
    """`given` with every model in it guarded; itself where there is none. The models go to `found`."""

    def walk(part: Any) -> Any:
        return _walk(part, guard, found)

    if isinstance(given, BaseChatModel):
        found.append(given)
        return given if is_guarded(given, guard) else _guarded_model(given, guard)
    before = len(found)
    made = _walk_parts(given, walk)
    return made if len(found) > before or isinstance(given, RunnableConfigurableAlternatives) else given


def _walk_parts(given: Any, walk: Callable[[Any], Any]) -> Any:  # noqa: PLR0911 - one for each kind of runnable
    match given:
        case RunnableBindingBase() | RunnableEachBase():
            return given.model_copy(update={"bound": walk(given.bound)})
        case RunnableWithFallbacks():
            # Fallbacks catch every exception, so each member is guarded.
            members = [walk(one) for one in (given.runnable, *given.fallbacks)]
            return given.model_copy(update={"runnable": members[0], "fallbacks": members[1:]})
        case RunnableConfigurableFields():
            return given.model_copy(update={"default": walk(given.default)})
        case RunnableConfigurableAlternatives():
            others = {
                name: walk(one) if isinstance(one, Runnable) else _making(one, walk)
                for name, one in given.alternatives.items()
            }
            return given.model_copy(update={"default": walk(given.default), "alternatives": others})
        case RunnableSequence():
            return given.model_copy(
                update={"first": walk(given.first), "middle": [*map(walk, given.middle)], "last": walk(given.last)}
            )
        case RunnableParallel():
            return given.model_copy(update={"steps__": {name: walk(one) for name, one in given.steps__.items()}})
        case RunnableAssign():
            return given.model_copy(update={"mapper": walk(given.mapper)})
        case RunnableBranch():
            branches = [(walk(condition), walk(then)) for condition, then in given.branches]
            return given.model_copy(update={"branches": branches, "default": walk(given.default)})
        case _:
            return given


def _making(factory: Callable[[], Any], walk: Callable[[Any], Any]) -> Callable[[], Any]:
    """A function that makes the model when it is asked for: what it makes is guarded then."""
    return lambda: walk(factory())


def _guarded_model(model: BaseChatModel, guard: Guard) -> BaseChatModel:
    HOOKS.register()
    copy = model.model_copy()
    copy.__dict__.pop("_serialized", None)  # made anew, with the mark
    object.__setattr__(copy, "__class__", _guarded_class(type(model), guard))
    return copy


def _guarded_class(base: type[BaseChatModel], guard: Guard) -> type[BaseChatModel]:
    """A subclass for one guard. The guard is kept on the class: instances are copied and rebuilt in many ways."""
    with _classes:
        known = guard.notes.get((_GUARD, base))
        if known is None:
            known = guard.notes[_GUARD, base] = _make_class(base, guard)
            _guards[id(guard)] = guard
    return cast("type[BaseChatModel]", known)


def _make_class(base: type[BaseChatModel], guard: Guard) -> type[BaseChatModel]:
    # LangChain asks whether a class overrides its streams at all; a model that cannot stream must not seem to.
    body = {name: method for name, method in _methods(base, guard).items() if name not in _STREAMS or _own(base, name)}
    named = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    make: Any = type(base)
    made = make(base.__name__, (base,), {**body, **named})
    # A stream of events of the model's own would go round the guard: without one, LangChain makes them of `_stream`.
    for events in ("_stream_chat_model_events", "_astream_chat_model_events"):
        if getattr(base, events, None) is not None:
            setattr(made, events, None)
    setattr(made, _GUARD, guard)
    return cast("type[BaseChatModel]", made)


_STREAMS = ("_stream", "_astream")


def _own(base: type[BaseChatModel], name: str) -> bool:
    return getattr(base, name) is not getattr(BaseChatModel, name)


def _methods(base: type[BaseChatModel], guard: Guard) -> dict[str, Any]:
    calls = GuardedCalls(guard, base)

    def _generate(self: Any, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        return calls.generate(self, messages, Asked(stop, run_manager, kwargs))

    async def _agenerate(self: Any, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        return await calls.agenerate(self, messages, Asked(stop, run_manager, kwargs))

    def _stream(self: Any, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        return calls.stream(self, messages, Asked(stop, run_manager, kwargs))

    def _astream(self: Any, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        return calls.astream(self, messages, Asked(stop, run_manager, kwargs))

    def _serialized(self: Any) -> Marked:
        return Marked(base._serialized.func(self), guard)  # type: ignore[attr-defined]  # noqa: SLF001

    def reduce(self: Any) -> Any:
        return _restore, (base, id(guard), self.__getstate__())

    return {
        "_generate": _generate,
        "_agenerate": _agenerate,
        "_stream": _stream,
        "_astream": _astream,
        "_serialized": cached_property(_serialized),
        "__reduce__": reduce,
    }


def _restore(base: type[BaseChatModel], guard_id: int, state: dict[str, Any]) -> BaseChatModel:
    """Unpickle a guarded model, guarded.

    Raises:
        RuntimeError: its guard is not of this process.
    """
    guard = _guards.get(guard_id)
    if guard is None:
        raise RuntimeError(
            "a guarded model was unpickled in another process, where its guard is not: a budget in memory is not "
            "shared. Send the bare model and call guard_model(model, guard) there"
        )
    model = base.__new__(base)
    model.__setstate__(state)
    return _guarded_model(model, guard)
