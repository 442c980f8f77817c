"""What is worked out once for each way a model is called must not outlive a change of it."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from runcap.guardrails.estimate import Measured
from runcap.guardrails.request import Request
from runcap.integrations.langchain.messages import Walks
from runcap.integrations.langchain.sketch import Sketch, Sketches

MADE: dict[str, Any] = {"kwargs": {"max_retries": 0}}
TOLD = {"ls_provider": "openai", "ls_model_name": "gpt-4o"}


def tool(description: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "description": description}}


def request_of(sketch: Sketch) -> Request:
    walk = Walks().walk(sketch.base, [HumanMessage("hello")], Measured())
    return sketch.request(walk, call_id="c", parent_id="p")


def test_the_same_call_is_sketched_once() -> None:
    sketches = Sketches()
    first = sketches.get(MADE, {"model": "gpt-4o", "tools": [tool("x")]}, {**TOLD, "thread_id": "1"})
    assert sketches.get(MADE, {"model": "gpt-4o", "tools": [tool("x")]}, {**TOLD, "thread_id": "2"}) is first


@pytest.mark.parametrize(
    ("made", "params", "told"),
    [
        ({"kwargs": {"max_retries": 0}}, {"model": "gpt-4o", "max_tokens": 10}, TOLD),
        (MADE, {"model": "gpt-4o", "max_tokens": 11}, TOLD),
        (MADE, {"model": "gpt-4o", "max_tokens": 10, "tools": [tool("x")]}, TOLD),
        (MADE, {"model": "gpt-4o", "max_tokens": 10}, {**TOLD, "ls_provider": "azure"}),
        (MADE, {"model": "gpt-4o", "max_tokens": 10}, {**TOLD, "ls_max_tokens": 99}),
    ],
)
def test_another_call_is_not(made: dict[str, Any], params: dict[str, Any], told: dict[str, Any]) -> None:
    sketches = Sketches()
    first = sketches.get(MADE, {"model": "gpt-4o", "max_tokens": 10}, TOLD)
    assert sketches.get(made, params, told) is not first


@pytest.mark.parametrize("depth", [0, 4, 12])
def test_tools_edited_in_place_are_measured_anew(depth: int) -> None:
    sketches, tools = Sketches(), [tool("short")]
    edited = tools[0]["function"]
    for _ in range(depth):
        edited = edited.setdefault("properties", {})
    before = request_of(sketches.get(MADE, {"tools": tools}, TOLD)).prompt.ascii_bytes
    edited["description"] = "long " * 100
    after = request_of(sketches.get(MADE, {"tools": tools}, TOLD)).prompt.ascii_bytes
    assert after >= before + 490


def test_what_does_not_compare_is_sketched_each_time() -> None:
    class Array:
        def __eq__(self, other: object) -> bool:
            raise ValueError("the truth value of an array is ambiguous")

        __hash__ = None  # type: ignore[assignment]

    sketches = Sketches()
    params = {"x": [Array()]}
    assert sketches.get(MADE, {"x": [Array()]}, TOLD) is not sketches.get(MADE, params, TOLD)


def test_a_request_carries_its_own_prompt_and_ids() -> None:
    sketch = Sketches().get(MADE, {"model": "gpt-4o", "max_tokens": 10}, TOLD)
    one = request_of(sketch)
    assert (one.call_id, one.parent_id, one.model, one.provider, one.output_cap) == ("c", "p", "gpt-4o", "openai", 10)
    assert (one.attempts_seen, one.prompt.messages) == (True, 1)


def test_few_are_kept() -> None:
    sketches = Sketches()
    for number in range(100):
        sketches.get(MADE, {"max_tokens": number + 1}, TOLD)
    assert len(sketches._known) == 32
