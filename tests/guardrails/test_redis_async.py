"""`RedisLedger` in async code: the loop is never blocked, and whatever is cancelled leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest
from blockbuster import blockbuster_ctx

from runcap.guardrails.amounts import ZERO, Amounts
from runcap.guardrails.ledger import Grant
from runcap.guardrails.ledger.redis import RedisLedger

from .lasting_contract import ABOUT, MANY, outcome
from .ledger_contract import account, offer
from .redis_server import redis_server
from .test_redis_ledger import Make, make, shared

__all__ = ["make", "redis_server", "shared"]

pytestmark = pytest.mark.redis


async def test_the_async_face_never_blocks_the_loop(make: Make) -> None:
    ledger = make(heartbeat=5.0)
    with blockbuster_ctx():
        await ledger.aready()
        assert ledger.now_ns(ledger._clock) > 0

        async def call(number: int) -> None:
            assert isinstance(await ledger.areserve(f"c{number}", (offer(2),), (MANY,), ABOUT), Grant)
            await ledger.asettle(f"c{number}", Amounts(nano=1), ZERO, outcome())

        await asyncio.gather(*(call(number) for number in range(50)))
        await ledger.astop("run:a", "enough")
        assert await ledger.atop_up("run:a", "key", Amounts(nano=1))
        assert (await ledger.abalance("run:a")).spent == Amounts(nano=50, steps=50)
        await ledger.adispose()


def test_each_loop_has_connections_of_its_own_that_end_with_it(make: Make) -> None:
    ledger = make()

    async def use(number: int) -> None:
        assert isinstance(await ledger.areserve(f"c{number}", (offer(1),), (MANY,)), Grant)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(3):
            asyncio.run(use(number))
        gc.collect()
    assert ledger.balance("run:a").in_flight == 3
    assert len(ledger._async_lines._loops) <= 1


async def test_a_cancelled_call_leaves_no_hold_and_no_broken_connection(shared: RedisLedger) -> None:
    await shared.aready()
    for number in range(40):
        task = asyncio.create_task(shared.areserve(f"c{number}", (offer(1),), (MANY,)))
        for _ in range(number % 8):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        answer = await shared.areserve(f"d{number}", (offer(1),), (MANY,))
        assert isinstance(answer, Grant)
        assert answer.call_id == f"d{number}"
        await shared.arelease(f"d{number}")
    shared.beat()
    held = {f"c{number}" for number in range(40)} & set(shared._asking.open)
    assert shared.balance("run:a").in_flight == len(held), "only those whose answer came before they were cancelled"


async def test_a_cancelled_settle_is_written_all_the_same(shared: RedisLedger) -> None:
    await shared.areserve("c", (offer(60),), (account(),))
    task = asyncio.create_task(shared.asettle("c", Amounts(nano=25)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.to_thread(shared.beat)
    assert (await shared.abalance("run:a")).spent.nano == 25
