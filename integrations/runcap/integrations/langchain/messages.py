"""How large a history is: what the provider counted of it before, and a bound for the rest.

A prompt is walked once. In an agent loop the messages stay the same, so the next call measures the new ones only and
costs the same whatever the history's length; otherwise digests find the longest prefix the provider has counted.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from runcap.guardrails.estimate import Measured, Prompt
from runcap.guardrails.ratecard import CacheWrites

from .parts import Size, dearer, is_plain, mark, measure, sent_of, size_in_bytes

_TRAILS = 64
_NEW = 64
"""How many messages a history may be longer by, to be taken for the same one gone on."""
_FIRST, _LAST, _TURN = 2, 8, 8
_SEAM = 64


_Key = tuple[object, ...]


class Walk(NamedTuple):
    """A prompt as walked: `end` names the whole of it, `prompt` is what is known of its size.

    `shared` names it for every model of the family, 0 where there is none.
    """

    base: int
    end: int
    prompt: Prompt
    writes: CacheWrites
    shared: int = 0


class _Trail:
    """The last walk of one conversation, with what it takes to go on from there."""

    def __init__(self, base: Size) -> None:
        self.base = base.digest
        self.messages: list[BaseMessage] = []
        self.marks: list[tuple[object, ...]] = []
        self.before = self.end = base.digest
        self.kin, self.shared = base.kin, base.shared
        self.prompt = base.prompt
        self.writes = base.writes
        self.keys: tuple[_Key, ...] = ()
        self._turn = 0

    def leads_to(self, messages: Sequence[BaseMessage]) -> bool:
        """These messages begin with the trail's, unedited."""
        known = self.messages
        length = len(known)
        if length > len(messages) or (length and messages[length - 1] is not known[-1]):
            return False
        return self._begins(messages) and self._is_unedited()

    def _begins(self, messages: Sequence[BaseMessage]) -> bool:
        # Lists compare by identity first, at C's speed and without touching the messages. A slice of thousands would.
        length = len(self.messages)
        self.messages += messages[length:]
        try:
            return self.messages == messages
        finally:
            del self.messages[length:]

    def _is_unedited(self) -> bool:
        """Messages are mutable. The first and the last are looked at each time, those between in turns.

        So an edit deep inside a long history is noticed some calls late; all others at once.
        """
        length = len(self.messages)
        if length <= _FIRST + _LAST + _TURN:
            return self._unedited(0, length)
        turn = _FIRST + self._turn % (length - _LAST - _FIRST)
        self._turn += _TURN
        parts = ((0, _FIRST), (turn, turn + _TURN), (length - _LAST, length))
        return all(self._unedited(start, end) for start, end in parts)

    def _unedited(self, start: int, end: int) -> bool:
        return list(map(sent_of, self.messages[start:end])) == self.marks[start:end]

    def extend(self, messages: Sequence[BaseMessage], measured: Measured) -> None:
        """Walk on to the end of these."""
        self.prompt = self._known(self.prompt, measured)
        for message in messages[len(self.messages) :]:
            size = measure(message)
            self.before, self.end = self.end, hash((self.end, size.digest))
            self.shared = hash((self.shared, size.digest))
            self.writes = dearer(self.writes, size.writes)
            new = _counted(size, self.base, message, measured)
            self.prompt = self._known(self.prompt.plus(new), measured)
            self.messages.append(message)
            self.marks.append(mark(message))

    def _known(self, prompt: Prompt, measured: Measured) -> Prompt:
        """The prompt up to here, as the provider counted it for this model, or for another of its family."""
        count = measured.get(self.end)
        if count is None and self.kin is not None:
            by_kin = measured.get(self.shared)
            count = None if by_kin is None else self.kin.most(by_kin)
            if count is None or count >= prompt.measured + prompt.ascii_bytes + prompt.wide_bytes:
                return prompt
        if count is None:
            return prompt
        return Prompt(measured=count, bounded=prompt.bounded, audio=prompt.audio)

    def grow(self, messages: Sequence[BaseMessage], measured: Measured) -> bool:
        """Replace the last message by one that begins with it: loops that keep their history in one string."""
        count, known = measured.get(self.end), self.messages
        if count is None or not known or len(known) != len(messages) or known[:-1] != messages[:-1]:
            return False
        old, new = known[-1], messages[-1]
        if old is new or not all(isinstance(one, HumanMessage) and is_plain(one) for one in (old, new)):
            return False
        before, now = str(old.content), str(new.content)
        if old.name != new.name or not now.startswith(before) or not self._is_unedited():
            return False
        # No token reaches over more than the last word and the spaces around it: those are counted afresh.
        seam = len(before.rstrip().rpartition(" ")[0].rstrip())
        if seam < len(before) // 2:
            return False
        counted = Prompt(measured=count + _SEAM, audio=self.prompt.audio, bounded=self.prompt.bounded)
        self.prompt = counted.plus(measure(HumanMessage(now[seam:])).prompt)
        self.end = self.shared = hash((self.before, measure(new).digest))
        known[-1], self.marks[-1] = new, mark(new)
        return True


class Walks:
    """The last prompts of one run."""

    def __init__(self) -> None:
        # By the last message, and by how the last message starts; the one used last stands last.
        self._by_last: dict[_Key, _Trail] = {}
        self._by_start: dict[_Key, _Trail] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._by_last)

    def walk(self, base: Size, messages: Sequence[BaseMessage], measured: Measured) -> Walk:
        """Measure a prompt, starting from an earlier one where it goes on from that."""
        with self._lock:
            trail = self._find(base, messages, measured) or _Trail(base)
            self._drop(trail)
            trail.extend(messages, measured)
            self._keep(trail)
            shared = trail.shared if trail.kin is not None else 0
            return Walk(base.digest, trail.end, trail.prompt, trail.writes, shared)

    def forget(self, base: int) -> None:
        """Measure anew whatever stands on this base."""
        with self._lock:
            for trail in [trail for trail in self._by_last.values() if trail.base == base]:
                self._drop(trail)

    def _find(self, base: Size, messages: Sequence[BaseMessage], measured: Measured) -> _Trail | None:
        for message in messages[: -_NEW - 1 : -1]:
            trail = self._by_last.get((base.digest, id(message)))
            if trail is not None and trail.leads_to(messages):
                return trail
        trail = self._by_start.get(_start(base.digest, messages))
        return trail if trail is not None and trail.grow(messages, measured) else None

    def _keep(self, trail: _Trail) -> None:
        if not trail.messages:
            return
        self._drop(self._by_last.get((trail.base, id(trail.messages[-1])), trail))
        trail.keys = (trail.base, id(trail.messages[-1])), _start(trail.base, trail.messages)
        self._by_last[trail.keys[0]] = self._by_start[trail.keys[1]] = trail
        while len(self._by_last) > _TRAILS:
            self._drop(next(iter(self._by_last.values())))

    def _drop(self, trail: _Trail) -> None:
        for index, key in zip((self._by_last, self._by_start), trail.keys, strict=False):
            if index.get(key) is trail:
                del index[key]


def _start(base: int, messages: Sequence[BaseMessage]) -> _Key:
    """What a prompt has in common with one that it grows into."""
    content = messages[-1].content if messages else None
    return base, len(messages), content[:_SEAM] if isinstance(content, str) else None


def answer_digest(base: int, message: BaseMessage) -> int:
    """Names an answer of this model, so that its counted output bounds it when it comes back as input."""
    return _answer(base, measure(message).digest)


def _answer(base: int, digest: int) -> int:
    # Apart from the digests of prompts: a history may begin with an answer.
    return hash(("answer", base, digest))


def _counted(size: Size, base: int, message: BaseMessage, measured: Measured) -> Prompt:
    new = size.prompt
    if isinstance(message, AIMessage):
        count = measured.get(_answer(base, size.digest))
        # The ids are the provider's, not the model's: no output was counted for them.
        ids = sum([size_in_bytes(call["id"] or "") for call in (*message.tool_calls, *message.invalid_tool_calls)])
        if count is not None and count + ids < new.ascii_bytes + new.wide_bytes:
            return Prompt(measured=count, ascii_bytes=ids, messages=new.messages, bounded=new.bounded)
    return new
