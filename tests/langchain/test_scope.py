"""Which run a call belongs to: ambient, named in metadata, the root agent's, or the default one."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any
from uuid import UUID, uuid4

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from runcap.guardrails import BudgetExceeded
from runcap.guardrails.events import AgentStarted, RunStarted
from runcap.guardrails.testing import Reply

from .conftest import USER, Serve, Watch, openai


def test_parallel_first_nodes_begin_one_agent(request: pytest.FixtureRequest) -> None:
    """Found by the fan-out above, one time in thirty: two threads began the same graph, each with a whole budget."""
    watch = Watch(steps=100)
    switch = sys.getswitchinterval()
    request.addfinalizer(lambda: sys.setswitchinterval(switch))
    sys.setswitchinterval(1e-6)
    for _ in range(30):
        root, nodes = uuid4(), [uuid4() for _ in range(8)]
        watch.handler.on_chain_start(None, {}, run_id=root, name="graph", metadata={})
        barrier = threading.Barrier(len(nodes))

        def start(node: UUID, root: UUID = root, barrier: threading.Barrier = barrier) -> None:
            metadata = {"langgraph_node": "n", "langgraph_checkpoint_ns": f"n:{node}"}
            barrier.wait()
            watch.handler.on_chain_start(None, {}, run_id=node, parent_run_id=root, metadata=metadata)

        threads = [threading.Thread(target=start, args=(node,)) for node in nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        watch.handler.on_chain_end({}, run_id=root)
    assert len(watch.recorder.of(RunStarted)) == len(watch.recorder.of(AgentStarted)) == 30
    watch.idle()


def test_each_invocation_of_an_agent_is_a_run_of_its_own(serve: Serve) -> None:
    provider = serve([Reply(text="done")])
    watch = Watch(steps=1)
    agent = create_agent(openai(provider), [])
    agent.invoke(USER, watch.config)
    first = watch.handler.last_run
    agent.invoke(USER, watch.config)
    second = watch.handler.last_run
    assert first is not None
    assert second is not None
    assert first.id != second.id
    assert (first.steps, second.steps) == (1, 1)


def test_an_ambient_run_holds_many_invocations_together(serve: Serve) -> None:
    provider = serve(Reply(text="done"))
    watch = Watch(steps=3)
    agent = create_agent(openai(provider), [])
    with watch.guard.run(task="refund", user="ada") as run, pytest.raises(BudgetExceeded):
        while True:
            agent.invoke(USER, watch.config)
    assert provider.received == run.steps == 3
    assert run.tags == {"task": "refund", "user": "ada"}


def test_metadata_names_the_run_and_tags_it(serve: Serve) -> None:
    provider = serve(Reply(text="done"))
    watch = Watch(steps=2)
    agent = create_agent(openai(provider), [])
    config = watch.config | {"metadata": {"runcap": {"run_id": "job-7", "user": "ada"}}}
    agent.invoke(USER, config)
    agent.invoke(USER, config)
    with pytest.raises(BudgetExceeded, match="job-7"):
        agent.invoke(USER, config)
    run = watch.handler.last_run
    assert run is not None
    assert (run.id, run.tags) == ("job-7", {"user": "ada"})
    tagged = watch.config | {"metadata": {"runcap": {"task": "refund"}}}
    agent.invoke(USER, tagged)
    assert watch.handler.last_run is not None
    assert watch.handler.last_run.tags == {"task": "refund"}


def test_bad_metadata_is_one_clear_error_without_the_value(serve: Serve) -> None:
    provider = serve(Reply(text="done"))
    watch = Watch(steps=2)
    with pytest.raises(ValueError, match=r'metadata\["runcap"\] must be a mapping of strings.*wrong: user') as caught:
        openai(provider).invoke("hi", watch.config | {"metadata": {"runcap": {"user": ["secret"]}}})
    assert "secret" not in str(caught.value)
    assert provider.received == 0


@pytest.mark.parametrize("kind", ["bare", "chain", "batch", "abatch"])
def test_calls_outside_any_agent_share_the_default_run(serve: Serve, kind: str) -> None:
    provider = serve(Reply(text="done"))
    watch = Watch(steps=4)
    model = openai(provider)
    chain = ChatPromptTemplate.from_template("about {x}") | model | RunnableLambda(lambda message: message.content)
    with pytest.raises(BudgetExceeded):
        if kind == "bare":
            while True:
                model.invoke("hi", watch.config)
        elif kind == "chain":
            while True:
                chain.invoke({"x": "cats"}, watch.config)
        elif kind == "batch":
            model.batch(["hi"] * 9, watch.config | {"max_concurrency": 2})
        else:
            # Without return_exceptions the first refusal would cancel the calls that were admitted.
            raise next(one for one in asyncio.run(_abatch(model, watch)) if isinstance(one, Exception))
    assert provider.received == 4
    assert watch.handler.last_run is watch.guard.default_run


async def _abatch(model: BaseChatModel, watch: Watch) -> list[Any]:
    return await model.abatch(["hi"] * 9, watch.config, return_exceptions=True)
