"""A history made by one model, made safe to send to another: a budget moves agents to cheaper models in mid-run.

What the target itself said is sent as it stands. Another provider's turns are sent as text and tool calls alone, for
the rest of them (reasoning, signatures, item ids, server tools) is either refused or misread elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import is_
from typing import Literal, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from runcap.guardrails.pricing import provider_id

from .blocks import (
    Block,
    Form,
    answer_text,
    images_message,
    is_plain_answer,
    result_content,
    says_nothing,
    user_content,
    without_reasoning,
)
from .callids import CallIds, NewIds, of_call, with_ids
from .providers import once

NO_TEXT = "[no text]"
"""What an AI turn says that must stand between two others, and has nothing to say."""

# One company's models behind two doors; langchain-openai marks the answers of both as OpenAI's.
_FAMILIES = {"azure": "openai"}
_DATED = re.compile(r"(-\d{4}-\d{2}-\d{2}|-\d{3,8})?")
# What Bedrock adds to the name of a Claude model.
_SOLD_AS = re.compile(r"^([\w-]+\.)?anthropic\.|-v\d+(:\d+)?$")
_NAMES = ("model_name", "model", "model_id")

Made = Literal["here", "beside", "elsewhere", "unknown"]
"""Who made a turn: the target, another model of its provider, another provider's, or nobody says."""


class Target(NamedTuple):
    """To whom a history is sent: the provider by the id of the price data, the model, and the API where it has two.

    `api` is "responses" for OpenAI's Responses API, "messages" for Anthropic's where another company sells it.
    """

    provider: str | None
    model: str | None
    api: str | None = None


def target_of(model: BaseChatModel) -> Target:
    """The target that a model is."""
    params = model._get_ls_params()  # noqa: SLF001 - what callbacks are told
    seller, name = params.get("ls_provider"), params.get("ls_model_name")
    uses_responses = getattr(model, "_use_responses_api", None)
    api = None
    if uses_responses is not None and uses_responses(dict(getattr(model, "_default_params", {}))):
        api = "responses"
    elif seller and seller.startswith("anthropic-"):
        api = "messages"
    return Target(provider_id(seller) if seller else None, name or None, api)


class Rewriter:
    """Rewrites the history of one run for one target, the same way at every call, so that prompt caches hold.

    It goes by exchanges: an answer and all that came before the next one. Only the last exchange can still change
    what is made of it, so the others are kept, and a history that goes on from there costs what is new.
    """

    def __init__(self, target: Target) -> None:
        self._family = "anthropic" if target.api == "messages" else _family(target.provider)
        self._model = _model_key(target.model).removesuffix("-latest") if target.model else None
        self._form = Form(self._family, responses=target.api == "responses")
        self._forget(None)

    def _forget(self, home: str | None) -> None:
        self._done: list[BaseMessage] = []
        self._out: list[BaseMessage] = []
        self._done_home: str | None = None
        self._ids = CallIds(self._family)
        self._home = home

    def rewrite(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """The messages as the target may be sent them; those that need no change are the same objects."""
        done = len(self._done)
        # The last of the exchanges that are done ended where the next answer stood.
        goes_on = len(messages) > done and isinstance(messages[done], AIMessage) and all(map(is_, self._done, messages))
        if done and not goes_on:
            self._forget(None)
            done = 0
        home = self._done_home or self._first_family(messages[done:])
        if home != self._home:
            # Whose files the history refers to was told only now.
            self._forget(home)
            done = 0
        return self._go_on(messages, done)

    def _go_on(self, messages: Sequence[BaseMessage], done: int) -> list[BaseMessage]:
        starts = [done, *(at for at in range(done + 1, len(messages)) if isinstance(messages[at], AIMessage))]
        for start, end in pairwise(starts):
            self._out += self._exchange(messages[start:end], self._out, last=False)
            self._done += messages[start:end]
            self._done_home = self._done_home or self._first_family(messages[start:end])
        with self._ids.on_trial():
            rest = self._exchange(messages[starts[-1] :], self._out, last=True)
        return _folded([*self._out, *rest], self._family)

    def _first_family(self, messages: Sequence[BaseMessage]) -> str | None:
        """The provider of the first answer that says so: the files of a history are on its servers."""
        families = (_family_of(one) for one in messages if isinstance(one, AIMessage))
        return next((family for family in families if family is not None), None)

    def _exchange(
        self, messages: Sequence[BaseMessage], before: Sequence[BaseMessage], *, last: bool
    ) -> list[BaseMessage]:
        answer = messages[0] if messages and isinstance(messages[0], AIMessage) else None
        rest = messages[1:] if answer is not None else messages
        made: list[BaseMessage] = []
        images: list[Block] = []
        if answer is not None:
            turn = _Turn(answer, self._made(answer), rest)
            if rest or not last:
                turn.drop_unanswered()
            made += turn.rewritten(self._ids, self._form, images)
            made += [self._result(result, new_id, images) for result, new_id in turn.answered()]
        if images and (rest or not last):
            made.append(images_message(images))
        made += [self._said(message) for message in rest if not isinstance(message, ToolMessage)]
        return _spaced(before, made) if self._family == "mistral" else made

    def _made(self, message: AIMessage) -> Made:
        family = _family_of(message)
        if family is None:
            return "unknown"
        if family != self._family:
            return "elsewhere"
        named = [message.response_metadata.get(name) for name in _NAMES]
        name = next((_model_key(once(one)) for one in named if isinstance(one, str) and one), None)
        if name is None or self._model is None or not name.startswith(self._model):
            return "beside"
        return "here" if _DATED.fullmatch(name.removesuffix("-latest")[len(self._model) :]) else "beside"

    def _said(self, message: BaseMessage) -> BaseMessage:
        content = user_content(message.content, self._form, foreign_files=self._has_foreign_files())
        return message if content is message.content else message.model_copy(update={"content": content})

    def _result(self, message: ToolMessage, new_id: str, images: list[Block]) -> ToolMessage:
        content, moved = result_content(message.content, self._form, foreign_files=self._has_foreign_files())
        images += moved
        if content is message.content and new_id == message.tool_call_id:
            return message
        if isinstance(content, list):
            content = [of_call(block, message.tool_call_id, new_id) for block in content]
        return message.model_copy(update={"content": content, "tool_call_id": new_id})

    def _has_foreign_files(self) -> bool:
        return self._home is not None and self._home != self._family


class _Turn:
    """An answer with the results of its calls."""

    def __init__(self, answer: AIMessage, made: Made, rest: Sequence[BaseMessage]) -> None:
        self._answer = answer
        self._made: Made = "elsewhere" if made == "unknown" and not is_plain_answer(answer) else made
        calls = [*answer.tool_calls, *answer.invalid_tool_calls]
        self._old = [call.get("id") for call in calls]
        self._new: list[str | None] = []
        self._kept = [True] * len(calls)
        self._by: list[int | None] = [None] * len(calls)
        self._results = [message for message in rest if isinstance(message, ToolMessage)]
        for at, result in enumerate(self._results):
            self._pair(at, result.tool_call_id)
        if self._made == "elsewhere":
            # Arguments that were no JSON: few packages send them on, and none alike.
            self._kept[len(answer.tool_calls) :] = [False] * len(answer.invalid_tool_calls)

    def _pair(self, at: int, call_id: str) -> None:
        for place, old in enumerate(self._old):
            if (old or "") == call_id and self._by[place] is None:
                self._by[place] = at
                return

    def drop_unanswered(self) -> None:
        """No provider takes a call without its result."""
        self._kept = [kept and by is not None for kept, by in zip(self._kept, self._by, strict=True)]

    def rewritten(self, ids: CallIds, form: Form, images: list[Block]) -> list[AIMessage]:
        """The answer as it is sent, if it is."""
        fresh = self._made == "elsewhere"
        self._new = [
            ids.give(old, fresh=fresh) if kept else None for old, kept in zip(self._old, self._kept, strict=True)
        ]
        same = self._new == self._old
        if self._made == "here" and same:
            return [self._answer]
        if fresh or (self._made == "unknown" and not (same and _is_text(self._answer, form))):
            message = self._canonical(form, images)
        else:
            message = without_reasoning(self._answer, form) if self._drops_reasoning(form) else self._answer
            message = message if same else with_ids(message, self._by_old_id())
        return [] if says_nothing(message) else [message]

    def answered(self) -> Iterator[tuple[ToolMessage, str]]:
        """The results of the calls that are kept, with the ids these have now."""
        ids = {by: new for by, new in zip(self._by, self._new, strict=True) if by is not None and new is not None}
        return ((result, ids[at]) for at, result in enumerate(self._results) if at in ids)

    def _drops_reasoning(self, form: Form) -> bool:
        return self._made == "beside" and form.family != "google"  # Gemini's signatures outlive a change of model

    def _canonical(self, form: Form, images: list[Block]) -> AIMessage:
        text, made = answer_text(self._answer, form)
        images += made
        calls = [
            {"name": call["name"], "args": call["args"], "id": new, "type": "tool_call"}
            for call, new in zip(self._answer.tool_calls, self._new, strict=False)
            if new is not None
        ]
        return AIMessage(text, tool_calls=calls, id=self._answer.id, name=self._answer.name)

    def _by_old_id(self) -> NewIds:
        ids: dict[object, list[str | None]] = {}
        for old, new in zip(self._old, self._new, strict=True):
            ids.setdefault(old, []).append(new)
        return ids


def _family(provider: str | None) -> str | None:
    return _FAMILIES.get(provider, provider) if provider else None


def _family_of(message: AIMessage) -> str | None:
    name = message.response_metadata.get("model_provider")
    return _family(provider_id(once(name))) if isinstance(name, str) and name else None


def _model_key(name: str) -> str:
    return _SOLD_AS.sub("", name.lower().removeprefix("models/"))


def _is_text(message: AIMessage, form: Form) -> bool:
    content = message.content
    if isinstance(content, str):
        return not content or not content.isspace()  # Claude takes no blank text
    return user_content(content, form, foreign_files=False) is content


def _folded(messages: list[BaseMessage], family: str | None) -> list[BaseMessage]:
    """One system prompt, where the target takes it apart from the messages."""
    if family not in ("anthropic", "google"):
        return messages
    systems = [message for message in messages if isinstance(message, SystemMessage)]
    # Anthropic's package joins those that open a history.
    leading = len(systems) if family == "anthropic" else 1
    if all(isinstance(message, SystemMessage) for message in messages[: len(systems)]) and len(systems) <= leading:
        return messages
    others = [message for message in messages if not isinstance(message, SystemMessage)]
    return [_joined(systems), *others]


def _joined(systems: Sequence[SystemMessage]) -> SystemMessage:
    first, contents = systems[0], [message.content for message in systems]
    if len(systems) == 1:
        return first
    texts = [content for content in contents if isinstance(content, str)]
    if len(texts) == len(contents):
        return first.model_copy(update={"content": "\n\n".join(texts)})
    blocks: list[str | Block] = []
    for content in contents:
        blocks += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return first.model_copy(update={"content": blocks})


def _spaced(before: Sequence[BaseMessage], messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """No user speaks right after a tool: Mistral refuses that."""
    made: list[BaseMessage] = []
    last = before[-1] if before else None
    for message in messages:
        if isinstance(message, HumanMessage) and isinstance(last, ToolMessage):
            made.append(AIMessage(NO_TEXT))
        made.append(message)
        last = message
    return made
