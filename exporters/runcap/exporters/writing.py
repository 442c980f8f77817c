"""Lines onto a stream that others write to as well, whole, and across forks."""

from __future__ import annotations

import os
from typing import TextIO

from runcap.guardrails import forks

_writing = forks.rlock()
if hasattr(os, "register_at_fork"):
    # As the standard library's logging: a fork waits for the line, for the child would find the stream's lock shut.
    os.register_at_fork(before=_writing.acquire, after_in_parent=_writing.release)


def write_line(stream: TextIO, line: str) -> None:
    """Write a line, and flush it. A line of this process waits for another's; a finalizer's may interrupt one."""
    with _writing:
        stream.write(f"{line}\n")
        stream.flush()
