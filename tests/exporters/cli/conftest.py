"""Ledgers with a story in them that is told by real guards, and whose figures are known by heart."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner, Result

from runcap.exporters.cli.app import app
from runcap.guardrails import Budget, BudgetExceeded, Guard, RedisLedger, SQLiteLedger, Usage
from runcap.guardrails.course import Purpose
from runcap.guardrails.testing import ManualClock

from ...guardrails.helpers import request as asked
from ...guardrails.redis_server import REQUIRED, RedisServer, redis_server

__all__ = ["redis_server"]

NOON = 1_795_694_400 * 10**9
"""2026-11-26 12:00 UTC."""

HOUR = 3_600.0

Shared = SQLiteLedger | RedisLedger


class Place(NamedTuple):
    """A ledger, and how the command line names it."""

    ledger: Shared
    where: str
    namespace: str = "runcap"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


@pytest.fixture
def file(tmp_path: Path, clock: ManualClock) -> Iterator[Place]:
    where = tmp_path / "budget.db"
    with SQLiteLedger(where, synchronous="NORMAL", heartbeat=None, clock=clock) as ledger:
        yield Place(ledger, str(where))


@pytest.fixture
def in_redis(request: pytest.FixtureRequest) -> Iterator[Place]:
    if not os.environ.get(REQUIRED):
        pytest.importorskip("redis")
    server: RedisServer = request.getfixturevalue("redis_server")
    name = uuid.uuid4().hex
    with RedisLedger(server.url, namespace=name, heartbeat=None) as ledger:
        yield Place(ledger, server.url, name)


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def place(request: pytest.FixtureRequest) -> Place:
    """Either."""
    made: Place = request.getfixturevalue("file" if request.param == "sqlite" else "in_redis")
    return made


@pytest.fixture
def command() -> Callable[..., Result]:
    """Runs `runcap` in this process."""

    def run(*args: str | Place) -> Result:
        told = [(arg,) if isinstance(arg, str) else (arg.where, "--namespace", arg.namespace) for arg in args]
        return CliRunner().invoke(app, [each for one in told for each in one], prog_name="runcap")

    return run


class Story(NamedTuple):
    """The ids of its runs."""

    refunded: str
    looked_up: str
    late: str
    open: str
    chat: str
    answered: str
    refused: str
    odd: str


def tell(ledger: Shared, clock: ManualClock) -> Story:
    """Seven calls in six runs. gpt-4o is $2.5 a million in, $1.25 cached, $10 out; gpt-4o-mini $0.15 and $0.6.

    refunded  succeeded          gpt-4o       600 in, 400 cached, 100 out   $0.003
      looked_up                  gpt-4o-mini  1000 in, 1000 out             $0.00075
    late      failed             gpt-4o       released; tried again: 2000 in, 200 out  $0.007
    open      no verdict         gpt-4o       100 out seen of 1000          $0.001, and $0.009 unknown
    chat      succeeded          no call of its own
      answered                   gpt-4o       1000 out                      $0.01
    refused                      refused, so no attempt
    odd       no verdict         a model without a price
    """
    guard = Guard(Budget(usd=1), ledger=ledger, clock=clock, sinks=())
    with guard.run(task="refund", user="ada") as refunded:
        permit = guard.admit(asked(input_tokens=1000, output_cap=100), refunded)
        clock.advance(1.5)
        permit.settle(Usage(1000, 100, cache_read_tokens=400, reasoning_tokens=30))
        with guard.run(feature="lookup") as looked_up:
            guard.admit(asked(model="gpt-4o-mini", input_tokens=1000), looked_up).settle(Usage(1000, 1000))
        refunded.succeed()
    clock.advance(20 * HOUR)  # the next day
    with guard.run(task="refund", user="bob") as late:
        guard.admit(asked(), late).release("RateLimitError")
        clock.advance(2)
        again = asked(input_tokens=2000, purpose=Purpose(tier="low"))
        again.attempt = 2
        guard.admit(again, late).settle(Usage(2000, 200))
        late.fail("late")
    with guard.run(task="refund", user="bob") as opened:
        guard.admit(asked(), opened).abandon("TimeoutError", partial=Usage(0, 100))
    clock.advance(HOUR)
    with guard.run(task="chat", user="ada") as chat:
        with guard.run(feature="answer") as answered:
            guard.admit(asked(), answered).settle(Usage(0, 1000))
        chat.succeed()
    with guard.run(task="chat", budget=Budget(usd="0.001")) as refused:
        for _ in range(2):
            with pytest.raises(BudgetExceeded):
                guard.admit(asked(), refused)
    counting = Guard(Budget(steps=5), ledger=ledger, clock=clock, sinks=())
    with counting.run(task="odd") as odd:
        counting.admit(asked(model="no-such-model"), odd).settle(Usage(10, 20))
    return Story(*(one.id for one in (refunded, looked_up, late, opened, chat, answered, refused, odd)))
