"""Connections to Redis, sync and async, that keep a deadline.

redis-py's own clients retry, greet the server in several round trips, and count their time-outs anew for each; here
one deadline stands over connecting, greeting and answering together. A namespace lives in one slot, so a cluster is
one node to talk to: the one that was given, or the one it sends us to.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Generator
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from .base import LedgerError
from .redis_target import Address, Target

T = TypeVar("T")


Commands = tuple[tuple[Any, ...], ...]


class Request(NamedTuple):
    """Commands to be sent at once, to whom, and whether they may be sent once more where the connection broke."""

    commands: Commands
    at: Address | None = None
    again: bool = True


Steps = Generator[Request, list[Any], T]
"""What is asked of Redis to do something, whoever asks: `Lines` or `AsyncLines`."""


class Lines:
    """Connections that block; one for each operation under way, kept for the next."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._idle: dict[Address | None, deque[Any]] = {}
        self._broken: tuple[type[Exception], ...] = (target.errors.RedisError, OSError)

    def drive(self, steps: Steps[T], until: float) -> T:
        """Do it, by a point of monotonic time.

        Raises:
            LedgerError: Redis was not reached in time, or refused.
        """
        try:
            request = next(steps)
            while True:
                try:
                    replies = self._exchange(request, until)
                except LedgerError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(replies)
        except StopIteration as stop:
            answer: T = stop.value
            return answer

    def close(self) -> None:
        """Close all that are idle; those in use are closed after."""
        idle, self._idle = self._idle, {}
        for lines in idle.values():
            while lines:
                lines.pop().disconnect()

    def _exchange(self, request: Request, until: float) -> list[Any]:
        idle = self._idle.get(request.at)
        if idle is None:
            idle = self._idle.setdefault(request.at, deque())
        line, used = self._take(idle, request.at)
        try:
            replies = self._ask(line, request, until)
        except self._broken as error:
            if not used or not request.again or isinstance(error, (self._target.errors.TimeoutError, TimeoutError)):
                raise self._target.failed(error, self._target.named(request.at)) from error
            # It was closed while it lay idle: that says nothing about the server.
            return self._exchange(request._replace(again=False), until)
        idle.append(line)
        if idle is not self._idle.get(request.at):
            self._drop(idle)  # closed meanwhile
        return replies

    def _take(self, idle: deque[Any], address: Address | None) -> tuple[Any, bool]:
        while True:
            try:
                line = idle.pop()
            except IndexError:
                return self._target.line(address), False
            if line.is_quiet():
                return line, True
            line.disconnect()

    def _ask(self, line: Any, request: Request, until: float) -> list[Any]:
        line.until = until
        pack = self._target.pack
        packed = [pack(command) for command in request.commands]
        try:
            return line.exchange(packed)  # type: ignore[no-any-return]
        except BaseException:
            line.disconnect()
            raise

    @staticmethod
    def _drop(idle: deque[Any]) -> None:
        while idle:
            with contextlib.suppress(IndexError):
                idle.pop().disconnect()


class AsyncLines:
    """Connections of event loops; each loop has its own, which are closed as it ends."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()
        self._broken: tuple[type[Exception], ...] = (target.errors.RedisError, OSError)

    async def drive(self, steps: Steps[T], until: float) -> T:
        """`Lines.drive`, without blocking the loop.

        Raises:
            LedgerError: Redis was not reached in time, or refused.
        """
        loop = await self._here()
        try:
            request = next(steps)
            while True:
                try:
                    replies = await self._exchange(loop, request, until)
                except LedgerError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(replies)
        except StopIteration as stop:
            answer: T = stop.value
            return answer

    async def close(self) -> None:
        """Close those of the running loop."""
        loop = self._loops.pop(asyncio.get_running_loop(), None)
        if loop is not None:
            await loop.closer.aclose()

    def let_go(self) -> None:
        """Have every loop close what it has, from whatever thread."""
        for running, loop in list(self._loops.items()):
            if not running.is_closed():
                running.call_soon_threadsafe(loop.drop)

    def abandon(self) -> None:
        """In a forked child: leave alone what belongs to the parent's loops."""
        self._abandoned = self._loops  # to be collected would be to close them
        self._loops = WeakKeyDictionary()

    async def _here(self) -> _Loop:
        running = asyncio.get_running_loop()
        loop = self._loops.get(running)
        if loop is None:
            for other in [other for other in self._loops if other.is_closed()]:
                del self._loops[other]
            loop = self._loops[running] = _Loop()
            await anext(loop.closer)  # begun in this loop, which closes it when it ends
        return loop

    async def _exchange(self, loop: _Loop, request: Request, until: float) -> list[Any]:
        line = loop.take(request.at)
        used = line is not None
        if line is None:
            line = self._target.async_line(request.at)
        try:
            async with asyncio.timeout(until - time.monotonic()):
                replies = await self._ask(line, request)
        except self._broken as error:
            _abort(line)
            if not used or not request.again or isinstance(error, (self._target.errors.TimeoutError, TimeoutError)):
                raise self._target.failed(error, self._target.named(request.at)) from error
            return await self._exchange(loop, request._replace(again=False), until)
        except BaseException:
            _abort(line)
            raise
        loop.give_back(line, request.at)
        return replies

    async def _ask(self, line: Any, request: Request) -> list[Any]:
        if not line.is_connected:
            await line.connect()
        await line.send_packed_command([self._target.pack(command) for command in request.commands])
        replies: list[Any] = []
        for _ in request.commands:
            try:
                replies.append(await line.read_response())
            except self._target.errors.ResponseError as error:
                replies.append(error)
        return replies


class _Loop:
    """The idle connections of an event loop."""

    def __init__(self) -> None:
        self._idle: dict[Address | None, list[Any]] = {}
        self._over = False
        self.closer = self._close()

    def take(self, address: Address | None) -> Any | None:
        """One that is still good."""
        idle = self._idle.get(address)
        while idle:
            line = idle.pop()
            reader = line._reader  # noqa: SLF001 - redis-py has no other name for it that all its versions share
            if reader is not None and not reader.at_eof() and reader.exception() is None:
                return line
            _abort(line)
        return None

    def give_back(self, line: Any, address: Address | None) -> None:
        """Keep it for the next."""
        if self._over:
            _abort(line)
        else:
            self._idle.setdefault(address, []).append(line)

    def drop(self) -> None:
        """Close all that are idle."""
        for idle in self._idle.values():
            while idle:
                _abort(idle.pop())

    async def _close(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._over = True
            self.drop()
            await asyncio.sleep(0)  # the loop closes them in its next round


def _abort(line: Any) -> None:
    """Close it without a farewell, for an answer may still be under way."""
    writer = line._writer  # noqa: SLF001 - disconnecting waits, and cannot be done where a task is cancelled
    line._writer = line._reader = None  # noqa: SLF001
    if writer is not None:
        writer.transport.abort()
