"""A Redis server as its URL describes it, and connections to it that keep a deadline."""

from __future__ import annotations

import inspect
import select
import time
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from .redis_errors import answered, too_late, unreachable

Address = tuple[str, int]
"""A node of a cluster. None is the server of the URL."""

_SOON = 0.001
_NEAR = 0.02
"""Seconds that a deadline may be missed by."""

_DROPPED = (
    "socket_timeout",
    "socket_connect_timeout",
    "timeout",
    "retry_on_timeout",
    "retry_on_error",
    "max_connections",
    "health_check_interval",
)
"""What a URL may say of time-outs and retries: the deadline stands above it."""


_NO_URL = (
    "not a URL that redis-py understands (it is not shown, for it may hold a password): "
    'RedisLedger("redis://user:password@host:6379/0"), with what is no letter or digit in the password written as %2F'
)


def _told(parse_url: Any, url: str) -> dict[str, Any]:
    try:
        told: dict[str, Any] = dict(parse_url(url))
    except (ValueError, TypeError, UnicodeError):
        raise ValueError(_NO_URL) from None
    path = urlsplit(url).path.strip("/")
    if not url.startswith("unix:") and path and not path.isdigit():
        raise ValueError(f"the path of a Redis URL is the number of a database, got {path!r}")
    return told


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
        parse_url: Any = redis.connection.parse_url
        self.errors = redis.exceptions
        told = _told(parse_url, url)
        base = told.pop("connection_class", redis.connection.Connection)
        # RESP2 needs no greeting; and without CLIENT SETINFO a connection is there two round trips sooner.
        tells = "driver_info" in inspect.signature(redis.connection.AbstractConnection.__init__).parameters
        silent = {"driver_info": None} if tells else {"lib_name": None, "lib_version": None}
        ours = {"protocol": 2, "decode_responses": False, "encoding": "utf-8", "encoding_errors": "strict"}
        self._settings = {name: value for name, value in told.items() if name not in _DROPPED} | ours | silent
        self._sync_class: Any = _hurried(base)
        self._async_class: Any = getattr(redis.asyncio.connection, base.__name__)
        self.where = str(told.get("path") or f"{told.get('host', 'localhost')}:{told.get('port', 6379)}")
        self.host: Address = (str(told.get("host", "localhost")), int(told.get("port", 6379)))
        self.pack = _packer()
        try:
            str(told.get("host", "")).encode("idna")
            self.line(None)
            self.async_line(None)
        except (TypeError, UnicodeError):
            raise ValueError(_NO_URL) from None

    def line(self, address: Address | None) -> Any:
        """A connection, not yet made."""
        return self._sync_class(**self._settings_for(address))

    def async_line(self, address: Address | None) -> Any:
        """A connection for a running event loop, not yet made."""
        return self._async_class(socket_timeout=None, socket_connect_timeout=None, **self._settings_for(address))

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


class _Timed:
    """A socket whose every operation has only as long as the deadline leaves."""

    def __init__(self, sock: Any, line: _Hurried) -> None:
        self._sock, self._line, self._given = sock, line, 0.0
        self._quiet = select.poll()
        self._quiet.register(sock, select.POLLIN)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def _hurry(self) -> None:
        left = self._line.socket_timeout
        if abs(left - self._given) > min(_NEAR, left / 2):  # each setting is a system call
            self._given = left
            self._sock.settimeout(left)

    def recv_into(self, buffer: Any, *rest: Any) -> int:
        self._hurry()
        received: int = self._sock.recv_into(buffer, *rest)
        return received

    def recv(self, *rest: Any) -> bytes:
        self._hurry()
        received: bytes = self._sock.recv(*rest)
        return received

    def sendall(self, data: Any) -> None:
        self._hurry()
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

    def exchange(self: Any, packed: list[bytes]) -> list[Any]:
        """Send commands and read their answers, errors among them; without what redis-py does beside that."""
        if self._sock is None:
            self.connect()
        self._sock.sendall(packed[0] if len(packed) == 1 else b"".join(packed))
        read = self._parser.read_response
        return [read() for _ in packed]

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
        import hiredis  # noqa: PLC0415 - it makes redis-py faster where it is installed
    except ImportError:
        return _pack
    pack_command: Any = hiredis.pack_command

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
