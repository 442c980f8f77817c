"""The `runcap` command: `runcap report` and `runcap trace` read a ledger and change nothing in it.

Needs the extra `cli` (typer, rich), which is imported when the command runs.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]

_NEEDED = ("typer", "rich")


def main() -> int:
    """Run the command with the arguments of the process; its exit code.

    0: done. 1: the ledger cannot be read. 2: wrong arguments, an unknown run, or the extra `cli` is not installed.
    """
    if any(find_spec(name) is None for name in _NEEDED):
        sys.stderr.write("runcap: this command needs typer and rich: pip install 'runcap[cli]'\n")
        return 2
    from .app import run  # noqa: PLC0415 - an extra

    return run()
