"""Other projects' guards on the calls of `ceiling.py`, each as its own documentation sets it up for a fan-out.

floe-guard   its LangChain callback; its wrapper of the openai client; and its LangGraph node around ChatOpenAI, told
             what the call can cost at most, as its documentation advises where the first step is a fan-out already.
shekel       `with budget(...)` around ChatOpenAI, and around the openai client, which it patches.
pydantic-ai  one RunUsage for all runs of an agent, under UsageLimits(cost_limit=...).
langchain    ModelCallLimitMiddleware, which counts calls: $1 buys ten of $0.10, so ten a thread, one thread for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
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

    def run(self, together: Callable[[Sequence[Calls], Sequence[str]], Tally]) -> Outcome:
        """A hundred calls at once, cold."""
        answers = Answers()
        with ScriptedProvider(answers) as provider, self.attach(provider.openai_url) as calls:
            return outcome(provider, answers, together([calls] * CALLS, same()))


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
    client, task_client = OpenAI(base_url=url, api_key=KEY_TEXT), AsyncOpenAI(base_url=url, api_key=KEY_TEXT)
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
    client, task_client = OpenAI(base_url=url, api_key=KEY_TEXT), AsyncOpenAI(base_url=url, api_key=KEY_TEXT)
    with import_module("shekel").budget(max_usd=USD):
        yield Calls(
            lambda prompt: client.chat.completions.create(**request(prompt)),
            lambda prompt: task_client.chat.completions.create(**request(prompt)),
        )


@contextmanager
def pydantic_ai(url: str) -> Iterator[Calls]:
    """One usage for all runs; each has a client of its own, because each thread has a loop of its own."""
    usage_module, providers = import_module("pydantic_ai.usage"), import_module("pydantic_ai.providers.openai")
    chat_model = import_module("pydantic_ai.models.openai").OpenAIChatModel
    agent = import_module("pydantic_ai").Agent(model_settings={"max_tokens": LONGEST})
    limits, usage = usage_module.UsageLimits(cost_limit=CAP, request_limit=None), usage_module.RunUsage()

    def how() -> dict[str, Any]:
        model = chat_model(MODEL, provider=providers.OpenAIProvider(base_url=url, api_key=KEY_TEXT))
        return {"model": model, "usage": usage, "usage_limits": limits}

    yield Calls(lambda prompt: agent.run_sync(prompt, **how()), lambda prompt: agent.run(prompt, **how()))


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
