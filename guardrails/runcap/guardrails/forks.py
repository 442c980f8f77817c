"""Locks that a forked child finds open: whoever held one in the parent is not there to let go of it."""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakSet

_every: WeakSet[Any] = WeakSet()


def lock() -> threading.Lock:
    """A `threading.Lock`."""
    made = threading.Lock()
    _every.add(made)
    return made


def rlock() -> threading.RLock:
    """A `threading.RLock`."""
    made = threading.RLock()
    _every.add(made)
    return made


def _open_all() -> None:
    for one in _every:
        one._at_fork_reinit()  # noqa: SLF001 - what threading and logging do with theirs


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)
