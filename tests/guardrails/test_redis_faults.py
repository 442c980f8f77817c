"""Redis stopped, restarted with and without its data, slow, cut off: no overspend, no hang, nothing billed is lost."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from runcap.guardrails.amounts import ZERO, Amounts
from runcap.guardrails.ledger import Grant, LedgerError, Refusal
from runcap.guardrails.ledger.redis import RedisLedger

from ..waiting import wait_for
from .lasting_contract import ABOUT, outcome
from .ledger_contract import account, offer
from .redis_server import Proxy, RedisServer, Way, redis_server
from .test_redis_ledger import make, namespace, raw, shared

__all__ = ["make", "raw", "redis_server", "shared"]

pytestmark = pytest.mark.redis

TIMEOUT = 0.8
SLACK = 2.2
"""Seconds past the deadline after which a call counts as hung: a busy machine may let a thread wait that long."""

TOO_LATE = rf"did not answer within {re.escape(str(TIMEOUT))} s"
LOST = r"lost data .*look at the bill, then ledger.reopen\(\)"


def client(url: str, name: str = "runcap", **settings: Any) -> RedisLedger:
    return RedisLedger(url, namespace=name, **({"heartbeat": None, "timeout": TIMEOUT} | settings))


def reserve(ledger: RedisLedger, call: str, nano: int = 10) -> Grant | Refusal:
    return ledger.reserve(call, (offer(nano),), (account(),), ABOUT)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as own:
        yield own


@pytest.fixture
def durable() -> Iterator[RedisServer]:
    with RedisServer.durable() as own:
        yield own


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(redis_server.port) as own:
        yield own


class _Clocked:
    """What is done inside takes no longer than the deadline."""

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *error: object) -> None:
        took = time.monotonic() - self._begun
        assert took < TIMEOUT + SLACK, f"took {took:.2f} s, and may take {TIMEOUT}"


# With its data


def test_a_crash_with_appendfsync_always_loses_nothing(durable: RedisServer) -> None:
    with client(durable.url) as ledger, client(durable.url) as other:
        spent = 0
        for turn in range(5):
            assert isinstance(reserve(ledger, f"held{turn}", 10), Grant)
            assert isinstance(reserve(other, f"spent{turn}", 5), Grant)
            other.settle(f"spent{turn}", Amounts(nano=5), ZERO, outcome(cost=5))
            spent += 5
            durable.kill()
            durable.start()
            balance = ledger.balance("run:a")
            assert (balance.spent.nano, balance.held.nano) == (spent, 10 * (turn + 1))
        assert isinstance(reserve(ledger, "last", 26), Refusal), "100 - 25 - 50 = 25"
        assert isinstance(reserve(other, "last", 25), Grant)
        for turn in range(5):
            assert ledger.settle(f"held{turn}", Amounts(nano=10), ZERO, outcome(cost=10)) is not None
        assert sum(record.cost_nano or 0 for record in ledger.records()) == ledger.balance("run:a").spent.nano == 75


def test_what_ends_during_an_outage_is_written_after_it(durable: RedisServer) -> None:
    with client(durable.url) as ledger:
        reserve(ledger, "c")
        reserve(ledger, "d")
        durable.kill()
        with _Clocked(), pytest.raises(LedgerError, match=f"127.0.0.1:{durable.port} cannot be reached"):
            ledger.settle("c", Amounts(nano=4), ZERO, outcome(cost=4))
        with _Clocked(), pytest.raises(LedgerError, match="cannot be reached"):
            ledger.release("d")
        ledger.judge("r1", "failed")
        with _Clocked(), pytest.raises(LedgerError):
            reserve(ledger, "e")
        durable.start()
        ledger.beat()
        balance = ledger.balance("run:a")
        assert (balance.spent.nano, balance.held.nano, balance.in_flight) == (4, 0, 0)
        assert [(record.call_id, record.verdict) for record in ledger.records()] == [("c", "failed")]


def test_the_next_operation_writes_what_is_late(durable: RedisServer) -> None:
    with client(durable.url) as ledger:
        reserve(ledger, "c", 60)
        durable.kill()
        with pytest.raises(LedgerError):
            ledger.settle("c", Amounts(nano=4))
        durable.start()
        assert isinstance(reserve(ledger, "d", 96), Grant), "the room that the late settle makes is there"


# Without its data


def test_a_restart_without_data_is_refused_until_somebody_looked(server: RedisServer) -> None:
    with client(server.url) as ledger, client(server.url) as other:
        reserve(ledger, "c", 60)
        reserve(other, "d", 30)
        epoch = ledger.epoch
        server.kill()
        server.start()
        for refused in (ledger, other, client(server.url)):
            with refused, pytest.raises(LedgerError, match=LOST):
                reserve(refused, "e")
        assert ledger.settle("c", Amounts(nano=55), ZERO, outcome(cost=55)) is not None, "what was billed is charged"
        assert ledger.settle("c", Amounts(nano=55), ZERO, outcome(cost=55)) is None
        assert ledger.balance("run:a").spent == Amounts(nano=55, steps=1)
        with pytest.raises(LedgerError, match=LOST):
            ledger.top_up("run:a", "key", Amounts(nano=1))
        assert other.reopen()
        assert not other.reopen()
        assert other.epoch != epoch
        assert other.settle("d", Amounts(nano=20), Amounts(nano=10), outcome("unknown", 20)) is not None
        assert isinstance(reserve(ledger, "f", 16), Refusal), "55 + 20 + 10 of 100"
        assert isinstance(reserve(ledger, "g", 15), Grant)
        assert ledger.epoch == other.epoch
        assert [record.cost_nano for record in ledger.records()] == [55, 20]
        assert [call.call_id for call in ledger.unknowns()] == ["d"]
        assert ledger.resolve_all("seen") == 1
        assert other.settle("d", Amounts(nano=30)) is None, "resolved, and final"


def test_whoever_had_seen_more_than_the_one_that_noticed_goes_on_too(server: RedisServer) -> None:
    with client(server.url) as early, client(server.url) as late:
        reserve(early, "c", 1)
        for turn in range(20):
            reserve(late, f"d{turn}", 1)
        server.kill()
        server.start()
        with pytest.raises(LedgerError, match=LOST):
            reserve(early, "e")
        assert early.reopen()
        assert isinstance(reserve(early, "e", 5), Grant)
        assert isinstance(reserve(late, "f", 6), Grant), "once somebody looked, all may go on"
        assert late.peek("run:a").held.nano == 11, "and what they see is newer than before"


def test_a_client_that_begins_anew_on_the_empty_server_is_found_out(server: RedisServer) -> None:
    with client(server.url) as old, client(server.url) as new:
        reserve(old, "c", 60)
        server.kill()
        server.start()
        assert isinstance(reserve(new, "d", 60), Grant), "nobody can know, yet"
        assert old.settle("c", Amounts(nano=60), ZERO, outcome(cost=60)) is not None
        for ledger in (old, new):
            with pytest.raises(LedgerError, match="began anew while calls were under way"):
                reserve(ledger, "e")
        assert old.reopen()
        assert new.settle("d", Amounts(nano=7)) is not None
        assert new.balance("run:a").spent.nano == 67


def test_a_fleet_that_was_not_running_knows_by_the_epoch(server: RedisServer) -> None:
    with client(server.url) as ledger:
        reserve(ledger, "c")
        epoch = ledger.epoch
    with client(server.url, epoch=epoch) as ledger:
        assert isinstance(reserve(ledger, "d"), Grant)
    server.kill()
    server.start()
    with client(server.url, epoch=epoch) as ledger, client(server.url) as other:
        with pytest.raises(LedgerError, match=LOST):
            reserve(ledger, "e")
        with pytest.raises(LedgerError, match=LOST):
            reserve(other, "e")


def test_a_replica_that_lagged_is_found_out_by_whoever_wrote_last(durable: RedisServer) -> None:
    with client(durable.url) as quiet, client(durable.url) as ledger:
        reserve(quiet, "old", 5)
        reserve(ledger, "c", 20)
        behind = durable.copy_disk()
        ledger.settle("c", Amounts(nano=20), ZERO, outcome(cost=20))
        reserve(ledger, "d", 30)
        durable.kill()
        durable.restore_disk(behind)
        durable.start()
        for turn in range(5):  # others write on, and pass the number that was reached before
            assert isinstance(reserve(quiet, f"q{turn}", 1), Grant)
        with pytest.raises(LedgerError, match="the last writes are missing"):
            reserve(ledger, "e")
        with pytest.raises(LedgerError, match=LOST):
            reserve(quiet, "e")
        ledger.settle("d", Amounts(nano=30), ZERO, outcome(cost=30))
        assert ledger.reopen()
        assert ledger.balance("run:a").held.nano == 30, "c is held again: its end was lost"


def test_a_hold_whose_end_was_lost_becomes_unknown(durable: RedisServer) -> None:
    with client(durable.url, dead_after=0.05) as ledger:
        reserve(ledger, "c", 20)
        reserve(ledger, "open", 5)
        behind = durable.copy_disk()
        ledger.settle("c", Amounts(nano=20), ZERO, outcome(cost=20))
        durable.kill()
        durable.restore_disk(behind)
        durable.start()
        with pytest.raises(LedgerError, match=LOST):
            ledger.beat()
        ledger.reopen()

        def unknown() -> bool:
            ledger.beat()
            return bool(ledger.unknowns())

        wait_for(unknown, "the hold nobody knows")
        assert [call.call_id for call in ledger.unknowns()] == ["c"]
        assert (ledger.balance("run:a").held.nano, ledger.balance("run:a").unknown.nano) == (5, 20)


# Slow, cut off

WAYS: tuple[Way, ...] = ("hold answers", "swallow", "trickle")


@pytest.mark.parametrize("way", WAYS)
def test_no_call_hangs_past_the_deadline(proxy: Proxy, way: Way) -> None:
    with client(proxy.url, namespace()) as ledger, client(proxy.url, namespace()) as fresh:
        reserve(ledger, "c")
        proxy.set(way)
        told = rf"127\.0\.0\.1:{proxy.port} {TOO_LATE}"
        for ask in (
            lambda: reserve(ledger, "d"),
            lambda: reserve(fresh, "d"),
            lambda: ledger.settle("c", Amounts(nano=1)),
            lambda: ledger.balance("run:a"),
            lambda: ledger.top_up("run:a", "key", ZERO),
            ledger.beat,
        ):
            with _Clocked(), pytest.raises(LedgerError, match=told):
                ask()
        proxy.set("pass")
        proxy.drop()


@pytest.mark.parametrize("way", WAYS)
async def test_no_coroutine_hangs_past_the_deadline(proxy: Proxy, way: Way) -> None:
    ledger, fresh = client(proxy.url, namespace()), client(proxy.url, namespace())
    one = ((offer(1),), (account(),))
    await ledger.areserve("c", *one)
    proxy.set(way)
    for ask in (
        lambda: ledger.areserve("d", *one),
        lambda: fresh.areserve("d", *one),
        lambda: ledger.asettle("c", Amounts(nano=1)),
        lambda: ledger.abalance("run:a"),
        lambda: asyncio.gather(*(ledger.abalance("run:a") for _ in range(20))),
    ):
        with _Clocked(), pytest.raises(LedgerError, match=TOO_LATE):
            await ask()
    proxy.set("pass")
    proxy.drop()
    await asyncio.to_thread(ledger.beat)
    assert (await ledger.abalance("run:a")).spent.nano == 1
    await ledger.adispose()
    await fresh.adispose()


def test_a_server_that_is_only_slow_is_waited_for(proxy: Proxy) -> None:
    with client(proxy.url, namespace(), timeout=5.0) as ledger:
        proxy.set("pass", delay=0.1)
        assert isinstance(reserve(ledger, "c"), Grant)
        proxy.set("pass")


@pytest.mark.parametrize("way", ["hold answers", "cut"])
async def test_a_reservation_whose_answer_was_lost_leaves_no_hold(
    proxy: Proxy, way: Way, redis_server: RedisServer
) -> None:
    name = namespace()
    with client(proxy.url, name) as ledger, client(redis_server.url, name) as witness:
        reserve(ledger, "first")
        await ledger.areserve("second", (offer(10),), (account(),))
        proxy.set(way)
        with pytest.raises(LedgerError):
            reserve(ledger, "c", 20)
        with pytest.raises(LedgerError):
            await ledger.areserve("d", (offer(30),), (account(),))
        proxy.set("pass")
        proxy.drop()

        def only_what_its_owner_knows_of() -> bool:
            ledger.beat()  # a thread of the async face may still be at it
            return witness.balance("run:a").held.nano == 20

        wait_for(only_what_its_owner_knows_of, "the release of what was reserved unheard")
        await ledger.adispose()


async def test_a_connection_closed_while_it_lay_idle_is_no_outage(proxy: Proxy) -> None:
    with client(proxy.url, namespace()) as ledger:
        for turn in range(3):
            assert isinstance(reserve(ledger, f"c{turn}"), Grant)
            assert isinstance(await ledger.areserve(f"d{turn}", (offer(1),), (account(),)), Grant)
            proxy.drop()
        await ledger.adispose()


def test_a_paused_server_holds_nobody_up(server: RedisServer) -> None:
    with client(server.url) as ledger:
        reserve(ledger, "c")
        server.pause()
        with _Clocked(), pytest.raises(LedgerError, match=TOO_LATE):
            reserve(ledger, "d")
        with _Clocked(), pytest.raises(LedgerError, match=TOO_LATE):
            ledger.settle("c", Amounts(nano=3))
        server.go_on()
        ledger.beat()
        assert ledger.balance("run:a").used == Amounts(nano=3, steps=2), "the second step was taken, and its hold freed"


def test_a_fleet_may_start_before_redis(server: RedisServer) -> None:
    server.kill()
    with client(server.url) as ledger:
        with _Clocked(), pytest.raises(LedgerError, match="cannot be reached"):
            reserve(ledger, "c")
        with _Clocked(), pytest.raises(LedgerError, match="cannot be reached"):
            ledger.now_ns(ledger._clock)
        server.start()
        assert isinstance(reserve(ledger, "d"), Grant)


def test_the_heart_writes_what_is_late(durable: RedisServer) -> None:
    with client(durable.url, heartbeat=0.05) as ledger:
        reserve(ledger, "c")
        durable.kill()
        with pytest.raises(LedgerError):
            ledger.settle("c", Amounts(nano=4))
        durable.start()
        with client(durable.url) as witness:
            wait_for(lambda: witness.balance("run:a").spent.nano == 4, "the late settle")
