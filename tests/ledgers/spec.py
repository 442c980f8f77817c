"""How to open a ledger, and how to start processes that do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from runcap.guardrails.clock import Clock
from runcap.guardrails.ledger import RedisLedger, SQLiteLedger
from runcap.guardrails.testing.clock import ManualClock

AnyLedger = SQLiteLedger | RedisLedger

LONG = 60.0
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """How to open a ledger, told to other processes. `where` is a path or a URL."""

    kind: Literal["sqlite", "redis"]
    where: str
    namespace: str = "runcap"
    dead_after: float = 60.0

    def open(self, *, clock: Clock | None = None, heartbeat: float | None = None) -> AnyLedger:
        """The ledger. It waits long: on a machine that is busy testing, nothing is to be refused for being late."""
        if self.kind == "redis":
            return RedisLedger(
                self.where,
                namespace=self.namespace,
                timeout=LONG,
                heartbeat=heartbeat,
                dead_after=self.dead_after,
                clock=clock,
            )
        return SQLiteLedger(self.where, timeout=LONG, heartbeat=heartbeat, dead_after=self.dead_after, clock=clock)

    def survivor(self) -> AnyLedger:
        """A ledger to which all others have been silent for long, or (Redis has its own time) soon will have been."""
        if self.kind == "redis":
            return RedisLedger(self.where, namespace=self.namespace, timeout=LONG, heartbeat=None, dead_after=0.001)
        later = ManualClock(time.time_ns() + 3600 * 10**9)
        return SQLiteLedger(self.where, timeout=LONG, heartbeat=None, dead_after=60.0, clock=later)

    def warm_up(self) -> None:
        """Import all that a ledger needs, before the children that do are forked."""
        self.open().dispose()

    def at(self, point: int) -> Spec:
        """One of many ledgers that begin alike."""
        if self.kind == "redis":
            return replace(self, namespace=f"{self.namespace}.{point}")
        return replace(self, where=f"{self.where}.{point}")

    def begin(self, point: int) -> Spec:
        """Make one of many; of a file, a copy."""
        other = self.at(point)
        if self.kind == "sqlite":
            shutil.copyfile(self.where, other.where)
        return other


def start(command: Callable[..., None], **told: Any) -> subprocess.Popen[str]:
    """Run a function of a module that ends with `main(...)` in a process of its own."""
    told = {name: asdict(value) if isinstance(value, Spec) else value for name, value in told.items()}
    return subprocess.Popen(
        [sys.executable, "-m", command.__module__, command.__name__, json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def say(*words: object) -> None:
    """One line, in one piece."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def main(*commands: Callable[..., None]) -> None:
    """Run the one that the command line names."""
    _, name, told = sys.argv
    [command] = [each for each in commands if each.__name__ == name]
    args = json.loads(told)
    command(**(args | {"spec": Spec(**args["spec"])}))


def end_of(pid: int) -> int:
    """How a child ended: minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork(run: Callable[[], object]) -> int:
    """A child that does only this."""
    pid = os.fork()
    if pid:
        return pid
    try:
        run()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - nothing of a child may go on as its parent
        say("wrong", traceback.format_exc().replace("\n", " | "))
    finally:
        os._exit(1)
