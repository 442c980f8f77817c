"""Clients of a `RedisLedger` that die, sleep, or leave with calls in flight. Time is moved in Redis, not waited for."""

from __future__ import annotations

from typing import Any

import pytest

from runcap.guardrails.amounts import ZERO, Amounts
from runcap.guardrails.ledger import Grant

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
