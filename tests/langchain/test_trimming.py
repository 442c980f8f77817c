from __future__ import annotations

import copy
import importlib
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from runcap.guardrails.history import CacheRates, History, HistoryTooLong
from runcap.integrations.langchain import trimming
from runcap.integrations.langchain.parts import measure
from runcap.integrations.langchain.thinking import needs_thinking, without_thinking
from runcap.integrations.langchain.trimming import Conversation, shortened

from ..histories import histories
from ..validators import check_anthropic, check_openai, sign

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("RUNCAP_RECORDED", ROOT.parent / "shared" / "data"))
RECORDED = (
    "agentrx_tau_retail/tau_dataset_full.json",
    "intercode_sql/ic_sql_multiturn_gpt-3.5_10_turns.json",
    "intercode_sql/ic_sql_multiturn_gpt-4_10_turns.json",
    "lmcache_agent_trace/miniswe",
)

EVEN, CHEAP_READS, DEAR_WRITES = CacheRates(), CacheRates(0.1, 1.0), CacheRates(0.1, 1.25)
CLAUDE = ChatAnthropic(model_name="claude-sonnet-5", api_key=SecretStr("none"), timeout=None, stop=None)
GPT = ChatOpenAI(model="gpt-4o", api_key=SecretStr("none"))

Messages = list[BaseMessage]


def words(message: BaseMessage) -> int:
    """A counter that makes sizes plain: one token a character of text."""
    return sum(len(str(block)) for block in message.content) if isinstance(message.content, list) else len(message.text)


def exchange(number: int, size: int = 50) -> Messages:
    call = {"name": "look_up", "args": {"query": f"item {number}"}, "id": f"call_{number}"}
    return [AIMessage("a" * size, tool_calls=[call]), ToolMessage("t" * size, tool_call_id=f"call_{number}")]


def thinks(number: int, size: int = 50) -> Messages:
    """An exchange of Claude's."""
    asked, result = exchange(number, size)
    thought = {"type": "thinking", "thinking": f"hm {number}", "signature": f"s{number}"}
    return [asked.model_copy(update={"content": [thought, {"type": "text", "text": "a" * size}]}), result]


def conversation(max_tokens: int = 500, provider: str = "openai", **options: Any) -> Conversation:
    return Conversation(History(max_tokens, **{"counter": words, **options}), provider)


def view_of(one: Conversation, messages: Sequence[BaseMessage], rates: CacheRates = EVEN) -> Messages:
    one.take(messages, rates)
    one.decide(rates)
    return one.view()


def starting(*exchanges: Messages) -> Messages:
    return [SystemMessage("s" * 10), HumanMessage("u" * 10), *itertools.chain(*exchanges)]


def thoughts(messages: Sequence[BaseMessage]) -> list[str]:
    return [
        block["thinking"] for one in messages for block in one.content if isinstance(block, dict) if "thinking" in block
    ]


def test_what_fits_is_sent_as_it_is() -> None:
    messages = starting(exchange(1), exchange(2))
    one = conversation()
    view = view_of(one, messages)
    assert [*map(id, view)] == [*map(id, messages)]
    assert view is not messages
    assert not one.was_cut


def test_the_agents_messages_are_never_changed_and_views_keep_their_objects() -> None:
    messages = starting()
    one = conversation(1_000, provider="anthropic")
    before: Messages = []
    cuts = 0
    for number in range(40):
        result = ToolMessage("t" * (60 if number != 20 else 2_000), tool_call_id=f"call_{number}")
        messages = [*messages, thinks(number)[0], result]
        kept = copy.deepcopy(messages)
        one.take(messages, EVEN)
        cut = one.decide(EVEN)
        view = one.view()
        assert messages == kept
        if cut is None:
            assert [*map(id, view[: len(before)])] == [*map(id, before)]
        cuts += cut is not None
        assert [*map(id, view)] == [*map(id, one.view())]
        before = view
    assert 5 < cuts < 20
    assert one.was_cut


@pytest.mark.parametrize("provider", ["anthropic", "aws"])
def test_bound_thinking_goes_with_a_cut_and_stays_away(provider: str) -> None:
    messages = starting(*(thinks(number) for number in range(5)))
    one = conversation(1_000, provider)
    assert thoughts(view_of(one, messages)) == [f"hm {number}" for number in range(5)]
    messages += thinks(5)
    assert thoughts(view_of(one, messages)) == []
    messages += thinks(6)
    assert thoughts(view_of(one, messages)) == ["hm 6"]
    messages += thinks(7)
    view = view_of(one, messages)
    assert thoughts(view) == ["hm 6", "hm 7"]
    assert one.size == sum(map(words, view))


def test_the_next_cut_takes_the_later_thinking() -> None:
    one, messages, seen = conversation(700, "anthropic"), starting(), []
    for number in range(12):
        messages += thinks(number)
        seen.append(thoughts(view_of(one, messages)))
    emptied = [at for at, now in enumerate(seen) if not now]
    assert len(emptied) > 1
    assert all(
        now == [f"hm {n}" for n in range(max((e + 1 for e in emptied if e < at), default=0), at + 1)]
        for at, now in enumerate(seen)
        if now
    )


def test_thinking_that_is_not_bound_stays() -> None:
    one = conversation(300, "google")
    view = view_of(one, starting(*(thinks(number) for number in range(6))))
    assert one.was_cut
    assert thoughts(view)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "thinking", "thinking": "hm", "signature": "s"}],
        [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": " "}],
        [{"type": "reasoning_content", "reasoning_content": {"text": "hm"}}],
    ],
)
def test_an_answer_of_which_nothing_is_left_is_not_sent(content: list[str | dict[Any, Any]]) -> None:
    silent = AIMessage(content)
    messages = [HumanMessage("u" * 10), *exchange(0, 300), silent, HumanMessage("v" * 10), *exchange(1)]
    view = view_of(conversation(400, "anthropic"), messages)
    assert view == [messages[0], messages[4], *messages[5:]]


def test_an_empty_answer_of_another_kind_is_sent_as_it_came() -> None:
    messages = [HumanMessage("u" * 10), *exchange(0, 300), AIMessage(""), HumanMessage("v" * 10), *exchange(1)]
    view = view_of(conversation(400), messages)
    assert view == [messages[0], messages[3], *messages[4:]]


def test_answers_without_thinking_are_the_same_object() -> None:
    for message in (AIMessage("said"), AIMessage([{"type": "text", "text": "said"}])):
        assert without_thinking(message) is message


# Shortened results


def test_a_result_too_large_by_itself_is_shortened_and_stays_the_same() -> None:
    big = ToolMessage("".join(map(str, range(2_000))), tool_call_id="call_0", artifact={"rows": 9}, id="m1", name="f")
    messages = starting([exchange(0)[0], big])
    one = conversation(500)
    one.take(messages, EVEN)
    cut = one.decide(EVEN)
    short = one.view()[-1]
    assert cut is not None
    assert (cut.shortened, one.size, cut.kept) == (1, 251, 251)
    assert isinstance(short, ToolMessage)
    assert sum(map(words, one.view())) == 251
    assert (short.tool_call_id, short.id, short.name, short.artifact) == ("call_0", "m1", "f", {"rows": 9})
    assert short.text.startswith("0123456789")
    assert short.text.endswith("9981999")
    assert "of 6,890 characters left out" in short.text
    messages += exchange(1)
    assert view_of(one, messages)[3] is short
    assert len(big.text) == 6_890


@pytest.mark.parametrize("text", ["plain " * 5_000, "wide é中 " * 3_000, "中" * 4_000 + "plain " * 3_000, "x" * 200])
@pytest.mark.parametrize("limit", [48, 49, 100, 1_000])
def test_a_shortened_result_holds_as_much_as_its_limit_lets_it(text: str, limit: int) -> None:
    def tokens(message: BaseMessage) -> int:
        return measure(message).prompt.expected("openai")

    message = ToolMessage(text, tool_call_id="call_123456789")
    short = shortened(message, limit, tokens)
    if tokens(message) <= limit:
        assert short is message
        return
    assert limit - 4 <= tokens(short) <= limit


def test_what_has_no_text_to_cut_stays() -> None:
    message = ToolMessage("ok", tool_call_id="call_" + "1" * 300)
    assert shortened(message, 48, lambda one: len(one.tool_call_id)) is message


def test_results_of_many_parts_are_never_touched() -> None:
    image = {"type": "image", "base64": "aGk=", "mime_type": "image/png"}
    asked = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": one} for one in ("a", "b")])
    pictures = ToolMessage([{"type": "text", "text": "p" * 100}, image], tool_call_id="a")
    messages = starting([asked, pictures, ToolMessage("t" * 5_000, tool_call_id="b")])
    view = view_of(conversation(600), messages)
    assert view[3] is pictures
    assert "left out" in view[4].text
    with pytest.raises(HistoryTooLong):
        view_of(conversation(100), messages)


def test_what_cannot_be_made_to_fit_says_by_how_much() -> None:
    with pytest.raises(HistoryTooLong) as refused:
        view_of(conversation(100), [SystemMessage("s" * 90), HumanMessage("u" * 60)])
    assert "tokens cap 100" in str(refused.value)
    assert "this call needs 150" in str(refused.value)
    one = conversation(100, tool_results="error")
    one.take([HumanMessage("u" * 60), *exchange(0, 300)], EVEN, SystemMessage("s" * 20))
    with pytest.raises(HistoryTooLong, match="needs 680") as refused:
        one.decide(EVEN)
    assert 'History(tool_results="shorten")' in str(refused.value)


# A summary


def test_a_summary_stands_after_the_first_user() -> None:
    messages = starting(*(exchange(number) for number in range(6)))
    one = conversation(500)
    view = view_of(one, messages)
    gone = one.unsummarized()
    assert gone == messages[2:6]
    size = one.size
    one.summarized("four items")
    told = one.view()
    assert told[:2] == view[:2]
    assert told[2].text.endswith("four items")
    assert told[3:] == view[2:]
    assert one.size == size + words(told[2])
    assert one.unsummarized() == []
    messages += [*exchange(6), *exchange(7)]
    assert view_of(one, messages)[2] is told[2]
    one.cut()
    assert one.unsummarized()[0] is told[2]
    assert one.unsummarized()[1] is messages[6]
    one.summarized("more")
    assert [message.text.endswith("more") for message in one.view()[:4]] == [False, False, True, False]


def test_what_a_cut_spared_is_summarized_when_it_goes() -> None:
    later = HumanMessage("v" * 10)
    messages: Messages = [HumanMessage("u" * 10), *exchange(0), later, *exchange(1), *exchange(2), *exchange(3)]
    one = conversation(250)
    assert later in view_of(one, messages)
    assert later not in one.unsummarized()
    one.summarized("-")
    messages += [HumanMessage("w" * 10), *exchange(4), *exchange(5)]
    assert later not in view_of(one, messages)
    assert one.unsummarized()[1] is later


# The agent's messages as they come


def counting(monkeypatch: pytest.MonkeyPatch) -> list[BaseMessage]:
    measured: Messages = []

    def counted(message: BaseMessage) -> Any:
        measured.append(message)
        return measure(message)

    monkeypatch.setattr(trimming, "measure", counted)
    return measured


def test_each_message_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = counting(monkeypatch)
    one, messages = conversation(8_000, counter=None), starting()
    for number in range(2_500):
        messages = [*messages, *exchange(number)]
        view_of(one, messages, CHEAP_READS)
    assert len(measured) == len(messages) == 5_002


@pytest.mark.parametrize("kind", [list, tuple])
def test_messages_that_were_loaded_again_are_the_same_conversation(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[[Messages], Sequence[BaseMessage]]
) -> None:
    messages = starting()
    one = conversation(600, "anthropic", counter=None)
    while not one.was_cut:
        messages += thinks(len(messages))
        view = view_of(one, messages)
    messages += thinks(98)
    then = view_of(one, messages)
    measured = counting(monkeypatch)
    loaded = copy.deepcopy(messages)
    assert view_of(one, kind(loaded)) == then
    assert measured == []
    new = thinks(99)
    assert view_of(one, kind([*loaded, *new])) == [*then, *new]
    assert then[: len(view)] == view
    assert thoughts(then) == ["hm 98"]


def test_a_message_that_was_changed_starts_it_over() -> None:
    messages = starting(*(thinks(number) for number in range(4)))
    one = conversation(1_000, "anthropic")
    assert thoughts(view_of(one, messages)) == [f"hm {n}" for n in range(4)]
    messages[3] = ToolMessage("edited", tool_call_id="call_0")
    view = view_of(one, messages)
    assert view[3] is messages[3]
    assert thoughts(view) == []  # it was bound to what was said before
    messages += thinks(4, 10)
    assert thoughts(view_of(one, messages)) == ["hm 4"]
    assert view_of(one, messages[:3])[-1] is not messages[2]
    assert len(view_of(one, [])) == 0


def test_starting_over_forgets_the_summary() -> None:
    messages = starting(*(exchange(number) for number in range(6)))
    one = conversation(500)
    view_of(one, messages)
    one.summarized("old")
    view = view_of(one, [messages[0], HumanMessage("another"), *messages[2:]])
    assert not any("old" in message.text for message in view)


def test_a_history_that_comes_whole_is_sent_as_if_it_had_grown() -> None:
    messages, grown = starting(), conversation(500)
    for number in range(20):
        messages += exchange(number)
        view = view_of(grown, messages, CHEAP_READS)
    assert view_of(conversation(500), messages, CHEAP_READS) == view


def test_thinking_of_a_history_that_comes_whole_may_be_bound_to_another_cut() -> None:
    messages = starting(*(thinks(number) for number in range(4)))
    assert thoughts(view_of(conversation(1_000, "anthropic"), messages)) == [f"hm {n}" for n in range(4)]
    waits = conversation(450, "anthropic")
    view = view_of(waits, messages, CacheRates(0.0, 1.0))
    assert len(view) == len(messages)
    assert thoughts(view) == []


def test_a_counter_that_fails_changes_nothing() -> None:
    def picky(message: BaseMessage) -> int:
        if message.text == "bad":
            raise ValueError("no")
        return words(message)

    messages = starting(exchange(0))
    one = conversation(counter=picky)
    before = view_of(one, messages)
    with pytest.raises(ValueError, match="no"):
        one.take([*messages, *exchange(1), HumanMessage("bad")], EVEN)
    assert one.view() == before
    assert view_of(one, [*messages, *exchange(2)])[-2:] == exchange(2)


def test_manual_thinking_cannot_go_on_after_a_cut() -> None:
    messages = starting(*(thinks(number) for number in range(8)))
    assert not needs_thinking(messages)
    assert needs_thinking(view_of(conversation(500, "anthropic"), messages))
    assert not needs_thinking([*messages, HumanMessage("and now?")])
    assert needs_thinking([*view_of(conversation(500, "anthropic"), messages), HumanMessage("and now?")])


# Every view is a history that the providers take


def prompts(messages: Sequence[BaseMessage]) -> Iterator[tuple[Messages, AIMessage | None]]:
    """What the agent has before each call, and the answer."""
    for at, message in enumerate(messages):
        if isinstance(message, AIMessage) and at:
            yield [*messages[:at]], message
    if not isinstance(messages[-1], AIMessage):
        yield [*messages], None


def check(view: Messages, provider: str) -> None:
    if provider == "openai":
        check_openai(GPT._get_request_payload(view))
    else:
        check_anthropic(CLAUDE._get_request_payload(view), bound_thinking=True)


RESULTS: tuple[Literal["shorten", "error"], ...] = ("shorten", "error")


def policies(windows: Sequence[int]) -> list[tuple[History, CacheRates]]:
    options = itertools.product(windows, (0.25, 0.5, 0.8), RESULTS, (EVEN, CHEAP_READS, DEAR_WRITES))
    return [(History(window, keep=keep, tool_results=results), rates) for window, keep, results, rates in options]


@pytest.fixture(scope="module")
def recordings() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        yield importlib.import_module("recordings")


def conversation_of(recording: Any) -> Messages:
    """The messages; where whole prompts were recorded, what each grew by, and the answers in between."""
    messages, before = [*recording.messages], ""
    for prompt, answer in () if messages else recording.calls:
        text = prompt[0].text
        messages += [HumanMessage(text.removeprefix(before).strip() or "-"), AIMessage(answer.text or "-")]
        before = text
    return messages


@pytest.mark.skipif(not all((DATA / one).exists() for one in RECORDED), reason="needs the recorded runs")
@pytest.mark.parametrize("path", RECORDED)
def test_every_view_of_every_recorded_run_is_valid(recordings: Any, path: str) -> None:
    runs = [conversation_of(one) for one in recordings.read(DATA / path)]
    # The conversations in SQL are many and short; of the others each goes through several policies.
    each, windows = (1, (200, 400, 1_000, 2_000)) if len(runs) > 500 else (5, (2_000, 3_000, 4_000, 8_000))
    every = policies(windows)
    seen: Counter[str] = Counter()
    for number, messages in enumerate(runs):
        for turn in range(each):
            policy, rates = every[(number * each + turn) * 7 % len(every)]
            provider = ("openai", "anthropic")[(number + turn) % 2]
            seen += views_checked(Conversation(policy, provider), messages, rates, provider)
    assert seen["views"] > 5 * len(runs)
    assert seen["cuts"] > len(runs) / 20
    assert seen["refused"] < seen["views"]


def views_checked(one: Conversation, messages: Messages, rates: CacheRates, provider: str) -> Counter[str]:
    seen: Counter[str] = Counter()
    for prompt, _ in prompts(messages):
        one.take(prompt, rates)
        try:
            seen["cuts"] += one.decide(rates) is not None
        except HistoryTooLong:
            seen["refused"] += 1
            continue
        seen["views"] += 1
        check(one.view(), provider)
    return seen


RANDOM = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 2**32)
RATES = (EVEN, CHEAP_READS, DEAR_WRITES)


def policy_of(chance: random.Random) -> History:
    return History(chance.choice((80, 150, 300, 1_500, 3_000)), keep=chance.choice((0.3, 0.5, 0.8)))


def test_every_view_of_random_histories_is_valid_for_openai() -> None:
    seen: Counter[str] = Counter()

    @RANDOM
    @given(histories("openai", rounds=5), SEEDS)
    def run(messages: Messages, seed: int) -> None:
        chance = random.Random(seed)
        policy, rates = policy_of(chance), chance.choice(RATES)
        seen.update(views_checked(Conversation(policy, "openai"), messages, rates, "openai"))

    run()
    assert seen["cuts"] > 50
    assert seen["views"] > 800


def test_every_view_of_random_histories_is_valid_for_claude_with_bound_thinking() -> None:
    """Each answer's thinking is signed for what was sent; the agent is now and then loaded again, or moved."""
    seen: Counter[str] = Counter()

    @RANDOM
    @given(histories("anthropic", rounds=5), SEEDS)
    def run(messages: Messages, seed: int) -> None:
        chance, said = random.Random(seed), [*messages]
        policy = policy_of(chance)
        one = Conversation(policy, "anthropic")
        for prompt, answer in prompts(messages):
            happens = chance.choice(("", "", "", "loaded", "moved"))
            one = Conversation(policy, "anthropic") if happens == "moved" else one
            now, rates = said[: len(prompt)], chance.choice(RATES)
            one.take(copy.deepcopy(now) if happens == "loaded" else now, rates)
            try:
                seen["cuts"] += one.decide(rates) is not None
            except HistoryTooLong:
                if answer is not None:  # made by another agent: it is not bound to what is sent here
                    said[len(prompt)] = without_thinking(answer)
                continue
            view = one.view()
            check(view, "anthropic")
            seen.update(views=1, thinking=bool(thoughts(view)), after_a_cut=bool(one.was_cut and thoughts(view)))
            if answer is not None:
                said[len(prompt)] = thought_anew(answer, view)

    run()
    assert seen["cuts"] > 100
    assert seen["after_a_cut"] > 15
    assert seen["thinking"] > 100
    assert seen["views"] > 800


def thought_anew(answer: AIMessage, view: Messages) -> AIMessage:
    if isinstance(answer.content, str):
        return answer
    payload = CLAUDE._get_request_payload(view)
    signature = sign(payload.get("system"), payload["messages"])
    content = [
        {**block, "signature": signature} if isinstance(block, dict) and block["type"] == "thinking" else block
        for block in answer.content
    ]
    return answer.model_copy(update={"content": content})
