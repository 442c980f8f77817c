"""The calls under way: who has taken one on, and who ends it when nobody else does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from weakref import WeakKeyDictionary, WeakSet, ref

from . import forks
from .permit import Permit
from .recent import Recent

_UNSURE = 1_024
"""How many calls that ended as unknown are kept, in case their usage arrives after all."""


class InFlight:
    """Permits by call id. Every operation is a single dict operation, safe across threads and in finalizers.

    `nudge` is called when something was left to be done: whoever waits for money may be the next to do it.
    """

    def __init__(self, nudge: Callable[[], None]) -> None:
        self._nudge = nudge
        self._permits: dict[str, Permit] = {}
        self._unsure: Recent[str, Permit] = Recent(_UNSURE)
        self._claims: dict[str, tuple[object]] = {}
        self._tasks: WeakKeyDictionary[asyncio.Task[object], set[str]] = WeakKeyDictionary()
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, set[str]] = WeakKeyDictionary()
        self._reaped_with: dict[str, tuple[set[str], set[str]]] = {}
        self._deferred: deque[Callable[[], None]] = deque()
        with _adding:
            _every.add(self)

    def __len__(self) -> int:
        return max(len(self._permits), len(self._claims))

    def get(self, call_id: str) -> Permit | None:
        """The permit of a call in flight."""
        return self._permits.get(call_id)

    def get_ended(self, call_id: str) -> Permit | None:
        """The permit of a call in flight, or of one that ended as unknown and whose usage may still arrive."""
        return self._permits.get(call_id) or self._unsure.get(call_id)

    def claim(self, call_id: str, owner: object) -> bool:
        """Take a call on; False where it was taken before, by this owner or another."""
        token = (owner,)
        return self._claims.setdefault(call_id, token) is token

    def unclaim(self, call_id: str) -> None:
        """Give a call up."""
        self._claims.pop(call_id, None)

    def begin(self, permit: Permit) -> None:
        """A permit was granted."""
        self._permits[permit.call_id] = permit

    def end(self, permit: Permit) -> None:
        """A permit ended."""
        if permit.state == "unknown":
            self._unsure.put(permit.call_id, permit)
        self._permits.pop(permit.call_id, None)
        self._claims.pop(permit.call_id, None)
        for calls in self._reaped_with.pop(permit.call_id, ()):
            calls.discard(permit.call_id)

    def reap(self, call_id: str, error_type: str = "CancelledError") -> None:
        """End a call nobody will report on any more: charged what was seen, the rest unknown."""
        permit = self._permits.get(call_id)
        if permit is not None:
            permit.abandon(error_type)

    def reap_with_task(self, permit: Permit) -> None:
        """Reap this call when the task it is made in is done, should nobody have ended it by then."""
        running = asyncio._get_running_loop()  # noqa: SLF001 - an error costs more
        task = asyncio.current_task() if running is not None else _remembered()
        if task is None:
            return
        loop = task.get_loop()
        if loop is running:
            self._watch(task, permit)
            return
        try:
            loop.call_soon_threadsafe(self._watch, task, permit)
        except RuntimeError:  # it was closed under the call
            self.reap(permit.call_id)

    def _watch(self, task: asyncio.Task[object], permit: Permit) -> None:
        if permit.state is not None:
            return
        if task.done():
            permit.release("CancelledError")  # it was over before it could make the call
            return
        with _adding:
            of_task = self._tasks.get(task)
            if of_task is None:
                of_task = self._tasks[task] = set()
                task.add_done_callback(self._task_done)
            of_loop = self._loops.setdefault(task.get_loop(), set())
        of_task.add(permit.call_id)
        of_loop.add(permit.call_id)
        self._reaped_with[permit.call_id] = (of_task, of_loop)

    def defer(self, action: Callable[[], None]) -> None:
        """Leave an action to the next use of the guard; safe in finalizers, which may run anywhere."""
        self._deferred.append(action)
        self._nudge()

    def drain(self) -> None:
        """Do what finalizers left, and end the calls of loops that were closed under them."""
        if self._loops and not self._only_here():
            self._drain_closed()
        while self._deferred:
            try:
                action = self._deferred.popleft()
            except IndexError:
                return
            action()

    def _only_here(self) -> bool:
        running = asyncio._get_running_loop()  # noqa: SLF001 - an error costs more
        return running is not None and len(self._loops) == 1 and running in self._loops

    def _drain_closed(self) -> None:
        with _adding:
            closed = [self._loops.pop(loop) for loop in list(self._loops) if loop.is_closed()]
        for call_id in [call_id for calls in closed for call_id in calls]:
            self.reap(call_id)

    def _task_done(self, task: asyncio.Task[object]) -> None:
        for call_id in tuple(self._tasks.pop(task, ())):
            permit = self._permits.get(call_id)
            # A stream may be read by one task a chunk: it goes on, and its own end is reported.
            if permit is not None and not permit.streamed:
                self.reap(call_id)


_every: WeakSet[InFlight] = WeakSet()
_adding = forks.rlock()  # weak collections may not grow while another thread walks them


def release_everywhere(call_id: str) -> None:
    """A guard refuses a call that others have admitted already: it will not be made, so they charge nothing."""
    with _adding:
        every = list(_every)
    for calls in every:
        permit = calls.get(call_id)
        if permit is not None:
            permit.release("Refused")


_task: ContextVar[ref[asyncio.Task[object]] | None] = ContextVar("runcap_task", default=None)


def remember_task() -> None:
    """What runs on another thread from here, in a copy of this context, belongs to the current task."""
    task = asyncio.current_task() if asyncio._get_running_loop() is not None else None  # noqa: SLF001 - see above
    if task is not None:
        _task.set(ref(task))


def _remembered() -> asyncio.Task[object] | None:
    task = _task.get()
    return None if task is None else task()


_around: ContextVar[tuple[Permit, ...]] = ContextVar("runcap_calls_around", default=())


def calls_around() -> tuple[Permit, ...]:
    """The calls in flight that this code runs inside of: a model's own code, or the body of a loop over its stream."""
    # A mark set in a generator stays with whoever reads it, also when he drops it: what counts is whether it is done.
    return tuple(permit for permit in _around.get() if permit.state is None)


def enter(permit: Permit) -> None:
    """What follows in this context runs inside of this call, until the call ends."""
    _around.set((*calls_around(), permit))
