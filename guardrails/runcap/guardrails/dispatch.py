"""Tells the sinks what happened, without ever letting one touch the call."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, TypeGuard

from .events import Event, Sink
from .sinks import Content, Surrounds, TakesContent, Traces

_log = logging.getLogger("runcap")

_NOTHING: AbstractContextManager[object] = nullcontext()


class Dispatcher:
    """Delivers events to sinks, in order, on the thread that emits them."""

    def __init__(self, sinks: Sequence[Sink] | None) -> None:
        self._sinks: tuple[Sink, ...] | None = None
        self._around: tuple[Surrounds, ...] = ()
        self._traces: tuple[Traces, ...] = ()
        self._content: tuple[TakesContent, ...] = ()
        self.take_content = False
        """Somebody asks for content: have it told by `tell`."""
        self._waiting: dict[int, deque[Event]] = {}
        self._reported: set[tuple[int, str]] = set()
        if sinks is not None:
            self._use(sinks)

    def default(self, sinks: Sequence[Sink]) -> None:
        """Use these, if none were chosen."""
        if self._sinks is None:
            self._use(sinks)

    def emit(self, event: Event) -> None:
        """Deliver an event; one thread's events never overlap, even when a finalizer interrupts a sink."""
        if not self._sinks:
            return
        thread = threading.get_ident()
        waiting = self._waiting.get(thread)
        if waiting is not None:
            waiting.append(event)
            return
        waiting = self._waiting[thread] = deque()
        try:
            self._deliver(event)
            while waiting:
                self._deliver(waiting.popleft())
        finally:
            del self._waiting[thread]

    def tell(self, content: Content) -> None:
        """Tell content to whoever asks for it."""
        for sink in self._content:
            self._guarded(sink, sink.take_content, content)

    def around_call(self, call_id: str) -> AbstractContextManager[object]:
        """What is to be entered around a model call."""
        return _NOTHING if not self._around else _Around(self, [one.around_call for one in self._around], call_id)

    def around_tool(self, tool_call_id: str) -> AbstractContextManager[object]:
        """What is to be entered around a tool call."""
        return _NOTHING if not self._around else _Around(self, [one.around_tool for one in self._around], tool_call_id)

    def trace_of(self, run_id: str) -> str | None:
        """Where a run is traced, as the first sink says that knows."""
        for sink in self._traces:
            try:
                trace = sink.trace_of(run_id)
            except Exception as error:  # noqa: BLE001 - as for events
                self.failed(sink, error)
            else:
                if trace is not None:
                    return trace
        return None

    def failed(self, sink: object, error: Exception) -> None:
        """A sink is foreign code: what it raises is said once, and no more."""
        key = (id(sink), type(error).__name__)
        if key not in self._reported:
            self._reported.add(key)
            _log.warning("runcap: sink %s failed with %s; said once", _name(sink), key[1])

    def _use(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)
        every: tuple[object, ...] = self._sinks
        self._around = tuple(sink for sink in every if isinstance(sink, Surrounds))
        self._traces = tuple(sink for sink in every if isinstance(sink, Traces))
        self._content = tuple(sink for sink in every if self._asks(sink))
        self.take_content = bool(self._content)

    def _asks(self, sink: object) -> TypeGuard[TakesContent]:
        try:
            return isinstance(sink, TakesContent) and bool(sink.takes_content)
        except Exception as error:  # noqa: BLE001 - as for events
            self.failed(sink, error)
            return False

    def _deliver(self, event: Event) -> None:
        for sink in self._sinks or ():
            self._guarded(sink, sink, event)

    def _guarded(self, sink: object, action: Callable[[Any], object], what: object) -> None:
        try:
            action(what)
        except Exception as error:  # noqa: BLE001 - a sink must never touch the call
            self.failed(sink, error)


class _Around:
    """Every sink's context, entered in order and left in reverse; one that fails is passed over."""

    __slots__ = ("_dispatcher", "_entered", "_makers", "_of_id")

    def __init__(
        self, dispatcher: Dispatcher, makers: list[Callable[[str], AbstractContextManager[object]]], of_id: str
    ) -> None:
        self._dispatcher = dispatcher
        self._makers = makers
        self._of_id = of_id
        self._entered: list[AbstractContextManager[object]] = []

    def __enter__(self) -> None:
        for make in self._makers:
            try:
                context = make(self._of_id)
                context.__enter__()
            except Exception as error:  # noqa: BLE001 - as for events
                self._dispatcher.failed(getattr(make, "__self__", make), error)
            except BaseException as error:  # an interrupt: nobody else leaves what was entered
                self.__exit__(type(error), error, error.__traceback__)
                raise
            else:
                self._entered.append(context)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._entered:
            context = self._entered.pop()
            try:
                context.__exit__(kind, error, trace)
            except Exception as failure:  # noqa: BLE001 - as for events
                self._dispatcher.failed(context, failure)


def _name(sink: object) -> str:
    return getattr(sink, "__qualname__", type(sink).__qualname__)
