"""Does what would block an event loop on threads of its own: how calls end in async code under a ledger that does I/O.

What is handed over is done whatever becomes of the loop or the task, also while the program ends.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import TypeGuard

from . import forks

_log = logging.getLogger("runcap")

_THREADS = 4
_LAST_WORDS = 10.0
"""Seconds the end of the program waits for what is still to be done."""

_Job = tuple[Callable[[], None], "Future[None]"]

_here = threading.local()


class _Workers:
    """Threads that take jobs from one queue, whose `put` is safe in finalizers."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.undone: dict[Future[None], str | None] = {}
        for number in range(_THREADS):
            threading.Thread(target=self._work, name=f"runcap-ending-{number}", daemon=True).start()

    def _work(self) -> None:
        _here.is_worker = True
        while True:
            action, done = self.jobs.get()
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - whoever handed it over is gone, others still come
                _log.warning("runcap: what was handed over was not done to its end: %s", type(error).__name__)
            finally:
                self.undone.pop(done, None)
                with suppress(RuntimeError):  # the loop of whoever waited was closed
                    done.set_result(None)
            del action, done

    def finish(self) -> None:
        """Wait for what is still to be done; a forked child leaves that to its parent."""
        if os.getpid() != self._pid:
            return
        deadline = time.monotonic() + _LAST_WORDS
        for done in self.undone.copy():
            with suppress(TimeoutError):
                done.result(max(0.0, deadline - time.monotonic()))


_workers: dict[int, _Workers] = {}
_starting = forks.lock()


def may_block() -> bool:
    """This thread may stand still: no loop runs on it."""
    return asyncio._get_running_loop() is None  # noqa: SLF001 - an error costs more


def start() -> None:
    """Have the threads ready: a finalizer cannot start them."""
    pid = os.getpid()
    if pid not in _workers:
        with _starting:
            if pid not in _workers:
                _workers.clear()  # of the parent, before a fork
                _workers[pid] = workers = _Workers()
                atexit.register(workers.finish)


def hand_over(action: Callable[[], None], call_id: str | None = None) -> Future[None]:
    """Have it done on another thread. What it raises is logged. `call_id` is the call that ends with it."""
    start()
    workers, done = _workers[os.getpid()], Future[None]()
    workers.undone[done] = call_id
    workers.jobs.put((partial(copy_context().run, action), done))
    return done


def wait(*dones: Future[None] | None) -> None:
    """Block this thread until these were done. They are taken in order, so a job may wait for earlier ones."""
    for done in dones:
        if _is_under_way(done):
            done.result()


def is_worker() -> bool:
    """This thread does what was handed over: to wait here could be to wait for oneself."""
    return getattr(_here, "is_worker", False)


async def until(done: Future[None] | None) -> None:
    """Wait for something handed over, without blocking the loop. Cancelling the wait does not cancel it."""
    if _is_under_way(done):
        await asyncio.shield(asyncio.wrap_future(done))


def _is_under_way(done: Future[None] | None) -> TypeGuard[Future[None]]:
    """It was handed over in this process, and is not done: a forked child never hears of what its parent does."""
    workers = _workers.get(os.getpid())
    return workers is not None and done in workers.undone


def of(call_id: str) -> list[Future[None]]:
    """What was handed over to end this call and is not done: by each of the guards it was admitted by."""
    workers = _workers.get(os.getpid())
    return [] if workers is None else [done for done, ends in workers.undone.copy().items() if ends == call_id]


def is_busy() -> bool:
    """Something was handed over that is not done."""
    workers = _workers.get(os.getpid())
    return workers is not None and bool(workers.undone)
