"""Streams, each step of which is taken inside what the sinks put around a call.

Never across steps: whoever reads a stream goes on in a context of his own between two chunks, and may drop it anywhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Generic, TypeVar

from runcap.guardrails.dispatch import Dispatcher

T = TypeVar("T")


class Surrounded(Generic[T]):
    """A stream of a call."""

    __slots__ = ("_call_id", "_chunks", "_sinks")

    def __init__(self, sinks: Dispatcher, call_id: str, chunks: Iterator[T]) -> None:
        self._sinks = sinks
        self._call_id = call_id
        self._chunks = iter(chunks)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._sinks.around_call(self._call_id):
            return next(self._chunks)


class AsyncSurrounded(Generic[T]):
    """The same in async code."""

    __slots__ = ("_call_id", "_chunks", "_sinks")

    def __init__(self, sinks: Dispatcher, call_id: str, chunks: AsyncIterator[T]) -> None:
        self._sinks = sinks
        self._call_id = call_id
        self._chunks = aiter(chunks)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        with self._sinks.around_call(self._call_id):
            return await anext(self._chunks)
