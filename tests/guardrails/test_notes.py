"""Notes: what a guard has a ledger keep of events, and that they hold up nothing and are written once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from runcap.guardrails import (
    Budget,
    BudgetExceeded,
    Guard,
    LedgerUnavailable,
    Limit,
    LoopHalted,
    LoopPolicy,
    MemoryLedger,
    RedisLedger,
    SQLiteLedger,
    Usage,
)
from runcap.guardrails.amounts import Amounts
from runcap.guardrails.errors import RefusalDetails
from runcap.guardrails.events import (
    BudgetWarned,
    CallRefused,
    Event,
    LoopWarned,
    PrefixBroken,
    RunInfo,
    RunPaused,
    RunStopped,
    TierSwitched,
)
from runcap.guardrails.ledger import Balance, LedgerError, Note, sqlite_schema
from runcap.guardrails.ledger.lasting import Lasting
from runcap.guardrails.ledger.pending import Pending
from runcap.guardrails.loops import Loop
from runcap.guardrails.noting import note_of
from runcap.guardrails.testing import ManualClock, Recorder

from ..waiting import wait_for
from .helpers import request
from .lasting_contract import ABOUT, NOTE, outcome
from .ledger_contract import account, offer
from .redis_server import Proxy, RedisServer, redis_server
from .test_redis_ledger import Make, make, raw, shared
from .test_unknowns import locked

__all__ = ["make", "raw", "redis_server", "shared"]

CENT = Usage(0, 1000)
HERE = Path(__file__)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def opened(path: Path, **more: Any) -> SQLiteLedger:
    return SQLiteLedger(path, **{"synchronous": "NORMAL", "heartbeat": None, "timeout": 0.02} | more)


@pytest.fixture
def ledger(path: Path) -> Iterator[SQLiteLedger]:
    with opened(path) as made:
        yield made


def told(ledger: Any) -> list[tuple[Any, ...]]:
    """What is noted: all but whose and when."""
    return sorted((n.kind, n.what, n.scope, n.unit, n.model, n.count) for n in ledger.notes())


class TestWhatIsNoted:
    INFO = RunInfo("r1", "c1", "r0", {"user": "ada"})
    WHY = RefusalDetails(
        reason="secret", way_out="secret", run_id="r1", scope="user", unit="usd", model="gpt-4o", cap=1, needed=2
    )

    @pytest.mark.parametrize(
        ("event", "expected"),
        [
            (
                CallRefused(7, INFO, "c", "a", "BudgetExceeded", WHY),
                {"kind": "refused", "what": "BudgetExceeded", "scope": "user", "unit": "usd", "model": "gpt-4o"},
            ),
            (CallRefused(7, INFO, "c", "a", "LedgerUnavailable", WHY), None),
            (
                PrefixBroken(7, INFO, "a", "tools", 900, 45),
                {"kind": "prefix", "what": "tools", "tokens": 900, "cost_nano": 45},
            ),
            (PrefixBroken(7, INFO, "a", "tools", 900, None), {"kind": "prefix", "what": "tools", "tokens": 900}),
            (TierSwitched(7, INFO, "a", "big", "small", 0.5), {"kind": "tier", "what": "small"}),
            (
                LoopWarned(7, INFO, "a", Loop("cycle", 3, 2, ("a", "b")), halted=True),
                {"kind": "loop", "what": "cycle"},
            ),
            (
                BudgetWarned(7, INFO, "tokens", 0.8, Balance("run:r1"), "user"),
                {"kind": "warned", "what": "0.8", "scope": "user", "unit": "tokens"},
            ),
            (RunPaused(7, INFO, "a", WHY), {"kind": "paused", "scope": "user", "unit": "usd"}),
            (RunStopped(7, INFO, "cap: usd"), {"kind": "stopped", "what": "cap: usd"}),
        ],
    )
    def test_an_event(self, event: Event, expected: dict[str, Any] | None) -> None:
        note = note_of(event)
        whose: dict[str, Any] = {"run_id": "r1", "parent_run_id": "r0", "tags": {"user": "ada"}}
        assert note == (None if expected is None else Note(**whose, **expected, first_ns=7, last_ns=7))
        assert "secret" not in repr(note)

    def test_of_every_other_event_nothing_is(self) -> None:
        noted = {CallRefused, PrefixBroken, TierSwitched, LoopWarned, BudgetWarned, RunPaused, RunStopped}
        for kind in set(get_args(Event)) - noted:
            assert note_of(kind(*[None] * len(kind._fields))) is None

    def test_by_a_guard_for_a_run_in_real(self, ledger: SQLiteLedger) -> None:
        limit = Limit("user", usd="0.02", per="total", warn_at=(0.5,))
        budget = Budget(usd=1, tool_calls=3, warn_at=(0.005,))
        guard = Guard(budget, limits=[limit], loops=LoopPolicy(warn=2, halt=3), ledger=ledger, sinks=())
        with guard.run(user="ada") as run:
            guard.admit(request(), run).settle(CENT)
            guard.admit(request(), run).settle(CENT)
            for _ in range(3):
                with pytest.raises(BudgetExceeded):
                    guard.admit(request(), run)
            with pytest.raises(LoopHalted):
                for _ in range(3):
                    guard.saw_tool_call(run, "look", 1)
            run.stop("enough")
        assert told(ledger) == [
            ("loop", "repeat", None, None, None, 2),
            ("refused", "BudgetExceeded", "user", "usd", "gpt-4o", 3),
            ("refused", "LoopHalted", "run", None, None, 1),
            ("stopped", "loop: look called 3 times with the same arguments", None, None, None, 1),
            ("warned", "0.005", "run", "usd", None, 1),
            ("warned", "0.5", "user", "usd", None, 1),
        ]
        assert {(note.run_id, tuple(note.tags.items())) for note in ledger.notes()} == {(run.id, (("user", "ada"),))}

    def test_none_of_a_ledger_that_cannot_be_reached(self, path: Path, ledger: SQLiteLedger) -> None:
        guard = Guard(Budget(usd=1), ledger=ledger, sinks=())
        with guard.run() as run, locked(path), pytest.raises(LedgerUnavailable):
            guard.admit(request(), run)
        assert told(ledger) == []

    def test_none_by_a_ledger_in_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(MemoryLedger, "note")
        guard = Guard(Budget(steps=1), sinks=())
        with guard.run() as run:
            guard.admit(request(), run).settle(CENT)
            with pytest.raises(BudgetExceeded):
                guard.admit(request(), run)

    def test_a_ledger_that_fails_at_it_touches_no_call_and_is_told_of_once(
        self, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that somebody else made."""
        monkeypatch.setattr(ledger, "note", lambda note: dict[str, str]()["secret"])
        guard = Guard(Budget(steps=1), ledger=ledger, sinks=())
        with guard.run() as run:
            guard.admit(request(), run).settle(CENT)
            for _ in range(3):
                with pytest.raises(BudgetExceeded):
                    guard.admit(request(), run)
        assert caplog.text.count("the ledger keeps no notes: KeyError") == 1
        assert "secret" not in caplog.text


class TestInAsyncCode:
    @pytest.fixture(autouse=True)
    def never_blocks(self) -> Iterator[BlockBuster]:
        with blockbuster_ctx() as buster:
            yield buster

    def test_nothing_blocks_the_loop(self, path: Path, ledger: SQLiteLedger) -> None:
        seen = Recorder()
        guard = Guard(Budget(usd="0.01", warn_at=(0.5,)), ledger=ledger, sinks=(seen,))

        async def main() -> None:
            async with guard.run() as run:
                permit = await guard.aadmit(request(), run)
                permit.settle(CENT)
                await permit.booked()
                for _ in range(200):
                    with pytest.raises(BudgetExceeded):
                        await guard.aadmit(request(), run)

        asyncio.run(main())
        expected = ("refused", "BudgetExceeded", "run", "usd", "gpt-4o", 200)
        wait_for(lambda: expected in told(ledger), "the notes of what was handed over")
        assert ("warned", "0.5", "run", "usd", None, 1) in told(ledger)
        assert len(seen.of(CallRefused)) == 200

    def test_nor_does_a_file_that_is_locked_and_calls_end_first(
        self, path: Path, ledger: SQLiteLedger, never_blocks: BlockBuster
    ) -> None:
        guard = Guard(Budget(usd=1, warn_at=(0.001,)), ledger=ledger, sinks=())
        order: list[str] = []
        _listen(ledger, order)

        async def main() -> None:
            async with guard.run() as run:
                permit = await guard.aadmit(request(), run)
                never_blocks.deactivate()
                with locked(path):
                    never_blocks.activate()
                    guard.stopped(run, "enough")
                    await asyncio.to_thread(wait_for, lambda: ledger._noted.late, "the note that cannot be written")
                    permit.settle(CENT)
                    await permit.booked()
                    never_blocks.deactivate()

        asyncio.run(main())
        never_blocks.deactivate()
        ledger.beat()
        assert order[0] == "end"
        assert told(ledger) == [("stopped", "enough", None, None, None, 1)]
        assert [record.cost_nano for record in ledger.records()] == [10_000_000]


def _listen(ledger: Any, order: list[str]) -> None:
    """What is written, in order."""
    book, add = ledger._book, ledger._add_notes

    def ended(ending: Any) -> Any:
        settled = book(ending)
        order.append("end")
        return settled

    def added(number: int, notes: Any) -> None:
        add(number, notes)
        order.append("notes")

    ledger._book, ledger._add_notes = ended, added


class TestWhileTheLedgerIsAway:
    def test_notes_wait_and_come_once_after_what_ends_calls(self, path: Path, ledger: SQLiteLedger) -> None:
        ledger.reserve("c", (offer(60),), (account(),), ABOUT)
        order: list[str] = []
        _listen(ledger, order)
        with locked(path):
            for _ in range(3):
                ledger.note(NOTE)
            with pytest.raises(LedgerError):
                ledger.settle("c", Amounts(nano=25), outcome=outcome())
            ledger.note(NOTE)
        ledger.beat()
        ledger.beat()
        assert order == ["end", "notes", "notes"], "the first of them alone, as it was tried"
        assert list(ledger.notes()) == [NOTE._replace(count=4)]
        assert ledger.balance("run:a").spent.nano == 25

    def test_a_note_lets_what_ends_a_call_go_before_it(self, ledger: SQLiteLedger) -> None:
        ledger.reserve("c", (offer(60),), (account(),))
        order: list[str] = []
        _listen(ledger, order)
        with ledger._turn():
            assert ledger.settle("c", Amounts(nano=25)) is None, "a finalizer ends it in the middle of something"
        ledger.note(NOTE)
        assert order == ["end", "notes"]

    def test_only_the_first_of_them_waits_for_it(
        self, path: Path, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        tries: list[int] = []
        add = ledger._add_notes

        def counted(number: int, notes: Any) -> None:
            tries.append(number)
            add(number, notes)

        monkeypatch.setattr(ledger, "_add_notes", counted)
        with locked(path):
            for _ in range(1_000):
                ledger.note(NOTE)
            assert tries == [1]
            with pytest.raises(LedgerError):
                ledger.beat()
            assert tries == [1], "a beat that fails tries no notes"
        assert caplog.text.count("will be told later of what is to be noted") == 1
        ledger.beat()
        ledger.note(NOTE)
        assert list(ledger.notes()) == [NOTE._replace(count=1_001)]

    def test_a_note_that_cannot_be_written_keeps_no_call_from_ending(
        self, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(number: int, notes: Any) -> None:
            raise LedgerError("no")

        monkeypatch.setattr(ledger, "_add_notes", fail)
        ledger.reserve("c", (offer(60),), (account(),))
        ledger.note(NOTE)
        assert ledger.settle("c", Amounts(nano=25)) is not None
        ledger.beat()
        ledger.dispose()
        assert ledger.balance("run:a").spent.nano == 25

    def test_what_is_lost_as_the_ledger_is_let_go_of_is_told(
        self, path: Path, ledger: SQLiteLedger, caplog: pytest.LogCaptureFixture
    ) -> None:
        with locked(path):
            ledger.note(NOTE)
            ledger.note(NOTE._replace(kind="else"))
            ledger.dispose()
        assert "2 notes could not be written to the ledger" in caplog.text

    def test_the_heartbeat_writes_them_by_itself(self, path: Path) -> None:
        with opened(path, heartbeat=0.02) as ledger, opened(path) as other:
            with locked(path):
                ledger.note(NOTE)
            wait_for(lambda: told(other), "the note")
            for _ in range(99):
                ledger.note(NOTE)
            wait_for(lambda: told(other)[0][-1] == 100, "those that were more than are written as they come")


class TestPending:
    def test_keeps_so_many_and_drops_those_not_heard_of_for_longest(self, caplog: pytest.LogCaptureFixture) -> None:
        pending, written = Pending(), list[Note]()
        pending.late = True
        for number in range(10_000):
            assert not pending.take(NOTE._replace(what=str(number)))
        for what in ("0", "new", "newer"):
            pending.take(NOTE._replace(what=what))
        assert len(pending) == 10_000
        assert caplog.text.count("more than 10000 notes wait for the ledger: the oldest are dropped") == 1
        pending.write(lambda number, notes: written.extend(notes))
        assert len(pending) == 0
        whats = {note.what: note.count for note in written}
        assert whats == {"0": 2, "new": 1, "newer": 1} | {str(n): 1 for n in range(3, 10_000)}

    def test_a_step_that_may_have_been_written_is_tried_again_as_it_was(self) -> None:
        pending, tried = Pending(), list[tuple[int, list[Note]]]()

        def add(number: int, notes: Any) -> None:
            tried.append((number, list(notes)))
            if len(tried) == 1:
                raise LedgerError("no answer")

        pending.take(NOTE)
        with pytest.raises(LedgerError):
            pending.write(add)
        pending.take(NOTE)
        pending.take(NOTE)
        pending.write(add)
        assert tried == [(1, [NOTE]), (1, [NOTE]), (2, [NOTE._replace(count=2)])]

    def test_what_never_can_be_written_is_given_up(self, caplog: pytest.LogCaptureFixture) -> None:
        pending = Pending()

        def fail(number: int, notes: Any) -> None:
            raise TypeError("secret")

        pending.take(NOTE)
        pending.write(fail)
        assert len(pending) == 0
        assert "1 notes were given up: TypeError" in caplog.text
        assert "secret" not in caplog.text

    def test_a_note_that_comes_in_the_middle_of_anything_is_neither_lost_nor_written_twice(self) -> None:
        """As by a finalizer: at every line of it, on the same thread."""
        written, came = list[Note](), 0

        def come(pending: Pending) -> Callable[[Any, str, Any], Any]:
            def trace(frame: Any, event: str, arg: Any) -> Any:
                nonlocal came
                if frame.f_code.co_filename.endswith("pending.py") and event == "line" and came < 200:
                    sys.settrace(None)
                    came += 1
                    if pending.take(NOTE):
                        pending.write(lambda number, notes: written.extend(notes))
                    sys.settrace(trace)
                    frame.f_trace = trace
                return trace

            return trace

        pending, tracer = Pending(), sys.gettrace()
        try:
            sys.settrace(come(pending))
            for _ in range(20):
                pending.take(NOTE)
                pending.write(lambda number, notes: written.extend(notes))
        finally:
            sys.settrace(tracer)
        pending.write(lambda number, notes: written.extend(notes))
        assert came == 200
        assert sum(note.count for note in written) == 220

    def test_threads_that_bring_and_write_at_once_lose_nothing(self) -> None:
        pending, written, sums = Pending(), list[Note](), Counter[str | None]()

        def work() -> None:
            for number in range(2_000):
                pending.take(NOTE._replace(what=str(number % 7)))
                pending.write(lambda number, notes: written.extend(notes))

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(before)
        pending.write(lambda number, notes: written.extend(notes))
        for note in written:
            sums[note.what] += note.count
        assert sum(sums.values()) == 8_000
        assert len(pending) == 0


_WORK = """
import sys
from runcap.guardrails import RedisLedger, SQLiteLedger
from runcap.guardrails.ledger import Note

where, name, how = sys.argv[1:]
ledger = RedisLedger(where, namespace=name) if where.startswith("redis") else SQLiteLedger(where)
print("ready", flush=True)
sys.stdin.readline()
for number in range(300):
    ledger.note(Note("r", None, {}, "refused", str(number % 3), tokens=number, first_ns=number, last_ns=number))
if how == "killed":
    print(ledger._noted._next_ns and sum(note.count for note in ledger._noted._kept.values()), flush=True)
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _processes(where: str, name: str, *ways: str) -> list[subprocess.Popen[str]]:
    """Each notes 300 times, all at once, and ends in its way."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen([sys.executable, "-c", _WORK, where, name, how], text=True, **pipes) for how in ways]
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in started:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    return started


def _check_processes(ledger: Lasting, where: str, name: str) -> None:
    for _ in range(2):  # and again, after all have ended
        for one in _processes(where, name, "ends", "ends"):
            assert one.communicate(timeout=60) == ("", "")
    found = sorted(ledger.notes(), key=lambda note: str(note.what))
    assert [(note.what, note.count, note.first_ns, note.last_ns) for note in found] == [
        (str(number), 400, number, 297 + number) for number in range(3)
    ]
    assert sum(note.tokens for note in found) == 4 * sum(range(300))


def _check_killed(ledger: Lasting, where: str, name: str) -> None:
    """What was written is there; what waited is gone with the process, and nothing else."""
    [one] = _processes(where, name, "killed")
    out, _ = one.communicate(timeout=60)
    assert sum(note.count for note in ledger.notes()) + int(out) == 300
    assert int(out) <= 290, "the first ten are written as they come"


class TestProcesses:
    def test_that_note_at_once_in_a_file(self, path: Path, ledger: SQLiteLedger) -> None:
        _check_processes(ledger, str(path), "-")

    def test_one_that_is_killed_in_a_file(self, path: Path, ledger: SQLiteLedger) -> None:
        _check_killed(ledger, str(path), "-")

    @pytest.mark.redis
    def test_that_note_at_once_in_redis(self, redis_server: RedisServer, shared: RedisLedger) -> None:
        _check_processes(shared, redis_server.url, shared._asking.keys.namespace)

    @pytest.mark.redis
    def test_one_that_is_killed_in_redis(self, redis_server: RedisServer, shared: RedisLedger) -> None:
        _check_killed(shared, redis_server.url, shared._asking.keys.namespace)


class TestTheFile:
    @pytest.fixture
    def old(self, path: Path) -> Path:
        """A file as version 1 left it: a dump of one that runcap made before there were notes."""
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(HERE.with_name("ledger_v1.sql").read_text())
            connection.execute(f"PRAGMA application_id = {sqlite_schema.APPLICATION_ID}")
            connection.execute("PRAGMA user_version = 1")
        return path

    def test_of_version_1_is_brought_up_to_date_and_keeps_its_money(self, old: Path) -> None:
        for turn in range(1, 3):
            with opened(old, clock=ManualClock(7)) as ledger:
                balance = ledger.balance("run:a")
                assert (balance.spent, balance.held.nano, balance.unknown.nano) == (Amounts(30, 10, 3), 30, 9)
                assert [record.verdict for record in ledger.records()] == ["succeeded"] * 2
                assert [call.call_id for call in ledger.unknowns()] == ["unknown"]
                ledger.note(NOTE)
                assert list(ledger.notes()) == [NOTE._replace(count=turn)]
        with opened(old) as ledger:
            assert ledger.settle("held", Amounts(nano=1)) is not None

    def test_of_version_1_may_still_be_in_use_by_an_older_process(
        self, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_schema, "MIGRATIONS", sqlite_schema.MIGRATIONS[:1])
        monkeypatch.setattr(sqlite_schema, "VERSION", 1)
        with opened(old) as older:
            older.reserve("c", (offer(10),), (account(),))
            monkeypatch.undo()
            with opened(old) as newer:
                newer.note(NOTE)
                assert older.settle("c", Amounts(nano=4)) is not None
                assert newer.balance("run:a").spent.nano == 34
            monkeypatch.setattr(sqlite_schema, "VERSION", 1)
            older.dispose()
            with pytest.raises(LedgerError, match=r"newer runcap \(ledger schema 2, this one knows 1\)"):
                older.balance("run:a")

    def test_is_made_by_migrations_that_never_change(self) -> None:
        """Files of every version are out there: add another, and its digest here."""
        digests = [hashlib.sha256(script.encode()).hexdigest()[:16] for script in sqlite_schema.MIGRATIONS]
        assert digests == ["b8030765f400ed76", "651810d95917ec53"]

    def test_has_a_row_for_each_note(self, path: Path, ledger: SQLiteLedger) -> None:
        ledger.note(NOTE)
        ledger.note(NOTE._replace(cost_nano=4))
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT * FROM notes").fetchall()
        row = (1, "r1", "r0", '{"user":"ada"}', "refused", "BudgetExceeded", "run", "usd", "gpt-4o", 2, 0, 4, 7, 7)
        assert rows == [row]


@pytest.mark.redis
class TestRedis:
    def test_what_is_stored(self, shared: RedisLedger, raw: Any) -> None:
        shared.note(NOTE)
        shared.note(NOTE._replace(cost_nano=4, last_ns=1_795_694_400_123_456_789))
        keys = shared._asking.keys
        assert raw.lrange(keys.noted, 0, -1) == ["r1"]
        assert raw.hgetall(keys.notes("r1")) == {
            "": '["r0",{"user":"ada"}]',
            '["refused","BudgetExceeded","run","usd","gpt-4o"]': "2 0 4 00000000000000000007 01795694400123456789",
        }
        assert raw.hget(keys.meta, f"noted:{shared.owner}") == "2"
        assert all(raw.ttl(key) == -1 for key in raw.scan_iter(f"{keys.tag}*")), "no key may expire"

    def test_they_are_no_part_of_what_is_missed_where_data_is_lost(self, shared: RedisLedger, raw: Any) -> None:
        shared.reserve("c", (offer(60),), (account(),))
        keys, before = shared._asking.keys, shared._asking.known.seq
        shared.note(NOTE)
        assert raw.hget(keys.meta, "seq") == str(before)
        raw.delete(keys.noted, keys.notes("r1"))
        raw.hdel(keys.meta, f"noted:{shared.owner}")
        assert shared.settle("c", Amounts(nano=4)) is not None
        shared.reserve("d", (offer(10),), (account(),))
        assert list(shared.notes()) == []
        shared.note(NOTE)
        assert [note.count for note in shared.notes()] == [1]

    def test_they_do_not_hide_that_data_is_lost(self) -> None:
        with RedisServer() as server, RedisLedger(server.url, heartbeat=None) as ledger:
            ledger.reserve("c", (offer(60),), (account(),))
            ledger.note(NOTE)
            server.kill()
            server.start()
            ledger.note(NOTE)
            with pytest.raises(LedgerError, match="lost data"):
                ledger.reserve("d", (offer(10),), (account(),))
            assert [note.count for note in ledger.notes()] == [1], "noted all the same"
            assert ledger.reopen()
            ledger.note(NOTE)
            assert [note.count for note in ledger.notes()] == [2]

    def test_what_happened_while_it_was_down_comes_once_after_what_ends_calls(self) -> None:
        with RedisServer.durable() as server, RedisLedger(server.url, heartbeat=None, timeout=0.8) as ledger:
            order: list[str] = []
            _listen(ledger, order)
            ledger.reserve("c", (offer(60),), (account(),), ABOUT)
            server.kill()
            for _ in range(20):
                ledger.note(NOTE)
            with pytest.raises(LedgerError):
                ledger.settle("c", Amounts(nano=25), outcome=outcome())
            assert order == []
            server.start()
            ledger.beat()
            ledger.beat()
            assert order == ["end", "notes", "notes"]
            assert list(ledger.notes()) == [NOTE._replace(count=20)]

    @pytest.mark.parametrize("way", ["cut", "hold answers"])
    def test_one_whose_answer_is_lost_is_added_once(
        self, redis_server: RedisServer, make: Make, way: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = make()
        name = other._asking.keys.namespace
        with (
            Proxy(redis_server.port) as proxy,
            RedisLedger(proxy.url, namespace=name, heartbeat=None, timeout=0.8) as ledger,
        ):
            ledger.note(NOTE)
            proxy.set(way)
            ledger.note(NOTE)
            proxy.set("pass")
            proxy.drop()
            assert "will be told later of what is to be noted" in caplog.text
            wait_for(lambda: told(other)[0][-1] == 2, "what was sent before the connection broke")
            ledger.note(NOTE)
            ledger.beat()
            assert [note.count for note in other.notes()] == [3]

    def test_memory_that_is_full_keeps_notes_waiting_and_lets_calls_end(self) -> None:
        with RedisServer() as server, RedisLedger(server.url, heartbeat=None) as ledger:
            ledger.reserve("c", (offer(60),), (account(),))
            import redis

            with redis.Redis(port=server.port) as operator:
                operator.config_set("maxmemory", 1)
                ledger.note(NOTE)
                assert ledger.settle("c", Amounts(nano=25)) is not None
                operator.config_set("maxmemory", 0)
            ledger.beat()
            assert [note.count for note in ledger.notes()] == [1]

    def test_a_key_of_somebody_else_is_left_alone(self, shared: RedisLedger, raw: Any) -> None:
        raw.set(shared._asking.keys.noted, "theirs")
        with pytest.raises(LedgerError, match="is not this ledger's"):
            shared.ready()
        assert raw.get(shared._asking.keys.noted) == "theirs"

    def test_owners_that_are_forgotten_leave_no_number_behind(
        self, make: Make, raw: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone, alive = make(), make()
        gone.note(NOTE)
        keys = alive._asking.keys
        assert raw.hget(keys.meta, f"noted:{gone.owner}") == "1"
        raw.zadd(keys.owners, {gone.owner: 0})
        monkeypatch.setattr("runcap.guardrails.ledger.redis_steps._OWNERS", 1)
        alive.beat()
        assert raw.hget(keys.meta, f"noted:{gone.owner}") is None

    async def test_in_async_code_nothing_blocks_the_loop(self, make: Make) -> None:
        ledger = make()
        guard = Guard(Budget(steps=1), ledger=ledger, sinks=())
        with blockbuster_ctx():
            await ledger.aready()
            async with guard.run() as run:
                permit = await guard.aadmit(request(), run)
                permit.settle(CENT)
                await permit.booked()
                for _ in range(50):
                    with pytest.raises(BudgetExceeded):
                        await guard.aadmit(request(), run)
        expected = ("refused", "BudgetExceeded", "run", "steps", "gpt-4o", 50)
        await asyncio.to_thread(wait_for, lambda: expected in told(ledger), "the notes of what was handed over")


def test_a_real_fork_notes_for_itself(path: Path, ledger: SQLiteLedger) -> None:
    pid = os.fork() if hasattr(os, "fork") else pytest.skip("no fork")
    if pid == 0:
        try:
            ledger.note(NOTE)
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    ledger.note(NOTE)
    assert [note.count for note in ledger.notes()] == [2]
