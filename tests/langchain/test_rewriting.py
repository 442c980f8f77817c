from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_anthropic import ChatAnthropic
from langchain_aws import ChatAnthropicBedrock
from langchain_aws.chat_models.bedrock_converse import _messages_to_bedrock
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_google_genai import ChatGoogleGenerativeAI
from langchain_google_genai.chat_models import _parse_chat_history
from langchain_mistralai import ChatMistralAI
from langchain_mistralai.chat_models import _convert_message_to_mistral_chat_message
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from pydantic import SecretStr

from runcap.integrations.langchain.blocks import FILE_LOST, IMAGE_LOST, IMAGE_MOVED, Block, Form, answer_text
from runcap.integrations.langchain.rewriting import NO_TEXT, Rewriter, Target, target_of

from ..effort import examples
from ..histories import CLAUDE, GEMINI, GPT, claude_image, histories, image_block, image_url, signed, text_block
from ..validators import Payload, check_anthropic, check_openai, sign

KEY = SecretStr("none")
MODELS: dict[str, Any] = {
    "openai": ChatOpenAI(model=GPT, api_key=KEY),
    "anthropic": ChatAnthropic(model_name=CLAUDE, api_key=KEY, timeout=None, stop=None),
}
CHECKS: dict[str, Callable[[Payload], None]] = {"openai": check_openai, "anthropic": check_anthropic}
TO_GPT, TO_CLAUDE = Target("openai", GPT), Target("anthropic", CLAUDE)
TO_MISTRAL, TO_GEMINI, TO_BEDROCK = Target("mistral", "m"), Target("google", GEMINI), Target("aws", "nova")
TARGETS = {"openai": TO_GPT, "anthropic": TO_CLAUDE}
USER = HumanMessage("hello")
MARK = {"type": "ephemeral"}
ODD_ID = "functions.look_up:0"


def rewrite(target: Target, *messages: BaseMessage) -> list[BaseMessage]:
    return Rewriter(target).rewrite(messages)


def said(content: str | list[Any] = "", *ids: str, by: str | None = None, model: str = "m", **more: Any) -> AIMessage:
    calls = [{"name": "look_up", "args": {"q": "x"}, "id": one} for one in ids]
    told = {"model_provider": by, "model_name": model} if by else {}
    return AIMessage(content, tool_calls=calls, response_metadata=told, **more)


def result(call_id: str, content: str | list[Any] = "found") -> ToolMessage:
    return ToolMessage(content, tool_call_id=call_id)


def same(one: Sequence[BaseMessage], other: Sequence[BaseMessage]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def ids_of(message: BaseMessage) -> list[str | None]:
    assert isinstance(message, AIMessage)
    return [call["id"] for call in message.tool_calls]


def answers(message: BaseMessage) -> str:
    assert isinstance(message, ToolMessage)
    return message.tool_call_id


# Any history, any target


@pytest.mark.parametrize("name", MODELS)
@given(history=histories())
@settings(max_examples=examples(1_000), deadline=None, suppress_health_check=list(HealthCheck))
def test_every_history_is_valid_once_rewritten(name: str, history: list[BaseMessage]) -> None:
    model = MODELS[name]
    CHECKS[name](model._get_request_payload(Rewriter(target_of(model)).rewrite(history)))


@pytest.mark.parametrize("target", [TO_GPT, TO_CLAUDE, TO_MISTRAL, TO_GEMINI, TO_BEDROCK, Target(None, None)])
@given(history=histories(), cuts=st.lists(st.integers(0, 30), max_size=4))
@settings(max_examples=examples(150), deadline=None, suppress_health_check=list(HealthCheck))
def test_rewriting_is_pure_deterministic_idempotent_and_incremental(
    target: Target, history: list[BaseMessage], cuts: list[int]
) -> None:
    before = deepcopy(history)
    made = Rewriter(target).rewrite(history)
    assert history == before
    assert Rewriter(target).rewrite(deepcopy(history)) == made
    assert Rewriter(target).rewrite(made) == made
    rewriter = Rewriter(target)
    # In any order: it starts over where a history does not go on from the last.
    for cut in (*cuts, len(history)):
        assert rewriter.rewrite(history[:cut]) == Rewriter(target).rewrite(history[:cut])


@given(history=histories("anthropic"))
@settings(max_examples=60, deadline=None)
def test_claudes_own_history_is_sent_as_it_is(history: list[BaseMessage]) -> None:
    assert same(Rewriter(target_of(MODELS["anthropic"])).rewrite(history), history)


@given(history=histories("openai"))
@settings(max_examples=60, deadline=None)
def test_gpts_own_history_is_sent_as_it_is(history: list[BaseMessage]) -> None:
    assert same(Rewriter(target_of(MODELS["openai"])).rewrite(history), history)


@given(history=histories("anthropic"))
@settings(max_examples=60, deadline=None)
def test_bound_thinking_stays_valid(history: list[BaseMessage]) -> None:
    model = MODELS["anthropic"]
    made = Rewriter(target_of(model)).rewrite(signed(history, model))
    check_anthropic(model._get_request_payload(made), bound_thinking=True)


@given(history=histories())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_packages_of_the_others_take_what_is_made(history: list[BaseMessage]) -> None:
    _parse_chat_history(Rewriter(TO_GEMINI).rewrite(history))
    _messages_to_bedrock(Rewriter(TO_BEDROCK).rewrite(history))
    sent = [_convert_message_to_mistral_chat_message(one) for one in Rewriter(TO_MISTRAL).rewrite(history)]
    for one, following in zip(sent, [*sent[1:], {"role": ""}], strict=True):
        assert (one["role"], following["role"]) != ("tool", "user")
        assert all(re.fullmatch(r"[a-zA-Z0-9]{9}", call["id"]) for call in one.get("tool_calls", ()))


def test_an_increment_costs_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    history: list[BaseMessage] = [USER]
    for at in range(50):
        history += [said("", f"toolu_{at}", by="anthropic"), result(f"toolu_{at}")]
    rewriter = Rewriter(TO_GPT)
    rewriter.rewrite(history)
    seen: list[object] = []

    def watched(message: AIMessage, form: Form) -> tuple[str, list[Block]]:
        seen.append(message)
        return answer_text(message, form)

    monkeypatch.setattr("runcap.integrations.langchain.rewriting.answer_text", watched)
    rewriter.rewrite([*history, said("", "toolu_x", by="anthropic"), result("toolu_x")])
    assert len(seen) == 2


# Whose turn it is


@pytest.mark.parametrize(
    ("target", "by", "model"),
    [
        (TO_GPT, "openai", "gpt-4o"),
        (TO_GPT, "openai", "gpt-4o-2024-08-06"),
        (TO_GPT, "openai", "gpt-4o-2024-08-06gpt-4o-2024-08-06"),
        (Target("azure", GPT), "openai", "gpt-4o-2024-08-06"),
        (Target("anthropic", "claude-3-5-sonnet-latest"), "anthropic", "claude-3-5-sonnet-20241022"),
        (Target("google", "models/gemini-2.0-flash"), "google_genai", "gemini-2.0-flash-001"),
        (Target("mistral", "mistral-large-latest"), "mistralai", "mistral-large-latest"),
        (
            Target("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "messages"),
            "anthropic",
            "claude-sonnet-4-5-20250929",
        ),
    ],
)
def test_what_the_target_said_stays(target: Target, by: str, model: str) -> None:
    history = [USER, said([{"type": "thinking", "thinking": "hm"}, text_block("yes")], by=by, model=model), USER]
    assert same(rewrite(target, *history), history)


@pytest.mark.parametrize(
    ("target", "by", "model"),
    [
        (TO_GPT, "openai", "gpt-4o-mini-2024-07-18"),
        (Target("anthropic", "claude-opus-4"), "anthropic", "claude-opus-4-1-20250805"),
        (Target("anthropic", "claude-opus-4"), "anthropic", "claude-opus-4-1"),
        (Target("anthropic", None), "anthropic", CLAUDE),
    ],
)
def test_what_another_model_of_the_provider_said_loses_its_reasoning(target: Target, by: str, model: str) -> None:
    thought = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "tool_use", "id": "c1", "name": "look_up", "input": {}},
    ]
    _, answer, *_ = rewrite(target, USER, said(thought, "c1", by=by, model=model), result("c1"))
    assert answer.content == thought[2:]
    assert ids_of(answer) == ["c1"]
    assert answer.response_metadata["model_name"] == model


def test_openais_item_ids_go_with_the_reasoning() -> None:
    content = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "text", "text": "so", "id": "msg_1", "annotations": []},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look_up", "arguments": "{}"},
        {"type": "tool_call", "id": "call_2", "name": "look_up", "args": {}, "extras": {"item_id": "fc_2"}},
        {"type": "web_search_call", "id": "ws_1"},
    ]
    extra = {"__openai_function_call_ids__": {"call_1": "fc_1"}, "reasoning": {"id": "rs_1"}, "refusal": None}
    turn = said(content, "call_1", "call_2", by="openai", model="o3", additional_kwargs=extra)
    for api in (None, "responses"):
        _, answer, *_ = rewrite(Target("openai", GPT, api), USER, turn, result("call_1"), result("call_2"))
        assert answer.content == [
            {"type": "text", "text": "so", "annotations": []},
            {"type": "function_call", "call_id": "call_1", "name": "look_up", "arguments": "{}"},
            {"type": "tool_call", "id": "call_2", "name": "look_up", "args": {}, "extras": {}},
        ]
        assert answer.additional_kwargs == {"refusal": None}
        assert ids_of(answer) == ["call_1", "call_2"]


def test_geminis_signatures_survive() -> None:
    content = [{"type": "text", "text": "x", "extras": {"signature": "s"}}]
    history = [USER, said(content, by="google_genai", model="gemini-3-pro"), USER]
    assert same(rewrite(TO_GEMINI, *history), history)


def test_another_providers_turn_is_text_and_calls_alone() -> None:
    content = [
        {"type": "thinking", "thinking": "SECRET", "signature": "s"},
        {"type": "text", "text": "It is ", "citations": None},
        {"type": "text", "text": "so.", "citations": [{"url": "x"}]},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
        {"type": "text", "text": "Now:"},
        {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"q": "x"}},
    ]
    turn = said(content, "toolu_1", by="anthropic", id="run-1", name="agent", additional_kwargs={"reasoning": "SECRET"})
    _, answer, found = rewrite(TO_GPT, USER, turn, result("toolu_1"))
    (call_id,) = ids_of(answer)
    assert re.fullmatch(r"[a-zA-Z0-9]{9}", str(call_id))
    expected = AIMessage("It is so.\n\nNow:", id="run-1", name="agent")
    expected.tool_calls = [{"name": "look_up", "args": {"q": "x"}, "id": call_id, "type": "tool_call"}]
    assert answer == expected
    assert answers(found) == call_id


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        (said([{"type": "refusal", "refusal": "no"}], by="openai"), "no"),
        (said("", by="openai", additional_kwargs={"refusal": "no"}), "no"),
        (said("", by="openai", additional_kwargs={"audio": {"id": "a", "transcript": "hi"}}), "hi"),
        (said([{"type": "non_standard", "value": {"type": "output_text", "text": "x"}}], by="openai"), "x"),
        (said([{"type": "file", "file_id": "f"}], by="openai"), FILE_LOST),
        (said([{"type": "image", "file_id": "f"}], by="openai"), IMAGE_LOST),
        (said([{"type": "reasoning", "reasoning": "SECRET"}, text_block("x")]), "x"),
    ],
)
def test_what_becomes_text(turn: AIMessage, text: str) -> None:
    _, answer, _ = rewrite(TO_CLAUDE, USER, turn, USER)
    assert answer == AIMessage(text)


def test_a_plain_turn_of_nobody_knows_whom_stays() -> None:
    history = [USER, said("x", "c1"), result("c1"), said([text_block("y")]), USER]
    for target in (TO_GPT, TO_CLAUDE, TO_GEMINI, Target(None, None)):
        assert same(rewrite(target, *history), history)


@pytest.mark.parametrize("content", ["", " \n", [], [{"type": "thinking", "thinking": "SECRET", "signature": "s"}]])
def test_an_empty_turn_goes(content: Any) -> None:
    for by in ("anthropic", "openai", None):
        assert same(rewrite(TO_GPT, USER, said(content, by=by), USER), [USER, USER])


def test_mistral_takes_no_user_after_a_tool() -> None:
    history = [USER, said("", "abcdefgh1"), result("abcdefgh1"), said(""), USER]
    assert rewrite(TO_MISTRAL, *history) == [*history[:3], AIMessage(NO_TEXT), USER]


def test_invalid_calls_go_with_their_results() -> None:
    bad = {"name": "look_up", "args": "{", "id": "bad", "error": "cut", "type": "invalid_tool_call"}
    turn = said("", "good", by="anthropic", invalid_tool_calls=[bad])
    _, answer, *found = rewrite(TO_GPT, USER, turn, result("bad"), result("good"))
    assert isinstance(answer, AIMessage)
    assert answer.invalid_tool_calls == []
    assert [answers(one) for one in found] == ids_of(answer)


# Ids


@pytest.mark.parametrize(
    ("target", "call_id", "stays"),
    [
        (TO_GPT, "x" * 40, True),
        (TO_GPT, "x" * 41, False),
        (TO_GPT, ODD_ID, True),
        (TO_CLAUDE, ODD_ID, False),
        (TO_CLAUDE, "toolu_1-A", True),
        (TO_MISTRAL, "call_1", False),
        (TO_MISTRAL, "abcDEF123", True),
    ],
)
def test_an_id_changes_only_where_the_target_would_not_take_it(target: Target, call_id: str, stays: bool) -> None:
    history = [USER, said("", call_id), result(call_id)]
    made = rewrite(target, *history)
    assert same(made, history) == stays
    assert [answers(made[2])] == ids_of(made[1])
    assert rewrite(target, *history) == made


def test_an_id_stands_once() -> None:
    history = [USER, said("", "c", "c"), result("c", "1"), result("c", "2"), said("", "c"), result("c", "3")]
    for target in (TO_GPT, TO_CLAUDE, TO_MISTRAL):
        _, first, one, two, second, three = rewrite(target, *history)
        ids = [*ids_of(first), *ids_of(second)]
        assert len(set(ids)) == 3
        assert ids == [answers(one), answers(two), answers(three)]


def test_all_copies_of_an_id_are_kept_in_step() -> None:
    blocks = [
        {"type": "tool_use", "id": "c", "name": "look_up", "input": {}},
        {"type": "function_call", "call_id": "c", "id": "fc_1", "name": "look_up", "arguments": "{}"},
        {"type": "tool_call", "id": "c", "name": "look_up", "args": {}},
    ]
    extra = {
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}],
        "__openai_function_call_ids__": {"c": "fc_1"},
        "__gemini_function_call_thought_signatures__": {"c": "s"},
    }
    turn = said(blocks, "c", by="openai", model=GPT, additional_kwargs=extra)
    made = rewrite(TO_GPT, USER, said("", "c"), result("c"), turn, result("c"))
    assert "'c'" not in repr(made[3:])
    assert repr(made[3:]).count(repr(ids_of(made[3])[0])) == 8
    named = [{"type": "tool_result", "tool_use_id": ODD_ID, "content": "x"}]
    _, answer, found = rewrite(TO_CLAUDE, USER, said("", ODD_ID), result(ODD_ID, named))
    assert found.content == [{**named[0], "tool_use_id": ids_of(answer)[0]}]
    # Without a result the call goes, from every place.
    _, gone, _ = rewrite(TO_GPT, USER, said(["x", *blocks], "c", by="openai", model=GPT, additional_kwargs=extra), USER)
    assert "look_up" not in repr(gone)
    assert "'c'" not in repr(gone)


# Calls and results


def test_orphan_results_and_unanswered_calls_go() -> None:
    history = [
        *(result("nobody"), USER, said("x", "a", "b", by="openai", model=GPT), result("b"), result("b"), result("z")),
        *(USER, said("y", "c", by="openai", model=GPT), said("done"), result("c"), USER),
    ]
    made = rewrite(TO_GPT, *history)
    assert [ids_of(one) for one in made if isinstance(one, AIMessage)] == [["b"], [], []]
    assert [answers(one) for one in made if isinstance(one, ToolMessage)] == ["b"]


def test_calls_at_the_very_end_wait_for_their_results() -> None:
    history = [USER, said("", "a", "b")]
    rewriter = Rewriter(TO_GPT)
    assert same(rewriter.rewrite(history), history)
    history.append(result("a"))
    assert ids_of(rewriter.rewrite(history)[1]) == ["a"]
    history.append(result("b"))
    assert same(rewriter.rewrite(history), history)


def test_results_come_right_after_their_calls() -> None:
    history = [USER, said("", "a", "b"), result("a"), SystemMessage("note"), result("b")]
    made = rewrite(TO_GPT, *history)
    assert same(made, [*history[:3], history[4], history[3]])


# What users and tools say


def test_cache_marks_are_for_claude_alone() -> None:
    marked: list[str | Block] = [
        text_block("x", cache_control=MARK),
        {**image_block(), "extras": {"cache_control": MARK}},
    ]
    history = [SystemMessage(marked[:1]), HumanMessage(marked), said("", "c1"), result("c1", marked[:1])]
    for target in (TO_CLAUDE, TO_BEDROCK):
        assert same(rewrite(target, *history), history)
    for target in (TO_GPT, TO_GEMINI, TO_MISTRAL):
        assert "cache_control" not in repr(rewrite(target, *history))


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (claude_image(), image_block()),
        ({"type": "media", "mime_type": "image/png", "data": image_block()["base64"]}, image_block()),
        ({"type": "input_text", "text": "x"}, text_block("x")),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}, text_block("x")),
        ({"type": "document", "source": {"type": "file", "file_id": "f"}}, text_block(FILE_LOST)),
        ({"type": "file", "file": {"file_id": "f"}}, text_block(FILE_LOST)),
        ({"type": "input_file", "file_id": "f"}, text_block(FILE_LOST)),
        ({"type": "media", "mime_type": "video/mp4", "file_uri": "gs://x"}, text_block(FILE_LOST)),
        ({"type": "image", "file_id": "f"}, text_block(FILE_LOST)),
        ({"text": "x"}, text_block("x")),
    ],
)
def test_what_users_said_in_one_providers_form(block: dict[str, Any], expected: dict[str, Any]) -> None:
    history = [HumanMessage([text_block("see"), block]), said("x", by="groq")]
    assert rewrite(TO_MISTRAL, *history)[0] == HumanMessage([text_block("see"), expected])


def test_forms_of_the_targets_own_stay() -> None:
    for target, block in (
        (TO_CLAUDE, {"type": "document", "source": {"type": "file", "file_id": "f"}}),
        (TO_CLAUDE, claude_image()),
        (TO_GPT, {"type": "file", "file": {"file_id": "f"}}),
        (TO_GPT, image_url()),
        (TO_CLAUDE, image_url()),
        (TO_GEMINI, {"type": "media", "mime_type": "video/mp4", "file_uri": "gs://x"}),
        (TO_GPT, {"type": "file", "file_id": "f"}),
    ):
        history = [HumanMessage([block])]
        assert same(rewrite(target, *history), history)


def test_files_are_known_to_be_anothers_once_another_answered() -> None:
    rewriter = Rewriter(TO_GPT)
    asked = HumanMessage([{"type": "file", "file_id": "f"}])
    history = [asked, said("x"), USER]
    assert same(rewriter.rewrite(history), history)
    history += [said("y", by="anthropic"), USER]
    assert rewriter.rewrite(history)[0].content == [text_block(FILE_LOST)]


def test_images_in_results_follow_as_a_users() -> None:
    history = [USER, said("", "a", "b"), result("a", [text_block("x"), image_block()]), result("b"), USER]
    assert same(rewrite(TO_CLAUDE, *history), history)
    assert same(rewrite(Target("openai", GPT, "responses"), *history), history)
    made = rewrite(TO_GPT, *history)
    assert made[2].content == [text_block("x"), text_block(IMAGE_MOVED)]
    assert made[4].content == [text_block("[images of the messages above]"), image_block()]
    assert made[3:6:2] == history[3:]
    check_openai(MODELS["openai"]._get_request_payload(made))


def test_images_mistral_cannot_have_are_told_of() -> None:
    history = [USER, said("", "abcdefgh1"), result("abcdefgh1", [image_block()])]
    assert rewrite(TO_MISTRAL, *history)[2].content == [text_block(IMAGE_LOST)]


def test_images_of_a_model_follow_as_a_users() -> None:
    turn = said([text_block("see"), image_url()], by="google_genai")
    for target in (TO_GPT, TO_CLAUDE):
        assert rewrite(target, USER, turn)[1:] == [AIMessage(f"see\n\n{IMAGE_MOVED}")]
        _, answer, moved, last = rewrite(target, USER, turn, USER)
        assert answer.content == f"see\n\n{IMAGE_MOVED}"
        assert moved.content[1] == image_block()
        assert last is USER


def test_later_system_messages_are_folded() -> None:
    history = [SystemMessage("a", id="s"), USER, said("x"), SystemMessage([text_block("b")]), USER]
    for target in (TO_CLAUDE, TO_GEMINI):
        made = rewrite(target, *history)
        assert made == [SystemMessage([text_block("a"), text_block("b")], id="s"), USER, history[2], USER]
    assert same(rewrite(TO_GPT, *history), history)
    assert same(rewrite(TO_CLAUDE, USER, history[0]), [history[0], USER])
    assert rewrite(TO_CLAUDE, USER, SystemMessage("a"), SystemMessage("b"))[0] == SystemMessage("a\n\nb")
    leading = [SystemMessage("a"), SystemMessage("b"), USER]
    assert same(rewrite(TO_CLAUDE, *leading), leading)


def test_nothing_is_nothing() -> None:
    assert rewrite(TO_GPT) == []


# Targets


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (MODELS["openai"], TO_GPT),
        (MODELS["anthropic"], TO_CLAUDE),
        (ChatOpenAI(model="o3", api_key=KEY, use_responses_api=True), Target("openai", "o3", "responses")),
        (ChatOpenAI(model="o3", api_key=KEY, reasoning={"effort": "low"}), Target("openai", "o3", "responses")),
        (
            AzureChatOpenAI(model=GPT, api_key=KEY, azure_endpoint="https://x", api_version="1"),
            Target("azure", GPT),
        ),
        (ChatMistralAI(model_name="m", api_key=KEY), TO_MISTRAL),
        (ChatGoogleGenerativeAI(model=GEMINI, api_key=KEY), TO_GEMINI),
        (
            ChatAnthropicBedrock(
                model_name="anthropic.claude-x",
                aws_access_key_id=KEY,
                aws_secret_access_key=KEY,
                region_name="us-east-1",
                timeout=None,
                stop=None,
            ),
            Target("aws", "anthropic.claude-x", "messages"),
        ),
    ],
)
def test_the_target_that_a_model_is(model: BaseChatModel, target: Target) -> None:
    assert target_of(model) == target


# The validators can fail


def gpt(*messages: dict[str, Any], **more: Any) -> Payload:
    return {"messages": list(messages), **more}


def asks(*ids: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    calls = [{"id": one, "type": "function", "function": {"name": "f", "arguments": arguments}} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls, **more}


def tells(call_id: str, content: Any = "x") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def user(content: Any = "x") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "x") -> dict[str, Any]:
    return {"role": "assistant", "content": content}


URL = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}


@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        (gpt(user(), max_tokens=1, max_completion_tokens=1), "both max_tokens"),
        (gpt(), "nothing but system"),
        (gpt({"role": "system", "content": "x"}), "nothing but system"),
        (gpt(user(), asks("a")), r"messages\[1\]: tool calls not answered"),
        (gpt(user(), asks("a", "b"), tells("a"), user()), r"messages\[1\]: tool calls not answered"),
        (gpt(user(), asks("a"), user(), tells("a")), "not answered"),
        (gpt(user(), asks("a"), tells("a"), tells("a")), r"messages\[3\]: a tool message that answers no call"),
        (gpt(user(), tells("a")), "answers no call"),
        (gpt(user(), asks("a" * 41), tells("a" * 41)), "longer than 40"),
        (gpt(user(), asks(""), tells("")), "or empty"),
        (gpt(user(), asks(*map(str, range(129)))), "more than 128"),
        (gpt(user(), asks("a", "a")), "stands twice"),
        (gpt(user(), asks()), "tool_calls is empty"),
        (gpt(user(), asks("a", arguments="{"), tells("a")), "no JSON object"),
        (gpt(user(), {**asks("a"), "tool_calls": [{"id": "a", "name": "f"}]}), "keys of a tool call"),
        (gpt(user(), assistant([URL])), "part 'image_url' in a message of role assistant"),
        (gpt(user(), asks("a"), tells("a", [URL])), "part 'image_url' in a message of role tool"),
        (gpt(user([{"type": "image_url", "image_url": {"url": "file:x"}}])), "no address of an image"),
        (gpt(user(), assistant([{"type": "thinking", "thinking": "x"}])), "part 'thinking'"),
        (gpt(user(), assistant([{"type": "tool_use", "id": "a"}])), "part 'tool_use'"),
        (gpt(user([text_block("x", cache_control=MARK)])), "cache_control"),
        (gpt(user(["x"])), "no object"),
        (gpt(user([])), "empty list"),
        (gpt(user([{"type": "text", "text": None}])), "text is no text"),
        (gpt(user([{"type": "file", "file": {}}])), "without its data"),
        (gpt(user(None)), "no content"),
        (gpt(user(1)), "content is no text"),
        (gpt(user(), assistant(None)), "neither content nor tool calls"),
        (gpt(user(), {"role": "human", "content": "x"}), "unknown role"),
        (gpt({**user(), "id": "x"}), r"unknown keys \['id'\]"),
        (gpt(user(), asks("a"), {"role": "tool", "content": "x"}), "without tool_call_id"),
    ],
)
def test_what_openai_refuses(payload: Payload, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_openai(payload)


def test_what_openai_takes() -> None:
    check_openai(
        gpt({"role": "system", "content": "s"}, user([text_block("x"), URL]), asks("a", "b"), tells("b"), tells("a"))
    )


def uses(*ids: str) -> list[dict[str, Any]]:
    return [{"type": "tool_use", "id": one, "name": "f", "input": {}} for one in ids]


def gives(*ids: str, content: Any = "x") -> list[dict[str, Any]]:
    return [{"type": "tool_result", "tool_use_id": one, "content": content} for one in ids]


def thinks(signature: str = "s", text: str = "hm") -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": signature}


MARKED = text_block("x", cache_control=MARK)


@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        (gpt(), "empty"),
        (gpt(assistant(), user()), "first message is not the user's"),
        (gpt(user(), assistant()), "last message is the assistant's"),
        (gpt({"role": "system", "content": "x"}, user()), "unknown role"),
        (gpt({**user(), "name": "x"}), "unknown keys"),
        (gpt(user(""), user()), r"messages\[0\]: empty content"),
        (gpt(user([])), "empty content"),
        (gpt(user(None)), "neither text nor blocks"),
        (gpt(user(" \n")), "no white space"),
        (gpt(user(["x"])), "no object"),
        (gpt(user(), system=""), "system: empty"),
        (gpt(user(), system=[claude_image()]), "system: block 'image'"),
        (gpt(user(), system=1), "neither text nor blocks"),
        (gpt(user([image_block()])), "unknown keys"),
        (gpt(user([image_url()])), "block 'image_url'"),
        (gpt(user([{"type": "image", "source": {"type": "x"}}])), "unknown source"),
        (gpt(user([{"type": "image", "source": {"type": "url", "data": "x"}}])), "keys of a source"),
        (gpt(user(), assistant([claude_image()]), user()), "block 'image' in a message of role assistant"),
        (gpt(user(), assistant([{"type": "reasoning"}]), user()), "block 'reasoning'"),
        (
            gpt(user(), assistant([{"type": "thinking", "thinking": "x"}, text_block("x")]), user()),
            "without its signature",
        ),
        (gpt(user(), assistant([thinks()]), user()), "last block is thinking"),
        (gpt(user(), assistant(uses("a")), user()), "calls without results"),
        (gpt(user(), assistant(uses("a", "b")), user(gives("a"))), "calls without results"),
        (gpt(user(), assistant(uses("a")), user([text_block("x"), *gives("a")])), "calls without results"),
        (gpt(user(), assistant(uses("a")), user(gives("a", "b"))), "not just made"),
        (gpt(user(), assistant(uses("a")), user(gives("a", "a"))), "stands twice"),
        (gpt(user(gives("a"))), "not just made"),
        (gpt(user(), assistant(uses("a")), user(gives("a")), assistant(), user(gives("a"))), "not just made"),
        (gpt(user(), assistant(uses("a", "a")), user(gives("a"))), "stands twice"),
        (gpt(user(), assistant(uses("a")), user(gives("a")), assistant(uses("a")), user(gives("a"))), "used before"),
        (gpt(user(), assistant(uses("a:1")), user(gives("a:1"))), "tool id 'a:1'"),
        (gpt(user(), assistant([{**uses("a")[0], "input": "{}"}]), user(gives("a"))), "no object"),
        (gpt(user(), assistant(uses("a")), user(gives("a", content=[image_url()]))), "in a tool's result"),
        (gpt(user(), assistant(uses("a")), user(gives("a", content=[MARKED]))), "inside a tool's result"),
        (gpt(user([MARKED] * 3), system=[MARKED], tools=[{"name": "f", "cache_control": MARK}]), "5 blocks with cache"),
    ],
)
def test_what_anthropic_refuses(payload: Payload, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_anthropic(payload)


def test_what_anthropic_takes() -> None:
    answer = assistant([thinks(), text_block("x"), *uses("a", "b")])
    payload = gpt(
        user([MARKED, claude_image()]), answer, user(gives("b")), user([*gives("a"), text_block("x")]), system="s"
    )
    check_anthropic(payload)


def test_manual_thinking_opens_the_open_tool_turn() -> None:
    closed = [user(), assistant(uses("a")), user(gives("a")), assistant(), user()]
    check_anthropic(gpt(*closed), manual_thinking=True)
    check_anthropic(gpt(*closed, assistant([thinks(), *uses("b")]), user(gives("b"))), manual_thinking=True)
    with pytest.raises(AssertionError, match="starts with thinking"):
        check_anthropic(gpt(*closed, assistant(uses("b")), user(gives("b"))), manual_thinking=True)


def conversation(turns: int = 3) -> Payload:
    payload = gpt(user([text_block("go", cache_control=MARK)]), system="s")
    for at in range(turns):
        thought = thinks(sign(payload["system"], payload["messages"]))
        payload["messages"] += [assistant([thought, *uses(f"t{at}")]), user(gives(f"t{at}"))]
    return payload


def without_thinking(payload: Payload, *turns: int) -> Payload:
    for turn in turns:
        del payload["messages"][2 * turn + 1]["content"][0]
    return payload


def edited(edit: Callable[[Payload], object]) -> Payload:
    payload = conversation()
    edit(payload)
    return payload


@pytest.mark.parametrize("gone", [(), (0,), (0, 1), (2,), (1, 2), (0, 1, 2)])
def test_bound_thinking_may_go_from_either_end(gone: tuple[int, ...]) -> None:
    check_anthropic(without_thinking(conversation(), *gone), bound_thinking=True)


@pytest.mark.parametrize(
    "payload",
    [
        without_thinking(conversation(), 1),
        edited(lambda payload: payload.update(system="other")),
        edited(lambda payload: payload["messages"][0].update(content="went")),
        edited(lambda payload: payload["messages"][2]["content"][0].update(content="cut")),
        edited(lambda payload: payload["messages"].__delitem__(slice(1, 3))),
        edited(lambda payload: payload["messages"][5]["content"][0].update(signature="made.up")),
    ],
)
def test_bound_thinking_is_bound_to_all_before_it(payload: Payload) -> None:
    check_anthropic(payload)
    with pytest.raises(AssertionError, match=r"bound to a different conversation|a gap"):
        check_anthropic(payload, bound_thinking=True)


def test_cache_marks_do_not_unbind_thinking() -> None:
    def mark(payload: Payload) -> None:
        payload["messages"][0]["content"][0].pop("cache_control")
        payload["messages"][2]["content"][0]["cache_control"] = MARK
        payload["system"] = [text_block("s", cache_control=MARK)]

    check_anthropic(edited(mark), bound_thinking=True)
