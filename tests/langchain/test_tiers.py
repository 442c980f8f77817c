"""Agents on a ladder of models: when they go down, what is sent there, and what stays as it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, wrap_model_call
from langchain_anthropic.middleware import AnthropicPromptCachingMiddleware
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from runcap.guardrails import Budget, BudgetExceeded, CallEnded, CallRefused, CallStarted, Guard, Tier, TierSwitched
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.guardrails.testing.ledger import LIST_PRICES
from runcap.integrations.langchain import BudgetCallbackHandler, BudgetMiddleware
from runcap.integrations.langchain.dialogue import Dialogue
from runcap.integrations.langchain.rewriting import Target

from ..validators import check_anthropic, check_openai
from . import conftest as plain
from .conftest import LOOK_UP, USER, Serve, Watch, said

Body = Mapping[str, Any]
Answers = Callable[[int, Body], Reply]

GPT, MINI, SONNET, HAIKU = "gpt-4o", "gpt-4o-mini", "claude-sonnet-5", "claude-haiku-4-5"
THREAD: dict[str, Any] = {"configurable": {"thread_id": "1"}}
CLOSING = {"Connection": "close"}


def model(provider: ScriptedProvider, name: str, **more: Any) -> Any:
    """A real client. Asynchronous ones keep their connections for longer than the loop they belong to."""
    make = plain.claude if name.startswith("claude") else plain.openai
    return make(provider, model=name, default_headers=CLOSING, **more)


class Ladder(Watch):
    """A `Watch` of a guard with tiers, its provider, and the bodies that came in."""

    def __init__(self, serve: Serve, answers: Answers, *rungs: Any, switch_at: Any = "any", **budget: Any) -> None:
        super().__init__(**budget)
        self.bodies: list[dict[str, Any]] = []

        def served(number: int, body: Body) -> Reply:
            self.bodies.append(dict(body))
            return answers(number, body)

        self.provider = serve(served)
        tiers = [
            Tier(self.model(one), at)
            for one, at in (rung if isinstance(rung, tuple) else (rung, None) for rung in rungs)
        ]
        self.guard = Guard(self.guard.budget, tiers=tiers, switch_at=switch_at, sinks=(self.sink, self.recorder))
        self.handler = BudgetCallbackHandler(self.guard)
        self.middleware = BudgetMiddleware(self.guard)

    def model(self, name: Any, **more: Any) -> Any:
        return model(self.provider, name, **more) if isinstance(name, str) else name

    def agent(self, own: Any, tools: Sequence[BaseTool] = (LOOK_UP,), *outer: Any, **more: Any) -> Any:
        return create_agent(self.model(own), list(tools), middleware=[*outer, self.middleware], **more)

    @property
    def models(self) -> list[str]:
        return [body["model"] for body in self.bodies]

    @property
    def switches(self) -> list[tuple[str | None, str, bool]]:
        return [(one.before, one.tier, one.forced) for one in self.recorder.of(TierSwitched)]

    def check(self) -> None:
        """Every history is one its provider takes, and the money is what the provider billed, under the cap."""
        for body in self.bodies:
            (check_anthropic if body["model"].startswith("claude") else check_openai)(body)
        assert self.middleware.last_run.spent_usd == self.provider.cost_usd
        cap = self.guard.budget.usd
        assert cap is not None
        assert self.provider.cost_usd <= cap
        self.idle()


def asks(number: int, output_tokens: int = 100) -> Reply:
    return Reply(tool_calls=[("look_up", {"query": f"try {number}"})], output_tokens=output_tokens)


def for_ever(number: int, body: Body) -> Reply:
    return asks(number)


def asking(times: int) -> Answers:
    """A tool call so many times in a turn of the user's, then the end of it."""

    def answer(number: int, body: Body) -> Reply:
        since = 0
        for message in reversed(body["messages"]):
            if message["role"] == "user" and isinstance(message["content"], str):
                break
            since += message["role"] == "assistant"
        return asks(number) if since < times else Reply(text="done", output_tokens=20)

    return answer


def runs_of(names: Sequence[str]) -> list[str]:
    """Names, without those that repeat the one before."""
    return [name for at, name in enumerate(names) if not at or name != names[at - 1]]


# When


def test_down_at_each_share_and_never_up(serve: Serve, invoke: Any) -> None:
    watch = Ladder(serve, asking(24), GPT, (HAIKU, 0.4), (MINI, 0.8), usd="0.05")
    result = invoke(watch.agent(GPT))
    assert result["messages"][-1].text == "done"
    assert runs_of(watch.models) == [GPT, HAIKU, MINI]
    assert watch.switches == [(GPT, HAIKU, False), (HAIKU, MINI, False)]
    shares = [one.share for one in watch.recorder.of(TierSwitched)]
    assert 0.4 <= shares[0] < 0.6
    assert 0.8 <= shares[1] < 1
    assert watch.middleware.last_run.tier == MINI
    watch.check()


def test_not_before_its_share(serve: Serve) -> None:
    watch = Ladder(serve, asking(24), GPT, (MINI, 0.4), usd="0.05")
    watch.agent(GPT).invoke(USER)
    first = watch.models.index(MINI)
    spent = [sum((one.cost_usd for one in watch.provider.served[:calls]), Decimal(0)) for calls in (first - 1, first)]
    assert spent[0] < Decimal("0.02") <= spent[1]


def test_more_is_done_inside_the_same_cap(serve: Serve) -> None:
    calls = []
    for rungs in ([], [GPT, (MINI, 0.5)]):
        watch = Ladder(serve, for_ever, *rungs, usd="0.03")
        with pytest.raises(BudgetExceeded, match=r"usd cap \$0.03"):
            watch.agent(GPT).invoke(USER)
        watch.check()
        calls.append(watch.provider.received)
    assert calls[1] > 2 * calls[0]


def test_at_once_where_the_call_fits_only_there(serve: Serve, invoke: Any) -> None:
    watch = Ladder(serve, asking(2), GPT, MINI, usd="0.005")
    invoke(watch.agent(GPT))
    assert watch.models == [MINI] * 3
    assert watch.switches == [(None, MINI, True)]
    refused = watch.recorder.of(CallRefused)
    assert [one.details.model for one in refused] == [GPT]
    assert watch.middleware.last_run.stopped is None
    watch.check()


def test_the_first_of_the_lower_tiers_that_fits(serve: Serve) -> None:
    watch = Ladder(serve, asking(1), GPT, HAIKU, MINI, usd="0.003")
    watch.agent(GPT).invoke(USER)
    assert (runs_of(watch.models), watch.switches) == ([MINI], [(None, MINI, True)])
    assert [one.details.model for one in watch.recorder.of(CallRefused)] == [GPT, HAIKU]


def test_forced_in_the_middle_and_at_the_end_stopped(serve: Serve, invoke: Any) -> None:
    watch = Ladder(serve, for_ever, GPT, MINI, usd="0.02")
    with pytest.raises(BudgetExceeded, match=r"usd cap \$0.02"):
        invoke(watch.agent(GPT))
    assert runs_of(watch.models) == [GPT, MINI]
    assert watch.switches == [(GPT, MINI, True)]
    assert watch.middleware.last_run.stopped == "cap:usd"
    assert watch.provider.cost_usd > Decimal("0.019")
    watch.check()


def test_up_after_a_top_up(serve: Serve, invoke: Any) -> None:
    watch = Ladder(serve, asking(9), GPT, (MINI, 0.5), usd="0.02")
    agent = watch.agent(GPT)
    with watch.guard.run() as run:
        invoke(agent)
        assert (runs_of(watch.models), run.tier) == ([GPT, MINI], MINI)
        before = len(watch.bodies)
        invoke(agent)
        assert watch.models[before] == run.tier == MINI
        run.top_up(usd="0.03", key="more")
        before = len(watch.bodies)
        invoke(agent)
        assert (watch.models[before], runs_of(watch.models[before:])) == (GPT, [GPT, MINI])
    assert watch.switches == [(GPT, MINI, False)] * 2


def test_a_new_run_begins_at_the_top(serve: Serve) -> None:
    watch = Ladder(serve, asking(12), GPT, (MINI, 0.5), usd="0.03")
    agent = watch.agent(GPT, checkpointer=InMemorySaver())
    for _ in range(2):
        before = len(watch.bodies)
        agent.invoke(USER, THREAD)
        assert runs_of(watch.models[before:]) == [GPT, MINI]
    assert watch.switches == [(GPT, MINI, False)] * 2


def test_only_where_a_turn_begins(serve: Serve, invoke: Any) -> None:
    watch = Ladder(serve, asking(8), GPT, (MINI, 0.1), switch_at="turn", usd="0.10")
    agent = watch.agent(GPT)
    with watch.guard.run():
        history = invoke(agent)["messages"]
        assert runs_of(watch.models) == [GPT]
        assert watch.provider.cost_usd > Decimal("0.01")
        before = len(watch.bodies)
        invoke(agent, said([*history, HumanMessage("and now?")]))
    assert runs_of(watch.models[before:]) == [MINI]
    assert watch.switches == [(GPT, MINI, False)]


def test_forced_in_the_middle_of_a_turn_all_the_same(serve: Serve) -> None:
    watch = Ladder(serve, asking(14), GPT, (MINI, 0.2), switch_at="turn", usd="0.02")
    watch.agent(GPT).invoke(USER)
    assert watch.switches == [(GPT, MINI, True)]


# What it saves

LONG = said([("user", "All work and no play makes Jack a dull boy. " * 500)])


def size_of(value: Any) -> int:
    """Characters of what is said in a body, whichever provider's it is."""
    if isinstance(value, Mapping):
        return sum(size_of(value[name]) for name in ("content", "text", "input", "query") if name in value)
    if isinstance(value, list):
        return sum(map(size_of, value))
    return len(value) if isinstance(value, str) else 0


class Caching:
    """Answers until a second model was called, as a provider that keeps what it was sent before, by model."""

    def __init__(self, *, warm: bool = True, output_tokens: int = 60) -> None:
        self.warm = warm
        self.output_tokens = output_tokens
        self.seen: dict[str, int] = {}

    def __call__(self, number: int, body: Body) -> Reply:
        total, name = size_of(body["messages"]) // 4 + 10 * len(body["messages"]), str(body["model"])
        known = self.seen.get(name, 0) if self.warm else 0
        cached = 0 if name.startswith("gpt") and known < 1_024 else known
        self.seen[name] = total
        written = total - cached if name.startswith("claude") and self.warm else 0
        over = len(self.seen) > 1 or number > 40
        return Reply(
            text="done" if over else "",
            tool_calls=[] if over else [("look_up", {"query": f"try {number}"})],
            output_tokens=self.output_tokens,
            input_tokens=total,
            cached_tokens=cached,
            cache_write_tokens=written,
        )


CACHED = AnthropicPromptCachingMiddleware(unsupported_model_behavior="ignore")


def test_a_warm_cache_makes_a_switch_wait(serve: Serve) -> None:
    """5,600 tokens at $0.20 are cheaper than the same at $1.25, whatever is spent."""
    watch = Ladder(serve, Caching(), SONNET, (HAIKU, 0.3), usd="0.10")
    with suppress(BudgetExceeded):
        watch.agent(SONNET, (LOOK_UP,), CACHED).invoke(LONG)
    assert all(one.forced for one in watch.recorder.of(TierSwitched))
    started = watch.recorder.of(CallStarted)
    ended = watch.recorder.of(CallEnded)
    spent = [one.balance.spent.nano for one in ended if one.balance is not None]
    assert any(nano > 50_000_000 and then.tier == SONNET for nano, then in zip(spent, started[1:], strict=False))
    watch.check()


def test_claude_may_count_more_tokens_in_the_same_text(serve: Serve) -> None:
    """A million at $1.25 and half as many again, where they are cached at $1.25 as they are."""
    watch = Ladder(serve, Caching(), GPT, (HAIKU, 0.3), usd="0.10")
    with suppress(BudgetExceeded):
        watch.agent(GPT).invoke(LONG)
    assert watch.provider.cost_usd > Decimal("0.05")
    assert all(one.forced for one in watch.recorder.of(TierSwitched))


def test_a_cold_one_does_not(serve: Serve) -> None:
    watch = Ladder(serve, Caching(warm=False), SONNET, (HAIKU, 0.5), usd="0.10")
    watch.agent(SONNET).invoke(LONG)
    assert watch.switches == [(SONNET, HAIKU, False)]
    assert 0.5 <= watch.recorder.of(TierSwitched)[0].share < 0.75
    watch.check()


def test_long_answers_outweigh_the_cache(serve: Serve) -> None:
    watch = Ladder(serve, Caching(output_tokens=900), SONNET, (HAIKU, 0.5), usd="0.10")
    watch.agent(SONNET, (LOOK_UP,), CACHED).invoke(said([("user", "find it")]))
    assert watch.switches == [(SONNET, HAIKU, False)]
    watch.check()


@pytest.mark.parametrize("output_tokens", [10, 400])
@pytest.mark.parametrize("rungs", [(GPT, MINI), (SONNET, HAIKU), (GPT, HAIKU), (SONNET, MINI)])
@pytest.mark.parametrize("given", [USER, LONG], ids=["short", "long"])
def test_no_switch_by_share_into_a_dearer_call(
    serve: Serve, rungs: tuple[str, str], output_tokens: int, given: Any
) -> None:
    top, lower = rungs
    watch = Ladder(serve, Caching(output_tokens=output_tokens), top, (lower, 0.4), usd="0.09")
    with suppress(BudgetExceeded):
        watch.agent(top, (LOOK_UP,), CACHED).invoke(given)
    for switch in watch.recorder.of(TierSwitched):
        # Each is the first call to the second model.
        at = watch.models.index(lower)
        before, made = watch.provider.served[at - 1 : at + 1]
        plain_price, out, read, write = map(Decimal, LIST_PRICES[top])
        cached = before.input_tokens if top == SONNET or before.input_tokens >= 1_024 else 0
        fresh = write if top == SONNET else plain_price
        new = made.input_tokens - cached
        instead = (read * cached + fresh * new + out * made.output_tokens) / 1_000_000
        assert switch.forced or made.cost_usd <= instead
    watch.check()


def counted(tokens: int, output: int, name: str = GPT, **details: Any) -> AIMessage:
    """An answer with its usage."""
    usage: Any = {"input_tokens": tokens, "output_tokens": output, "total_tokens": tokens + output, **details}
    return AIMessage("", usage_metadata=usage, response_metadata={"model_name": name})


def test_what_a_call_takes_at_least() -> None:
    dialogue, user = Dialogue(None, Target("openai", GPT)), HumanMessage("find it")
    assert dialogue.expects([user], Target("openai", GPT))[:4] == (3, 0, 0, False)
    first, last = counted(500, 10), counted(2000, 300, output_token_details={"reasoning": 250})
    least = dialogue.expects([user, first, user, last], Target("openai", GPT))
    assert least == (2050, 2000, 10, False, last)


def test_many_results_of_one_answer() -> None:
    results = [ToolMessage("x" * 20, tool_call_id=str(number)) for number in range(50)]
    least = Dialogue(None, Target("openai", GPT)).expects([counted(2000, 300), *results], Target("openai", GPT))
    assert (least.cached, least.output) == (2000, 300)
    assert 2300 < least.tokens < 2300 + 50 * 10


def test_short_prompts_are_not_cached_by_themselves() -> None:
    for provider, cached in [("openai", 0), ("azure", 0), ("deepseek", 900)]:
        target = Target(provider, GPT)
        assert Dialogue(None, target).expects([counted(900, 50)], target).cached == cached


def test_claude_caches_what_it_says_it_caches() -> None:
    dialogue = Dialogue(None, Target("anthropic", SONNET))
    nothing = counted(1000, 50, SONNET)
    some = counted(1000, 50, SONNET, input_token_details={"cache_read": 600, "cache_creation": 300})
    assert dialogue.expects([nothing], Target("anthropic", SONNET))[1:4] == (0, 50, False)
    assert dialogue.expects([some], Target("anthropic", SONNET))[1:4] == (900, 50, True)


def test_a_cut_prompt_is_cached_nowhere_until_it_is_answered() -> None:
    dialogue, answer = Dialogue(None, Target("openai", GPT)), counted(2000, 50)
    dialogue.cools()
    assert dialogue.expects([answer], Target("openai", GPT)).cached == 0
    dialogue.answered(answer)
    assert dialogue.expects([answer], Target("openai", GPT)).cached == 2000


def test_another_models_first_answer_tells_nothing_of_the_cache() -> None:
    dialogue = Dialogue(None, Target("openai", GPT))
    for name in (GPT, f"{MINI}-2024-07-18"):
        dialogue.answered(counted(4000, 50, name))
        assert dialogue.hits == 1.0
    dialogue.answered(counted(4000, 50, f"{MINI}-2024-07-18"))
    assert dialogue.hits == 0.5


@pytest.mark.parametrize(
    ("by", "old"),
    [(GPT, True), ("gpt-4o-2024-08-06", True), (MINI, False), ("gpt-4o-mini-2024-07-18", False), ("who", True)],
)
def test_whose_cache_is_warm(by: str, old: bool) -> None:
    least = Dialogue(None, Target("openai", GPT)).expects([counted(1000, 50, by)], Target("openai", GPT))
    assert least.is_cached_with(Target("openai", GPT), unless=Target("openai", MINI)) is old


# What is sent


@pytest.mark.parametrize("rungs", [(GPT, HAIKU), (SONNET, MINI), (GPT, MINI), (SONNET, HAIKU)])
def test_there_and_back_with_histories_that_are_valid(serve: Serve, invoke: Any, rungs: tuple[str, str]) -> None:
    top, lower = rungs
    watch = Ladder(serve, asking(6), top, (lower, 0.05), usd="0.10")
    agent = watch.agent(top, checkpointer=InMemorySaver(), system_prompt="Be brief.")
    for _ in range(2):
        before = len(watch.bodies)
        invoke(agent, USER, THREAD)
        assert runs_of(watch.models[before:]) == [top, lower]
        assert watch.middleware.last_run.tier == lower
    for body in watch.bodies:
        (check_anthropic if body["model"].startswith("claude") else check_openai)(body)
        assert body["tools"]
    messages = agent.get_state(THREAD).values["messages"]
    answers = [one for one in messages if isinstance(one, AIMessage)]
    assert [one.response_metadata["model_name"] for one in answers] == watch.models


def test_the_state_is_what_was_said(serve: Serve) -> None:
    """Ids are others on the wire to another provider, and the provider's own in the agent's state."""
    watch = Ladder(serve, asking(14), GPT, (HAIKU, 0.3), usd="0.06")
    messages: list[BaseMessage] = watch.agent(GPT).invoke(USER)["messages"]
    calls = [str(call["id"]) for one in messages if isinstance(one, AIMessage) for call in one.tool_calls]
    assert all(call.startswith("call_") for call in calls)
    assert calls == [one.tool_call_id for one in messages if isinstance(one, ToolMessage)]
    wire = json.dumps(watch.bodies[-1]["messages"])
    assert watch.models[-1] == HAIKU
    first = watch.models.index(HAIKU)
    assert [call in wire for call in calls] == [at >= first for at in range(len(calls))]
    watch.check()


THOUGHT: list[Any] = [
    {"type": "thinking", "thinking": "SECRET", "signature": "c2ln"},
    {"type": "text", "text": "Let me look."},
    {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"query": "x"}},
]
REASONED: list[Any] = [
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "SECRET"}]},
    {"type": "text", "text": "Let me look.", "id": "msg_1"},
]


def earlier(content: list[Any], by: str, name: str) -> list[BaseMessage]:
    """A history in which a model has thought."""
    calls: list[Any] = [{"name": "look_up", "args": {"query": "x"}, "id": "toolu_1", "type": "tool_call"}]
    answer = AIMessage(content, tool_calls=calls, response_metadata={"model_provider": by, "model_name": name})
    return [HumanMessage("find x"), answer, ToolMessage("nothing", tool_call_id="toolu_1"), HumanMessage("go on")]


@pytest.mark.parametrize(
    ("top", "lower", "content", "by"),
    [
        (SONNET, MINI, THOUGHT, "anthropic"),
        (SONNET, HAIKU, THOUGHT, "anthropic"),
        (GPT, HAIKU, REASONED, "openai"),
        (GPT, MINI, REASONED, "openai"),
    ],
)
def test_reasoning_stays_behind(serve: Serve, top: str, lower: str, content: list[Any], by: str) -> None:
    watch = Ladder(serve, asking(0), top, lower, usd="0.006")
    history = earlier(content, by, top)
    result = watch.agent(top).invoke(said([*history]))
    assert watch.models == [lower]
    wire = json.dumps(watch.bodies)
    assert "SECRET" not in wire
    assert "Let me look." in wire
    assert not any(item in wire for item in ("rs_1", "msg_1", "c2ln"))
    assert [one.content for one in result["messages"][:4]] == [one.content for one in history]
    watch.check()


class Found(BaseModel):
    """What was found."""

    city: str


def structured(number: int, body: Body) -> Reply:
    """Five tool calls, then the answer in whichever form it is asked for."""
    if number < 5:
        return asks(number)
    names = [one.get("name") or one["function"]["name"] for one in body["tools"]]
    if "Found" in names:
        return Reply(tool_calls=[("Found", {"city": "Lisbon"})], output_tokens=20)
    assert {"response_format", "output_config", "output_format"} & body.keys()
    return Reply(text='{"city": "Lisbon"}', output_tokens=20)


@pytest.mark.parametrize("rungs", [(GPT, HAIKU), (SONNET, MINI), (GPT, MINI), (SONNET, HAIKU)])
def test_tools_and_structured_output_go_along(serve: Serve, invoke: Any, rungs: tuple[str, str]) -> None:
    top, lower = rungs
    watch = Ladder(serve, structured, top, (lower, 0.1), usd="0.04")
    result = invoke(watch.agent(top, response_format=Found))
    assert result["structured_response"] == Found(city="Lisbon")
    assert runs_of(watch.models) == [top, lower]
    for body in watch.bodies:
        given = body["tools"][0]
        assert given["input_schema"] if body["model"].startswith("claude") else given["function"]["parameters"]
    watch.check()


def setting(**settings: Any) -> AgentMiddleware[Any, Any, Any]:
    """A middleware that sets what is given on every call."""

    @wrap_model_call(name="settings")
    def outer(request: Any, handler: Any) -> Any:
        return handler(request.override(model_settings={**request.model_settings, **settings}))

    return outer


def test_settings_of_one_provider_are_not_sent_to_another(serve: Serve) -> None:
    own = setting(
        seed=7, parallel_tool_calls=False, prompt_cache_key="k", logit_bias={"1": 1}, stop=["STOP"], temperature=0.5
    )
    watch = Ladder(serve, asking(14), GPT, (HAIKU, 0.3), usd="0.06")
    watch.agent(GPT, (LOOK_UP,), own).invoke(USER)
    first, last = watch.bodies[0], watch.bodies[-1]
    assert (first["seed"], first["parallel_tool_calls"], first["stop"], first["temperature"]) == (
        7,
        False,
        ["STOP"],
        0.5,
    )
    assert last["model"] == HAIKU
    assert (last["stop_sequences"], last["temperature"]) == (["STOP"], 0.5)
    assert not {"seed", "parallel_tool_calls", "prompt_cache_key", "logit_bias", "stop"} & last.keys()
    watch.check()


def test_they_stay_with_the_same_provider(serve: Serve) -> None:
    watch = Ladder(serve, asking(14), GPT, (MINI, 0.3), usd="0.06")
    watch.agent(GPT, (LOOK_UP,), setting(seed=7, parallel_tool_calls=False)).invoke(USER)
    assert watch.models[-1] == MINI
    assert all((body["seed"], body["parallel_tool_calls"]) == (7, False) for body in watch.bodies)


@pytest.mark.parametrize(
    ("top", "lower", "given", "left"),
    [
        ("gpt-5", MINI, {"reasoning_effort": "high"}, {}),
        ("gpt-5", HAIKU, {"reasoning_effort": "high"}, {}),
        ("gpt-5", "gpt-5-mini", {"reasoning_effort": "minimal"}, {"reasoning_effort": "minimal"}),
        ("gpt-5.2", SONNET, {"reasoning_effort": "high"}, {"output_config": {"effort": "high"}}),
        ("gpt-5.2", SONNET, {"reasoning_effort": "minimal"}, {}),
        (GPT, "gpt-5-mini", {"temperature": 0.5}, {}),
        (GPT, HAIKU, {"service_tier": "flex"}, {}),
        (GPT, MINI, {"service_tier": "flex"}, {"service_tier": "flex"}),
    ],
)
def test_settings_that_a_model_does_not_have_stay_behind(
    serve: Serve, top: str, lower: str, given: dict[str, Any], left: dict[str, Any]
) -> None:
    watch = Ladder(serve, asking(0), top, lower, usd="0.008" if top.startswith("gpt-5") else "0.0035")
    big = watch.model(top, max_tokens=4_000)
    create_agent(big, [LOOK_UP], middleware=[setting(**given), watch.middleware]).invoke(USER)
    assert watch.models == [lower]
    (body,) = watch.bodies
    names = ("reasoning_effort", "output_config", "temperature", "service_tier")
    assert {name: body[name] for name in names if name in body} == left


def test_cache_control_stays_with_claude(serve: Serve) -> None:
    ephemeral = {"type": "ephemeral"}
    watch = Ladder(serve, asking(14), SONNET, (MINI, 0.3), usd="0.06")
    system = SystemMessage([{"type": "text", "text": "Be brief.", "cache_control": ephemeral}])
    asked = said([HumanMessage([{"type": "text", "text": "find it", "cache_control": ephemeral}])])
    result = watch.agent(SONNET, (LOOK_UP,), CACHED, system_prompt=system).invoke(asked)
    marked = ["cache_control" in json.dumps(body) for body in watch.bodies]
    assert runs_of(watch.models) == [SONNET, MINI]
    assert marked == [name == SONNET for name in watch.models]
    assert result["messages"][0].content == asked["messages"][0].content
    watch.check()


def test_tools_that_run_at_a_provider_stay_there(serve: Serve) -> None:
    search: Any = {"type": "web_search_20250305", "name": "web_search", "max_uses": 1}
    watch = Ladder(serve, asking(14), SONNET, (MINI, 0.2), usd="0.10")
    watch.agent(SONNET, [LOOK_UP, search]).invoke(USER)
    assert runs_of(watch.models) == [SONNET, MINI]
    assert [len(body["tools"]) for body in watch.bodies] == [1 + (name == SONNET) for name in watch.models]


def test_forced_tool_choices_are_understood(serve: Serve) -> None:
    @wrap_model_call(name="forcing")
    def force(request: Any, handler: Any) -> Any:
        return handler(request.override(tool_choice={"type": "function", "function": {"name": "look_up"}}))

    watch = Ladder(serve, asking(14), GPT, (HAIKU, 0.3), usd="0.06")
    watch.agent(GPT, (LOOK_UP,), force).invoke(USER)
    assert watch.models[-1] == HAIKU
    assert watch.bodies[-1]["tool_choice"] == {"type": "tool", "name": "look_up"}


# Which models


def test_names_are_made_models(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = serve(asking(14))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_BASE_URL", provider.openai_url)
    guard = Guard(Budget(usd="0.06"), tiers=[Tier(f"openai:{GPT}"), Tier(MINI, at=0.3)], sinks=())
    middleware = BudgetMiddleware(guard)
    agent: Any = create_agent(f"openai:{GPT}", [LOOK_UP], middleware=[middleware])
    assert agent.invoke(USER)["messages"][-1].text == "done"
    assert runs_of([one.model for one in provider.served]) == [GPT, MINI]
    assert middleware.last_run.spent_usd == provider.cost_usd


def test_a_tier_without_a_price_is_named_at_once(serve: Serve) -> None:
    provider = serve(Reply())
    tiers = [Tier(model(provider, GPT)), Tier(model(provider, "my-own-model"), at=0.5)]
    with pytest.raises(ValueError, match=r"Tier\.model 'my-own-model' has no known price: give one, Guard\(prices="):
        BudgetMiddleware(Guard(Budget(usd=1), tiers=tiers, sinks=()))


@pytest.mark.parametrize("what", [object(), "bound"])
def test_a_tier_that_is_no_model_is_named_at_once(serve: Serve, what: Any) -> None:
    given = model(serve(Reply()), MINI).bind_tools([LOOK_UP]) if what == "bound" else what
    with pytest.raises(TypeError, match=r"Tier\.model must be a chat model, or its name"):
        BudgetMiddleware(Guard(Budget(usd=1), tiers=[Tier(model(serve(Reply()), GPT)), Tier(given)], sinks=()))


def test_an_agent_with_a_lower_tiers_model_begins_there(serve: Serve) -> None:
    watch = Ladder(serve, asking(14), GPT, (HAIKU, 0.3), (MINI, 0.6), usd="0.015")
    watch.agent(HAIKU).invoke(USER)
    assert runs_of(watch.models) == [HAIKU, MINI]
    assert watch.switches == [(HAIKU, MINI, False)]
    watch.check()


def test_an_agent_with_a_lower_tiers_model_is_forced_down_from_there(serve: Serve) -> None:
    watch = Ladder(serve, asking(0), GPT, HAIKU, MINI, usd="0.002")
    watch.agent(HAIKU).invoke(USER)
    assert [one.details.model for one in watch.recorder.of(CallRefused)] == [HAIKU]
    assert watch.switches == [(None, MINI, True)]


def test_an_agents_own_model_is_called_with_its_own_settings(serve: Serve) -> None:
    watch = Ladder(serve, asking(1), GPT, (MINI, 0.9), usd="0.50")
    for own in (GPT, MINI):
        create_agent(watch.model(own, max_tokens=77), [LOOK_UP], middleware=[watch.middleware]).invoke(USER)
    assert {(body["model"], body["max_completion_tokens"]) for body in watch.bodies} == {(GPT, 77), (MINI, 77)}
    assert watch.switches == []


def test_an_agent_with_another_model_begins_above_the_ladder(serve: Serve) -> None:
    watch = Ladder(serve, asking(14), HAIKU, (MINI, 0.4), usd="0.04")
    watch.agent(GPT).invoke(USER)
    assert runs_of(watch.models) == [GPT, MINI]
    assert watch.switches == [(GPT, MINI, False)]
    watch.check()


# Agents in agents


def team(watch: Ladder, inner: Any) -> Any:
    """An agent with another one in a tool."""

    @tool
    def delegate(task: str) -> str:
        """Let another agent do it."""
        return str(inner.invoke(USER)["messages"][-1].text)

    return watch.agent(GPT, [delegate], name="boss")


def delegating(times: int) -> Answers:
    """The outer agent delegates twice; the inner one looks up so many times."""
    inner = asking(times)

    def answer(number: int, body: Body) -> Reply:
        if "delegate" not in json.dumps(body["tools"]):
            return inner(number, body)
        done = sum(message["role"] == "assistant" for message in body["messages"])
        return Reply(tool_calls=[("delegate", {"task": "it"})]) if done < 2 else Reply(text="done")

    return answer


def by_agent(watch: Ladder) -> tuple[list[str], list[str]]:
    """The models that the outer agent was on, and the inner one."""
    outer = ["delegate" in json.dumps(body["tools"]) for body in watch.bodies]
    names = list(zip(watch.models, outer, strict=True))
    return [name for name, is_outer in names if is_outer], [name for name, is_outer in names if not is_outer]


def test_an_agent_in_a_tool_goes_down_with_its_run(serve: Serve) -> None:
    watch = Ladder(serve, delegating(8), GPT, (MINI, 0.4), usd="0.03")
    result = team(watch, watch.agent(GPT, name="helper")).invoke(USER)
    assert result["messages"][-1].text == "done"
    outer, inner = by_agent(watch)
    assert outer == [GPT, MINI, MINI]
    assert runs_of(inner) == [GPT, MINI]
    assert inner[9:] == [MINI] * 9
    assert watch.switches == [(GPT, MINI, False)]
    watch.check()


def test_an_agent_given_a_cheaper_model_takes_no_other_along(serve: Serve) -> None:
    watch = Ladder(serve, delegating(3), GPT, (MINI, 0.9), usd="0.50")
    team(watch, watch.agent(MINI, name="helper")).invoke(USER)
    outer, inner = by_agent(watch)
    assert outer == [GPT] * 3
    assert inner == [MINI] * 8
    assert watch.middleware.last_run.tier == GPT
    assert watch.switches == []
    watch.check()


def test_agents_at_once_go_down_once(serve: Serve) -> None:
    watch = Ladder(serve, asking(6), GPT, (MINI, 0.3), usd="0.20")
    agent = watch.agent(GPT)

    async def all_of_them() -> None:
        async with watch.guard.run():
            await asyncio.gather(*(agent.ainvoke(USER) for _ in range(12)))

    asyncio.run(all_of_them())
    assert {GPT, MINI} == {*watch.models}
    assert watch.switches == [(GPT, MINI, False)]
    watch.check()


# What is told


def test_calls_say_their_tier(serve: Serve) -> None:
    watch = Ladder(serve, asking(12), GPT, (HAIKU, 0.3), usd="0.06")
    watch.agent(GPT, name="helper").invoke(USER)
    assert [one.tier for one in watch.recorder.of(CallStarted)] == watch.models
    assert [one.tier for one in watch.recorder.of(CallEnded)] == watch.models
    chats = sorted((one for one in watch.spans if one.name.startswith("chat ")), key=lambda one: one.start_time or 0)
    assert [dict(one.attributes or {})["runcap.tier"] for one in chats] == watch.models
    whole = next(one for one in watch.spans if one.name == "invoke_agent helper")
    (event,) = [one for one in whole.events if one.name == "runcap.tier.switched"]
    told = dict(event.attributes or {})
    assert told["runcap.tier.share"] == pytest.approx(watch.recorder.of(TierSwitched)[0].share, abs=1e-4)
    assert (told["runcap.tier.before"], told["runcap.tier"], told["runcap.tier.forced"]) == (GPT, HAIKU, False)


def test_without_tiers_nothing_is_said_of_them(serve: Serve) -> None:
    watch = Ladder(serve, asking(2), usd="0.06")
    watch.agent(GPT).invoke(USER)
    assert {one.tier for one in watch.recorder.of(CallEnded)} == {None}
    assert watch.middleware.last_run.tier is None
    assert not any("runcap.tier" in (one.attributes or {}) for one in watch.spans)


def test_an_error_of_the_lower_model_is_no_switch(serve: Serve) -> None:
    def failing(number: int, body: Body) -> Reply:
        return Reply(status=400) if body["model"] == MINI else asks(number)

    watch = Ladder(serve, failing, GPT, (MINI, 0.3), usd="0.06")
    with pytest.raises(Exception, match="scripted 400"):
        watch.agent(GPT).invoke(USER)
    assert (watch.models[-1], watch.switches) == (MINI, [])
    assert watch.middleware.last_run.tier == GPT


def test_streams_go_down_too(serve: Serve) -> None:
    watch = Ladder(serve, asking(14), GPT, (HAIKU, 0.3), usd="0.06")
    chunks = [chunk for chunk, _ in watch.agent(GPT).stream(USER, stream_mode="messages")]
    assert chunks[-1].text or chunks
    assert all(body["stream"] for body in watch.bodies)
    assert (runs_of(watch.models), watch.switches) == ([GPT, HAIKU], [(GPT, HAIKU, False)])
    watch.check()


def test_the_ladder_is_the_middlewares(serve: Serve) -> None:
    """Without one there is nobody to carry it out."""
    provider = serve(asking(3))
    guard = Guard(Budget(usd="0.05"), tiers=[Tier(model(provider, GPT)), Tier(model(provider, MINI), at=0.5)], sinks=())
    assert guard.unsteered
    BudgetMiddleware(guard)
    assert not guard.unsteered
    assert isinstance(guard.tiers[0].model, ChatOpenAI)


def test_what_fits_on_no_lower_tier_is_cut_short_where_it_is(serve: Serve) -> None:
    """The provider has counted the prompt for the one model; for the other only its bytes bound it."""

    def answer(number: int, body: Body) -> Reply:
        return asks(number, 900) if number < 3 else Reply(text="done", output_tokens=200)

    watch = Ladder(serve, answer, GPT, HAIKU, usd="0.090")
    result = watch.agent(watch.model(GPT, max_tokens=1500)).invoke(LONG)
    assert result["messages"][-1].text == "done"
    assert (watch.models, watch.switches) == ([GPT] * 4, [])
    assert watch.bodies[-1]["max_completion_tokens"] < 1500
    watch.check()


def test_what_one_claude_counted_bounds_it_for_another(serve: Serve) -> None:
    """So that the call fits on the lower tier, where its bytes alone would not."""

    def answer(number: int, body: Body) -> Reply:
        return asks(number, 900) if number < 3 else Reply(text="done", output_tokens=200)

    watch = Ladder(serve, answer, SONNET, HAIKU, usd="0.078")
    result = watch.agent(watch.model(SONNET, max_tokens=1500)).invoke(LONG)
    assert result["messages"][-1].text == "done"
    assert (watch.models, watch.switches) == ([*[SONNET] * 3, HAIKU], [(SONNET, HAIKU, True)])
    watch.check()


def test_a_ladder_goes_from_dear_to_cheap(serve: Serve) -> None:
    provider = serve(asking(1))
    for tiers in ([MINI, GPT], [GPT, GPT]):
        rungs = [Tier(model(provider, name)) for name in tiers]
        with pytest.raises(ValueError, match="is no cheaper than"):
            BudgetMiddleware(Guard(Budget(usd=1), tiers=rungs, sinks=()))
