"""What is no ledger, cannot be read, or is only to be read."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from runcap.guardrails import RedisLedger, SQLiteLedger
from runcap.guardrails.ledger import sqlite_schema
from runcap.guardrails.testing import ManualClock

from ...guardrails.redis_server import RedisServer
from ...waiting import free_port
from .conftest import Place, tell

Command = Callable[..., Result]


def refused(done: Result, code: int = 1) -> str:
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    assert done.stderr.startswith("runcap: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize("name", ["report", "trace"])
def test_a_file_that_does_not_exist_is_not_made(command: Command, tmp_path: Path, name: str) -> None:
    path = tmp_path / "no.db"
    told = refused(command(name, str(path), *(["run"] if name == "trace" else [])))
    assert told == f"runcap: {path} does not exist\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder(command: Command, tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refused(command("report", str(tmp_path)))


def test_a_file_of_something_else(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("call,cost\n")
    assert "is neither a SQLiteLedger's file nor an export of records" in refused(command("report", str(path)))


def test_somebody_elses_sqlite_file(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE usage (n)")
    connection.close()
    before = path.read_bytes()
    assert "of something else, no ledger" in refused(command("report", str(path)))
    assert path.read_bytes() == before


def test_a_file_of_a_later_version(file: Place, command: Command) -> None:
    with sqlite3.connect(file.where) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "was written by a newer runcap" in refused(command("report", file))


def test_a_damaged_file(tmp_path: Path, clock: ManualClock, command: Command) -> None:
    path = tmp_path / "l.db"
    with SQLiteLedger(path, synchronous="NORMAL", heartbeat=None, clock=clock) as ledger:
        tell(ledger, clock)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\x77" * (len(whole) - 100))
    assert str(path) in refused(command("report", str(path)))


@pytest.mark.parametrize("name", ["report", "trace"])
def test_nothing_is_changed(tmp_path: Path, clock: ManualClock, command: Command, name: str) -> None:
    path = tmp_path / "l.db"
    with SQLiteLedger(path, synchronous="NORMAL", heartbeat=None, clock=clock) as ledger:
        story = tell(ledger, clock)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert command(name, str(path), *([story.late] if name == "trace" else [])).exit_code == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_older_file_is_not_brought_up_to_date(
    tmp_path: Path, clock: ManualClock, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be locked to the older processes that use it."""
    path = tmp_path / "l.db"
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_schema, "MIGRATIONS", sqlite_schema.MIGRATIONS[:1])
        patch.setattr(sqlite_schema, "VERSION", 1)
        patch.setattr(SQLiteLedger, "note", lambda *_: None)
        with SQLiteLedger(path, synchronous="NORMAL", heartbeat=None, clock=clock) as ledger:
            tell(ledger, clock)
    before = path.read_bytes()
    report = json.loads(command("report", str(path), "--format", "json").stdout)
    assert (report["totals"]["cost_usd"], report["refusals"]) == ("0.02175", [])
    assert path.read_bytes() == before


@pytest.fixture
def beyond() -> Iterator[Path]:
    """A folder that somebody else may read and not write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_copy_nobody_may_write_to(
    beyond: Path, tmp_path: Path, clock: ManualClock, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = beyond / "l.db"
    with SQLiteLedger(path, synchronous="NORMAL", heartbeat=None, clock=clock) as ledger:
        tell(ledger, clock)
    path.chmod(0o444)
    beyond.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        # os.access() asks for the real user, who here may do anything
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        done = command("report", str(path), "--format", "json")
    finally:
        os.seteuid(user)
    assert json.loads(done.stdout)["totals"]["cost_usd"] == "0.02175"
    assert [one.name for one in beyond.iterdir()] == ["l.db"]


class TestExports:
    @pytest.mark.parametrize(
        ("line", "told"),
        [
            ("{", "line 2: no record as ledger.export"),
            ('{"event": "call"}', "line 2: no record as ledger.export"),
            ("[]", "line 2: no record as ledger.export"),
            ("7", "line 2: no record as ledger.export"),
            ('{"schema": 99}', "line 2: written by a newer runcap"),
        ],
    )
    def test_a_line_that_is_no_record(
        self, file: Place, clock: ManualClock, command: Command, tmp_path: Path, line: str, told: str
    ) -> None:
        tell(file.ledger, clock)
        path = tmp_path / "export.jsonl"
        with path.open("w") as export:
            file.ledger.export(export)
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], line, *lines[1:]]))
        assert told in refused(command("report", str(path)))

    @pytest.mark.parametrize(
        ("field", "value"),
        [("cost_usd", "-1"), ("cost_usd", "x"), ("input_tokens", -3), ("tags", None), ("end", "noon"), ("run", 7)],
    )
    def test_a_figure_that_is_none(
        self, file: Place, clock: ManualClock, command: Command, tmp_path: Path, field: str, value: object
    ) -> None:
        tell(file.ledger, clock)
        row = next(iter(file.ledger.records())).row() | {field: value}
        path = tmp_path / "export.jsonl"
        path.write_text(json.dumps(row))
        assert "line 1: no record" in refused(command("report", str(path)))

    def test_every_record_is_read_back_as_it_was(self, file: Place, clock: ManualClock, tmp_path: Path) -> None:
        from runcap.exporters.cli.from_jsonl import JsonlSource

        tell(file.ledger, clock)
        path = tmp_path / "export.jsonl"
        with path.open("w") as export:
            file.ledger.export(export)
        read, written = list(JsonlSource(path).records()), list(file.ledger.records())
        assert read == written
        assert [one.verdict for one in read] == [one.verdict for one in written]

    def test_an_empty_one(self, command: Command, tmp_path: Path) -> None:
        path = tmp_path / "export.jsonl"
        path.touch()
        assert "No calls." in command("report", str(path)).stdout

    def test_no_text(self, command: Command, tmp_path: Path) -> None:
        path = tmp_path / "export.jsonl"
        path.write_bytes(b'{"schema": "\xff"}')
        assert "cannot be read: UnicodeDecodeError" in refused(command("report", str(path)))


@pytest.mark.redis
class TestRedis:
    def test_nothing_is_changed(self, in_redis: Place, clock: ManualClock, command: Command) -> None:
        import redis

        story = tell(in_redis.ledger, clock)
        with redis.Redis.from_url(in_redis.where) as raw:

            def kept() -> dict[bytes, bytes]:
                keys = sorted(raw.keys(f"{{runcap:{in_redis.namespace}}}*"))
                return {key: raw.dump(key) for key in keys}

            before = kept()
            assert command("report", in_redis).exit_code == 0
            assert command("trace", in_redis, story.late).exit_code == 0
            assert kept() == before

    def test_a_namespace_that_does_not_exist_is_not_made(
        self, redis_server: RedisServer, command: Command, clock: ManualClock
    ) -> None:
        import redis

        told = refused(command("report", redis_server.url, "--namespace", "nobody"))
        assert "there is no ledger in Redis" in told
        with redis.Redis.from_url(redis_server.url) as raw:
            assert raw.keys("{runcap:nobody}*") == []

    def test_a_replica_will_do(self, clock: ManualClock, command: Command) -> None:
        import redis

        with RedisServer(repl_diskless_sync_delay=0) as primary:
            with RedisLedger(primary.url, heartbeat=None) as ledger:
                tell(ledger, clock)
            with RedisServer(replicaof=f"127.0.0.1 {primary.port}") as replica:
                with redis.Redis.from_url(primary.url, socket_timeout=60) as raw:
                    raw.set("touched", 1)
                    assert raw.wait(1, 30_000) == 1
                done = command("report", replica.url, "--format", "json")
        assert json.loads(done.stdout)["totals"]["cost_usd"] == "0.02175"

    def test_a_ledger_that_lost_data_says_so(self, in_redis: Place, clock: ManualClock, command: Command) -> None:
        import redis

        tell(in_redis.ledger, clock)
        with redis.Redis.from_url(in_redis.where) as raw:
            raw.hset(f"{{runcap:{in_redis.namespace}}}:meta", "lost", "the last writes are missing")
        done = command("report", in_redis, "--format", "json")
        assert "this ledger lost data (the last writes are missing)" in done.stderr
        assert json.loads(done.stdout)["totals"]["calls"] == 7

    def test_somebody_elses_keys(self, in_redis: Place, command: Command) -> None:
        import redis

        with redis.Redis.from_url(in_redis.where) as raw:
            raw.set("{runcap:theirs}:meta", "x")
            assert "WRONGTYPE" in refused(command("report", in_redis.where, "--namespace", "theirs"))
            raw.delete("{runcap:theirs}:meta")

    @pytest.mark.parametrize("scheme", ["redis", "rediss"])
    def test_no_password_is_shown(self, command: Command, scheme: str) -> None:
        done = command("report", f"{scheme}://ada:s3cret@127.0.0.1:{free_port()}/0")
        told = refused(done)
        assert "s3cret" not in told
        assert "cannot be reached" in told

    def test_no_password_is_shown_of_a_url_that_is_none(self, command: Command) -> None:
        told = refused(command("report", "redis://ada:s3cret@host:port/0"), 2)
        assert "s3cret" not in told

    def test_a_wrong_password(self, command: Command) -> None:
        with RedisServer(requirepass="right") as server:
            url = server.url.replace("://", "://:wr0ng@")
            told = refused(command("report", url))
        assert "wr0ng" not in told
        assert "it refused the user or the password" in told

    def test_a_namespace_that_is_no_name(self, redis_server: RedisServer, command: Command) -> None:
        assert "without spaces" in refused(command("report", redis_server.url, "--namespace", "a b"), 2)


def test_another_kind_of_url(command: Command) -> None:
    told = refused(command("report", "postgres://ada:s3cret@host/db"))
    assert told == "runcap: a ledger is a file, or a URL that begins with redis://, rediss:// or unix://\n"
