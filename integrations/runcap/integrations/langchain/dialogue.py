"""One agent's conversation with its models, as far as it matters for what is sent next."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from runcap.guardrails.history import CacheRates, Cut, History

from .parts import measure
from .rewriting import Rewriter, Target
from .rungs import Rung
from .trimming import Conversation

_CACHEABLE = 2_048
"""Tokens of a prompt below which nothing is learnt from its not being cached: providers cache from 1,024 or more."""

_WEIGHT = 0.5


class Break(NamedTuple):
    """Where a prompt began to differ from the one before it, and the tokens that had been sent after that."""

    what: str
    tokens: int


class Dialogue:
    """What is remembered from one call to the next. `lock` is held while a prompt is put together."""

    def __init__(self, policy: History | None, target: Target) -> None:
        self.lock = threading.Lock()
        self.conversation = None if policy is None else Conversation(policy, target.provider)
        self.hits = 1.0
        """The share of what the provider could have read from its cache that it did."""
        self.cached = 0
        """Tokens of the prompt before, as the provider counted them: what a like one can find cached."""
        self._rewriters: dict[Target, Rewriter] = {}
        self._told: dict[int, tuple[BaseMessage, BaseMessage]] = {}
        self._before: list[BaseMessage] = []
        self._system: str | None = None
        self._tools: tuple[str, ...] = ()
        self._target: Target | None = None

    def rates(self, rung: Rung) -> CacheRates:
        """What the history's tokens cost with this model, cached and not."""
        if rung.card is None:
            return CacheRates()
        rates = rung.card.rates(0)
        write = max(rates.plain_input, rates.cache_write if self._writes(rung) else 0)
        return CacheRates(rates.cache_read, write, self.hits) if write else CacheRates()

    def tell(self, messages: Sequence[BaseMessage], text: str) -> None:
        """Say something to the agent at the end of the last message; it stays there in later prompts too."""
        last = messages[-1]
        if isinstance(last, (HumanMessage, ToolMessage)):
            known = self._told.get(id(last), (last, last))[1]
            self._told[id(last)] = (last, known.model_copy(update={"content": with_text(known.content, text)}))

    def told(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """The messages, with what was told."""
        if not self._told:
            return [*messages]
        return [self._told.get(id(one), (one, one))[1] for one in messages]

    def rewritten(self, messages: Sequence[BaseMessage], target: Target) -> list[BaseMessage]:
        """The messages as this target takes them."""
        rewriter = self._rewriters.get(target)
        if rewriter is None:
            rewriter = self._rewriters[target] = Rewriter(target)
        return rewriter.rewrite(messages)

    def sends(
        self,
        messages: Sequence[BaseMessage],
        system: SystemMessage | None,
        tools: Sequence[Any],
        target: Target,
        cut: Cut | None,
    ) -> Break | None:
        """A prompt is about to be sent: where it breaks with the one before it, though nothing was cut."""
        names = tuple([_name_of(tool) for tool in tools])
        text = None if system is None else str(system.content)
        before, known = self._before, self._target
        changed = text != self._system, names != self._tools
        self._before, self._system, self._tools, self._target = [*messages], text, names, target
        if not before or known != target or cut is not None:
            return None
        if any(changed):
            return Break("tools" if changed[1] else "system", _tokens(before, target))
        return _break(before, messages, target)

    def rewritten_system(self, system: SystemMessage, target: Target) -> list[Any]:
        """The system prompt as this target takes it."""
        return Rewriter(target).rewrite([system])

    def expected_tokens(self, messages: Sequence[BaseMessage], target: Target) -> int:
        """Tokens of a prompt of these messages: as the provider counted them up to its last answer, then about."""
        new: list[BaseMessage] = []
        for message in reversed(messages):
            if isinstance(message, AIMessage) and message.usage_metadata and self.cached:
                counted = message.usage_metadata["input_tokens"] + message.usage_metadata["output_tokens"]
                return counted + _tokens(new, target)
            new.append(message)
        return _tokens(new, target)

    def answered(self, answer: AIMessage | None) -> None:
        """What an answer tells of the provider's cache."""
        usage = answer.usage_metadata if answer is not None else None
        if not usage:
            return
        details = usage.get("input_token_details") or {}
        read = details.get("cache_read") or 0
        if self.cached >= _CACHEABLE:
            share = min(read / self.cached, 1.0)
            self.hits += _WEIGHT * (share - self.hits)
        self.cached = usage["input_tokens"]

    def cools(self) -> None:
        """The next prompt is new to the provider: of another model, or cut."""
        self.cached = 0

    @staticmethod
    def _writes(rung: Rung) -> bool:
        return rung.target.provider in ("anthropic", "aws")


def with_text(content: str | list[Any], text: str) -> str | list[Any]:
    """A message's content with a text after it."""
    if isinstance(content, str):
        return f"{content}\n\n{text}" if content else text
    return [*content, {"type": "text", "text": text}]


def _break(before: list[BaseMessage], now: Sequence[BaseMessage], target: Target) -> Break | None:
    if before == now[: len(before)]:
        return None
    for index, message in enumerate(before):
        if index >= len(now) or (message is not now[index] and measure(message).digest != measure(now[index]).digest):
            return Break(f"message {index} ({message.type})", _tokens(before[index:], target))
    return None


def _tokens(messages: Sequence[BaseMessage], target: Target) -> int:
    return sum(measure(one).prompt.expected(target.provider) for one in messages)


def _name_of(tool: Any) -> str:
    if isinstance(tool, dict):
        function = tool.get("function")
        return str(tool.get("name") or (function or {}).get("name") or tool.get("type"))
    return str(getattr(tool, "name", tool))
