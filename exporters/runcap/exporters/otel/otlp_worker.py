"""A thread that sends, and waits for it that end when they say: the SDK's own `force_flush` and `shutdown` do not."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from .otlp_health import Health

_LOG = logging.getLogger("runcap")


class Worker:
    """A daemon thread that does `work` each `interval` seconds, when woken, and once more when it ends.

    `work` says whether all was taken. No wait here is longer than asked, whatever `work` does.
    """

    def __init__(self, name: str, work: Callable[[], bool], interval: float) -> None:
        self._name, self._work, self._interval = name, work, interval
        self.renew()

    def renew(self) -> None:
        """Start, and start again in a forked child, where threads and held locks of the parent are no more."""
        self._turn = threading.Condition()
        self._asked = self._done = 0
        self._ended = self._ending = False
        self._ok = True
        with contextlib.suppress(RuntimeError):  # no thread starts any more as the interpreter ends
            threading.Thread(target=self._run, name=self._name, daemon=True).start()

    @property
    def ending(self) -> bool:
        """Whether `end` was called."""
        return self._ending

    def wake(self) -> None:
        """Ask for a round now; does not wait."""
        with self._turn:
            if self._asked == self._done:
                self._asked += 1
                self._turn.notify_all()

    def ask(self) -> int:
        """Ask for a round begun after this call; does not wait. What `reached` takes."""
        with self._turn:
            self._asked += 1
            self._turn.notify_all()
            return self._asked

    def reached(self, goal: int, until: float) -> bool:
        """Whether the round asked for was taken whole by `until` (of time.monotonic)."""
        with self._turn:
            ended = self._turn.wait_for(lambda: self._done >= goal or self._ended, until - time.monotonic())
            return ended and self._ok

    def end(self) -> None:
        """Ask for the last round; does not wait."""
        with self._turn:
            self._ending = True
            self._turn.notify_all()

    def wait(self, until: float, unless: Callable[[], bool] = lambda: False) -> bool:
        """Whether the last round was over by `until` (of time.monotonic); not waited for once `unless` is true."""
        with self._turn:
            self._turn.wait_for(lambda: self._ended or unless(), until - time.monotonic())
            return self._ended

    def nudge(self) -> None:
        """Have those who wait look again."""
        with self._turn:
            self._turn.notify_all()

    def _run(self) -> None:
        last = False
        while not last:
            with self._turn:
                self._turn.wait_for(lambda: self._asked > self._done or self._ending, self._interval)
                goal, last = self._asked, self._ending
            try:
                ok = self._work()
            except Exception as error:  # noqa: BLE001 - such as an instrument's callback raises; the thread goes on
                ok = False
                _LOG.warning("telemetry: %s in the thread %s", type(error).__name__, self._name)
            with self._turn:
                self._done, self._ok, self._ended = goal, ok, last
                self._turn.notify_all()


class SpanQueue(SpanProcessor):
    """Spans to send, at most `size`, in batches from a thread; more than that are dropped, and counted.

    In place of the SDK's BatchSpanProcessor, which neither bounds its waits nor counts what it drops.
    """

    def __init__(
        self, send: Callable[[Sequence[ReadableSpan]], bool], health: Health, size: int, batch: int, delay: float
    ) -> None:
        self._send, self._health, self._size, self._batch = send, health, size, batch
        self._queue: deque[ReadableSpan] = deque()
        self._sending = 0
        self._forked_ns = 0
        self._given_up = False
        self.worker = Worker("runcap-spans", self._drain, delay)

    @property
    def waiting(self) -> int:
        """Spans not taken yet."""
        return len(self._queue) + self._sending

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span; takes no lock but to wake the thread when a batch is full."""
        if self.worker.ending or not (span.context and span.context.trace_flags.sampled):
            return
        if (span.start_time or 0) < self._forked_ns:
            return  # it was open when this process was forked off: the parent sends it
        if len(self._queue) >= self._size:
            self._health.drop("traces")
            return
        self._queue.append(span)
        if len(self._queue) == self._batch:
            self.worker.wake()

    def force_flush(self, timeout_millis: int = 2000) -> bool:
        """Whether all was taken within the time."""
        return self.worker.reached(self.worker.ask(), time.monotonic() + timeout_millis / 1e3)

    def shutdown(self) -> None:
        """Send what is queued, for 2 s at most."""
        self.worker.end()
        if not self._given_up:
            self.worker.wait(time.monotonic() + 2.0)

    def give_up(self) -> int:
        """Send no more; how many are left."""
        self._given_up = True
        return self.waiting

    def renew(self) -> None:
        """In a forked child: what is queued is the parent's to send."""
        self._queue.clear()
        self._sending = 0
        self._forked_ns = time.time_ns()
        self.worker.renew()

    def _drain(self) -> bool:
        """Send what is there as the round begins, and a full batch at a time what has come meanwhile."""
        ok, left = True, len(self._queue)
        while (left > 0 or len(self._queue) >= self._batch) and not self._given_up:
            batch = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
            self._sending, left = len(batch), left - len(batch)
            ok = self._send(batch) and ok
            self._sending = 0
        return ok
