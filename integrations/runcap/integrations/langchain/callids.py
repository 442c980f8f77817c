"""The ids of tool calls: which the target of a history takes, and every place where one stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from langchain_core.messages import AIMessage

from .blocks import Block, is_call

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHORT = 9
"""So many letters and digits are an id that every provider takes; Mistral takes no other."""

_FORMS = {
    "anthropic": re.compile(r"[a-zA-Z0-9_-]+"),
    "aws": re.compile(r"[a-zA-Z0-9_-]{1,64}"),
    "google": re.compile(r".+", re.DOTALL),
    "mistral": re.compile(r"[a-zA-Z0-9]{9}"),
}
_ANY = re.compile(r".{1,40}", re.DOTALL)
_KEYED_BY_ID = ("__openai_function_call_ids__", "__gemini_function_call_thought_signatures__")

NewIds = Mapping[object, Sequence[str | None]]
"""The new ids of the calls that had each id, in their order; None for a call that goes."""


class CallIds:
    """The ids of tool calls: each stands once, in a form that the target takes."""

    def __init__(self, family: str | None) -> None:
        self._form = _FORMS.get(family or "", _ANY)
        self._seen: dict[str | None, int] = {}
        self._used: set[str] = set()
        self._trial: list[tuple[str | None, str]] | None = None

    def give(self, old: str | None, *, fresh: bool) -> str:
        """The id itself where it may stay, else one made of it and of how often it was seen."""
        seen = self._seen[old] = self._seen.get(old, 0) + 1
        stays = bool(old) and not fresh and old not in self._used and self._form.fullmatch(str(old))
        new = str(old) if stays else self._unused(str(old or ""), seen)
        self._used.add(new)
        if self._trial is not None:
            self._trial.append((old, new))
        return new

    def on_trial(self) -> _Trial:
        """Ids given inside are forgotten at its end."""
        return _Trial(self)

    def begin(self) -> None:
        """From here on ids are given on trial."""
        self._trial = []

    def undo(self) -> None:
        """Forget those given on trial."""
        for old, new in self._trial or ():
            self._seen[old] -= 1
            self._used.discard(new)
        self._trial = None

    def _unused(self, old: str, seen: int) -> str:
        new = _short_id(f"{seen}:{old}")
        while new in self._used:
            new = _short_id(f"{new}:{old}")
        return new


class _Trial:
    def __init__(self, ids: CallIds) -> None:
        self._ids = ids

    def __enter__(self) -> None:
        self._ids.begin()

    def __exit__(self, *_: object) -> None:
        self._ids.undo()


def of_call(block: str | Block, old: str, new: str) -> str | Block:
    """A block of a tool's result, which may name the call."""
    return {**block, "tool_use_id": new} if isinstance(block, dict) and block.get("tool_use_id") == old else block


def with_ids(message: AIMessage, ids: NewIds) -> AIMessage:
    """The message with other ids for its calls, or without some; all copies are kept in step.

    Clearing `tool_calls` alone would bring calls back from a copy, and renaming there alone would orphan results.
    """
    update: dict[str, Any] = {
        "tool_calls": _renamed(message.tool_calls, ids, "id"),
        "invalid_tool_calls": _renamed(message.invalid_tool_calls, ids, "id"),
        "additional_kwargs": _renamed_extra(message.additional_kwargs, ids),
    }
    if isinstance(message.content, list):
        update["content"] = _renamed_content(message.content, ids) or ""
    return message.model_copy(update=update)


def _renamed(calls: Sequence[Any], ids: NewIds, key: str) -> list[Any]:
    new_id = _renamer(ids)
    named = [(call, new_id(call.get(key))) for call in calls]
    return [{**call, key: new} for call, new in named if new is not None]


def _renamed_content(content: Sequence[str | Block], ids: NewIds) -> list[str | Block]:
    new_id = _renamer(ids)
    made: list[str | Block] = []
    for block in content:
        if isinstance(block, dict) and is_call(block):
            key = "call_id" if "call_id" in block else "id"
            new = new_id(block.get(key))
            made += [] if new is None else [{**block, key: new}]
        else:
            made.append(block)
    return made


def _renamed_extra(extra: Mapping[str, Any], ids: NewIds) -> dict[str, Any]:
    made = dict(extra)
    if "tool_calls" in made:
        made["tool_calls"] = _renamed(made["tool_calls"], ids, "id")
    for name in _KEYED_BY_ID:
        if isinstance(made.get(name), dict):
            new_id = _renamer(ids)
            named = [(new_id(old), value) for old, value in made[name].items()]
            made[name] = {new: value for new, value in named if new is not None}
    if "function_call" in made and not any(new for every in ids.values() for new in every):
        del made["function_call"]
    return {name: value for name, value in made.items() if value or name != "tool_calls"}


def _renamer(ids: NewIds) -> Callable[[Any], str | None]:
    queues = {old: list(new) for old, new in ids.items()}

    def new_id(old: Any) -> str | None:
        queue = queues.get(old)
        if not queue:
            return old if isinstance(old, str) else None
        return queue.pop(0) if len(queue) > 1 else queue[0]

    return new_id


def _short_id(text: str) -> str:
    number = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    digits = []
    for _ in range(_SHORT):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(digits)
