"""The rolling history: what is sent of a conversation, cut in large steps so that its prefix stays the same in between.

Pure decisions over the sizes of messages; adapters carry them out. What is kept of a history is always a history that
providers take: tool calls stay with their results, system messages and the first and last user message stay, and so
does the last exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from .errors import RefusalDetails, Refused

Role = Literal["system", "user", "assistant", "tool"]

WALL = 2
"""Times `max_tokens` at which a history is cut, whatever that costs."""

SHORTEST = 48
"""Tokens a tool result is shortened to at the least: with fewer it says nothing, and the history is an error."""


@dataclass(frozen=True, slots=True)
class History:
    """How much of a conversation is sent with each call. The agent's own state keeps all of it.

    Past `max_tokens` it is cut to `keep` of that in one step, so that the prompt's prefix, and the provider's cache of
    it, then stays the same for many turns. A cut that costs more than it saves, as the cache is priced, waits: at the
    most until the history is twice as long.

    Args:
        max_tokens: the high-water mark, in tokens of messages.
        keep: the low-water mark, as a share of `max_tokens`; a cut leaves at least this, where messages allow.
        summarize: what is cut is replaced by a summary: by this model (an object or a name), or `True` for the last
            of the guard's tiers. The summary is a call of the run like any other; where it fails, none is put in.
        tool_results: `"shorten"` shortens tool results where what must be kept is too large by itself; `"error"` raises
            `HistoryTooLong` then.
        counter: tokens of one message; by default its size is measured in bytes, at the provider's usual rate.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    max_tokens: int
    keep: float = 0.5
    summarize: Any = None
    tool_results: Literal["shorten", "error"] = "shorten"
    counter: Callable[[Any], int] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if type(self.max_tokens) is not int:
            raise TypeError(f"History.max_tokens must be a whole number of tokens, got {self.max_tokens!r}")
        if self.max_tokens < SHORTEST:
            raise ValueError(f"History.max_tokens must be at least {SHORTEST}, got {self.max_tokens}")
        if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)):
            raise TypeError(f"History.keep must be a share of max_tokens such as 0.5, got {self.keep!r}")
        if not 0 < self.keep < 1:
            raise ValueError(f"History.keep must be a share of max_tokens between 0 and 1, got {self.keep!r}")
        if self.summarize is False:
            raise TypeError("History.summarize must be a model, its name, True for the last tier, or None; got False")
        if self.tool_results not in ("shorten", "error"):
            raise ValueError(f'History.tool_results must be "shorten" or "error", got {self.tool_results!r}')
        if self.counter is not None and not callable(self.counter):
            raise TypeError(f"History.counter must be a function of a message, got {self.counter!r}")

    @property
    def low(self) -> int:
        """The low-water mark, in tokens."""
        return int(self.max_tokens * self.keep)


class HistoryTooLong(Refused):
    """What has to be sent of the history is larger than `History.max_tokens`, and nothing of it can be cut."""


class Part(NamedTuple):
    """One message: its size and its place in the conversation. `shortens` says that its text may be shortened.

    `thinking` tokens of it are bound to all that came before, and go with any cut.
    """

    tokens: int
    role: Role
    shortens: bool = False
    thinking: int = 0


class CacheRates(NamedTuple):
    """What a token of the prompt costs where the provider has it cached, and where it has not: any unit.

    `hits` is the share of what could have been read from the cache that was.
    """

    read: float = 1.0
    write: float = 1.0
    hits: float = 1.0


class Cut(NamedTuple):
    """What one cut took out: messages and tokens, what is sent after it, and how many tool results were shortened."""

    messages: int
    tokens: int
    kept: int
    shortened: int = 0


@dataclass(slots=True)
class Rolling:
    """The history of one conversation, as it is sent. `start` is the first message after the pinned ones.

    A history that comes whole, as after a restart, is gone through as if it had grown: it is cut at the same places.
    """

    policy: History
    fixed: int = 0
    """Tokens sent before the messages, such as a system prompt of its own."""
    start: int = 0
    stripped: int = 0
    """Before this message, thinking that is bound to all that came before it is left out. Set by cuts."""
    limits: dict[int, int] = field(default_factory=dict)
    """Tokens that tool results are shortened to, by index."""
    turns: int = 0
    _sums: list[int] = field(default_factory=lambda: [0])
    _thinking: list[int] = field(default_factory=lambda: [0])
    _roles: list[Role] = field(default_factory=list)
    _shortens: list[int] = field(default_factory=list)
    _systems: list[int] = field(default_factory=list)
    _first_user: int | None = None
    _last_user: int | None = None
    _held: frozenset[int] = frozenset()
    """The user's messages that the last cut spared: they stay until the next, also once a later one has come."""
    _decided: int = -1

    def __len__(self) -> int:
        return len(self._roles)

    def extend(self, parts: Iterable[Part], rates: CacheRates) -> None:
        """Take in new messages; calls that were made in between, by whomever, are decided on as they were then."""
        for part in parts:
            if part.role == "assistant":
                if self._decided != len(self) and self._roles:
                    with suppress(HistoryTooLong):  # it was made all the same
                        self.decide(rates)
                self.turns += 1
            self._add(part)

    def decide(self, rates: CacheRates) -> Cut | None:
        """A call is about to be made: cut where the history is too long and a cut pays."""
        self._decided = len(self)
        if self.size <= self.policy.max_tokens:
            return None
        rest = self.size_of_rest
        if rest <= self.policy.max_tokens and not self._pays(rest, rates):
            return None  # not at its best: without going through the messages to see what a cut would leave
        start = self._cut_to(self.policy.low)
        left = self._left(start)
        if left <= self.policy.max_tokens and not self._pays(left, rates):
            return None
        return self._cut(start)

    def cut(self) -> Cut | None:
        """Cut to the low-water mark, whatever that does to the cache; None where there is nothing to cut."""
        start = self._further()
        return None if start is None else self._cut(start)

    def can_be_cut(self) -> bool:
        """There is something that `cut` would take out."""
        return self._further() is not None

    def _further(self) -> int | None:
        """Where `cut` lets it begin; None where that takes nothing out, or more than it may."""
        start = self._cut_to(self.policy.low)
        left, size = self._left(start), self.size
        allowed = left >= self.policy.low or size > self.policy.max_tokens
        return start if left < size and allowed else None

    def pinned(self) -> list[int]:
        """The messages that are sent though they stand before `start`."""
        return sorted(index for index in {*self._systems, *self._held} if index < self.start)

    @property
    def size(self) -> int:
        """Tokens sent."""
        return self._size(self.start, self._held, self.stripped)

    @property
    def size_of_rest(self) -> int:
        """Tokens sent if all were cut that may be."""
        return self._left(max(self._last_exchange(), self.start))

    def _add(self, part: Part) -> None:
        index = len(self)
        self._roles.append(part.role)
        self._sums.append(self._sums[-1] + part.tokens)
        self._thinking.append(self._thinking[-1] + part.thinking)
        if part.role == "system":
            self._systems.append(index)
        if part.role == "user":
            self._last_user = index
            self._first_user = index if self._first_user is None else self._first_user
        if part.shortens:
            self._shortens.append(index)

    def _tokens(self, start: int, end: int | None = None) -> int:
        return self._sums[len(self) if end is None else end] - self._sums[start]

    def _users(self) -> frozenset[int]:
        return frozenset(index for index in (self._first_user, self._last_user) if index is not None)

    def _left(self, start: int) -> int:
        """Tokens sent after a cut that lets it begin there, before any shortening."""
        return self._size(start, self._users(), len(self))

    def _size(self, start: int, users: frozenset[int], stripped: int) -> int:
        pinned = sum(self._tokens(index, index + 1) for index in {*self._systems, *users} if index < start)
        thinking = self._thinking[max(stripped, start)] - self._thinking[start]
        limited = sum(self._tokens(i, i + 1) - limit for i, limit in self.limits.items() if i >= start)
        return self.fixed + pinned + self._tokens(start) - thinking - limited

    def _cut_to(self, low: int) -> int:
        """Where to start so that as much as possible goes, and at least `low` is left; below that only if it must."""
        start, left = self.start, self._left(self.start)
        for bound in range(self.start + 1, self._last_exchange() + 1):
            if self._roles[bound] == "tool":
                continue
            further = self._left(bound)
            if further < low and left <= self.policy.max_tokens:
                break
            start, left = bound, further
        return start

    def _last_exchange(self) -> int:
        """Where the last assistant message with its results begins, or the last message of any other kind."""
        index = len(self) - 1
        while index > 0 and self._roles[index] == "tool":
            index -= 1
        return max(index, 0)

    def _pays(self, left: int, rates: CacheRates) -> bool:
        """What is saved in the turns expected, half as many as there were, is what writing the cache anew costs."""
        if self.size > WALL * self.policy.max_tokens:
            return True
        read = rates.read * rates.hits + rates.write * (1 - rates.hits)
        pinned = self.fixed + sum(self._tokens(index, index + 1) for index in self._prefix())
        saved = max(self.turns, 1) / 2 * read * (self.size - left)
        return saved >= (rates.write - read) * max(left - pinned, 0)

    def _prefix(self) -> list[int]:
        """The pinned messages that stand before all others: they stay cached when the rest is cut."""
        users = [] if self._first_user is None else [self._first_user]
        return sorted({*self._systems, *users})

    def _cut(self, start: int) -> Cut:
        """Cut there.

        Raises:
            HistoryTooLong: what is left does not fit. Nothing is changed then.
        """
        before, gone = self.size, self._dropped(start)
        shorter = self._shorter(start) if self._left(start) > self.policy.max_tokens else {}
        self.start, self.stripped, self._held = start, len(self), self._users()
        self.limits = {index: limit for index, limit in self.limits.items() if index >= start} | shorter
        return Cut(gone, before - self.size, self.size, len(shorter))

    def _dropped(self, start: int) -> int:
        """How many messages that are sent a cut there would leave out."""
        kept = {*self._systems, *self._users()}
        sent = [*self._held, *range(self.start, start)]
        return sum(1 for index in {*sent} if index < start and index not in kept)

    def _shorter(self, start: int) -> dict[int, int]:
        """Cut the largest tool results down to one size, at which all of it fits: the limits of those.

        Raises:
            HistoryTooLong: it does not fit, or tool results are not to be shortened.
        """
        results = [index for index in self._shortens if index >= start]
        sizes = {index: self._tokens(index, index + 1) for index in results}
        ordered = sorted(sizes.values(), reverse=True)
        rest = self._left(start) - sum(self.limits.get(index, size) for index, size in sizes.items())
        # A token more for each: what is left is not to be below the mark for rounding down.
        limit = _level(ordered, min(self.policy.low + len(results), self.policy.max_tokens) - rest)
        if limit < SHORTEST:
            limit = _level(ordered, self.policy.max_tokens - rest)
        if limit < SHORTEST or self.policy.tool_results != "shorten":
            raise HistoryTooLong(self._details(self._left(start)))
        return {index: limit for index, size in sizes.items() if size > limit}

    def _details(self, needed: int) -> RefusalDetails:
        way_out = (
            "The system prompt, the first and the last user message and the last exchange are always sent: "
            "shorten them, or use a larger History(max_tokens=...)"
        )
        if self._shortens and self.policy.tool_results == "error":
            way_out += ', or History(tool_results="shorten")'
        return RefusalDetails(
            reason="history too long",
            way_out=way_out,
            run_id="-",
            scope="history",
            unit="tokens",
            cap=self.policy.max_tokens,
            needed=needed,
        )


def _level(sizes: list[int], room: int) -> int:
    """The size to which the largest are cut so that all of them fit in `room`; zero where that cannot be."""
    rest = sum(sizes)
    for count, size in enumerate(sizes, start=1):
        rest -= size
        following = sizes[count] if count < len(sizes) else 0
        level = (room - rest) // count
        if level >= following:
            return max(min(level, size), 0)
    return 0
