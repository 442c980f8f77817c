"""`guard_model` on the client packages: all that the bare model does, it does, and every call of it is counted once."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumpd, load
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from runcap.guardrails import BudgetExceeded
from runcap.guardrails.testing import Reply
from runcap.integrations.langchain import auto_attach, guard_model

from ..langchain.conftest import LOOK_UP
from .conftest import Caller, Serve, Watch, a_guarded, both, claude, openai, total


class Verdict(BaseModel):
    """A verdict."""

    fine: bool


@both
def test_it_is_what_it_was(serve: Serve, make: Any) -> None:
    provider, _, model = a_guarded(make, serve)
    bare = make(provider)
    assert isinstance(model, type(bare))
    assert isinstance(model, BaseChatModel)
    assert type(model).__name__ == type(bare).__name__
    assert type(model).__module__ == type(bare).__module__
    for name in ("_llm_type", "_identifying_params", "profile", "lc_secrets", "lc_attributes", "InputType"):
        assert getattr(model, name) == getattr(bare, name), name
    assert model._get_ls_params(stop=["x"]) == bare._get_ls_params(stop=["x"])
    assert model.get_lc_namespace() == bare.get_lc_namespace()
    assert model.lc_id() == bare.lc_id()
    assert model.get_input_jsonschema() == bare.get_input_jsonschema()
    assert model.model_dump(exclude={"client", "async_client"}).keys() == bare.model_dump().keys() - {
        "client",
        "async_client",
    }


@both
def test_guarded_twice_is_guarded_once(serve: Serve, make: Any, caller: Caller) -> None:
    provider, watch, model = a_guarded(make, serve)
    again = guard_model(guard_model(model, watch.guard).bind(), watch.guard)
    assert guard_model(model, watch.guard) is model
    caller.invoke(again, "hi")
    total(watch, provider, 1)


@both
def test_the_bare_model_stays_as_it_was(serve: Serve, make: Any, caller: Caller) -> None:
    provider, watch = serve(Reply(text="ok")), Watch(usd=1)
    bare = make(provider, max_retries=2)
    before = dict(bare.__dict__)
    caller.invoke(guard_model(bare, watch.guard), "hi")
    assert bare.__dict__ == before
    assert type(bare) in (ChatOpenAI, ChatAnthropic)
    caller.invoke(bare, "hi")
    assert provider.received == 2
    assert watch.guard.default_run.steps == 1


@both
@pytest.mark.parametrize("also", ["alone", "handler", "auto_attach", "both"])
def test_invoke(serve: Serve, caller: Caller, make: Any, also: str) -> None:
    provider, watch, model = a_guarded(make, serve, usd=1)
    config = watch.config if also in ("handler", "both") else None
    if also in ("auto_attach", "both"):
        with auto_attach(watch.guard):
            answer = caller.invoke(model, "hi", config)
    else:
        answer = caller.invoke(model, "hi", config)
    assert answer.text == "ok"
    total(watch, provider, 1)


@both
def test_tools(serve: Serve, caller: Caller, make: Any) -> None:
    provider, watch, model = a_guarded(make, serve, Reply(tool_calls=[("look_up", {"query": "x"})]))
    for bound in (
        model.bind_tools([LOOK_UP]),
        guard_model(make(provider).bind_tools([LOOK_UP], tool_choice="any"), watch.guard),
    ):
        assert [call["name"] for call in caller.invoke(bound, "hi").tool_calls] == ["look_up"]
    total(watch, provider, 2)


@both
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("include_raw", [False, True])
def test_structured_output(serve: Serve, caller: Caller, make: Any, method: Any, include_raw: bool) -> None:
    script = (
        Reply(text='{"fine": true}') if method == "json_schema" else Reply(tool_calls=[("Verdict", {"fine": True})])
    )
    provider, watch, model = a_guarded(make, serve, script)
    wanted = model.with_structured_output(Verdict, method=method, include_raw=include_raw)
    answer = caller.invoke(wanted, "hi")
    assert (answer["parsed"] if include_raw else answer) == Verdict(fine=True)
    of_bare = guard_model(make(provider).with_structured_output(Verdict, method=method), watch.guard)
    assert caller.invoke(of_bare, "hi") == Verdict(fine=True)
    total(watch, provider, 2)


@both
def test_batches(serve: Serve, caller: Caller, make: Any) -> None:
    provider, watch, model = a_guarded(make, serve)
    assert [one.text for one in caller.batch(model, ["hi"] * 12)] == ["ok"] * 12
    total(watch, provider, 12)


@both
def test_batches_as_they_complete(serve: Serve, make: Any) -> None:
    provider, watch, model = a_guarded(make, serve)
    assert sorted(index for index, _ in model.batch_as_completed(["a", "b"])) == [0, 1]
    total(watch, provider, 2)


@both
@pytest.mark.filterwarnings("ignore:Unexpected type for token usage")  # langchain-openai, adding up what is absent
def test_many_prompts_in_one_generate(serve: Serve, caller: Caller, make: Any) -> None:
    """All of them are announced before the first is made."""
    prompts = [[HumanMessage("a")], [HumanMessage("b")], [HumanMessage("c")]]
    for cap in (3, 2):
        provider, watch, model = a_guarded(make, serve, steps=cap)
        try:
            caller.run(model.agenerate(prompts)) if caller.asynchronous else model.generate(prompts)
        except BudgetExceeded:
            assert cap == 2
        total(watch, provider, cap)


@both
def test_a_batch_beyond_its_cap(serve: Serve, caller: Caller, make: Any) -> None:
    provider, watch, model = a_guarded(make, serve, steps=5)
    answers = caller.batch(model, ["hi"] * 12, return_exceptions=True)
    assert sum(isinstance(one, BudgetExceeded) for one in answers) == 7
    total(watch, provider, 5)


@both
def test_streams(serve: Serve, caller: Caller, make: Any) -> None:
    provider, watch, model = a_guarded(make, serve, Reply(text="one two three four five"))
    chunks = caller.stream(model, "hi")
    assert len(chunks) > 2
    assert "".join(chunk.text for chunk in chunks) == "one two three four five"
    assert caller.stream(model.bind_tools([LOOK_UP]), "hi")
    total(watch, provider, 2)


@both
def test_a_stream_that_is_left_is_charged_and_holds_nothing_open(serve: Serve, make: Any) -> None:
    provider, watch, model = a_guarded(make, serve, Reply(output_tokens=400))
    stream = model.stream("hi")
    next(stream)
    stream.close()
    watch.guard.calls.drain()
    run = watch.guard.default_run
    assert (run.steps, provider.received, run.held_usd, watch.sink.open_spans) == (1, 1, 0, 0)
    assert len(watch.guard.calls) == 0
    assert run.spent_usd is not None
    assert run.spent_usd + run.unknown_usd >= provider.cost_usd


@both
def test_streams_of_events_v3(serve: Serve, caller: Caller, make: Any) -> None:
    provider, watch, model = a_guarded(make, serve, Reply(text="one two three four five"))
    if caller.asynchronous:

        async def read() -> str:
            stream = await model.astream_events("hi", version="v3")
            return "".join([delta async for delta in stream.text])

        text = caller.run(read())
    else:
        text = "".join(model.stream_events("hi", version="v3").text)
    assert text == "one two three four five"
    total(watch, provider, 1)


@both
def test_events_v2(serve: Serve, make: Any) -> None:
    provider, watch, model = a_guarded(make, serve, Reply(text="one two three"))

    async def read() -> list[str]:
        return [event["event"] async for event in model.astream_events("hi", version="v2")]

    events = asyncio.run(read())
    assert (events[0], events[-1]) == ("on_chat_model_start", "on_chat_model_end")
    total(watch, provider, 1)


HOWS = ["copy", "model_copy", "model_copy of max_tokens", "deepcopy", "pickle"]
_CLIENTS_ARE_MADE_LATE: list[tuple[Any, str]] = [(claude, how) for how in HOWS]
_CLIENTS_HAVE_LOCKS: list[tuple[Any, str]] = [
    (openai, how) for how in HOWS[:3]
]  # a bare ChatOpenAI neither copies deeply nor pickles


@pytest.mark.parametrize(("make", "how"), _CLIENTS_ARE_MADE_LATE + _CLIENTS_HAVE_LOCKS)
def test_copies_are_guarded_too(serve: Serve, caller: Caller, make: Any, how: str) -> None:
    provider, watch, model = a_guarded(make, serve, steps=2)
    made = {
        "copy": lambda: copy.copy(model),
        "deepcopy": lambda: copy.deepcopy(model),
        "model_copy": lambda: model.model_copy(),
        "pickle": lambda: pickle.loads(pickle.dumps(model)),
        "model_copy of max_tokens": lambda: model.model_copy(update={"max_tokens": 7}),
    }[how]()
    assert type(made) is type(model)
    caller.invoke(made, "hi")
    caller.invoke(made, "hi")
    with pytest.raises(BudgetExceeded):
        caller.invoke(made, "hi")
    total(watch, provider, 2)


@pytest.mark.parametrize("made_of", ["bare", "guarded"])
def test_a_bare_chat_openai_cannot_be_pickled_either(serve: Serve, made_of: str) -> None:
    provider, _, model = a_guarded(openai, serve)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(openai(provider) if made_of == "bare" else model)


@both
@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_serialised_it_is_the_bare_model(serve: Serve, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    provider, _, model = a_guarded(make, serve)
    bare = make(provider)
    assert dumpd(model) == dumpd(bare)
    loaded = load(dumpd(model), allowed_objects="all", secrets_from_env=True)
    assert type(loaded) is type(bare)
    assert loaded.asdict() == model.asdict() == bare.asdict()


@pytest.fixture
def cache() -> Iterator[InMemoryCache]:
    made = InMemoryCache()
    set_llm_cache(made)
    yield made
    set_llm_cache(None)


@both
@pytest.mark.parametrize("also", ["alone", "handler", "auto_attach"])
def test_a_cache_hit_costs_nothing_and_is_no_step(
    serve: Serve, caller: Caller, cache: InMemoryCache, make: Any, also: str
) -> None:
    provider, watch, model = a_guarded(make, serve, usd=1)
    config = watch.config if also == "handler" else None

    def three() -> None:
        for _ in range(3):
            assert caller.invoke(model, "hi", config).text == "ok"

    if also == "auto_attach":
        with auto_attach(watch.guard):
            three()
    else:
        three()
    total(watch, provider, 1)


@both
def test_guarded_and_bare_share_a_cache(serve: Serve, caller: Caller, cache: InMemoryCache, make: Any) -> None:
    provider, watch, model = a_guarded(make, serve)
    caller.invoke(make(provider), "hi")
    caller.invoke(model, "hi")
    assert provider.received == 1
    assert watch.guard.default_run.steps == 0
