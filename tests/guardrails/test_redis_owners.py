"""Clients of a `RedisLedger` that die, sleep, or leave with calls in flight. Time is moved in Redis, not waited for."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from runcap.guardrails.amounts import ZERO, Amounts
from runcap.guardrails.ledger import Grant, LedgerError

from .lasting_contract import ABOUT, outcome
from .ledger_contract import account, offer
from .redis_server import redis_server
from .test_redis_faults import reserve
from .test_redis_ledger import Make, make, raw

__all__ = ["make", "raw", "redis_server"]

pytestmark = pytest.mark.redis


def test_the_holds_of_a_dead_owner_become_unknown(make: Make, raw: Any) -> None:
    dead, alive = make(dead_after=60.0), make(dead_after=60.0)
    dead.reserve("c", (offer(60, expected=20),), (account(), account("limit:b")), ABOUT)
    reserve(alive, "d", 20)
    keys = alive._asking.keys
    alive.beat()
    assert alive.unknowns() == [], "not yet"
    raw.zincrby(keys.held, -61e6, "c")
    alive.beat()
    assert alive.unknowns() == [], "its owner lives"
    raw.zincrby(keys.owners, -61e6, dead.owner)
    alive.beat()
    alive.beat()
    [call] = alive.unknowns()
    assert (call.call_id, call.charged, call.unknown.nano) == ("c", ZERO, 60)
    assert call.record is not None
    assert (call.record.state, call.record.resolved_by, call.record.cost_nano) == ("unknown", "owner died", None)
    for name in ("run:a", "limit:b"):
        balance = alive.balance(name)
        assert balance.unknown.nano == 60
        assert balance.held.nano == balance.expected.nano == (20 if name == "run:a" else 0)
    settled = dead.settle("c", Amounts(nano=25), ZERO, outcome(resolved_by="late"))
    assert settled is not None, "it was only asleep"
    assert alive.balance("limit:b").used == Amounts(nano=25, steps=1)
    assert [record.revision for record in alive.records(all=True)] == [0, 1]
    assert [record.resolved_by for record in alive.records()] == ["late"]


def test_a_sign_of_life_from_the_future_is_none(make: Make, raw: Any) -> None:
    dead, alive = make(), make()
    reserve(dead, "c", 60)
    alive.ready()
    keys = alive._asking.keys
    raw.zincrby(keys.held, 100e6, "c")
    raw.zincrby(keys.owners, 100e6, dead.owner)
    alive.beat()
    assert [call.call_id for call in alive.unknowns()] == ["c"]


def test_what_a_ledger_holds_as_it_is_disposed_of_is_unknown_at_once(make: Make) -> None:
    gone, alive = make(), make()
    reserve(gone, "c", 60)
    reserve(alive, "d", 10)
    gone.dispose()
    alive.beat()
    assert [call.call_id for call in alive.unknowns()] == ["c"]
    assert gone.settle("c", Amounts(nano=5)) is not None
    assert isinstance(reserve(gone, "e", 5), Grant), "it may be used again"


def test_leaving_in_the_middle_of_another_threads_operation_is_no_loss(make: Make) -> None:
    """What it had been told is checked against what Redis knows of it, which must not go with it."""
    gone, healthy = make(), make()
    reserve(gone, "c", 10)
    reserve(healthy, "d", 10)
    exchange, armed = gone._lines._exchange, [True]

    def interrupted(request: Any, until: float) -> list[Any]:
        if armed:
            armed.clear()
            leaving = threading.Thread(target=gone.dispose)
            leaving.start()
            leaving.join()
        return exchange(request, until)

    gone._lines._exchange = interrupted  # type: ignore[method-assign]
    assert gone.settle("c", Amounts(nano=4)) is not None
    assert isinstance(reserve(healthy, "e", 10), Grant)
    assert healthy.balance("run:a").spent.nano == 4


def test_leaving_while_many_threads_work_is_no_loss(make: Make) -> None:
    gone, healthy = make(), make()
    reserve(healthy, "z", 1)
    begun, over = threading.Barrier(5), threading.Event()

    def work(index: int) -> None:
        begun.wait()
        for turn in range(1_000):
            if over.is_set():
                return
            gone.reserve(f"{index}-{turn}", (offer(1),), (account("run:b", nano=None),))
            gone.settle(f"{index}-{turn}", Amounts(nano=1))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    for _ in range(20):
        gone.dispose()
        assert isinstance(healthy.reserve("z", (offer(1),), (account(),)), Grant)
    over.set()
    for thread in threads:
        thread.join()
    assert isinstance(reserve(healthy, "last", 1), Grant)


def test_a_clock_of_redis_that_jumps_by_days_is_no_loss(make: Make, raw: Any) -> None:
    one, other = make(), make()
    for client, call in ((one, "a"), (other, "b")):
        reserve(client, call, 10)
        client.settle(call, Amounts(nano=1))
    for owner in (one.owner, other.owner):
        raw.zincrby(one._asking.keys.owners, -2 * 86_400e6, owner)
    one.beat()
    assert isinstance(reserve(other, "c", 10), Grant)
    assert isinstance(reserve(one, "d", 10), Grant)


def test_owners_beyond_many_are_forgotten_the_oldest_first(make: Make, raw: Any) -> None:
    alive = make()
    reserve(alive, "c", 10)
    keys = alive._asking.keys
    raw.zadd(keys.owners, {f"old{number}": number for number in range(10_050)})
    raw.hset(keys.meta, mapping={f"seq:old{number}": 1 for number in range(10_050)})
    alive.beat()
    assert raw.zcard(keys.owners) == 10_000
    assert raw.zscore(keys.owners, "old50") is None
    assert raw.zscore(keys.owners, "old51") is not None
    assert not raw.hexists(keys.meta, "seq:old50")
    assert isinstance(reserve(alive, "d", 10), Grant)


def test_many_old_holds_of_the_living_cost_a_heartbeat_little(make: Make, raw: Any) -> None:
    busy, dead, alive = make(), make(), make()
    for number in range(600):
        busy.reserve(f"b{number}", (offer(1),), (account("run:b", nano=None),))
    reserve(dead, "c", 10)
    keys = alive._asking.keys
    raw.zadd(keys.held, {f"b{number}": 1 for number in range(600)})
    raw.zadd(keys.held, {"c": 2})
    raw.zincrby(keys.owners, -61e6, dead.owner)
    alive.ready()
    before = raw.info("commandstats")["cmdstat_evalsha"]["calls"]
    alive.beat()
    assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] - before < 20, "not one for each hold that is old"
    assert [call.call_id for call in alive.unknowns()] == ["c"]
    assert alive.balance("run:b").in_flight == 600


def test_an_account_that_could_not_be_closed_is_closed_later(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = make()
    reserve(ledger, "c", 10)
    ledger.settle("c", Amounts(nano=1))
    with monkeypatch.context() as away:
        away.setattr(ledger._lines, "_exchange", _unreachable)
        with pytest.raises(LedgerError, match="away"):
            ledger.close("run:a")
    ledger.beat()
    assert ledger.balance("run:a").spent == ZERO


def _unreachable(request: Any, until: float) -> list[Any]:
    raise LedgerError("away")


def test_a_client_that_was_given_another_epoch_is_refused_alone(make: Make) -> None:
    healthy, wrong = make(), make(epoch="another")
    reserve(healthy, "c", 10)
    for _ in range(2):
        with pytest.raises(LedgerError, match="is not the one of epoch='another'"):
            reserve(wrong, "d", 10)
    assert isinstance(reserve(healthy, "e", 10), Grant)
    assert isinstance(reserve(make(epoch=healthy.epoch), "f", 10), Grant)
