from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from pydantic import BaseModel

from runcap.guardrails.estimate import IMAGE_BOUND_OTHERWISE, MESSAGE_FRAMING, Measured
from runcap.integrations.langchain.messages import Walks, answer_digest
from runcap.integrations.langchain.parts import base_size, measure

BASE = base_size("gpt-4o", "openai", {})
SYSTEM, USER = SystemMessage("be brief"), HumanMessage("hello")


def call(name: str = "look_up", call_id: str = "c1") -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": {"q": "x"}, "id": call_id}])


def test_text_is_measured_in_bytes() -> None:
    assert measure(HumanMessage("naïve 中文")).prompt.ascii_bytes == 5
    assert measure(HumanMessage("naïve 中文")).prompt.wide_bytes == 2 + 6


@given(st.text(max_size=300))
def test_the_bound_covers_every_byte(text: str) -> None:
    size = measure(HumanMessage(text)).prompt
    raw = len(text.encode("utf-8", "surrogatepass"))
    assert size.ascii_bytes + size.wide_bytes == raw
    assert size.normalised_bytes >= raw


def test_tool_calls_and_results_count() -> None:
    size = measure(call()).prompt
    assert size.messages == 2
    assert size.ascii_bytes > len('look_up{"q": "x"}c1')
    assert measure(ToolMessage("r", tool_call_id="c1")).prompt.ascii_bytes == 3


def test_tool_schemas_count() -> None:
    schema = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    size = base_size("gpt-4o", "openai", {"tools": [schema]})
    assert size.prompt.messages == 2
    assert size.prompt.tools
    assert size.prompt.ascii_bytes > 60
    assert size.prompt.bounded
    assert size.digest != BASE.digest


class Answer(BaseModel):
    """A structured answer with a description long enough to count."""

    text: str
    confidence: float


@pytest.mark.parametrize(
    "params",
    [
        {"response_format": Answer},
        {"response_format": {"type": "json_schema", "json_schema": Answer.model_json_schema()}},
        {"extra_body": {"documents": ["x" * 200]}},
        {"prediction": {"type": "content", "content": "x" * 200}},
        {"system": "x" * 200},
    ],
)
def test_whatever_may_become_prompt_is_counted(params: dict[str, Any]) -> None:
    assert base_size("gpt-4o", "openai", params).prompt.ascii_bytes >= 200


def test_mere_settings_are_not() -> None:
    settings = {"model": "gpt-4o", "temperature": 0.5, "n": 2, "stream": False, "_type": "openai-chat", "stop": ["x"]}
    assert base_size("gpt-4o", "openai", settings) == BASE


@pytest.mark.parametrize(
    ("block", "bounded"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, True),
        ({"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}, False),
        ({"type": "image", "source": {"type": "base64", "data": "AAAA"}}, True),
        ({"type": "image", "source": {"type": "file", "file_id": "f1"}}, False),
        ({"type": "image", "base64": "AAAA"}, True),
        ({"type": "input_audio", "input_audio": {"data": "AAAA"}}, False),
        ({"type": "file", "file_id": "f1"}, False),
    ],
)
def test_media_are_counted_and_bounded_only_inline(block: dict[str, Any], bounded: bool) -> None:
    size = measure(HumanMessage([block])).prompt
    assert size.images == 1
    assert size.bounded == bounded
    assert size.most("openai") == MESSAGE_FRAMING + IMAGE_BOUND_OTHERWISE


@pytest.mark.parametrize(
    "tool", [{"type": "web_search"}, {"type": "web_search_20250305", "name": "x"}, {"google_search": {}}]
)
def test_hosted_tools_are_not_bounded(tool: dict[str, Any]) -> None:
    assert not base_size("gpt-4o", "openai", {"tools": [tool]}).prompt.bounded


def test_cache_control_is_noticed_and_the_longer_ttl_wins() -> None:
    def cached(ttl: str) -> HumanMessage:
        return HumanMessage([{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": ttl}}])

    walk = Walks().walk(BASE, [cached("5m"), cached("1h"), USER], Measured())
    assert walk.writes == "1h"
    assert Walks().walk(BASE, [cached("5m")], Measured()).writes == "5m"
    assert Walks().walk(BASE, [USER], Measured()).writes == "none"


def test_the_providers_count_of_a_prefix_replaces_its_bound() -> None:
    measured, walks = Measured(), Walks()
    first = walks.walk(BASE, [SYSTEM, USER], measured)
    assert first.prompt.measured == 0
    measured.put(first.end, 7)
    second = walks.walk(BASE, [SYSTEM, USER, call(), ToolMessage("result", tool_call_id="c1")], measured)
    assert second.prompt.measured == 7
    assert second.prompt.messages == 3
    again = Walks().walk(BASE, [SystemMessage("be brief"), HumanMessage("hello")], measured)
    assert (again.prompt.measured, again.prompt.messages) == (7, 0)


def test_an_answer_is_bounded_by_its_counted_output() -> None:
    measured, answer = Measured(), AIMessage("word " * 100)
    measured.put(answer_digest(BASE.digest, answer), 101)
    answer.name = "agents add it afterwards"
    walk = Walks().walk(BASE, [USER, answer], measured)
    assert walk.prompt.measured == 101
    assert walk.prompt.ascii_bytes == len("hello")


@pytest.mark.parametrize(
    "other",
    [
        [HumanMessage("other"), USER],
        [SYSTEM, HumanMessage("hello", name="ada")],
        [SYSTEM, HumanMessage("hello!")],
        [HumanMessage("be brief"), USER],
    ],
)
def test_another_prefix_is_not_taken_for_a_counted_one(other: list[AnyMessage]) -> None:
    measured = Measured()
    measured.put(Walks().walk(BASE, [SYSTEM, USER], measured).end, 1)
    assert Walks().walk(BASE, other, measured).prompt.measured == 0
    assert Walks().walk(base_size("gpt-4o-mini", "openai", {}), [SYSTEM, USER], measured).prompt.measured == 0


@given(st.lists(st.text(max_size=20), min_size=1, max_size=12), st.integers(0, 12))
def test_walking_on_equals_walking_afresh(texts: list[str], cut: int) -> None:
    messages = [HumanMessage(text) for text in texts]
    walks = Walks()
    walks.walk(BASE, messages[:cut], Measured())
    assert walks.walk(BASE, messages, Measured()) == Walks().walk(BASE, messages, Measured())


def test_a_run_remembers_few_prompts() -> None:
    walks = Walks()
    for number in range(50):
        walks.walk(base_size(f"m{number}", None, {}), [USER], Measured())
    assert len(walks) <= 8
