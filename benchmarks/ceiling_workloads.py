"""What `ceiling.py` runs: prompts, answers of random length, and a hundred calls at once from threads or tasks."""

from __future__ import annotations

import asyncio
import random
import string
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache, partial
from typing import Any, NamedTuple

from langchain.agents import create_agent
from langchain_core.tools import StructuredTool, tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from runcap.guardrails import Refused
from runcap.guardrails.testing import Reply, ScriptedProvider

CALLS, CAP = 100, Decimal(1)
INPUT_TOKENS, PROMPT_BYTES, LONGEST = 10_000, 47_000, 7_500
KEY = SecretStr("none")
LATENCY, SLOW = (0.02, 0.06), 0.6
PATIENCE = 60.0
"""Seconds after which a call that has not ended is hung."""

CHARACTERS = 4
"""Of an answer's text, per token."""

VOCABULARY = """
the of to that was on as it from which its an be but had one more who about into some would new than two also over
work state used most city system known part under many where only early number group later government history small
large water river land north trade century local company power law public school market army church name found built
became made began through however because although several while against without among region general national
important different common certain modern ancient western southern production development population increase
agreement railway harbour factory mountain valley
"""

Carry = Callable[[Callable[[str], None]], Callable[[str], None]]


class Calls(NamedTuple):
    """One call with a prompt, made to its end: from a thread, and in a task."""

    sync: Callable[[str], object]
    task: Callable[[str], Awaitable[object]]


@dataclass
class Tally:
    """How a row's calls ended."""

    asked: int
    answered: int = 0
    refused: int = 0
    hung: int = 0
    seconds: float = 0.0
    raised: Counter[type[Exception]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count how a call ends."""
        try:
            yield
        except Refused:
            with self._lock:
                self.refused += 1
        except Exception as error:  # noqa: BLE001 - whatever a library under test raises is counted by its type
            with self._lock:
                self.raised[type(error)] += 1
        else:
            with self._lock:
                self.answered += 1

    def close(self, started: float, hung: int) -> Tally:
        """All have ended, but `hung` of them."""
        self.seconds, self.hung = time.monotonic() - started, hung
        return self


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row's figures. `faults` are why it failed, whatever it spent."""

    spent: Decimal
    served: int
    asked: int
    cut: int
    seconds: float
    faults: tuple[str, ...] = ()
    note: str = ""


class Answers:
    """A script: the n-th request gets the same answer in every row. `cut` counts answers a request's cap shortened.

    Args:
        length: fewest and most output tokens wanted.
        input_tokens: what a request is billed for its input.
        slow: share of the requests answered only after `SLOW` seconds; they are billed in full.
    """

    def __init__(
        self, length: tuple[int, int] = (2_500, LONGEST), input_tokens: int | None = INPUT_TOKENS, slow: float = 0.0
    ) -> None:
        self.cut = 0
        self._length = length
        self._input_tokens = input_tokens
        self._slow = slow
        self._lock = threading.Lock()

    def __call__(self, number: int, body: Mapping[str, Any]) -> Reply:
        """The answer to a request."""
        rng = random.Random(number)
        wanted = rng.randint(*self._length)
        latency = SLOW if rng.random() < self._slow else rng.uniform(*LATENCY)
        self._count(wanted, body)
        calls = self.tool_calls(number, body)
        text = "" if calls else prose(0, CHARACTERS * self._length[1])[: CHARACTERS * wanted]
        return Reply(
            text=text, tool_calls=calls, input_tokens=self._input_tokens, output_tokens=wanted, latency=latency
        )

    def tool_calls(self, number: int, body: Mapping[str, Any]) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """The tools an answer asks for."""
        return ()

    def _count(self, wanted: int, body: Mapping[str, Any]) -> None:
        cap = body.get("max_completion_tokens") or body.get("max_tokens")
        if cap is not None and cap < wanted:
            with self._lock:
                self.cut += 1


class TeamAnswers(Answers):
    """Answers to `team`: a root asks both its tools, then answers; every other sub-agent asks its own first.
    `helpers` counts the requests of sub-agents.
    """

    def __init__(self) -> None:
        super().__init__((200, 600), input_tokens=None)
        self.helpers = 0

    def tool_calls(self, number: int, body: Mapping[str, Any]) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """What the offered tools and the history call for."""
        offered = {one["function"]["name"] for one in body["tools"]}
        look_up = ("look_up", {"topic": "harbour"})
        with self._lock:
            self.helpers += "delegate" not in offered
        if any(message["role"] == "tool" for message in body["messages"]):
            return ()
        if "delegate" in offered:
            return (look_up, ("delegate", {"task": prose(number, 1_000)}))
        return (look_up,) if number % 2 else ()


@cache
def prose(seed: int, size: int) -> str:
    """English-like sentences, `size` bytes of them."""
    rng, words, sentences, length = random.Random(seed), VOCABULARY.split(), [], 0
    while length <= size:
        sentences.append(" ".join(rng.choices(words, k=rng.randint(6, 24))).capitalize() + ".")
        length += len(sentences[-1]) + 1
    return " ".join(sentences)[:size]


def same() -> list[str]:
    """The same prompt for every call."""
    return [prose(1, PROMPT_BYTES)] * CALLS


def documents() -> list[str]:
    """Prompts that differ from the first byte on: `string.printable` happens to be a hundred characters."""
    firsts = string.printable[:CALLS]
    return [first + prose(index, PROMPT_BYTES - 1) for index, first in enumerate(firsts)]


def chat(url: str, **more: Any) -> ChatOpenAI:
    """gpt-4o at `url`, as the README sets it up."""
    settings: dict[str, Any] = {"model": "gpt-4o", "max_retries": 0, "stream_usage": True, **more}
    return ChatOpenAI(base_url=url, api_key=KEY, **settings)


def calls_of(asked: Any, *, stream: bool = False, config: Any = None) -> Calls:
    """Calls to a chat model or an agent; streams are read to their end."""
    is_model = isinstance(asked, ChatOpenAI)
    options = {} if is_model or not stream else {"stream_mode": "messages"}

    def given(prompt: str) -> Any:
        return prompt if is_model else {"messages": [("user", prompt)]}

    def read(prompt: str) -> None:
        for _ in asked.stream(given(prompt), config, **options):
            pass

    async def aread(prompt: str) -> None:
        async for _ in asked.astream(given(prompt), config, **options):
            pass

    if stream:
        return Calls(read, aread)
    return Calls(
        lambda prompt: asked.invoke(given(prompt), config), lambda prompt: asked.ainvoke(given(prompt), config)
    )


def as_it_is(function: Callable[[str], None]) -> Callable[[str], None]:
    """`function`: a thread starts with an empty context."""
    return function


def threads(calls: Sequence[Calls], prompts: Sequence[str], carry: Carry = as_it_is) -> Tally:
    """Every call in a thread of its own, all let go at once."""
    tally, barrier = Tally(len(prompts)), threading.Barrier(len(prompts))

    def work(call: Calls, prompt: str) -> None:
        barrier.wait()
        with tally.one():
            call.sync(prompt)

    at_work = [
        threading.Thread(target=carry(partial(work, call)), args=(prompt,), daemon=True)
        for call, prompt in zip(calls, prompts, strict=True)
    ]
    started = time.monotonic()
    for thread in at_work:
        thread.start()
    for thread in at_work:
        thread.join(max(0.0, started + PATIENCE - time.monotonic()))
    return tally.close(started, sum(thread.is_alive() for thread in at_work))


def tasks(calls: Sequence[Calls], prompts: Sequence[str], _carry: Carry = as_it_is) -> Tally:
    """Every call in a task of its own, on one loop."""
    tally = Tally(len(prompts))

    async def work(call: Calls, prompt: str) -> None:
        with tally.one():
            await call.task(prompt)

    async def everything() -> Tally:
        started = time.monotonic()
        at_work = [asyncio.ensure_future(work(*one)) for one in zip(calls, prompts, strict=True)]
        _done, pending = await asyncio.wait(at_work, timeout=PATIENCE)
        return tally.close(started, len(pending))

    return asyncio.run(everything())


@tool
def look_up(topic: str) -> str:
    """Look a topic up."""
    return f"{topic}: {prose(2, 400)}"


def team(model: Any, middleware: Callable[[], Sequence[Any]]) -> Any:
    """An agent with a plain tool, and a tool inside which it calls an agent of its own."""
    helper = create_agent(model, tools=[look_up], middleware=middleware())

    def delegate(task: str) -> str:
        """Have an assistant do a task."""
        return str(helper.invoke({"messages": [("user", task)]})["messages"][-1].text)

    async def adelegate(task: str) -> str:
        return str((await helper.ainvoke({"messages": [("user", task)]}))["messages"][-1].text)

    tools = [look_up, StructuredTool.from_function(delegate, coroutine=adelegate)]
    return create_agent(model, tools=tools, middleware=middleware())


def settle(provider: ScriptedProvider) -> None:
    """Wait until the provider has billed all it was asked for, also by clients that went away."""
    deadline, before = time.monotonic() + 10 * SLOW, -1
    while time.monotonic() < deadline and not len(provider.served) == provider.received == before:
        before = provider.received
        time.sleep(2 * LATENCY[1])


def outcome(
    provider: ScriptedProvider,
    answers: Answers,
    tally: Tally,
    *,
    expects: tuple[type[Exception], ...] = (),
    note: str = "",
) -> Outcome:
    """A row's figures. Errors that it `expects` are no faults."""
    settle(provider)
    faults = [f"{count} x {kind.__name__}" for kind, count in tally.raised.items() if not issubclass(kind, expects)]
    faults += [f"{tally.hung} hung"] if tally.hung else []
    return Outcome(
        spent=provider.cost_usd,
        served=tally.answered,
        asked=tally.asked,
        cut=answers.cut + sum(not one.complete for one in provider.served),
        seconds=tally.seconds,
        faults=tuple(faults),
        note=note,
    )
