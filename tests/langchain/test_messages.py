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


@pytest.mark.parametrize(
    ("one", "other", "provider", "most"),
    [
        ("gpt-4o", "gpt-4o-mini", "openai", 102 + 256),
        ("gpt-5", "o3", "openai", 102 + 256),
        ("claude-sonnet-4-5", "claude-haiku-4-5", "anthropic", 140 + 1_024),
        ("gpt-4o", "gpt-4", "openai", None),
        ("gpt-4o", "gpt-4o-mini", "azure", None),
    ],
)
def test_what_a_model_of_the_family_counted_bounds_it(one: str, other: str, provider: str, most: int | None) -> None:
    messages: list[AnyMessage] = [SystemMessage("s"), HumanMessage("h" * 5_000)]
    walks, measured = Walks(), Measured()
    told = walks.walk(base_size(one, provider, {}), messages, measured)
    by_bytes = told.prompt.most(provider)
    if told.shared:
        measured.put(told.shared, 100)
    known = walks.walk(base_size(other, provider, {}), messages, measured).prompt.most(provider)
    assert known == (by_bytes if most is None else most)


def test_a_count_of_the_family_that_says_no_more_than_bytes_is_not_used() -> None:
    messages: list[AnyMessage] = [HumanMessage("h" * 20)]
    walks, measured = Walks(), Measured()
    told = walks.walk(base_size("gpt-4o", "openai", {}), messages, measured)
    measured.put(told.shared, 8)
    assert walks.walk(base_size("gpt-4o-mini", "openai", {}), messages, measured).prompt.measured == 0


def test_an_answer_is_bounded_by_its_counted_output() -> None:
    measured, answer = Measured(), AIMessage("word " * 100)
    measured.put(answer_digest(BASE.digest, answer), 101)
    answer.name = "agents add it afterwards"
    walk = Walks().walk(BASE, [USER, answer], measured)
    assert walk.prompt.measured == 101
    assert walk.prompt.ascii_bytes == len("hello")


def test_the_ids_of_an_answers_tool_calls_were_not_counted_with_it() -> None:
    measured, answer = Measured(), call("look_up" * 20, "call_" + "x" * 30)
    measured.put(answer_digest(BASE.digest, answer), 9)
    walk = Walks().walk(BASE, [USER, answer], measured)
    assert (walk.prompt.measured, walk.prompt.ascii_bytes) == (9, len("hello") + 35)
    cut: Any = {"name": "f" * 100, "args": "{", "id": "ü" * 10, "error": None, "type": "invalid_tool_call"}
    answer = AIMessage("", invalid_tool_calls=[cut])
    measured.put(answer_digest(BASE.digest, answer), 9)
    assert Walks().walk(BASE, [USER, answer], measured).prompt.ascii_bytes == len("hello") + 20


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
    assert len(walks) == 50
    for number in range(500):
        walks.walk(BASE, [HumanMessage(str(number))], Measured())
    assert len(walks) == len(walks._by_start) == 64
    walks.forget(BASE.digest)
    assert len(walks) == len(walks._by_start) == 0


LONG = [HumanMessage(f"message {number}") for number in range(500)]


def walked(walks: Walks, messages: list[AnyMessage], measured: Measured) -> int:
    """Walk, count it as the provider would, and say how much of it was not counted before."""
    walk = walks.walk(BASE, messages, measured)
    measured.put(walk.end, 10 * len(messages))
    return walk.prompt.messages


def test_a_history_that_goes_on_costs_only_its_new_messages() -> None:
    walks, measured = Walks(), Measured()
    assert walked(walks, [*LONG], measured) == 500
    assert walked(walks, [*LONG, USER], measured) == 1
    assert walked(walks, [*LONG, USER], measured) == 0
    assert walked(walks, [*LONG, USER, call()], measured) == 2


def test_two_histories_on_one_base_are_both_followed() -> None:
    walks, measured = Walks(), Measured()
    one, other = [*LONG[:5]], [*LONG[5:10]]
    for length in range(3):
        assert walked(walks, [*one, *LONG[100 : 100 + length]], measured) == (1 if length else 5)
        assert walked(walks, [*other, *LONG[200 : 200 + length]], measured) == (1 if length else 5)
    assert len(walks) == 2


def test_histories_that_end_in_one_message_do_not_pile_up() -> None:
    walks, measured = Walks(), Measured()
    for number in range(100):
        walked(walks, [LONG[number], HumanMessage(f"{number}" * 70), USER], measured)
    assert len(walks) == len(walks._by_start) == 1


def test_many_histories_take_turns_without_being_measured_anew() -> None:
    walks, measured = Walks(), Measured()
    histories = [[HumanMessage(f"history {one}, message {number}") for number in range(30)] for one in range(40)]
    for length in (10, 12, 30):
        fresh = [walked(walks, [*history[:length]], measured) for history in histories]
        assert fresh == [{10: 10, 12: 2, 30: 18}[length]] * 40


@pytest.mark.parametrize("index", [0, 1, 499, 495])
def test_an_edit_in_place_is_noticed_at_once_where_edits_are_made(index: int) -> None:
    walks, measured = Walks(), Measured()
    messages: list[AnyMessage] = [HumanMessage(f"message {number}") for number in range(500)]
    walked(walks, messages, measured)
    messages[index].content = "now much longer " * 100
    assert walks.walk(BASE, messages, measured).prompt.ascii_bytes >= 1_600


def test_an_edit_deep_inside_is_noticed_within_some_calls() -> None:
    walks, measured = Walks(), Measured()
    messages: list[AnyMessage] = [HumanMessage(f"message {number}") for number in range(500)]
    walked(walks, messages, measured)
    messages[250].content = "now much longer " * 100
    seen = [walks.walk(BASE, messages, measured).prompt.ascii_bytes for _ in range(500 // 8)]
    assert seen[-1] >= 1_600


def test_edited_arguments_of_a_tool_call_are_noticed() -> None:
    walks, measured, asked = Walks(), Measured(), call()
    walked(walks, [USER, asked], measured)
    asked.tool_calls[0]["args"]["q"] = "x" * 1_000
    assert walks.walk(BASE, [USER, asked], measured).prompt.ascii_bytes >= 1_000


TEXT = "one two three " * 500


def test_a_prompt_that_grows_as_one_string_is_held_tightly() -> None:
    walks, measured = Walks(), Measured()
    measured.put(walks.walk(BASE, [SYSTEM, HumanMessage(TEXT + "four")], measured).end, 1_700)
    grown = walks.walk(BASE, [SYSTEM, HumanMessage(TEXT + "fourteen, and more")], measured)
    assert grown.prompt.most("openai") < 1_700 + 200
    assert grown.end == Walks().walk(BASE, [SYSTEM, HumanMessage(TEXT + "fourteen, and more")], Measured()).end
    measured.put(grown.end, 1_706)
    assert (
        walks.walk(BASE, [SYSTEM, HumanMessage(TEXT + "fourteen, and more, " + TEXT)], measured).prompt.measured > 1_700
    )


@pytest.mark.parametrize(
    "after",
    [
        [HumanMessage("other " + TEXT)],
        [HumanMessage(TEXT[:-30])],
        [AIMessage(TEXT + "more")],
        [HumanMessage(TEXT + "more", additional_kwargs={"x": 1})],
        [HumanMessage("x" * 7_000 + "more")],
        [SYSTEM, HumanMessage(TEXT + "more")],
    ],
)
def test_another_string_is_no_growth(after: list[AnyMessage]) -> None:
    walks, measured = Walks(), Measured()
    measured.put(walks.walk(BASE, [HumanMessage(TEXT)], measured).end, 1_500)
    walk = walks.walk(BASE, after, measured)
    assert walk == Walks().walk(BASE, after, measured)


def test_text_without_spaces_is_no_growth() -> None:
    walks, measured = Walks(), Measured()
    measured.put(walks.walk(BASE, [HumanMessage("中文" * 500)], measured).end, 900)
    assert walks.walk(BASE, [HumanMessage("中文" * 501)], measured).prompt.measured == 0
