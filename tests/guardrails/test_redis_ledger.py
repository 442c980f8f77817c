"""`RedisLedger`: the contract, what is stored, and what several clients see of each other."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, ClassVar

import pytest
import redis
from hypothesis import settings

from runcap.guardrails.amounts import ZERO, Amounts, Caps
from runcap.guardrails.ledger import Account, Grant, Ledger, LedgerError, Offer
from runcap.guardrails.ledger.redis import RedisLedger
from runcap.guardrails.ledger.redis_state import Known

from ..effort import examples
from .lasting_contract import ABOUT, LastingContract, LastingMachine, outcome
from .ledger_contract import account, offer
from .redis_server import RedisServer, redis_server

__all__ = ["redis_server"]

pytestmark = pytest.mark.redis
_numbers = count()


def namespace() -> str:
    return f"test{next(_numbers)}"


Make = Callable[..., RedisLedger]


@pytest.fixture
def make(redis_server: RedisServer) -> Iterator[Make]:
    """Makes clients of one ledger."""
    name, made = namespace(), []

    def client(**settings: Any) -> RedisLedger:
        made.append(RedisLedger(redis_server.url, namespace=name, **({"heartbeat": None} | settings)))
        return made[-1]

    yield client
    for ledger in made:
        ledger.dispose()


@pytest.fixture
def shared(make: Make) -> RedisLedger:
    return make()


@pytest.fixture
def raw(redis_server: RedisServer) -> Iterator[Any]:
    """What an operator would look with."""
    with redis.Redis(port=redis_server.port, decode_responses=True) as client:
        yield client


class TestContract(LastingContract):
    @pytest.fixture
    def ledger(self, shared: RedisLedger) -> Ledger:
        return shared

    @pytest.fixture
    def other(self, make: Make, shared: RedisLedger) -> RedisLedger:
        return make()


class _Machine(LastingMachine):
    server: ClassVar[RedisServer]

    def make(self) -> Ledger:
        self.namespace = namespace()
        return self.open()

    def open(self) -> RedisLedger:
        self.redis = RedisLedger(self.server.url, namespace=self.namespace, heartbeat=None)
        return self.redis

    def again(self) -> RedisLedger:
        self.redis.dispose()
        return self.open()

    def teardown(self) -> None:
        self.redis.dispose()


@pytest.fixture(scope="session", autouse=True)
def _machine_server(redis_server: RedisServer) -> None:
    _Machine.server = redis_server


TestMachine = _Machine.TestCase
TestMachine.settings = settings(max_examples=examples(50), stateful_step_count=30, deadline=None)


def _unpacked(raw: Any, key: str) -> tuple[Any, ...]:
    """Numbers of eight bytes, and the lines of text after them."""
    stored = raw.execute_command("GET", key, NEVER_DECODE=True)
    numbers = struct.Struct("<20q" if ":a:" in key else "<13q")
    return (*numbers.unpack_from(stored), stored[numbers.size :].decode())


def _rows(raw: Any, tag: str) -> dict[str, Any]:
    read = {
        "string": lambda key: _unpacked(raw, key),
        "hash": raw.hgetall,
        "zset": lambda key: raw.zrange(key, 0, -1),
        "list": lambda key: raw.lrange(key, 0, -1),
        "stream": lambda key: [fields for _, fields in raw.xrange(key)],
    }
    return {key.removeprefix(tag): read[raw.type(key)](key) for key in sorted(raw.scan_iter(f"{tag}*"))}


def test_what_is_stored_is_what_the_documentation_says(shared: RedisLedger, raw: Any) -> None:
    shared.reserve("c", (offer(60, expected=30),), (account(), account("limit:b", 200)), ABOUT)
    shared.reserve("d", (offer(9),), (account(),), ABOUT)
    shared.settle("c", Amounts(nano=25), Amounts(nano=5), outcome("unknown"))
    shared.top_up("run:a", "key", Amounts(nano=1))
    shared.stop("limit:b", 'a "reason"')
    shared.judge("r1", "succeeded")
    shared.release("never")
    rows, owner = _rows(raw, shared._asking.keys.tag), shared.owner
    since, unknown_since = rows[":h:d"][7], rows[":h:c"][7]
    told = '{"run_id":"r1","parent_run_id":null,"tags":{"user":"ada","task":"refund"},"provider":"openai","model":"gpt-4o","tier":"gpt-4o","attempt":1,"started_ns":1000}'  # noqa: E501
    record = f'{{"v":1,"about":{told},"state":"unknown","unknown_nano":5,"usage":{{"input_tokens":7,"output_tokens":3}},"cost_nano":25,"latency_ns":5000,"price_source":"catalog"}}'  # noqa: E501
    [entry] = rows[":run:r1"]
    mark = rows[":t:run:a"]["key"]
    unknown = f'unknown\n{owner}\n[1,1]\n{entry}\n["run:a","limit:b"]\n{told}'
    assert rows == {
        ":meta": {"app": "runcap", "schema": "1", "epoch": shared.epoch, "seq": "7", f"seq:{owner}": "7"},
        ":owners": [owner],
        ":a:run:a": (1, 1, 25, 0, 2, 0, 9, 0, 5, 0, 9, 0, 1, 0, 0, 0, 100, -1, -1, -1, ""),
        ":a:limit:b": (1, 0, 25, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 200, -1, -1, -1, '"a \\"reason\\""'),
        ":t:run:a": {"key": mark},
        ":h:c": (*(0, 60, 0, 1, 0, 30, 0), unknown_since, *(25, 0, 5, 0, 1), unknown),
        ":h:d": (0, 9, 0, 1, 0, 9, 0, since, 0, 0, 0, 0, 0, f'held\n{owner}\n[1]\n\n["run:a"]\n{told}'),
        ":held": ["d"],
        ":unknown": ["c"],
        ":dead": ["never"],
        ":usage": [{"call": "c", "run": "r1", "rev": "0", "rec": record}],
        ":run:r1": [entry],
        ":verdicts": {"r1": "succeeded"},
    }
    assert all(raw.ttl(key) == -1 for key in raw.scan_iter(f"{shared._asking.keys.tag}*")), "no key may expire"


def test_one_round_trip_to_reserve_and_one_to_settle(shared: RedisLedger, raw: Any) -> None:
    shared.ready()
    raw.config_resetstat()
    shared.reserve("c", (offer(60),), (account(), account("limit:b")), ABOUT)
    shared.settle("c", Amounts(nano=25), ZERO, outcome())
    calls = {name: stat["calls"] for name, stat in raw.info("commandstats").items()}
    assert calls["cmdstat_evalsha"] == 2
    assert not calls.keys() & {"cmdstat_eval", "cmdstat_info", "cmdstat_ping", "cmdstat_hello", "cmdstat_script|load"}


def test_scripts_that_redis_forgot_are_sent_again(shared: RedisLedger, raw: Any) -> None:
    shared.ready()
    raw.script_flush()
    assert isinstance(shared.reserve("c", (offer(60),), (account(),)), Grant)
    assert shared.settle("c", Amounts(nano=1)) is not None


def test_amounts_are_exact_up_to_nine_million_dollars(shared: RedisLedger) -> None:
    most = 2**53 - 1
    grant = shared.reserve("c", (offer(most, tokens=most),), (Account("run:a", Caps(nano=most)),))
    assert isinstance(grant, Grant)
    assert grant.amount == Amounts(most, most, 1)
    settled = shared.settle("c", Amounts(most - 2, most - 1), Amounts(nano=1))
    assert settled is not None
    assert settled.balances[0] == shared.balance("run:a")
    assert shared.balance("run:a").spent == Amounts(most - 2, most - 1, 1)
    assert shared.balance("run:a").free(0) == 1
    with pytest.raises(ValueError, match="counts exactly"):
        shared.reserve("d", (offer(most + 1),), (account(),))
    with pytest.raises(ValueError, match="counts exactly"):
        shared.settle("c", Amounts(nano=most + 1))
    assert isinstance(shared.reserve("e", (offer(5),), (Account("run:b", Caps(nano=10**30)),)), Grant)


def test_ids_may_be_any_text(shared: RedisLedger) -> None:
    odd = 'ü\n"{}\\ \ud800'
    about = ABOUT._replace(run_id=odd, tags={"user": odd})
    assert isinstance(shared.reserve(odd, (offer(60),), (account(odd),), about), Grant)
    shared.settle(odd, Amounts(nano=1), Amounts(nano=2), outcome("unknown", about=about))
    shared.stop(odd, odd)
    assert shared.balance(odd).stopped == odd
    [unknown] = shared.unknowns()
    assert (unknown.call_id, unknown.accounts, unknown.about) == (odd, (odd,), about)
    assert [record.about for record in shared.records(run_id=odd)] == [about]


def test_several_clients_never_oversell(make: Make) -> None:
    clients = [make() for _ in range(4)]
    granted: list[int] = []

    def work(client: RedisLedger, index: int) -> None:
        for turn in range(40):
            call = f"{index}-{turn}"
            if isinstance(client.reserve(call, (offer(7),), (account(nano=1_000),)), Grant):
                granted.append(1)
                client.settle(call, Amounts(nano=5))

    threads = [threading.Thread(target=work, args=(clients[index % 4], index)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    balance = clients[0].balance("run:a")
    assert balance.spent.nano == 5 * len(granted) <= 1_000
    assert 1_000 - balance.spent.nano < 7
    assert (balance.held, balance.in_flight) == (ZERO, 0)


def test_a_late_reply_does_not_overwrite_a_newer_balance(shared: RedisLedger) -> None:
    known = Known(None)
    old, new = shared.balance("run:a"), shared.balance("run:a")._replace(in_flight=1)
    known.saw(("OK", 5, 0, 0), (new,))
    known.saw(("OK", 4, 0, 0), (old,))
    assert known.balance("run:a") is new
    known.saw(("OK", 5, 0, 0), (old,))
    assert known.balance("run:a") is old


def test_what_only_looks_at_a_balance_does_no_io(shared: RedisLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.reserve("c", (offer(60),), (account(),))
    monkeypatch.setattr(shared, "_lines", None)
    assert shared.peek("run:a").held.nano == 60
    assert shared.now_ns(shared._clock) > 1_700_000_000 * 10**9


def test_a_clock_of_redis_that_jumps_is_noticed(shared: RedisLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.ready()
    now = shared.now_ns(shared._clock)
    real = shared._asking.known.time_ns
    monkeypatch.setattr(shared._asking.known, "time_ns", lambda: (real() or 0) - 3_600 * 10**9)
    with pytest.raises(LedgerError, match="clock"):
        shared.now_ns(shared._clock)
    shared.accept_clock()
    assert now - shared.now_ns(shared._clock) > 3_500 * 10**9


def test_a_top_up_tried_twice_over_a_broken_connection_still_says_true(shared: RedisLedger) -> None:
    steps = shared._asking
    assert shared._run(steps.top_up("run:a", "key", Amounts(nano=1), "mark"))
    assert shared._run(steps.top_up("run:a", "key", Amounts(nano=1), "mark"))
    assert not shared.top_up("run:a", "key", Amounts(nano=1))
    shared.reserve("c", (offer(1),), (account(),))
    assert shared.balance("run:a").caps.nano == 101


def test_a_finalizer_in_the_middle_of_an_operation_is_booked_after(
    shared: RedisLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.reserve("old", (offer(10),), (account(),))
    original = shared._lines.drive

    def collecting(*args: Any) -> Any:
        monkeypatch.undo()
        assert shared.settle("old", Amounts(nano=4)) is None
        with pytest.raises(LedgerError, match="finalizer"):
            shared.reserve("inner", (offer(1),), (account(),))
        assert shared.balance("run:a").held.nano == 10, "as seen last"
        assert shared.close("run:a") is None
        return original(*args)

    monkeypatch.setattr(shared._lines, "drive", collecting)
    assert isinstance(shared.reserve("new", (offer(20),), (account(),)), Grant)
    shared.beat()
    assert (shared.balance("run:a").spent.nano, shared.balance("run:a").held.nano) == (4, 20)


def test_a_child_process_is_an_owner_of_its_own(shared: RedisLedger) -> None:
    shared.reserve("c", (offer(60),), (account(),))
    parent, line = shared.owner, shared._lines._idle[None][0]
    pid = os.fork() if hasattr(os, "fork") else pytest.skip("no fork")
    if pid == 0:
        try:
            child = isinstance(shared.reserve("d", (offer(10),), (account(),)), Grant)
            os._exit(0 if child and shared.owner != parent and line._sock is None else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert shared.settle("c", Amounts(nano=1)) is not None, "the parent's connection still works"
    assert shared.balance("run:a").held.nano == 10


def test_counts_alone_leave_no_hold(shared: RedisLedger, raw: Any) -> None:
    one = Amounts(tool_calls=1)
    assert isinstance(shared.reserve("t", (Offer(one, one, one),), (Account("run:a"),)), Grant)
    assert shared.settle("t", ZERO) is None
    assert not raw.exists(shared._asking.keys.hold("t"))
