"""A thread that says, every few seconds, that its process lives."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

from .base import LedgerError

_log = logging.getLogger("runcap")

_HURRY = 0.5
"""Seconds to the next beat where something could not be written."""

_JOIN = 5.0
"""Seconds to wait for a beat to end."""

_FOREVER = 1e9


class Heart:
    """Beats once it was started, until it is stopped or what it beats for is gone. `interval` None never beats."""

    def __init__(self, interval: float | None, beat: Callable[[], None]) -> None:
        self._interval = interval
        self._beat = WeakMethod(beat)
        self._wanted = False
        self._hurried = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._changing = threading.RLock()  # a finalizer may need it in the middle of its start

    def start(self) -> None:
        """Beat from now on. Costs nothing where it does already."""
        if self._wanted or self._interval is None:
            return
        with self._changing:
            self._wanted = True
            if self._thread is None:  # else one that was stopped in the middle of a beat, and now goes on
                thread = threading.Thread(target=self._run, args=(self._interval,), name="runcap-heart", daemon=True)
                self._thread = thread
                thread.start()

    def hurry(self) -> None:
        """Something could not be written: try again soon."""
        self._hurried = True
        self._wake.set()
        self.start()

    def stop(self) -> None:
        """Beat no more."""
        self._wanted = False
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=_JOIN)

    def _run(self, interval: float) -> None:
        failed = False
        try:
            while True:
                self._wake.wait(_HURRY if self._hurried else interval)
                beat = self._beat()
                if beat is None or self._is_over():
                    return
                self._wake.clear()
                self._hurried = False
                failed = self._try(beat, quiet=failed)
                del beat
        finally:
            with self._changing:
                if self._thread is threading.current_thread():
                    self._thread, self._wanted = None, False

    def _is_over(self) -> bool:
        with self._changing:
            if not self._wanted:
                self._thread = None  # from here on, a start needs another
            return not self._wanted

    def _try(self, beat: Callable[[], None], *, quiet: bool) -> bool:
        """Whether it failed, and will be tried again soon; said once, until it succeeds."""
        try:
            beat()
        except Exception as error:  # noqa: BLE001 - as long as the process lives, it has to say so
            self._hurried = True
            if not quiet:
                what = error if isinstance(error, LedgerError) else type(error).__name__
                _log.warning("runcap: the ledger cannot be reached, and will be tried again: %s", what)
            return True
        return False


def check_seconds(name: str, value: Any) -> None:
    """Check a duration; None passes where it means "never".

    Raises:
        ValueError: it is no positive number.
    """
    if value is None and name == "heartbeat":
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _FOREVER:
        raise ValueError(f"{name} must be a positive number of seconds, got {value!r}")
