"""Calls that wait for money: fair, woken by what ends, and told apart from those that will never fit."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
from decimal import Decimal
from typing import Any

import pytest

from runcap.guardrails import Budget, BudgetBusy, BudgetExceeded, Guard, MemoryLedger, Usage
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.inflight import enter
from runcap.guardrails.permit import Permit
from runcap.guardrails.request import Request
from runcap.guardrails.testing import ManualClock

from .helpers import request

CENT = Decimal("0.01")  # what request() is held at


def guard(**caps: Any) -> Guard:
    return Guard(Budget(**caps), sinks=(), clock=ManualClock())


async def short_answers() -> Guard:
    """A guard that has seen that answers are short: what is in flight will likely leave room for one more."""
    g = guard(usd="0.016")
    (await start(g)).settle(Usage(0, 100))
    return g


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def start(g: Guard, asked: Request | None = None, **more: Any) -> asyncio.Task[Permit]:
    return asyncio.create_task(g.aadmit(asked or request(), wait=True, **more))


async def test_a_call_waits_for_what_another_holds() -> None:
    g = guard(usd="0.015")
    first = await start(g)
    second = start(g)
    await turns()
    assert not second.done()
    first.settle(Usage(0, 300))
    permit = await second
    assert (permit.clamped, g.default_run.held_usd, len(g.room)) == (False, CENT, 0)


def test_threads_wait_too() -> None:
    g = guard(usd="0.015")
    first = g.admit(request(), wait=True)
    got: list[Permit] = []
    thread = threading.Thread(target=lambda: got.append(g.admit(request(), wait=True)))
    thread.start()
    while not len(g.room):
        pass
    first.settle(Usage(0, 300))
    thread.join(10)
    assert len(got) == 1
    assert len(g.room) == 0


async def test_first_come_first_served() -> None:
    g = guard(usd="0.01")
    held = await start(g, request(output_cap=1000))
    order: list[int] = []

    async def wait(number: int) -> None:
        permit = await g.aadmit(request(output_cap=100), wait=True)
        order.append(number)
        permit.release()

    tasks = [asyncio.create_task(wait(number)) for number in range(20)]
    await turns()
    assert len(g.room) == 20
    held.release()
    await asyncio.gather(*tasks)
    assert order == list(range(20))


async def test_who_comes_later_stands_in_line_though_he_would_fit() -> None:
    g = guard(usd="0.015")
    held = await start(g)
    large = start(g)
    await turns()
    small = start(g, request(output_cap=400))  # $0.004 of the $0.005 that are free
    await turns()
    assert not small.done()
    held.release()
    assert (await large).grant.amount.nano == 10_000_000
    assert (await small).grant.amount.nano == 4_000_000


async def test_a_cancelled_waiter_leaves_and_the_next_has_its_turn() -> None:
    g = guard(usd="0.01")
    held = await start(g)
    first, second = start(g), start(g)
    await turns()
    first.cancel()
    await turns()
    assert first.cancelled()
    assert len(g.room) == 1
    held.release()
    assert (await second).run is g.default_run
    assert g.default_run.steps == 2


async def test_waiting_in_vain_is_busy_and_stops_nothing() -> None:
    g = guard(usd="0.015", max_wait=5)
    held = await start(g)
    second = start(g)
    await turns()
    assert isinstance(g.clock, ManualClock)
    g.clock.advance(4.9)
    await turns()
    assert not second.done()
    g.clock.advance(0.2)
    with pytest.raises(BudgetBusy, match="waited in vain"):
        await second
    assert g.default_run.stopped is None
    held.release()
    await start(g)


async def test_max_wait_of_zero_is_not_waiting() -> None:
    g = guard(usd="0.015", max_wait=0)
    await start(g)
    with pytest.raises(BudgetBusy):
        await start(g)
    assert g.default_run.stopped is None


async def test_what_can_never_fit_is_exceeded_at_once() -> None:
    g = guard(usd="0.015")
    (await start(g)).settle(Usage(0, 1000))
    await start(g, request(output_cap=100))
    with pytest.raises(BudgetExceeded):
        await start(g)
    assert g.default_run.stopped is None  # a smaller call may still fit


async def test_steps_are_not_waited_for() -> None:
    g = guard(usd="0.015", steps=1)
    await start(g)
    with pytest.raises(BudgetExceeded, match="steps cap 1"):
        await start(g)


async def test_seconds_run_out_while_waiting() -> None:
    g = guard(usd="0.015", seconds=3)
    await start(g)
    second = start(g)
    await turns()
    assert isinstance(g.clock, ManualClock)
    g.clock.advance(3)
    with pytest.raises(BudgetExceeded, match="seconds cap"):
        await second


async def test_a_stopped_run_turns_all_its_waiters_away() -> None:
    g = guard(usd="0.015")
    await start(g)
    waiting = [start(g) for _ in range(3)]
    await turns()
    g.default_run.stop("enough")
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, BudgetExceeded) and "enough" in str(one) for one in results)
    assert len(g.room) == 0


async def test_a_top_up_lets_waiters_in() -> None:
    g = guard(usd="0.01")
    await start(g)
    second = start(g)
    await turns()
    g.default_run.top_up(usd=CENT)
    assert (await second).step == 2


async def test_a_sync_call_on_the_loops_thread_never_waits() -> None:
    g = await short_answers()
    await start(g)
    with pytest.raises(BudgetBusy):
        g.admit(request(), wait=True)


async def test_a_call_inside_a_call_of_its_run_never_waits_for_it() -> None:
    g = await short_answers()
    outer = await g.aadmit(request(), wait=True)
    enter(outer)
    with pytest.raises(BudgetBusy):
        await g.aadmit(request(), wait=True)
    outer.release()
    await g.aadmit(request(), wait=True)  # it is done: the mark it left means nothing


async def test_what_a_finalizer_ends_wakes_whoever_waits() -> None:
    g = guard(usd="0.01")
    held: list[Permit] = [await start(g)]
    second = start(g)
    await turns()

    def lost() -> None:  # as the weak references to lost calls leave it
        held.pop().release()

    g.calls.defer(lost)
    assert (await second).step == 2


def test_a_waiter_whose_loop_was_closed_does_not_block_the_queue() -> None:
    g = guard(usd="0.01")
    held = g.admit(request(), wait=True)
    loop = asyncio.new_event_loop()
    dead = loop.create_task(g.aadmit(request(), wait=True))
    loop.run_until_complete(turns())
    loop.close()
    got: list[Permit] = []
    thread = threading.Thread(target=lambda: got.append(g.admit(request(), wait=True)))
    thread.start()
    while len(g.room) < 2:
        pass
    held.release()
    thread.join(10)
    assert len(got) == 1
    dead._log_destroy_pending = False  # type: ignore[attr-defined]
    del dead
    gc.collect()
    assert len(g.room) == 0


async def test_a_call_that_waited_is_measured_anew() -> None:
    g = guard(usd="0.035")
    held = await start(g)
    sizes = [Prompt(ascii_bytes=8_000), Prompt(measured=1_000)]
    asked = request(prompt=sizes[0])

    def renew() -> Request:
        return asked.with_prompt(sizes[-1], call_id=asked.call_id, parent_id=None)

    second = start(g, asked, renew=renew)
    await turns()
    held.release()
    assert (await second).estimate.input_most == 1_000


class Shared(MemoryLedger):
    shared = True


async def test_a_shared_ledger_is_looked_at_again_ever_more_rarely() -> None:
    ledger = Shared()
    clock = ManualClock()
    here, there = (Guard(Budget(usd="0.015"), ledger=ledger, sinks=(), clock=clock) for _ in range(2))
    held = await there.aadmit(request(), there.named_run("fleet"))
    asks: list[float] = []

    def renew() -> Request:
        asks.append(clock.monotonic())
        return asked

    asked = request()
    began = clock.monotonic()
    waiting = asyncio.create_task(here.aadmit(asked, here.named_run("fleet"), wait=True, renew=renew))
    await turns()
    for _ in range(700):
        clock.advance(0.01)
        await turns(2)
    assert not waiting.done()
    pauses = [after - before for before, after in itertools.pairwise(asks)]
    assert 8 <= len(asks) <= 16
    assert pauses == sorted(pauses)
    assert max(pauses) == pytest.approx(1.0, abs=0.02)
    held.settle(Usage(0, 100))  # in another process: nobody here is woken
    clock.advance(1.1)
    permit = await waiting
    assert permit.waited_s == pytest.approx(clock.monotonic() - began, abs=0.02)


# Clamping


def clampable(**more: Any) -> Request:
    return request(**({"may_clamp": True} | more))


@pytest.mark.parametrize(
    ("left", "asked", "cap"),
    [
        ("0.01", {"output_cap": 1000}, None),  # fits as it is: the user's own cap is left alone
        ("0.0099", {"output_cap": 1000}, 990),
        ("0.00256", {"output_cap": 1000}, 256),
        ("0.01", {"output_cap": None}, 1000),
        ("1", {"output_cap": None}, 16_384),  # the model's ceiling
        ("1", {"output_cap": None, "output_ceiling": None}, 4_096),
        ("0.01", {"output_cap": 2000, "choices": 2}, 500),
        ("0.01", {"output_cap": 2000, "input_tokens": 2_000}, 500),
        ("0.00101", {"output_cap": 100}, None),
        ("0.0128", {"output_cap": 2000, "thinking_tokens": 1024}, 1280),
    ],
)
def test_the_output_cap_is_what_the_rest_affords(left: str, asked: Any, cap: int | None) -> None:
    permit = guard(usd=left).admit(clampable(**asked))
    assert permit.output_cap == cap
    assert permit.clamped == (cap is not None and (asked["output_cap"] or 16_384) > cap != 4_096)
    assert permit.estimate.hard


@pytest.mark.parametrize(
    ("left", "asked"),
    [
        ("0.00255", {"output_cap": 1000}),
        ("0.00999", {"output_cap": 2000, "min": 1000}),
        ("0.01279", {"output_cap": 2000, "thinking_tokens": 1024}),
        ("0.00099", {"output_cap": 100}),  # below the floor only because the user asked for so little
    ],
)
def test_never_below_the_floor(left: str, asked: Any) -> None:
    floor = {"min_output_tokens": asked.pop("min")} if "min" in asked else {}
    with pytest.raises(BudgetExceeded):
        guard(usd=left, **floor).admit(clampable(**asked))


def test_tokens_clamp_as_dollars_do() -> None:
    permit = guard(tokens=1_500).admit(clampable(output_cap=2_000, input_tokens=1_000))
    assert (permit.output_cap, permit.clamped) == (500, True)


async def test_it_waits_first_and_is_clamped_only_when_nothing_is_in_flight() -> None:
    g = guard(usd="0.015")
    first = await start(g, clampable())
    second = start(g, clampable())
    await turns()
    assert not second.done()  # $0.005 are free and would do for 500 tokens
    first.settle(Usage(0, 600))
    assert (await second).output_cap == 900


async def test_who_may_not_wait_is_clamped_at_once() -> None:
    g = guard(usd="0.015", max_wait=0)
    await start(g, clampable())
    assert (await start(g, clampable())).output_cap == 500


def test_100_threads_use_the_cap_up_to_the_last_affordable_call() -> None:
    g = Guard(Budget(usd="0.1"), sinks=())
    barrier, served, refused = threading.Barrier(100), [], []

    def call() -> None:
        barrier.wait()
        try:
            permit = g.admit(clampable(), wait=True)
        except BudgetExceeded as error:
            refused.append(error)
        else:
            served.append(permit.settle(Usage(0, min(700, permit.output_cap or 700))))

    threads = [threading.Thread(target=call) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Decimal("0.0975") < (g.default_run.spent_usd or 0) <= Decimal("0.1")
    assert len(served) + len(refused) == 100
    assert len(g.room) == 0
