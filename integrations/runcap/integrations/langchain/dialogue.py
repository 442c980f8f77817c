"""One agent's conversation with its models, as far as it matters for what is sent next."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from runcap.guardrails.history import CacheRates, Cut, History
from runcap.guardrails.usage import Usage

from .parts import measure
from .providers import once
from .rewriting import Rewriter, Target
from .rungs import Rung
from .trimming import Conversation
from .usage import read_usage

_CACHEABLE = 2_048
"""Tokens of a prompt below which nothing is learnt from its not being cached: providers cache from 1,024 or more."""

_WEIGHT = 0.5
_RECENT = 32
"""Messages among which the shortest answer is looked for."""

_DATED = re.compile(r"(-latest|[-@:]\d.*)?")
_CACHES_WHEN_TOLD = ("anthropic", "aws")
"""Providers that cache what a request says, and count it as written; others do so by themselves, and may not tell."""
_SHORTEST = {"openai": 1_024, "azure": 1_024, "google": 1_024}
"""Tokens of the shortest prompt that is cached by itself, where that is documented."""


class Break(NamedTuple):
    """Where a prompt began to differ from the one before it, and the tokens that had been sent after that."""

    what: str
    tokens: int


class Least(NamedTuple):
    """The least that a call takes: tokens of its prompt, of these cached ones, and tokens of an answer.

    `writes` says that what is not cached yet will be, at a price; `by` is the answer that caches are warm from.
    """

    tokens: int
    cached: int
    output: int
    writes: bool
    by: AIMessage | None

    def is_cached_with(self, target: Target, *, unless: Target) -> bool:
        """It is this one's cache, not that of the other: where neither says so, this one's."""
        maker = _maker(self.by)
        return _is_named(maker, target.model) or not _is_named(maker, unless.model)


class Dialogue:
    """What is remembered from one call to the next. `lock` is held while a prompt is put together."""

    def __init__(self, policy: History | None, target: Target) -> None:
        self.lock = threading.Lock()
        self.conversation = None if policy is None else Conversation(policy, target.provider)
        self.hits = 1.0
        """The share of what the provider could have read from its cache that it did."""
        self.cached = 0
        """Tokens of the prompt before, as the provider counted them: what a like one can find cached."""
        self._by: str | None = None
        self._cut = False
        self._rewriters: dict[Target, Rewriter] = {}
        self._told: dict[object, list[str]] = {}
        self._made: dict[object, tuple[BaseMessage, int, BaseMessage]] = {}
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
            self._told.setdefault(_key(last), []).append(text)

    def told(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """The messages, with what was told."""
        return [self._with_told(one) for one in messages] if self._told else [*messages]

    def _with_told(self, message: BaseMessage) -> BaseMessage:
        texts = self._told.get(_key(message))
        if texts is None:
            return message
        known = self._made.get(_key(message))
        if known is None or known[0] is not message or known[1] != len(texts):
            content = with_text(message.content, "\n\n".join(texts))
            known = (message, len(texts), message.model_copy(update={"content": content}))
            self._made[_key(message)] = known
        return known[2]

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

    def expects(self, messages: Sequence[BaseMessage], target: Target) -> Least:
        """What a call with these messages takes at least, by what was counted of it for its last answer."""
        new: list[BaseMessage] = []
        for message in reversed(messages):
            usage = _usage_of(message)
            if usage is not None and isinstance(message, AIMessage):
                said = usage.output_tokens - usage.reasoning_tokens  # no one is sent the reasoning again
                written = usage.cache_write_tokens > 0
                return Least(
                    usage.input_tokens + said + _tokens(new, target) // 2,
                    0 if self._cut else int(_readable(usage, target) * self.hits),
                    min(_outputs(messages[-_RECENT:]), default=usage.output_tokens),
                    written,
                    message,
                )
            new.append(message)
        return Least(_tokens(new, target) // 2, 0, 0, writes=False, by=None)

    def answered(self, answer: AIMessage | None) -> None:
        """What an answer tells of the provider's cache."""
        usage = _usage_of(answer)
        if answer is None or usage is None:
            return
        # Another model than the one before had nothing to read, and tells nothing of how long caches last.
        if self.cached >= _CACHEABLE and self._by == _maker(answer):
            share = min(usage.cache_read_tokens / self.cached, 1.0)
            self.hits += _WEIGHT * (share - self.hits)
        self._by, self._cut, self.cached = _maker(answer), False, usage.input_tokens

    def cools(self) -> None:
        """The next prompt is new to the provider, for it is cut."""
        self._cut, self.cached = True, 0

    @staticmethod
    def _writes(rung: Rung) -> bool:
        return rung.target.provider in _CACHES_WHEN_TOLD


def _key(message: BaseMessage) -> object:
    """Names a message, also when it was loaded anew or shortened, where the agent's state gave it an id."""
    return message.id or id(message)


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


def _usage_of(message: BaseMessage | None) -> Usage | None:
    usage = read_usage(message, None) if isinstance(message, AIMessage) and message.usage_metadata else None
    return usage if usage is not None and usage.input_tokens else None


def _outputs(messages: Sequence[BaseMessage]) -> Iterator[int]:
    return (usage.output_tokens for one in messages if (usage := _usage_of(one)) is not None)


def _readable(usage: Usage, target: Target) -> int:
    """Tokens of a prompt that the next one may find cached."""
    if target.provider in _CACHES_WHEN_TOLD:
        return usage.cache_read_tokens + usage.cache_write_tokens
    return usage.input_tokens if usage.input_tokens >= _SHORTEST.get(target.provider or "", 0) else 0


def _maker(message: AIMessage | None) -> str | None:
    name = message.response_metadata.get("model_name") if message is not None else None
    return once(name) if isinstance(name, str) else None


def _is_named(name: str | None, model: str | None) -> bool:
    """The name a provider gave is this model's, with a date or without."""
    if name is None or model is None or not name.startswith(model):
        return False
    return _DATED.fullmatch(name[len(model) :]) is not None
