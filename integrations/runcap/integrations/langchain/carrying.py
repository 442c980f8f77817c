"""What a middleware decided of a call, carried to the guarded model that makes it, further in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import NamedTuple

from langchain_core.language_models import BaseChatModel

from runcap.guardrails.course import ANY, Purpose


class _Carried(NamedTuple):
    model: BaseChatModel
    purpose: Purpose


_carried: ContextVar[_Carried | None] = ContextVar("runcap_purpose", default=None)


@contextmanager
def carrying(model: BaseChatModel, purpose: Purpose) -> Iterator[None]:
    """Inside, this very model's calls have this purpose; whatever else is called has none."""
    token = _carried.set(_Carried(model, purpose))
    try:
        yield
    finally:
        with suppress(ValueError):  # a coroutine that nobody awaits may be finished in a copy of its context
            _carried.reset(token)


def purpose_of(model: BaseChatModel) -> Purpose:
    """What a call of this model is for."""
    carried = _carried.get()
    return carried.purpose if carried is not None and carried.model is model else ANY
