"""A forked child: nothing of what its parent's threads hold or do may make it hang or wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import os, signal, sys, threading, time
from runcap.guardrails import Budget, Guard, Limit, SQLiteLedger, Usage, forks, offload
from runcap.guardrails.amounts import Amounts, Caps
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.ledger import Account, LedgerError, Offer
from runcap.guardrails.recent import Recent
from runcap.guardrails.request import Request

one = Amounts(nano=10, steps=1)
OFFER, ACCOUNT = (Offer(one, one, one),), (Account("limit:x", Caps(nano=1000)),)
path = sys.argv[1]

def call(number=0):
    return Request(call_id=f"{os.getpid()}-{number}", model="gpt-4o", provider="openai", prompt=Prompt(), output_cap=9)

def fork(child, status=0):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        child()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == status

def elsewhere(action):
    "Begin it on another thread; let go of it by the event."
    begun, gate = threading.Event(), threading.Event()
    def run():
        action(begun, gate)
    threading.Thread(target=run, daemon=True).start()
    assert begun.wait(5)
    return gate

def hold(lock):
    def run(begun, gate):
        with lock:
            begun.set()
            gate.wait()
    return elsewhere(run)
"""

LOCKS = """
ledger = SQLiteLedger(path, heartbeat=None)
guard = Guard(Budget(usd=1), ledger=ledger, sinks=())
run = guard.open_run()
guard.admit(call(), run).settle(Usage(0, 1))
named = {ledger._file._lock, ledger._flushing, ledger._seen._lock, run.account._booking, offload._starting}
gates = [hold(lock) for lock in named | set(forks._every)]
def child():
    guard.admit(call(1), run).settle(Usage(0, 1))
    run.succeed()
    offload.wait(offload.hand_over(lambda: None))
    print("ok", run.steps)
fork(child)
for gate in gates:
    gate.set()
"""

FLUSHING = """
ledger = SQLiteLedger(path, heartbeat=None)
def slow(begun, gate):
    ledger._outbox.append(lambda: (begun.set(), gate.wait()))
    ledger.beat()
gate = elsewhere(slow)
def child():
    ledger.judge("r", "succeeded")
    ledger.reserve("c", OFFER, ACCOUNT)
    write, fails = ledger._file.write, [1]
    def flaky(*args):
        if fails and fails.pop():
            raise LedgerError("away for a moment")
        return write(*args)
    ledger._file.write = flaky
    try:
        ledger.settle("c", Amounts(nano=5))
    except LedgerError:
        ledger.beat()
    print("ok", len(ledger._outbox), ledger.balance("limit:x").spent.nano)
fork(child)
gate.set()
"""

OWED = """
ledger = SQLiteLedger(path, heartbeat=None)
guard = Guard(Budget(usd=1), ledger=ledger, sinks=())
run = guard.open_run()
permit = guard.admit(call(), run)
gate = threading.Event()
def slow():
    gate.wait()
run.account.owes(offload.hand_over(slow))
run.account._catching_up = permit._booking = offload.hand_over(slow)
async def wait():
    await permit.booked()
    await run.account.acatch_up()
    await run.account.closed()
def child():
    import asyncio
    permit.wait_until_booked()
    asyncio.run(wait())
    print("ok", run.steps)
fork(child)
gate.set()
"""

LEAVING = """
ledger = SQLiteLedger(path, heartbeat=None)
gate = threading.Event()
offload.hand_over(gate.wait)
pid = os.fork()
if pid == 0:
    signal.alarm(5)
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
gate.set()
print("ok")
"""

ELSEWHERE = """
os.chdir(os.path.dirname(path))
ledger = SQLiteLedger("l.db", heartbeat=None)
ledger.reserve("c", OFFER, ACCOUNT)
os.mkdir("other")
os.chdir("other")
def child():
    print("ok", ledger.balance("limit:x").held.nano)
fork(child)
ledger.dispose()
print("ok", ledger.balance("limit:x").held.nano, os.listdir("."))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize(
    ("program", "says"),
    [
        (LOCKS, "ok 2\n"),
        (FLUSHING, "ok 0 5\n"),
        (OWED, "ok 1\n"),
        (LEAVING, "ok\n"),
        (ELSEWHERE, "ok 10\nok 10 []\n"),
    ],
    ids=["locks", "flushing", "owed", "leaving", "elsewhere"],
)
def test_a_child_goes_on(tmp_path: Path, program: str, says: str) -> None:
    command = [sys.executable, "-c", BEGIN + program, str(tmp_path / "l.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == says, done.stderr
    assert done.returncode == 0


def test_a_connection_in_use_as_the_program_ends_is_left_alone(tmp_path: Path) -> None:
    """SQLite crashes where one thread closes it and another is in the middle of a transaction."""
    program = """
import atexit, sys
from pathlib import Path
atexit.register(lambda: print("open" if file._open_here else "closed"))  # the last to be called
from runcap.guardrails.ledger.sqlite_file import File
file = File(Path(sys.argv[1]), "FULL", 1.0)
with file.reading():
    pass
"""
    command = [sys.executable, "-c", program, str(tmp_path / "l.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "open\n"), done.stderr
