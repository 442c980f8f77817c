"""`RedisLedger` against servers of every kind: not ours, not to be trusted, full, locked, over TLS, in a cluster."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from runcap.guardrails.amounts import ZERO, Amounts, Caps
from runcap.guardrails.ledger import Account, Grant, LedgerError, Refusal
from runcap.guardrails.ledger.redis import RedisLedger

from ..waiting import free_port, wait_for
from .lasting_contract import ABOUT, outcome
from .ledger_contract import account, offer
from .redis_server import REQUIRED, RedisServer, redis_server
from .test_redis_ledger import Make, make, namespace, raw, shared

__all__ = ["make", "raw", "redis_server", "shared"]

pytestmark = pytest.mark.redis


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One that a test may spoil."""
    with RedisServer() as own:
        yield own


def reserve(ledger: RedisLedger, call: str = "c", nano: int = 60) -> Grant | Refusal:
    return ledger.reserve(call, (offer(nano),), (account(),), ABOUT)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "redis://h?nonsense=1",
        "redis://h:99x",
        "redis://:s3cr/et@h",
        "redis://h/abc",
        b"redis://:s3cret@h",
        7,
        None,
        "redis://" + "a" * 70,
    ],
)
def test_a_url_that_is_none_of_redis_is_refused_at_once(url: Any) -> None:
    kind = ValueError if isinstance(url, str) else TypeError
    with pytest.raises(kind, match=r"not a URL that redis-py understands|takes a URL|number of a database") as refused:
        RedisLedger(url)
    assert "s3cr" not in str(refused.value), "it may hold a password"
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "settings",
    [{"namespace": "a{b}"}, {"namespace": ""}, {"namespace": "a b"}, {"namespace": 7}, {"timeout": 0}, {"timeout": "1"},
     {"dead_after": 1.0}, {"epoch": ""}, {"epoch": "a b"}],
)  # fmt: skip
def test_arguments_out_of_range_are_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        RedisLedger("redis://localhost", **settings)


def test_a_missing_extra_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from runcap.guardrails.ledger.redis import RedisLedger\n"
        "try: RedisLedger('redis://localhost')\n"
        "except ImportError as error: print(error)\n"
    )
    path = str(Path(__file__).parents[2] / "guardrails")
    told = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONPATH": path}
    )
    assert 'pip install "runcap[redis]"' in told.stdout


def test_somebody_elses_keys_are_left_alone(make: Make, raw: Any) -> None:
    ledger = make()
    tag = ledger._asking.keys.tag
    for suffix, put in (("meta", raw.set), ("held", raw.set)):
        put(f"{tag}:{suffix}", "mine")
        with pytest.raises(LedgerError, match=rf":{suffix} in Redis is not this ledger's: give RedisLedger another"):
            reserve(ledger)
        raw.delete(f"{tag}:{suffix}")
    raw.hset(f"{tag}:meta", "app", "other")
    with pytest.raises(LedgerError, match=":meta in Redis is not this ledger's"):
        reserve(ledger)
    raw.delete(f"{tag}:meta")
    raw.zadd(f"{tag}:unknown", {"x": 1})
    with pytest.raises(LedgerError, match=":unknown in Redis is not this ledger's"):
        reserve(ledger)
    raw.delete(f"{tag}:unknown")
    raw.hset(f"{tag}:a:run:a", "field", 1)
    with pytest.raises(LedgerError, match="a key of this namespace is of another type"):
        reserve(ledger)
    assert raw.hgetall(f"{tag}:a:run:a") == {"field": "1"}


def test_a_newer_ledger_is_not_touched(make: Make, raw: Any) -> None:
    old, new = make(), make()
    reserve(old)
    raw.hset(f"{old._asking.keys.tag}:meta", "schema", 2)
    for ledger in (old, new):
        with pytest.raises(LedgerError, match=r"newer runcap \(schema 2, this one knows 1\): upgrade runcap"):
            reserve(ledger, "d")


def test_a_policy_that_may_drop_what_was_spent_is_refused(server: RedisServer) -> None:
    with RedisLedger(server.url, heartbeat=None) as ledger, redis.Redis(port=server.port) as operator:
        operator.config_set("maxmemory-policy", "allkeys-lru")
        for _ in range(2):
            with pytest.raises(LedgerError, match=r"maxmemory-policy allkeys-lru.*set maxmemory-policy noeviction"):
                reserve(ledger)
        operator.config_set("maxmemory-policy", "volatile-lru")  # no key of ours ever expires
        assert isinstance(reserve(ledger), Grant)
        operator.config_set("maxmemory-policy", "allkeys-random")
        with pytest.raises(LedgerError, match="allkeys-random"):
            ledger.beat()
        with pytest.raises(LedgerError, match="allkeys-random"):
            reserve(ledger, "d")
        operator.config_set("maxmemory-policy", "noeviction")
        assert isinstance(reserve(ledger, "d", 10), Grant)
        ledger.settle("c", Amounts(nano=1))


def test_a_full_memory_refuses_calls_and_still_ends_them(server: RedisServer) -> None:
    with RedisLedger(server.url, heartbeat=None) as ledger, redis.Redis(port=server.port) as operator:
        reserve(ledger)
        reserve(ledger, "d", 20)
        operator.config_set("maxmemory", 1)
        with pytest.raises(LedgerError, match="its memory is full"):
            reserve(ledger, "e", 10)
        assert ledger.settle("c", Amounts(nano=25), ZERO, outcome()) is not None
        assert ledger.settle("d", Amounts(nano=5), Amounts(nano=15), outcome("unknown")) is not None
        assert (ledger.balance("run:a").spent.nano, ledger.balance("run:a").unknown.nano) == (25 + 5, 15)
        assert len(list(ledger.records())) == 2
        operator.config_set("maxmemory", 0)
        assert isinstance(reserve(ledger, "e", 10), Grant)


def test_a_read_only_replica_says_so(server: RedisServer) -> None:
    with RedisServer(replicaof=f"127.0.0.1 {server.port}") as replica, redis.Redis(port=replica.port) as operator:
        wait_for(lambda: operator.info("replication")["master_link_status"] == "up", "replication")
        with RedisLedger(server.url, heartbeat=None) as ledger, RedisLedger(replica.url, heartbeat=None) as reader:
            reserve(ledger)
            with pytest.raises(LedgerError, match="read-only replica: give RedisLedger the URL of the primary"):
                reserve(reader, "d")


def test_a_password_is_used_and_never_told() -> None:
    with RedisServer(requirepass="s3cret-word") as server:
        address = f"127.0.0.1:{server.port}"
        with RedisLedger(f"redis://:s3cret-word@{address}/3", heartbeat=None) as ledger:
            assert isinstance(reserve(ledger), Grant)
            assert "s3cret" not in repr(ledger)
        for url, told in (
            (server.url, "wants a password"),
            (f"redis://:wr0ng-word@{address}", "refused the user or the pass"),
        ):
            with RedisLedger(url, heartbeat=None) as ledger, pytest.raises(LedgerError, match=told) as caught:
                reserve(ledger)
            assert address in str(caught.value)
            assert "-word" not in str(caught.value)


async def test_a_user_without_permissions_is_told_which(server: RedisServer) -> None:
    with redis.Redis(port=server.port) as operator:
        operator.execute_command("ACL", "SETUSER", "ada", "on", ">pw", "~*", "+@all", "-info")
    with RedisLedger(f"redis://ada:pw@127.0.0.1:{server.port}", heartbeat=None) as ledger:
        with pytest.raises(LedgerError, match="lacks a permission: allow evalsha"):
            reserve(ledger)
        with pytest.raises(LedgerError, match="lacks a permission"):
            await ledger.areserve("c", (offer(1),), (account(),))
        await ledger.adispose()


def _certificate(folder: Path) -> tuple[Path, Path]:
    key, certificate = folder / "key.pem", folder / "cert.pem"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
            check=True, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        assert not os.environ.get(REQUIRED), f"openssl is not installed, and {REQUIRED} is set"
        pytest.skip("openssl is not installed")
    return key, certificate


async def test_it_works_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_each = getattr(ssl.create_default_context, "__wrapped__", ssl.create_default_context)
    monkeypatch.setattr(ssl, "create_default_context", one_each)  # conftest has one for all, which would trust ours too
    key, certificate = _certificate(tmp_path)
    settings = {"tls-cert-file": certificate, "tls-key-file": key, "tls-ca-cert-file": certificate}
    with RedisServer(**settings, **{"tls-auth-clients": "no"}) as server:
        with redis.Redis(port=server.port) as operator:
            port = free_port()
            operator.config_set("tls-port", port)
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}"
        with RedisLedger(url, heartbeat=None) as ledger:
            assert isinstance(reserve(ledger), Grant)
            assert isinstance(await ledger.areserve("d", (offer(10),), (account(),)), Grant)
            await ledger.asettle("d", Amounts(nano=5))
            assert ledger.balance("run:a").spent.nano == 5
            await ledger.adispose()
        with RedisLedger(f"rediss://127.0.0.1:{port}", heartbeat=None) as ledger:
            with pytest.raises(LedgerError, match="certificate verify failed"):
                reserve(ledger)
            with pytest.raises(LedgerError, match="certificate verify failed"):
                await ledger.areserve("d", (offer(10),), (account(),))


async def test_it_works_over_a_socket_file(server: RedisServer) -> None:
    with RedisServer(unixsocket=server.folder / "socket") as own:
        with RedisLedger(f"unix://{server.folder}/socket", heartbeat=None) as ledger:
            assert isinstance(reserve(ledger), Grant)
            assert isinstance(await ledger.areserve("d", (offer(10),), (account(),)), Grant)
            await ledger.adispose()
        assert own.answers()


async def test_a_cluster_is_asked_where_the_keys_are() -> None:
    with ExitStack() as stack:
        nodes = [stack.enter_context(RedisServer(cluster_enabled="yes", cluster_node_timeout=1_000)) for _ in range(3)]
        operators: list[Any] = [stack.enter_context(redis.Redis(port=node.port)) for node in nodes]
        for number, operator in enumerate(operators):
            slots = (number * 5_462, min(number * 5_462 + 5_461, 16_383))
            operator.execute_command("CLUSTER", "ADDSLOTSRANGE", *slots)
            operator.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            operator.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        for name, value in (("cluster_known_nodes", "3"), ("cluster_state", "ok")):
            wait_for(partial(_all_tell, operators, name, value), name)
        seen = set()
        for _ in range(6):
            name = namespace()
            with RedisLedger(nodes[0].url, namespace=name, heartbeat=None) as ledger:
                both = (account(), Account("limit:b", Caps(nano=100)))
                assert isinstance(ledger.reserve("c", (offer(60),), both, ABOUT), Grant)
                assert isinstance(await ledger.areserve("d", (offer(10),), both, ABOUT), Grant)
                await ledger.asettle("d", Amounts(nano=5), ZERO, outcome())
                ledger.settle("c", Amounts(nano=5), ZERO, outcome())
                assert ledger.balance("limit:b").spent.nano == 10
                assert len(list(ledger.records(run_id="r1"))) == 2
                ledger.beat()
                seen.add(ledger._asking.where)
                await ledger.adispose()
        assert len(seen) > 1, "the namespaces fell on one node, which shows nothing"


def _all_tell(operators: list[Any], name: str, value: str) -> bool:
    return all(operator.cluster("info")[name] == value for operator in operators)
