"""Other projects' guards on the calls of `ceiling.py`, each as its own documentation sets it up for a fan-out.

floe-guard   its LangChain callback; its wrapper of the openai client; and its LangGraph node around ChatOpenAI, told
             what the call can cost at most, as its documentation advises where the first step is a fan-out already.
shekel       `with budget(...)` around ChatOpenAI, and around the openai client, which it patches.
pydantic-ai  one RunUsage for all runs of an agent, under UsageLimits(cost_limit=...).
langchain    ModelCallLimitMiddleware, which counts calls: $1 buys ten of $0.10, so ten a thread, one thread for all.
"""

from __future__ import annotations

import contextvars
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypedDict

from ceiling_workloads import (
    CALLS,
    CAP,
    INPUT_TOKENS,
    KEY,
    LONGEST,
    Answers,
    Calls,
    Carry,
    Outcome,
    Tally,
    calls_of,
    chat,
    outcome,
    same,
)
from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from openai import AsyncOpenAI, OpenAI

from runcap.guardrails.testing import ScriptedProvider

MODEL, KEY_TEXT, USD = "gpt-4o", KEY.get_secret_value(), float(CAP)
CALLS_FOR_CAP = 10


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A guard: what to install, what to import, and a context in which its calls can be made."""

    name: str
    package: str
    module: str
    attach: Callable[[str], AbstractContextManager[Calls]]

    @property
    def installed(self) -> bool:
        """It can be imported."""
        return find_spec(self.module) is not None

    def run(self, together: Callable[[Sequence[Calls], Sequence[str], Carry], Tally]) -> Outcome:
        """A hundred calls at once, cold."""
        answers = Answers()
        with (
            warnings.catch_warnings(record=True) as warned,
            ScriptedProvider(answers) as provider,
            self.attach(provider.openai_url) as calls,
        ):
            got = outcome(provider, answers, together([calls] * CALLS, same(), with_context))
        said = [str(one.message) for one in warned if self.module in str(one.message)]
        return replace(got, note=f"it warns: {said[0].partition('. ')[0]}") if said else got


def with_context(function: Callable[[str], None]) -> Callable[[str], None]:
    """`function` in a copy of this context, where shekel keeps its budget."""
    return partial(contextvars.copy_context().run, function)


def clients(url: str) -> tuple[OpenAI, AsyncOpenAI]:
    """Clients of the openai package. They keep no connection, which would outlive its loop."""
    settings: dict[str, Any] = {"base_url": url, "api_key": KEY_TEXT, "default_headers": {"Connection": "close"}}
    return OpenAI(**settings), AsyncOpenAI(**settings)


def request(prompt: str) -> dict[str, Any]:
    """The same request, for the openai client."""
    return {"model": MODEL, "max_tokens": LONGEST, "messages": [{"role": "user", "content": prompt}]}


def silent(_spent: float, _limit: float) -> None:
    """In place of floe-guard's banner, once for each refusal."""


@contextmanager
def floe_callback(url: str) -> Iterator[Calls]:
    """Checks before a call, records after it."""
    guard = import_module("floe_guard").BudgetGuard(limit_usd=USD, on_block=silent)
    handler = import_module("floe_guard.integrations.langchain").budget_guard_callback_handler(guard)
    yield calls_of(chat(url, max_tokens=LONGEST, callbacks=[handler]))


@contextmanager
def floe_openai(url: str) -> Iterator[Calls]:
    """Reserves what the last call cost."""
    guard = import_module("floe_guard").BudgetGuard(limit_usd=USD, on_block=silent)
    wrapper = import_module("floe_guard.integrations.openai")
    client, task_client = clients(url)
    yield Calls(
        lambda prompt: wrapper.guarded_completion(guard, client, **request(prompt)),
        lambda prompt: wrapper.guarded_acompletion(guard, task_client, **request(prompt)),
    )


class NodeState(TypedDict, total=False):
    """What floe-guard's node reads and writes."""

    messages: list[Any]
    usage: dict[str, Any]


def node_update(answer: Any) -> NodeState:
    """A node's report, as floe-guard settles it."""
    used = answer.usage_metadata
    tokens = {"prompt_tokens": used["input_tokens"], "completion_tokens": used["output_tokens"]}
    return {"messages": [answer], "usage": {"model": MODEL, **tokens}}


@contextmanager
def floe_node(url: str) -> Iterator[Calls]:
    """Reserves the dearest the call can be."""
    guard = import_module("floe_guard").BudgetGuard(limit_usd=USD, on_block=silent)
    model, dearest = chat(url, max_tokens=LONGEST), guard.estimate_call(MODEL, INPUT_TOKENS, LONGEST)

    def work(state: NodeState) -> NodeState:
        return node_update(model.invoke(state["messages"]))

    async def awork(state: NodeState) -> NodeState:
        return node_update(await model.ainvoke(state["messages"]))

    def graph(function: Callable[[NodeState], Any]) -> Any:
        wrap = import_module("floe_guard.integrations.langgraph").guarded_node
        builder = StateGraph(NodeState)
        builder.add_node("work", wrap(guard, function, estimated_cost=dearest, advisory_key=None))
        builder.add_edge(START, "work")
        builder.add_edge("work", END)
        return builder.compile()

    yield Calls(calls_of(graph(work)).sync, calls_of(graph(awork)).task)


@contextmanager
def shekel_langchain(url: str) -> Iterator[Calls]:
    """Around LangChain's model, whose client it patches."""
    with import_module("shekel").budget(max_usd=USD):
        yield calls_of(chat(url, max_tokens=LONGEST))


@contextmanager
def shekel_openai(url: str) -> Iterator[Calls]:
    """Around the client it patches."""
    client, task_client = clients(url)
    with import_module("shekel").budget(max_usd=USD):
        yield Calls(
            lambda prompt: client.chat.completions.create(**request(prompt)),
            lambda prompt: task_client.chat.completions.create(**request(prompt)),
        )


@contextmanager
def pydantic_ai(url: str) -> Iterator[Calls]:
    """One usage for all runs. A thread has a loop of its own and needs a client of its own, made beforehand."""
    usage_module, providers = import_module("pydantic_ai.usage"), import_module("pydantic_ai.providers.openai")
    chat_model = import_module("pydantic_ai.models.openai").OpenAIChatModel
    agent = import_module("pydantic_ai").Agent(model_settings={"max_tokens": LONGEST})
    limits, usage = usage_module.UsageLimits(cost_limit=CAP, request_limit=None), usage_module.RunUsage()

    def model() -> Any:
        return chat_model(MODEL, provider=providers.OpenAIProvider(base_url=url, api_key=KEY_TEXT))

    spare, shared = [model() for _ in range(CALLS)], model()
    yield Calls(
        lambda prompt: agent.run_sync(prompt, model=spare.pop(), usage=usage, usage_limits=limits),
        lambda prompt: agent.run(prompt, model=shared, usage=usage, usage_limits=limits),
    )


@contextmanager
def langchain_call_limit(url: str) -> Iterator[Calls]:
    """Ten calls a thread, all in one thread."""
    limit = ModelCallLimitMiddleware(thread_limit=CALLS_FOR_CAP, exit_behavior="error")
    model = chat(url, max_tokens=LONGEST)
    agent = create_agent(model, tools=[], middleware=[limit], checkpointer=InMemorySaver())
    yield calls_of(agent, config={"configurable": {"thread_id": "job"}})


PEERS = (
    Peer(name="floe-guard callback", package="floe-guard", module="floe_guard", attach=floe_callback),
    Peer(name="floe-guard openai", package="floe-guard", module="floe_guard", attach=floe_openai),
    Peer(name="floe-guard node", package="floe-guard", module="floe_guard", attach=floe_node),
    Peer(name="shekel ChatOpenAI", package="shekel", module="shekel", attach=shekel_langchain),
    Peer(name="shekel openai", package="shekel", module="shekel", attach=shekel_openai),
    Peer(name="pydantic-ai", package="pydantic-ai-slim[openai]", module="pydantic_ai", attach=pydantic_ai),
    Peer(name="ModelCallLimit", package="langchain", module="langchain", attach=langchain_call_limit),
)
