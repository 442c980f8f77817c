"""What is sent of a conversation: the history policy, carried out on LangChain's messages.

The agent's own messages are never changed. What is sent instead of one (a shortened result, an answer without its
thinking) is made once and then stays the same object, so that the prompt's prefix stays the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from runcap.guardrails.history import CacheRates, Cut, History, Part, Role, Rolling

from .parts import measure

SUMMARY = "Summary of the conversation so far, in place of messages that are left out:\n\n"

_CUT = "\n[... {cut:,} of {all:,} characters left out ...]\n"
_ROLES: Mapping[str, Role] = {"human": "user", "ai": "assistant", "tool": "tool", "system": "system"}
_THINKING = ("thinking", "redacted_thinking", "reasoning")
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
        self._summary: HumanMessage | None = None
        self._summarized = 0

    def take(self, messages: Sequence[BaseMessage], rates: CacheRates, system: SystemMessage | None = None) -> None:
        """The agent's messages as they stand now."""
        known = len(self._messages)
        if known > len(messages) or self._messages != messages[:known]:
            self._start_over()
            known = 0
        self._rolling.fixed = 0 if system is None else self._tokens(system)
        new = messages[known:]
        self._rolling.extend(map(self._part, new), rates)
        self._messages += new

    def decide(self, rates: CacheRates) -> Cut | None:
        """A call is about to be made: cut if need be. See `Rolling.decide`.

        Raises:
            HistoryTooLong: what must be sent is too long by itself.
        """
        return self._after(self._rolling.decide(rates))

    def cut(self) -> Cut | None:
        """Cut to the low-water mark, for a call that does not fit otherwise; None where that changes nothing."""
        return self._after(self._rolling.cut())

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
        rolling = self._rolling
        pinned = {*rolling.pinned()}
        gone = [self._messages[i] for i in range(self._summarized, rolling.start) if i not in pinned]
        return [self._summary, *gone] if self._summary is not None and gone else gone

    def summarized(self, text: str) -> None:
        """A summary of what `unsummarized` gave."""
        self._summary = HumanMessage(SUMMARY + text)
        self._summarized = self._rolling.start

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
        self._summary, self._summarized = None, 0

    def _after(self, cut: Cut | None) -> Cut | None:
        if cut is not None:
            self._sent.clear()  # thinking that was still sent goes now
        return cut

    def _made(self, index: int) -> BaseMessage:
        message = self._messages[index]
        limit = self._rolling.limits.get(index)
        if limit is not None and isinstance(message, ToolMessage):
            message = shortened(message, limit, self._tokens)
        elif index < self._rolling.stripped and isinstance(message, AIMessage) and self._provider in _BOUND:
            message = without_thinking(message)
        self._sent[index] = message
        return message

    def _part(self, message: BaseMessage) -> Part:
        role = _ROLES.get(message.type, "user")
        return Part(self._tokens(message), role, isinstance(message, ToolMessage) and type(message.content) is str)

    def _tokens(self, message: BaseMessage) -> int:
        if self._policy.counter is not None:
            return self._policy.counter(message)
        return measure(message).prompt.expected(self._provider)


def shortened(message: ToolMessage, limit: int, tokens: Callable[[ToolMessage], int]) -> ToolMessage:
    """The result with the middle of its text left out, at most `limit` tokens."""
    text = str(message.content)
    share = limit / max(tokens(message), 1)
    while True:
        keep = max(int(len(text) * share) - len(_CUT), 0)
        head = (keep + 1) // 2
        cut = _CUT.format(cut=len(text) - keep, all=len(text))
        short = message.model_copy(update={"content": text[:head] + cut + text[len(text) - keep + head :]})
        if tokens(short) <= limit or keep == 0:
            return short
        share *= 0.8


def without_thinking(message: AIMessage) -> AIMessage:
    """The answer without its thinking; itself where it has none."""
    content = message.content
    if isinstance(content, str):
        return message
    kept = [block for block in content if not is_thinking(block)]
    return message if len(kept) == len(content) else message.model_copy(update={"content": kept})


def is_thinking(block: object) -> bool:
    """A block of thinking, readable or not."""
    return isinstance(block, Mapping) and block.get("type") in _THINKING


def _is_nothing(message: BaseMessage) -> bool:
    """An answer that was all thinking: nothing is left of it."""
    return isinstance(message, AIMessage) and not (message.content or message.tool_calls or message.invalid_tool_calls)


def _after_first_user(messages: Sequence[BaseMessage]) -> int:
    for index, message in enumerate(messages):
        if not isinstance(message, SystemMessage):
            return index + 1 if isinstance(message, HumanMessage) else index
    return len(messages)


def needs_thinking(messages: Sequence[BaseMessage]) -> bool:
    """It ends in the results of an answer that does not begin with thinking: Claude refuses to think on from there."""
    if not isinstance(messages[-1], ToolMessage):
        return False
    answer = next((one for one in reversed(messages) if isinstance(one, AIMessage)), None)
    content: Any = answer.content if answer is not None else None
    return not (isinstance(content, list) and content and is_thinking(content[0]))
