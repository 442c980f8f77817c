"""Loops: the same tool call over and over, calls that go round in a cycle, the same error again and again."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, NamedTuple

from . import forks

Kind = Literal["repeat", "cycle", "error"]
"""The same call again, calls that go round, or one tool's same error again."""

_LONGEST = 3
_TOOLS = 64
"""How many tools' last errors are kept; an agent has fewer, but may make names up."""


@dataclass(frozen=True, slots=True, init=False)
class LoopPolicy:
    """When an agent that repeats itself is warned of, and when its run is halted.

    A loop is the same tool called with exactly the same arguments, two or three such calls that take turns, or one
    tool that fails with the same error: so many times on end, with nothing else in between. Each agent of a run is
    watched for itself.

    Args:
        warn: repetitions at which a `LoopWarned` event is emitted, and again after as many more.
        halt: repetitions at which the run is stopped: a call that completes them is not made, and every call from
            then on is refused with `LoopHalted`. None never halts.
        nudge: tell the agent too, where a middleware can.
        exempt: names of tools that may repeat, such as one that polls; they are not looked at.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a count below 2.
    """

    warn: int
    halt: int | None
    nudge: bool
    exempt: frozenset[str]

    def __init__(
        self, warn: int = 3, halt: int | None = None, *, nudge: bool = False, exempt: Collection[str] = ()
    ) -> None:
        if type(nudge) is not bool:
            raise TypeError(f"LoopPolicy.nudge must be True or False, got {nudge!r}")
        object.__setattr__(self, "warn", _count(warn, "warn"))
        object.__setattr__(self, "halt", None if halt is None else _count(halt, "halt"))
        object.__setattr__(self, "nudge", nudge)
        object.__setattr__(self, "exempt", _names(exempt))

    def tells(self, times: int) -> bool:
        """So many repetitions are worth a word."""
        return times % self.warn == 0 or self.halts(times)

    def halts(self, times: int) -> bool:
        """So many repetitions end the run."""
        return self.halt is not None and times >= self.halt


class Loop(NamedTuple):
    """A loop that was found: `times` repetitions of `period` calls, and the tools of one of them. Never arguments."""

    kind: Kind
    times: int
    period: int
    tools: tuple[str, ...]

    def __str__(self) -> str:
        names = " -> ".join(self.tools)
        if self.kind == "error":
            return f"{names} failed {self.times} times with the same error"
        over = " over" if self.kind == "cycle" else ""
        return f"{names} called {self.times} times{over} with the same arguments"


class LoopWatch:
    """What one agent did last, as far as it takes to see it repeat itself. Safe across threads.

    Arguments and errors come as digests. Nothing grows with the number of calls: a stretch that repeats itself is known
    by its last period and its length.
    """

    def __init__(self, policy: LoopPolicy) -> None:
        self._policy = policy
        self._lock = forks.lock()
        self._last: deque[tuple[str, int]] = deque(maxlen=_LONGEST)
        self._matched = [0] * (_LONGEST + 1)
        """For each period, how many of the last calls on end equal the one a period before."""
        self._errors: dict[str, tuple[int, int]] = {}

    def called(self, name: str, arguments: int) -> Loop | None:
        """A tool call; the loop it completes a repetition of, where the policy has a word to say about that."""
        if name in self._policy.exempt:
            return None
        with self._lock:
            self._take((name, arguments))
            # A longer loop that ends in two equal calls is the better account of them.
            loops = (self._completed(period) for period in range(_LONGEST, 0, -1))
            return next((loop for loop in loops if loop is not None), None)

    def failed(self, name: str, error: int) -> Loop | None:
        """A tool's call failed; the loop, where this error has come often enough since the tool last did otherwise."""
        if name in self._policy.exempt:
            return None
        with self._lock:
            last, times = self._errors.pop(name, (error, 0))
            times = times + 1 if last == error else 1
            self._errors[name] = (error, times)
            if len(self._errors) > _TOOLS:
                del self._errors[next(iter(self._errors))]
        return Loop("error", times, 1, (name,)) if self._policy.tells(times) else None

    def succeeded(self, name: str) -> None:
        """A tool's call went well: its errors are no longer on end."""
        with self._lock:
            self._errors.pop(name, None)

    def _take(self, call: tuple[str, int]) -> None:
        for period in range(1, _LONGEST + 1):
            same = len(self._last) >= period and self._last[-period] == call
            self._matched[period] = self._matched[period] + 1 if same else 0
        self._last.append(call)

    def _completed(self, period: int) -> Loop | None:
        more, rest = divmod(self._matched[period], period)
        if rest or not self._policy.tells(more + 1):
            return None
        calls = list(self._last)[-period:]
        if period > 1 and len(set(calls)) == 1:
            return None  # the same call on end is no cycle of itself
        return Loop("cycle" if period > 1 else "repeat", more + 1, period, tuple(name for name, _ in calls))


def _count(value: object, name: str) -> int:
    if type(value) is not int:
        raise TypeError(f"LoopPolicy.{name} must be a whole number, got {value!r} ({type(value).__name__})")
    if value < 2:  # noqa: PLR2004 - once is no repetition
        raise ValueError(f"LoopPolicy.{name} must be at least 2, for a first call repeats nothing; got {value}")
    return value


def _names(values: object) -> frozenset[str]:
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, AbstractSet)):
        raise TypeError(f'LoopPolicy.exempt must be a sequence of tool names such as ["poll"], got {values!r}')
    for name in values:
        if not isinstance(name, str):
            raise TypeError(f"LoopPolicy.exempt holds names of tools, got {name!r} ({type(name).__name__})")
    return frozenset(values)
