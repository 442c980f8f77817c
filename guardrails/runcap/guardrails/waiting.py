"""Where calls wait for money that other calls hold: one fair queue for each account that had no room.

Only the first in a queue tries; whoever leaves a queue wakes the next, so a settle costs the same however many wait.
`wake` and `nudge` take no lock: a finalizer may end a call anywhere, also in the middle of a queue's own work.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from . import forks
from .clock import Clock


class Waiter(Protocol):
    """Somebody who waits. A wake that comes before the rest ends that rest at once."""

    def wake(self) -> bool:
        """End its rest, from any thread. False where nobody is there any more to be woken."""
        ...


class ThreadWaiter:
    """A waiting thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def wake(self) -> bool:
        """See `Waiter`."""
        with suppress(RuntimeError):  # woken already
            self._asleep.release()
        return True

    def rest(self, seconds: float | None) -> None:
        """Sleep until woken, or for so many seconds."""
        self._clock.wait(self._asleep, seconds)


class TaskWaiter:
    """A waiting task."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()

    def wake(self) -> bool:
        """See `Waiter`."""
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:
            return False  # its loop was closed under it
        return True

    async def arest(self, seconds: float | None) -> None:
        """Sleep until woken, or for so many seconds."""
        await self._clock.await_(self._woken, seconds)
        self._woken.clear()


class _Queue:
    __slots__ = ("head", "waiters")

    def __init__(self) -> None:
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        self.head: Waiter | None = None


class WaitingRoom:
    """The queues of one guard."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._lock = forks.rlock()

    def __bool__(self) -> bool:
        """Somebody waits."""
        return bool(self._queues)

    def __len__(self) -> int:
        with self._lock:
            return sum(len(queue.waiters) for queue in self._queues.values())

    def occupied(self, account_ids: Iterable[str]) -> str | None:
        """The first of these accounts that somebody waits for."""
        return next((account_id for account_id in account_ids if account_id in self._queues), None)

    def join(self, account_id: str, waiter: Waiter) -> None:
        """Stand in a queue, at its end."""
        with self._lock:
            queue = self._queues.setdefault(account_id, _Queue())
            queue.waiters[waiter] = None
            if queue.head is None:
                queue.head = waiter

    def leave(self, account_id: str, waiter: Waiter) -> None:
        """Leave a queue; the next becomes the first, and is woken to try."""
        with self._lock:
            queue = self._queues.get(account_id)
            if queue is None or waiter not in queue.waiters:
                return
            del queue.waiters[waiter]
            if queue.head is not waiter:
                return
            queue.head = next(iter(queue.waiters), None)
            while queue.head is not None and not queue.head.wake():
                del queue.waiters[queue.head]
                queue.head = next(iter(queue.waiters), None)
            if queue.head is None:
                del self._queues[account_id]

    def is_first(self, account_id: str, waiter: Waiter) -> bool:
        """It is this one's turn to try."""
        queue = self._queues.get(account_id)
        return queue is not None and queue.head is waiter

    def wake(self, account_id: str) -> None:
        """There may be room in this account: the first in its queue tries again."""
        queue = self._queues.get(account_id)
        head = queue.head if queue is not None else None
        if head is not None and not head.wake():
            self.leave(account_id, head)

    def nudge(self) -> None:
        """There may be room anywhere. Safe in finalizers."""
        for queue in tuple(self._queues.values()):
            head = queue.head
            if head is not None:
                head.wake()
