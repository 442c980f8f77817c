"""`guard_model` on what models are bound into: retries, fallbacks, chains, configurable fields and alternatives."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda

from runcap.guardrails import BudgetExceeded
from runcap.guardrails.testing import Reply
from runcap.integrations.langchain import guard_model

from .conftest import Caller, Serve, Watch, a_guarded, both, claude, openai, total


@both
def test_configurable_fields(serve: Serve, caller: Caller, make: Any) -> None:
    field = ConfigurableField(id="cap")
    provider, watch, model = a_guarded(make, serve, Reply(output_tokens=50))
    for configurable in (
        model.configurable_fields(max_tokens=field),
        guard_model(make(provider).configurable_fields(max_tokens=field), watch.guard),
    ):
        caller.invoke(configurable, "hi")
        caller.invoke(configurable.with_config(configurable={"cap": 10}), "hi")
        caller.invoke(configurable, "hi", {"configurable": {"cap": 20}})
    assert [one.output_tokens for one in provider.served] == [50, 10, 20] * 2
    total(watch, provider, 6)


def test_configurable_alternatives(serve: Serve, caller: Caller) -> None:
    provider, watch = serve(Reply(text="ok")), Watch(usd=1)
    which = ConfigurableField(id="which")
    guarded = guard_model(openai(provider), watch.guard).configurable_alternatives(
        which, claude=guard_model(claude(provider), watch.guard)
    )
    of_bare = guard_model(
        openai(provider).configurable_alternatives(which, claude=claude(provider), made=lambda: claude(provider)),
        watch.guard,
    )
    for model in (guarded, of_bare):
        caller.invoke(model, "hi")
        caller.invoke(model, "hi", {"configurable": {"which": "claude"}})
    assert [one.model for one in provider.served] == ["gpt-4o", "claude-sonnet-5"] * 2
    total(watch, provider, 4)


@pytest.mark.parametrize("attached", [False, True])
def test_alternatives_made_by_a_function(serve: Serve, caller: Caller, attached: bool) -> None:
    provider, watch = serve(Reply(text="ok")), Watch(usd=1)
    alternatives = openai(provider).configurable_alternatives(
        ConfigurableField(id="which"), made=lambda: claude(provider)
    )
    model = guard_model(alternatives, watch.guard)
    config = {"configurable": {"which": "made"}} | (watch.config if attached else {})
    caller.invoke(model, "hi", config)
    total(watch, provider, 1)


@both
def test_with_retry(serve: Serve, caller: Caller, make: Any) -> None:
    provider, watch = serve([Reply(status=429), Reply(status=429), Reply(text="ok")]), Watch(usd=1)
    retrying = guard_model(
        make(provider).with_retry(
            stop_after_attempt=3, exponential_jitter_params={"initial": 0, "max": 0, "jitter": 0}
        ),
        watch.guard,
    )
    assert caller.invoke(retrying, "hi").text == "ok"
    total(watch, provider, 3)


@both
@pytest.mark.parametrize("also", ["alone", "handler"])
def test_with_fallbacks(serve: Serve, caller: Caller, make: Any, also: str) -> None:
    """Core's fallbacks catch refusals too: each member is guarded, so none is a way round the cap."""
    provider, watch = serve([Reply(status=429), Reply(text="ok")]), Watch(steps=2)
    config = watch.config if also == "handler" else None
    model = guard_model(make(provider).with_fallbacks([make(provider)]), watch.guard)
    assert caller.invoke(model, "hi", config).text == "ok"
    with pytest.raises(BudgetExceeded):
        caller.invoke(model, "hi", config)
    total(watch, provider, 2)


@both
def test_the_clients_own_retries_are_steps(serve: Serve, caller: Caller, make: Any) -> None:
    def script(number: int, body: Any) -> Reply:
        return Reply(status=429) if number < 2 else Reply(text="ok")

    provider, watch = serve(script), Watch(steps=3)
    model = guard_model(make(provider, max_retries=2), watch.guard)
    watch.guard.clock = _Hasty(watch.guard.clock)
    assert caller.invoke(model, "hi").text == "ok"
    total(watch, provider, 3)


class _Hasty:
    """A clock whose sleeps are over at once."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0

    async def asleep(self, seconds: float) -> None:
        assert seconds > 0


@both
def test_in_chains(serve: Serve, caller: Caller, make: Any) -> None:
    provider, watch, model = a_guarded(make, serve)
    prompt = ChatPromptTemplate.from_template("say {word}")
    chain = prompt | model | StrOutputParser()
    of_bare = guard_model(prompt | make(provider) | StrOutputParser(), watch.guard)
    routed = RunnableLambda(lambda word: chain)
    for one in (chain, of_bare, routed):
        assert caller.invoke(one, {"word": "ok"}) == "ok"
        assert "".join(caller.stream(one, {"word": "ok"})) == "ok"
    total(watch, provider, 6)
