"""For tests that start processes of their own: a port for one, and waiting until it has done something."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable
from typing import Any

_RANDOM = random.SystemRandom()  # not the one that Hypothesis sets to the same state in every process


def free_port(also_above: int = 0) -> int:
    """A port nobody listens on, and likewise the one `also_above` it.

    It is one that the system gives to nobody by itself: many tests at once ask for ports before a server has its own.
    """
    while True:
        port = _RANDOM.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            if also_above:
                other.bind(("127.0.0.1", port + also_above))
            return port


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(ready: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Poll until `ready` gives something; these are other processes, so real time is all there is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = ready()
        if answer:
            return answer
        time.sleep(0.01)
    raise TimeoutError(f"{what} not within {seconds} s")
