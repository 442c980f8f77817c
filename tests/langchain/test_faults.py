"""Random schedules of everything that goes wrong: the books hold at every step, and nothing is left at the end.

Real guarded ChatOpenAI models, whose HTTP call alone is replaced: a schedule decides when and how each attempt ends,
and keeps the true bill, also of what the client never hears of.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import ConfigDict, PrivateAttr, SecretStr

from runcap.guardrails import Budget, CallEnded, Guard, Refused
from runcap.guardrails.testing import ManualClock, Recorder
from runcap.integrations.langchain import guard_model

from ..effort import examples

PROMPT_TOKENS = 20
CAP = Decimal("0.02")


class StatusError(Exception):
    """As the SDKs raise it."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status_code = status
        self.response = httpx.Response(status)


class APIConnectionError(Exception):
    """As the SDKs raise it for a lost connection or a time-out."""


class Attempt:
    """One request at the provider, until the schedule ends it."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.out = 0
        self.orders: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.open = True
        self.bill = Decimal(0)

    def charge(self, out: int) -> int:
        """What the provider bills for: the prompt, and no more output than it was allowed."""
        self.out = min(out, self.cap)
        self.bill = (Decimal(PROMPT_TOKENS) * Decimal("2.5") + self.out * 10) / 1_000_000
        return self.out


def usage(out: int) -> UsageMetadata:
    return UsageMetadata(input_tokens=PROMPT_TOKENS, output_tokens=out, total_tokens=PROMPT_TOKENS + out)


class Puppet(ChatOpenAI):
    """A ChatOpenAI whose requests end as they are told."""

    # Each guard makes a class of it, whose schema nothing asks for.
    model_config = ConfigDict(defer_build=True)
    _attempts: list[Attempt] = PrivateAttr(default_factory=list)

    def _attempt(self) -> Attempt:
        attempt = Attempt(self.max_tokens or 16_384)
        self._attempts.append(attempt)
        return attempt

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        attempt = self._attempt()
        try:
            out = attempt.charge(self._obey(attempt, *await attempt.orders.get()))
        finally:
            attempt.open = False
        message = AIMessage("word", usage_metadata=usage(out), response_metadata={"finish_reason": "stop"})
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        attempt = self._attempt()
        try:
            while True:
                order, size = await attempt.orders.get()
                if order != "chunk":
                    break
                attempt.charge(attempt.out + size % 50 + 1)
                yield ChatGenerationChunk(message=AIMessageChunk(content="word " * (size % 50 + 1)))
            out = attempt.charge(max(attempt.out, self._obey(attempt, order, size)))
        finally:
            attempt.open = False
        told = {"finish_reason": "stop"}
        yield ChatGenerationChunk(message=AIMessageChunk(content="", usage_metadata=usage(out), response_metadata=told))

    @staticmethod
    def _obey(attempt: Attempt, order: str, size: int) -> int:
        if order in ("server error", "lost"):
            attempt.charge(size)  # whatever was done before the connection went, the client does not hear of
            raise StatusError(503) if order == "server error" else APIConnectionError
        if order == "refused" and not attempt.out:
            raise StatusError(429)
        return size


async def read(model: ChatOpenAI, drop_after: int) -> None:
    """Read a stream, and drop it without closing it after so many chunks."""
    count = 0
    async for _ in model.astream("tell me everything you know"):
        count += 1
        if count > drop_after:
            break


class Schedule:
    """A guarded model with everything that is under way."""

    def __init__(self, caps: list[int | None], max_wait: float | None) -> None:
        self.clock = ManualClock()
        self.recorder = Recorder()
        budget = Budget(usd=CAP, max_wait=max_wait, min_output_tokens=64)
        self.guard = Guard(budget, sinks=(self.recorder,), clock=self.clock)
        self.attempts: list[Attempt] = []
        self.models = [self._model(cap) for cap in caps]
        self.tasks: list[asyncio.Task[Any]] = []
        self.cap = CAP

    def _model(self, cap: int | None) -> ChatOpenAI:
        puppet = Puppet(model="gpt-4o", api_key=SecretStr("none"), max_completion_tokens=cap)
        puppet._attempts = self.attempts
        model = guard_model(puppet, self.guard)
        assert isinstance(model, Puppet)
        return model

    async def do(self, step: tuple[str, int, int]) -> None:
        """Carry out one step, and let everything that follows from it happen."""
        what, which, size = step
        waiting = [attempt for attempt in self.attempts if attempt.open]
        if what in ("generate", "stream", "dropped stream"):
            model = self.models[which % len(self.models)]
            call = model.ainvoke("tell me everything you know") if what == "generate" else None
            self.tasks.append(
                asyncio.ensure_future(call or read(model, size % 3 if what == "dropped stream" else 10_000))
            )
        elif what == "cancel" and self.tasks:
            self.tasks[which % len(self.tasks)].cancel()
        elif what == "advance":
            self.clock.advance(size / 100)
        elif what == "collect":
            gc.collect(0)
        elif what == "stop":
            self.guard.default_run.stop("scheduled")
        elif what == "top up":
            self.guard.default_run.top_up(usd="0.005")
            self.cap += Decimal("0.005")
        elif waiting:
            waiting[which % len(waiting)].orders.put_nowait((what, size))
        await self.settle()

    async def settle(self) -> None:
        for _ in range(12):
            await asyncio.sleep(0)

    def check(self) -> None:
        run = self.guard.default_run
        spent, held, unknown = run.spent_usd or Decimal(0), run.held_usd, run.unknown_usd
        assert spent + held + unknown <= self.cap
        assert sum(attempt.bill for attempt in self.attempts) <= spent + held + unknown

    async def finish(self) -> None:
        """End whatever is under way, then look for what is left."""
        for task in self.tasks:
            task.cancel()
        results = await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()
        faults = (Refused, StatusError, APIConnectionError, asyncio.CancelledError)
        assert [one for one in results if isinstance(one, BaseException) and not isinstance(one, faults)] == []
        del results
        gc.collect(1)
        await self.settle()
        self.guard.calls.drain()
        self.check()
        run = self.guard.default_run
        ended = self.recorder.of(CallEnded)
        assert (run.balance.held.nano, run.balance.in_flight, len(self.guard.calls), len(self.guard.room)) == (
            0,
            0,
            0,
            0,
        )
        assert run.balance.unknown.nano == sum(one.unknown_nano for one in ended)
        assert run.balance.spent.nano == sum(one.cost_nano or 0 for one in ended)
        assert len(ended) == run.steps == len(self.attempts)


STEPS = st.tuples(
    st.sampled_from(
        [
            *("generate", "generate", "stream", "stream", "dropped stream"),
            *("ok", "ok", "ok", "chunk", "chunk", "refused", "server error", "lost", "cancel"),
            *("advance", "collect", "stop", "top up"),
        ]
    ),
    st.integers(0, 9),
    st.integers(1, 900),
)


@settings(
    max_examples=examples(1_000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    caps=st.lists(st.sampled_from([None, 200, 700, 1_500]), min_size=1, max_size=2),
    max_wait=st.sampled_from([None, 0.0, 3.0]),
    steps=st.lists(STEPS, max_size=30),
)
def test_the_books_hold_whatever_goes_wrong(
    caps: list[int | None], max_wait: float | None, steps: list[tuple[str, int, int]]
) -> None:
    async def run() -> None:
        schedule = Schedule(caps, max_wait)
        for step in steps:
            await schedule.do(step)
            schedule.check()
        await schedule.finish()

    asyncio.run(run())
