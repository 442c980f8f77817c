"""Whether an endpoint takes telemetry: its outage is said once, and its return."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from runcap.guardrails import forks

_LOG = logging.getLogger("runcap")
_QUIET_S = 3600.0  # an endpoint that comes and goes is not a warning each time
_OUTAGE = 2  # attempts failed in a row: one is a blip, which the exporter's retry is for
_NO_METRICS = frozenset({"UNIMPLEMENTED", "HTTP 404", "HTTP 405"})


@dataclass(slots=True)
class _Signal:
    failures: int = 0
    down: bool = False
    why: str = "no answer"
    quiet_until: float = float("-inf")
    by_other: bool = False  # quiet for what the other signal has said
    lost: int = 0


class Health:
    """One endpoint's. Says `host:port` and types of errors on the logger "runcap"; never a header or a text."""

    def __init__(self, where: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._where = where
        self._clock = clock
        self._signals: dict[str, _Signal] = {}
        self._watchers: list[Callable[[], None]] = []
        self._announced = self._warned = self._ending = self._closed = False
        self._lock = forks.rlock()

    def is_down(self, signal: str) -> bool:
        """Whether the signal's last attempts failed."""
        return self._of(signal).down

    def watch(self, tell: Callable[[], None]) -> None:
        """Have `tell` called as an outage begins; it must not wait."""
        self._watchers.append(tell)

    def note(self, signal: str, why: str) -> None:
        """The type of the failure to come."""
        self._of(signal).why = why

    def attempt_failed(self, signal: str, why: str | None) -> None:
        """One attempt of several failed."""
        with self._lock:
            state = self._of(signal)
            state.failures += 1
            state.why = why or state.why
            self._say(self._outage(signal, state) if state.failures >= _OUTAGE else None)

    def failed(self, signal: str, why: str | None, lost: int = 0) -> None:
        """An export has failed, with all its attempts; `lost` spans went with it."""
        with self._lock:
            state = self._of(signal)
            state.why = why or state.why
            state.lost += lost
            self._say(self._outage(signal, state))

    def drop(self, signal: str, count: int = 1) -> None:
        """Spans were let go, for want of room or of time; it is said at the next outage or at the end."""
        with self._lock:
            self._of(signal).lost += count

    def took(self, signal: str) -> None:
        """An export was taken."""
        with self._lock:
            state = self._of(signal)
            was_down, state.down, state.failures = state.down, False, 0
            if not was_down and state.by_other:  # it had no part in that outage
                state.by_other, state.quiet_until = False, float("-inf")
            if was_down and self._announced:
                self._announced = False
                self._say((logging.INFO, f"telemetry: {self._where} takes {signal} again{self._so_far()}"))

    def defer(self) -> None:
        """The end has begun: what is yet to be said is said by `close`, with the counts."""
        self._ending = True

    def close(self, waited: float, unsent: frozenset[str] = frozenset()) -> None:
        """What was lost, as a warning where nothing has been said yet. Nothing is said after it.

        `unsent` are the signals whose last export had not ended after the `waited` seconds.
        """
        with self._lock:
            failing = unsent | {name for name, state in self._signals.items() if state.down}
            what = [f"{self._lost()} spans"] if self._lost() else []
            what += ["the last metrics"] if "metrics" in failing else []
            if what:
                why = next((self._of(one).why for one in sorted(failing, reverse=True)), "the queue was full")
                after = f" within {waited:.1f} s" if unsent else ""
                hint = self._hint("metrics") if failing == {"metrics"} else ""
                text = f"telemetry: {self._where} did not take {' and '.join(what)}{after}: {why}{hint}"
                self._say((logging.INFO if self._warned else logging.WARNING, text))
            self._closed = True

    def renew(self) -> None:
        """In a forked child: what was lost was the parent's."""
        for state in self._signals.values():
            state.lost = 0

    def _of(self, signal: str) -> _Signal:
        return self._signals.setdefault(signal, _Signal())

    def _outage(self, signal: str, state: _Signal) -> tuple[int, str] | None:
        if state.down:
            return None
        state.down = True
        for tell in self._watchers:
            tell()
        if self._ending:
            return None
        now = self._clock()
        is_new = now >= state.quiet_until
        if is_new:
            self._warned = self._announced = True
            for other in ("traces", "metrics"):
                quiet = self._of(other)
                quiet.quiet_until, quiet.by_other = now + _QUIET_S, other != signal
        elif state.by_other:
            return None  # the endpoint's outage is known from the other signal
        else:
            self._announced = True
        text = (
            f"telemetry: {self._where} does not take {signal}: {state.why}{self._so_far()}; "
            f"the agent is not held up, and this is said once{self._hint(signal)}"
        )
        return logging.WARNING if is_new else logging.INFO, text

    def _hint(self, signal: str) -> str:
        no_metrics = signal == "metrics" and self._of(signal).why in _NO_METRICS
        return "; if it takes no metrics, pass metrics=False or set OTEL_METRICS_EXPORTER=none" if no_metrics else ""

    def _lost(self) -> int:
        return sum(state.lost for state in self._signals.values())

    def _so_far(self) -> str:
        return f" ({self._lost()} spans lost so far)" if self._lost() else ""

    def _say(self, text: tuple[int, str] | None) -> None:
        if text is not None and not self._closed:
            _LOG.log(*text)


_sending: ContextVar[tuple[Health, str] | None] = ContextVar("runcap_sending", default=None)


@contextlib.contextmanager
def sending(health: Health, signal: str) -> Iterator[None]:
    """While it lasts, what OpenTelemetry's exporters would log here is told to `health` in place of a log."""
    token = _sending.set((health, signal))
    try:
        yield
    finally:
        _sending.reset(token)


def note_failure(why: str) -> None:
    """The type of a failure, told from within an exporter."""
    told = _sending.get()
    if told is not None:
        told[0].note(told[1], why)


def type_of(error: BaseException) -> str:
    """The type of what is at the root of an error: `ConnectionRefusedError` is under three wrappings of clients."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        under = error.__cause__ or error.__context__
        under = under or next((one for one in (*error.args, getattr(error, "reason", None)) if _is_error(one)), None)
        if not isinstance(under, Exception):
            break
        error = under
    return type(error).__name__


def _is_error(one: object) -> bool:
    return isinstance(one, Exception)


class _Quiet(logging.Filter):
    """Keeps back warnings of our own sending only; anybody else's pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        told = _sending.get()
        if told is None or record.levelno < logging.WARNING:
            return True
        health, signal = told
        args = record.args if isinstance(record.args, tuple) else ()
        health.attempt_failed(signal, next((name for name in map(_status_name, args) if name), None))
        return False


_QUIET = _Quiet()


def keep_quiet() -> None:
    """Put the filter on the loggers of OpenTelemetry and its HTTP client: a logger's filter is not its children's."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("opentelemetry.", "urllib3.")):
            logger = logging.getLogger(name)
            if _QUIET not in logger.filters:
                # First: their filter of duplicates would remember our line, and keep back another's that is the same.
                logger.filters.insert(0, _QUIET)


def _status_name(argument: object) -> str | None:
    """The name of a `grpc.StatusCode`, which the exporter logs and does not raise."""
    return argument.name if type(argument).__name__ == "StatusCode" and hasattr(argument, "name") else None
