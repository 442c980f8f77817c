"""A thread that says, every few seconds, that its process lives."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from weakref import WeakMethod

from .base import LedgerError

_log = logging.getLogger("runcap")

_HURRY = 0.5
"""Seconds to the next beat where something could not be written."""

_JOIN = 5.0
"""Seconds to wait for a beat to end."""


class Heart:
    """Beats once it was started, until it is stopped or what it beats for is gone. `interval` None never beats."""

    def __init__(self, interval: float | None, beat: Callable[[], None]) -> None:
        self._interval = interval
        self._beat = WeakMethod(beat)
        self._stopped = False
        self._hurried = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        """Beat from now on. Costs nothing where it does already."""
        if self._thread is not None or self._interval is None:
            return
        with self._starting:
            if self._thread is None:
                self._stopped = False
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
        self._stopped = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=_JOIN)

    def _run(self, interval: float) -> None:
        reported = False
        while True:
            self._wake.wait(_HURRY if self._hurried else interval)
            beat = self._beat()
            if self._stopped or beat is None:
                return
            self._wake.clear()
            self._hurried = False
            try:
                beat()
                reported = False
            except LedgerError as error:
                self._hurried = True
                if not reported:
                    reported = True
                    _log.warning("runcap: the ledger cannot be reached, and will be tried again: %s", error)
            del beat
