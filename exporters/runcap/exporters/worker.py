"""A thread behind a sink, so that a slow terminal or webhook never holds up the agent."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from weakref import WeakSet

from runcap.guardrails import forks

_log = logging.getLogger("runcap")

_LINGER = 5.0
"""Seconds that a thread without work waits for some before it ends."""

_AT_EXIT = 1.5
"""Seconds that all of them together hold up the end of the program, at most."""

_every: WeakSet[Worker] = WeakSet()


class Worker:
    """Calls `step` on a daemon thread: when woken, and after as many seconds as `step` returned. One call at a time.

    Args:
        step: does what there is to do. Given True, it is called for the last time. Returns the seconds until it is to
            be called again, None to rest until a `wake`.
        name: what it does, for the log and the thread's name.
        forget: called in a forked child, where whatever is waiting is the parent's to do.
    """

    def __init__(self, step: Callable[[bool], float | None], name: str, forget: Callable[[], None]) -> None:
        self._step = step
        self._name = name
        self._forget = forget
        self._lock = forks.rlock()  # a finalizer may emit an event in the middle of another
        self._signal: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._woken = False
        self._resting = False
        self._closed = False
        self._reported: set[str] = set()
        _every.add(self)

    @property
    def closed(self) -> bool:
        """It takes no more work."""
        return self._closed

    def wake(self) -> None:
        """There is something to do. Returns at once; where a step is due anyway, it is left to its time."""
        with self._lock:
            if self._closed:
                return
            self._woken = True
            if self._thread is None:
                self._start()
            elif self._resting:
                self._resting = False
                self._signal.put(None)

    def close(self, timeout: float) -> None:
        """Do what is left, for `timeout` seconds at most, and take no more."""
        with self._lock:
            self._closed = True
            self._signal.put(None)
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def report(self, error: BaseException) -> None:
        """Say in the log that something went wrong, once a type of error. The type's name, never its text."""
        name = type(error).__name__
        if name not in self._reported:
            self._reported.add(name)
            _log.warning("runcap: %s failed with %s; said once", self._name, name)

    def after_fork(self) -> None:
        """Begin anew in a forked child, where the thread is not."""
        self._thread, self._woken, self._resting = None, False, False
        self._signal = queue.SimpleQueue()
        self._forget()

    def _start(self) -> None:
        name = f"runcap-{self._name}".replace(" ", "-")
        thread = threading.Thread(target=self._run, args=(self._signal,), name=name, daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down
            self._thread = None
            raise

    def _run(self, signal: queue.SimpleQueue[None]) -> None:
        due: float | None = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                signal.get(timeout=_LINGER if due is None else due)
            with self._lock:
                last, idle = self._closed, due is None and not self._woken
                self._woken = self._resting = False
                if idle and not last:
                    self._thread = None
                    return
            due = self._take_step(last=last)
            if last:
                return
            with self._lock:
                self._resting = due is None and not self._woken
                if due is None and self._woken:
                    due = 0.0

    def _take_step(self, *, last: bool) -> float | None:
        try:
            return self._step(last)
        except Exception as error:  # noqa: BLE001 - foreign code is behind it, and the thread goes on
            self.report(error)
            return None


def _close_all() -> None:
    deadline = time.monotonic() + _AT_EXIT
    workers = list(_every)
    for worker in workers:
        worker.close(0)
    for worker in workers:
        worker.close(max(0.0, deadline - time.monotonic()))


def _begin_anew() -> None:
    for worker in _every:
        worker.after_fork()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
