"""What is sent of a conversation: the history policy, carried out on LangChain's messages.

The agent's own messages are never changed. What is sent instead of one (a shortened result, an answer without its
thinking) is made once and then stays the same object, so that the prompt's prefix stays the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeGuard

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from runcap.guardrails.history import CacheRates, Cut, History, Part, Role, Rolling

from .parts import measure
from .thinking import is_claudes, without_thinking

SUMMARY = "Summary of the conversation so far, in place of messages that are left out:\n\n"

_CUT = "\n[... {cut:,} of {all:,} characters left out ...]\n"
_ROLES: Mapping[str, Role] = {"human": "user", "ai": "assistant", "tool": "tool", "system": "system"}
_BOUND = ("anthropic", "aws")
"""Whose signed thinking is bound to all that came before it: after a cut it is refused, and so it is left out whole."""


class Conversation:
    """One conversation of one agent, and what is sent of it. One call at a time."""

    def __init__(self, policy: History, provider: str | None) -> None:
        self._policy = policy
        self._provider = provider
        self._messages: list[BaseMessage] = []
        self._sent: dict[int, BaseMessage] = {}
        self._rolling = Rolling(policy)
        self._system = 0
        self._told_system: SystemMessage | None = None
        self._summary: HumanMessage | None = None
        self._summarized = 0
        self._spared: list[int] = []

    def take(self, messages: Sequence[BaseMessage], rates: CacheRates, system: SystemMessage | None = None) -> None:
        """The agent's messages as they stand now."""
        known = len(self._messages)
        changed = self._messages != list(messages[:known])
        parts = [self._part(message) for message in (messages if changed else messages[known:])]
        if changed:
            self._start_over()
        if system is not self._told_system:
            self._told_system, self._system = system, 0 if system is None else self._tokens(system)
        self._measure_fixed()
        self._rolling.extend(parts, rates)
        self._messages = [*messages]
        if changed or (known == 0 and self._may_have_been_cut()):
            self._unbind()

    def decide(self, rates: CacheRates) -> Cut | None:
        """A call is about to be made: cut if need be. See `Rolling.decide`.

        Raises:
            HistoryTooLong: what must be sent is too long by itself.
        """
        return self._after(self._rolling.decide(rates))

    def cut(self) -> Cut | None:
        """Cut to the low-water mark, for a call that does not fit otherwise; None where that changes nothing."""
        return self._after(self._rolling.cut())

    def can_be_cut(self) -> bool:
        """There is something that `cut` would take out."""
        return self._rolling.can_be_cut()

    @property
    def was_cut(self) -> bool:
        """Something of it is not sent."""
        return self._rolling.stripped > 0

    @property
    def size(self) -> int:
        """Tokens sent."""
        return self._rolling.size

    def unsummarized(self) -> list[BaseMessage]:
        """What was cut since the summary, which comes first if there is one."""
        pinned = {*self._rolling.pinned()}
        candidates = [*self._spared, *range(self._summarized, self._rolling.start)]
        gone = [self._messages[index] for index in candidates if index not in pinned]
        return [self._summary, *gone] if self._summary is not None and gone else gone

    def summarized(self, text: str | None) -> None:
        """A summary of what `unsummarized` gave; None where none could be made."""
        if text:
            self._summary = HumanMessage(SUMMARY + text)
        self._summarized, self._spared = self._rolling.start, self._rolling.pinned()
        self._measure_fixed()

    def view(self) -> list[BaseMessage]:
        """What is sent."""
        rolling = self._rolling
        if not rolling.stripped:
            return [*self._messages]
        pinned = rolling.pinned()
        indices = [*pinned, *range(rolling.start, len(self._messages))]
        sent = [self._sent.get(index) or self._made(index) for index in indices]
        kept = [message for message in sent if not _is_nothing(message)]
        if self._summary is not None:
            kept.insert(_after_first_user(kept), self._summary)
        return kept

    def _start_over(self) -> None:
        self._messages, self._sent = [], {}
        self._rolling = Rolling(self._policy)
        self._summary, self._summarized, self._spared = None, 0, []

    def _measure_fixed(self) -> None:
        self._rolling.fixed = self._system + (0 if self._summary is None else self._tokens(self._summary))

    def _may_have_been_cut(self) -> bool:
        """At other rates, in another process."""
        return self._rolling.stripped > 0 or self._rolling.size > self._policy.max_tokens

    def _unbind(self) -> None:
        """Leave out all thinking there is: what it was bound to may have been cut elsewhere, or was changed since."""
        if any(self._may_think(message) for message in self._messages):
            self._rolling.stripped = len(self._messages)

    def _after(self, cut: Cut | None) -> Cut | None:
        if cut is not None:
            self._sent.clear()  # thinking that was still sent goes now
        return cut

    def _made(self, index: int) -> BaseMessage:
        message = self._messages[index]
        limit = self._rolling.limits.get(index)
        if limit is not None and isinstance(message, ToolMessage):
            message = shortened(message, limit, self._tokens)
        elif index < self._rolling.stripped:
            message = self._stripped(message)
        self._sent[index] = message
        return message

    def _part(self, message: BaseMessage) -> Part:
        tokens = self._tokens(message)
        shortens = isinstance(message, ToolMessage) and type(message.content) is str
        thinking = max(tokens - self._tokens(bare), 0) if (bare := self._stripped(message)) is not message else 0
        return Part(tokens, _ROLES.get(message.type, "user"), shortens, thinking)

    def _stripped(self, message: BaseMessage) -> BaseMessage:
        return without_thinking(message) if self._may_think(message) else message

    def _may_think(self, message: BaseMessage) -> TypeGuard[AIMessage]:
        return isinstance(message, AIMessage) and (self._provider in _BOUND or is_claudes(message))

    def _tokens(self, message: BaseMessage) -> int:
        if self._policy.counter is not None:
            return self._policy.counter(message)
        return measure(message).prompt.expected(self._provider)


def shortened(message: ToolMessage, limit: int, tokens: Callable[[ToolMessage], int]) -> ToolMessage:
    """The result with the middle of its text left out: as much of it as `limit` tokens hold."""
    text, size = str(message.content), tokens(message)
    if size <= limit:
        return message
    short = _keeping(message, text, 0)
    guess = len(text) * limit // size
    low, high, keep = 0, min(2 * guess, len(text)), guess
    while low < keep < high:
        longer = _keeping(message, text, keep)
        fits = tokens(longer) <= limit
        short, low, high = (longer, keep, high) if fits else (short, low, keep)
        keep = (low + high) // 2
    return short if tokens(short) < size else message


def _keeping(message: ToolMessage, text: str, keep: int) -> ToolMessage:
    """The result with this many characters of its text."""
    head = (keep + 1) // 2
    cut = _CUT.format(cut=len(text) - keep, all=len(text))
    return message.model_copy(update={"content": text[:head] + cut + text[len(text) - keep + head :]})


def _is_nothing(message: BaseMessage) -> bool:
    """An answer that was all thinking: nothing is left of it, or only empty text."""
    if not isinstance(message, AIMessage) or message.tool_calls or message.invalid_tool_calls:
        return False
    return isinstance(message.content, list) and not any(map(_says, message.content))


def _says(block: object) -> bool:
    text = block.get("text") if isinstance(block, Mapping) and block.get("type") == "text" else block
    return not isinstance(text, str) or bool(text.strip())


def _after_first_user(messages: Sequence[BaseMessage]) -> int:
    for index, message in enumerate(messages):
        if not isinstance(message, SystemMessage):
            return index + 1 if isinstance(message, HumanMessage) else index
    return len(messages)
