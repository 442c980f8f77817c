"""Any value -> JSON of a bounded size: what is too long is shortened, and says by how much."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

MOST_DEPTH = 32
MOST_NODES = 100_000
LEAST_LIMIT = 256
"""Bytes below which nothing useful fits."""

_MOST_BITS = 1024
_LEAST = 40
"""Bytes that a text is given at least where a whole is shortened."""
_SOUND_LENGTH = 1_024
_RUN = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{1024,}={0,2}")
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w=.-]+)*;base64,[A-Za-z0-9+/_=-]+")
_MIXED = (re.compile("[a-z]"), re.compile("[A-Z]"), re.compile("[0-9]"))


def plain(value: object) -> Any:
    """The same as dicts, lists, strings and numbers that JSON can have; a copy, without binary data. Never raises."""
    return _Plain().of(value, MOST_DEPTH)


def without_binary(text: str) -> str:
    """A text without the base64 data in it: data URLs, and runs that can hardly be anything else."""
    if ";base64," in text:
        text = _DATA_URL.sub(lambda found: left_out(len(found[0]), "characters of data"), text)
    return text if len(text) < _SOUND_LENGTH else _RUN.sub(_unless_words, text)


def bounded_json(value: object, limit: int) -> str:
    """JSON of `value` in at most `limit` bytes of UTF-8 (at least LEAST_LIMIT). Never raises."""
    known = plain(value)
    text = _encode(known)
    if size_of(text) <= limit:
        return text
    text = _encode(_fit(known, _measure(known), limit))
    return text if size_of(text) <= limit else _encode(left_out(size_of(text), "bytes"))


def size_of(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def left_out(count: int, what: str = "") -> str:
    """The mark in place of what is not there."""
    return f"[{count} {what} left out]" if what else f"[{count} left out]"


class _Plain:
    """One conversion: it ends, whatever it is given."""

    def __init__(self) -> None:
        self._nodes = 0
        self._within: set[int] = set()

    def of(self, value: object, depth: int) -> Any:  # noqa: PLR0911 - one for each kind of value
        self._nodes += 1
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str) and not isinstance(value, Enum):
            return _sound(str.__str__(value))
        if isinstance(value, int) and not isinstance(value, Enum):
            return int(value) if value.bit_length() <= _MOST_BITS else f"[integer of {value.bit_length()} bits]"
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, (bytes, bytearray, memoryview)):
            return left_out(len(value), "bytes")
        if depth <= 0 or self._nodes > MOST_NODES or id(value) in self._within:
            return left_out(1)
        self._within.add(id(value))
        try:
            return self._made_of(value, depth - 1)
        except Exception as error:  # noqa: BLE001 - foreign objects may do anything when looked at
            return f"[{type(value).__name__}: {type(error).__name__}]"
        finally:
            self._within.discard(id(value))

    def _made_of(self, value: object, depth: int) -> Any:  # noqa: PLR0911 - as above
        if isinstance(value, Enum):
            return self.of(value.value, depth)
        if isinstance(value, Mapping):
            entries = {_key(key): self.of(one, depth) for key, one in self._some(value.items())}
            return entries if len(entries) == len(value) else {**entries, "…": left_out(len(value) - len(entries))}
        if isinstance(value, (list, tuple, set, frozenset)):
            items = [self.of(one, depth) for one in self._some(value)]
            return items if len(items) == len(value) else [*items, left_out(len(value) - len(items))]
        if isinstance(value, type) or callable(value):
            return f"[{getattr(value, '__name__', type(value).__name__)}]"
        dump = getattr(value, "model_dump", None)
        if callable(dump):
            return self.of(dump(), depth)
        if dataclasses.is_dataclass(value):
            return {one.name: self.of(getattr(value, one.name), depth) for one in dataclasses.fields(value)}
        # The default `str` of an object is an address.
        told = type(value).__str__ is not object.__str__
        return _sound(str(value)) if told else f"[{type(value).__name__}]"

    def _some(self, values: Any) -> Iterator[Any]:
        for one in values:
            if self._nodes > MOST_NODES:
                return
            yield one


def _key(key: object) -> str:
    return _sound(key if isinstance(key, str) else str(key))


def _sound(text: str) -> str:
    """Without lone surrogates: no UTF-8 has them, and an exporter that meets one loses its whole batch."""
    text = without_binary(text)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _unless_words(found: re.Match[str]) -> str:
    run = found[0]
    return left_out(len(run), "characters of data") if all(one.search(run) for one in _MIXED) else run


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _cost(value: object) -> int:
    return size_of(_encode(value))


class _Measured(NamedTuple):
    """How large a value is as JSON, how small it gets without losing its shape, and the same of what is in it."""

    size: int
    least: int
    inside: Sequence[_Measured] = ()


def _measure(value: Any) -> _Measured:
    if isinstance(value, dict):
        inside = [_measure(one) for one in value.values()]
        overhead = 1 + sum(_cost(key) + 2 for key in value)
        return _Measured(
            max(2, overhead + sum(one.size for one in inside)), overhead + sum(one.least for one in inside), inside
        )
    if isinstance(value, list) and value:
        inside = [_measure(one) for one in value]
        size = 1 + len(value) + sum(one.size for one in inside)
        return _Measured(size, min(size, 2 + _cost(_mark_like(value[0], len(value)))), inside)
    size = _cost(value)
    return _Measured(size, min(size, _LEAST))


def _fit(value: Any, measured: _Measured, room: int) -> Any:
    """`value`, or what of it fits in `room` bytes of JSON."""
    if measured.size <= room:
        return value
    if isinstance(value, str):
        return _shortened(value, room)
    if isinstance(value, dict):
        return _fit_dict(value, measured, room)
    if isinstance(value, list):
        return _fit_list(value, measured, room)
    return left_out(measured.size, "bytes")


def _shortened(text: str, room: int) -> str:
    """The beginning of a text, and how many characters were left out."""
    mark = f"… {left_out(len(text), 'characters')}"
    space = room - _cost(mark)
    kept, most = 0, min(len(text), max(space, 0))
    while kept < most:
        middle = (kept + most + 1) // 2
        if _cost(text[:middle]) - 2 <= space:
            kept = middle
        else:
            most = middle - 1
    mark = left_out(len(text) - kept, "characters")
    return f"{text[:kept]}… {mark}" if kept else mark


def _fit_list(values: list[Any], measured: _Measured, room: int) -> list[Any]:
    """The last messages, or the first of anything else; the long ones shortened."""
    inside = measured.inside
    newest = isinstance(values[0], dict) and "role" in values[0]
    space = room - 1
    if sum(one.least + 1 for one in inside) > space:
        space -= _cost(_mark_like(values[0], len(values))) + 1
    kept: list[int] = []
    needed = 0
    for index in reversed(range(len(values))) if newest else range(len(values)):
        needed += inside[index].least + 1
        if needed > space:
            break
        kept.append(index)
    kept.sort()
    rooms = _rooms([inside[index] for index in kept], space - len(kept))
    made = [_fit(values[index], inside[index], most) for index, most in zip(kept, rooms, strict=True)]
    lost = len(values) - len(kept)
    if not lost:
        return made
    mark = _mark_like(values[0], lost)
    return [mark, *made] if newest else [*made, mark]


def _fit_dict(values: dict[str, Any], measured: _Measured, room: int) -> dict[str, Any]:
    """All entries, the long ones shortened; where there are too many, those that fit."""
    space = room - 1
    if measured.least > room:
        space -= _cost({"…": left_out(len(values))})
    kept: list[tuple[str, _Measured]] = []
    for key, one in zip(values, measured.inside, strict=True):
        needed = _cost(key) + 2 + one.least
        if needed <= space:
            space -= needed
            kept.append((key, one))
    rooms = _rooms([one for _, one in kept], space + sum(one.least for _, one in kept))
    made = {key: _fit(values[key], one, most) for (key, one), most in zip(kept, rooms, strict=True)}
    lost = len(values) - len(kept)
    return {**made, "…": left_out(lost)} if lost else made


def _rooms(inside: Sequence[_Measured], space: int) -> list[int]:
    """How much each may take: its least, and as much of the rest as the others, where it is that long."""
    cap = _level([one.size - one.least for one in inside], space - sum(one.least for one in inside))
    return [one.least + cap for one in inside]


def _level(sizes: Sequence[int], space: int) -> int:
    """The most that each may take so that all take no more than `space`: the short ones leave their rest to others."""
    left = sorted(sizes)
    for done, size in enumerate(left):
        share = space // (len(left) - done)
        if size > share:
            return share
        space -= size
    return max(left, default=0)


def _mark_like(value: object, count: int) -> Any:
    """The mark in a list, in the shape of what stands there."""
    if isinstance(value, dict) and "parts" in value:
        return {"role": value.get("role"), "parts": [{"type": "text", "content": left_out(count, "messages")}]}
    if isinstance(value, dict) and "type" in value and "name" not in value:
        return {"type": "text", "content": left_out(count, "parts")}
    return left_out(count)
