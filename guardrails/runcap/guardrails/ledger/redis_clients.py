"""Connections to Redis, sync and async, that keep a deadline.

redis-py's own clients retry, greet the server in several round trips, and count their time-outs anew for each; here
one deadline stands over connecting, greeting and answering together. A namespace lives in one slot, so a cluster is
one node to talk to: the one that was given, or the one it sends us to.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from functools import cache
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from .base import LedgerError
from .redis_errors import answered, too_late, unreachable

T = TypeVar("T")

Address = tuple[str, int]
"""A node of a cluster. None is the server of the URL."""


class Request(NamedTuple):
    """Commands to be sent at once, to whom, and whether they may be sent once more where the connection broke."""

    commands: tuple[tuple[Any, ...], ...]
    at: Address | None = None
    again: bool = True


Steps = Generator[Request, list[Any], T]
"""What is asked of Redis to do something, whoever asks: `Lines` or `AsyncLines`."""

_SOON = 0.001


class Target:
    """A server, as its URL describes it.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: the URL is none of Redis'.
    """

    def __init__(self, url: str, seconds: float) -> None:
        try:
            import redis.asyncio.connection  # noqa: PLC0415 - an extra
            import redis.connection  # noqa: PLC0415
        except ImportError as error:
            raise ImportError('RedisLedger needs redis-py: pip install "runcap[redis]"') from error
        self.seconds = seconds
        self.errors = redis.exceptions
        told: dict[str, Any] = dict(redis.connection.parse_url(url))
        base = told.pop("connection_class", redis.connection.Connection)
        # Ours stand above the URL's: RESP2 needs no greeting, and time-outs are what the deadline leaves.
        ours = {"protocol": 2, "decode_responses": True, "encoding": "utf-8", "encoding_errors": "surrogatepass"}
        dropped = ("socket_timeout", "socket_connect_timeout", "timeout", "retry_on_timeout", "retry_on_error",
                   "max_connections", "health_check_interval")  # fmt: skip
        self._settings = {name: value for name, value in told.items() if name not in dropped} | ours
        self._sync_class: Any = _hurried(base)
        self._async_class: Any = getattr(redis.asyncio.connection, base.__name__)
        self.where = str(told.get("path") or f"{told.get('host', 'localhost')}:{told.get('port', 6379)}")
        self.host: Address = (str(told.get("host", "localhost")), int(told.get("port", 6379)))
        self.pack = _packer()
        try:
            str(told.get("host", "")).encode("idna")
            self.line(None)
            self.async_line(None)
        except (TypeError, UnicodeError) as error:
            raise ValueError(f"not a URL that redis-py understands: {error}") from error

    def line(self, address: Address | None) -> Any:
        """A connection, not yet made."""
        return self._silent(self._sync_class(**self._settings_for(address)))

    def async_line(self, address: Address | None) -> Any:
        """A connection for a running event loop, not yet made."""
        return self._silent(self._async_class(socket_timeout=None, socket_connect_timeout=None,
                                              **self._settings_for(address)))  # fmt: skip

    def failed(self, error: Exception, where: str) -> Exception:
        """What an error of redis-py means."""
        if isinstance(error, (self.errors.TimeoutError, TimeoutError)):
            return too_late(where, self.seconds)
        if isinstance(
            error, (self.errors.AuthenticationError, self.errors.BusyLoadingError, self.errors.ResponseError)
        ):
            return answered(error, where)
        return unreachable(error, where)

    def named(self, address: Address | None) -> str:
        """How errors call a server."""
        return self.where if address is None else f"{address[0]}:{address[1]}"

    def _settings_for(self, address: Address | None) -> dict[str, Any]:
        return self._settings if address is None else self._settings | {"host": address[0], "port": address[1]}

    @staticmethod
    def _silent(line: Any) -> Any:
        """Without `CLIENT SETINFO`, which costs two round trips."""
        for name in ("driver_info", "lib_name", "lib_version"):
            if hasattr(line, name):
                setattr(line, name, None)
        return line


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
        ResponseError = self._target.errors.ResponseError  # noqa: N806 - as redis-py names it
        try:
            line.send_packed_command([self._target.pack(command) for command in request.commands])
            replies: list[Any] = []
            for _ in request.commands:
                try:
                    replies.append(line.read_response())
                except ResponseError as error:
                    replies.append(error)
        except BaseException:
            line.disconnect()
            raise
        return replies

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

    def forget(self) -> None:
        """Let go of the connections of loops that belong to another process, or are closed."""
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

    async def _close(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._over = True
            idle, self._idle = self._idle, {}
            for lines in idle.values():
                for line in lines:
                    await line.disconnect()


def _abort(line: Any) -> None:
    """Close it without a farewell, for an answer may still be under way."""
    writer = line._writer  # noqa: SLF001 - disconnecting waits, and cannot be done where a task is cancelled
    line._writer = line._reader = None  # noqa: SLF001
    if writer is not None:
        writer.transport.abort()


class _Timed:
    """A socket whose every operation has only as long as the deadline leaves."""

    def __init__(self, sock: Any, line: _Hurried) -> None:
        self._sock, self._line = sock, line
        self._quiet = select.poll()
        self._quiet.register(sock, select.POLLIN)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv_into(self, buffer: Any, *rest: Any) -> int:
        self._sock.settimeout(self._line.socket_timeout)
        received: int = self._sock.recv_into(buffer, *rest)
        return received

    def recv(self, *rest: Any) -> bytes:
        self._sock.settimeout(self._line.socket_timeout)
        received: bytes = self._sock.recv(*rest)
        return received

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(self._line.socket_timeout)
        self._sock.sendall(data)

    def is_quiet(self) -> bool:
        """Nobody closed it, and nothing came unasked."""
        return not self._quiet.poll(0)


class _Hurried:
    """What a connection of redis-py needs to keep a deadline."""

    until = float("inf")
    _sock: _Timed | None

    @property
    def socket_timeout(self) -> float:
        """What is left; never zero, which would mean not to wait at all."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return max(left, _SOON)

    @socket_timeout.setter
    def socket_timeout(self, value: object) -> None:
        """redis-py's own time-outs do not count."""

    @property
    def socket_connect_timeout(self) -> float:
        """What is left for connecting."""
        return self.socket_timeout

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, value: object) -> None:
        """redis-py's own time-outs do not count."""

    def is_quiet(self) -> bool:
        """It can be used."""
        return self._sock is not None and self._sock.is_quiet()


@cache
def _hurried(base: type) -> type:
    def _connect(self: Any) -> _Timed:
        return _Timed(base._connect(self), self)  # type: ignore[attr-defined]  # noqa: SLF001 - made to be overridden

    return type(f"Hurried{base.__name__}", (_Hurried, base), {"_connect": _connect})


def _packer() -> Callable[[tuple[Any, ...]], bytes]:
    try:
        from hiredis import pack_command  # noqa: PLC0415 - it makes redis-py faster where it is installed
    except ImportError:
        pack_command = _pack

    def pack(command: tuple[Any, ...]) -> bytes:
        try:
            packed: bytes = pack_command(command)
        except UnicodeEncodeError:  # half a character, in an id or a tag
            packed = _pack(command)
        return packed

    return pack


def _pack(command: tuple[Any, ...]) -> bytes:
    parts = [b"*%d\r\n" % len(command)]
    for arg in command:
        raw = arg if isinstance(arg, bytes) else str(arg).encode("utf-8", "surrogatepass")
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)
