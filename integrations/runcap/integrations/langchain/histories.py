"""The history policy, carried out for an agent's calls: cutting, summaries, and prefixes that break by themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from langchain.agents.middleware import ModelRequest
from runcap.guardrails.course import Purpose
from runcap.guardrails.events import PrefixBroken
from runcap.guardrails.guard import Guard
from runcap.guardrails.history import Cut, HistoryTooLong

from .dialogue import Break, Dialogue
from .errors import bubbling
from .place import Place
from .rungs import Rung, made_model
from .steps import Steps, Tell

_SUMMARIZE = (
    "Summarize this part of a conversation between a user, an assistant and its tools, for the assistant to go on "
    "from. Keep names, numbers, ids, decisions, what was tried and what is left to do. Answer with the summary alone."
)
_CHARACTERS = 4
"""Characters of a summary's prompt for each token the history may have: no more is read than that."""


class Histories:
    """Cuts histories for one guard."""

    def __init__(self, guard: Guard, guarded: Callable[[Any], Any], rungs: Sequence[Rung]) -> None:
        self._guard = guard
        self._policy = guard.history
        self._summarizer = self._made_summarizer(guarded, rungs)

    def trim(self, dialogue: Dialogue, request: ModelRequest[Any], rung: Rung) -> Cut | None:
        """Take the agent's messages in, and cut if need be.

        Raises:
            HistoryTooLong: what must be sent is too long by itself.
        """
        conversation = dialogue.conversation
        if conversation is None:
            return None
        try:
            self.take(dialogue, request, rung)
            cut = conversation.decide(dialogue.rates(rung))
        except HistoryTooLong as error:
            raise bubbling(error) from None
        if cut is not None:
            dialogue.cools()
        return cut

    def take(self, dialogue: Dialogue, request: ModelRequest[Any], rung: Rung) -> None:
        """Take the agent's messages in."""
        if dialogue.conversation is not None:
            dialogue.conversation.take(request.messages, dialogue.rates(rung), request.system_message)

    def summarize(self, dialogue: Dialogue) -> Steps:
        """Have what was cut summarized, if it is to be and is not yet."""
        conversation, model = dialogue.conversation, self._summarizer
        gone = conversation.unsummarized() if conversation is not None and model is not None else []
        if conversation is None or model is None or self._policy is None or not gone:
            return
        text = _transcript(gone, self._policy.max_tokens * _CHARACTERS)
        try:
            answer = yield Tell(model, [SystemMessage(_SUMMARIZE), HumanMessage(text)], Purpose(stops=False))
            summary = answer.text
        except Exception as error:  # noqa: BLE001 - whatever fails, the agent's own call is made all the same
            kind = type(error).__name__
            self._guard.say_once(f"a history could not be summarized ({kind}): it is cut without a summary")
            summary = None
        conversation.summarized(summary)

    def tell_broken(self, broken: Break, rung: Rung, place: Place) -> None:
        """Emit that a prompt began unlike the one before it."""
        cost = None
        if rung.card is not None:
            rates = rung.card.rates(broken.tokens)
            cost = (rates.plain_input - rates.cache_read) * broken.tokens // 1_000_000
        self._guard.emit(
            PrefixBroken(
                time_ns=self._guard.clock.time_ns(),
                run=place.run.info,
                parent_id=place.agent_id,
                what=broken.what,
                tokens=broken.tokens,
                cost_nano=cost,
            )
        )

    def _made_summarizer(self, guarded: Callable[[Any], Any], rungs: Sequence[Rung]) -> BaseChatModel | None:
        wanted = self._policy.summarize if self._policy is not None else None
        if wanted is None:
            return None
        if wanted is True:
            return rungs[-1].model
        model: BaseChatModel = guarded(made_model(wanted, "History.summarize"))
        return model


def _transcript(messages: Sequence[BaseMessage], size: int) -> str:
    """The messages as text, at most so many characters of it, the same for each message."""
    each = max(size // len(messages), 200)
    return "\n\n".join(_line(message, each) for message in messages)


def _line(message: BaseMessage, size: int) -> str:
    text = str(message.text)
    if isinstance(message, AIMessage):
        text += "".join(f"\n-> {call['name']}({call['args']})" for call in message.tool_calls)
    return f"{message.type}: {text[:size]}{'...' if len(text) > size else ''}"
