"""Real Redis servers, each a process of its own, and a proxy that stands between them and whoever is tested."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Self

import pytest

from ..waiting import free_port, wait_for

REQUIRED = "RUNCAP_REQUIRE_RECEIVERS"


def server_binary() -> str:
    """Where redis-server is; without it the test is skipped, but not where CI runs."""
    binary = shutil.which("redis-server")
    if binary is None and not os.environ.get(REQUIRED):
        pytest.skip("redis-server is not installed")
    assert binary is not None, f"redis-server is not installed, and {REQUIRED} is set"
    return binary


class RedisServer:
    """A redis-server in a folder of its own. `settings` are those of redis.conf."""

    def __init__(self, **settings: object) -> None:
        self._binary = server_binary()
        self.folder = Path(tempfile.mkdtemp(prefix="runcap-redis-"))
        self.port = free_port(also_above=10_000)  # its cluster bus is there
        self._settings = {"port": self.port, "bind": "127.0.0.1", "save": '""', "appendonly": "no"} | settings
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @classmethod
    def durable(cls) -> Self:
        """One that has everything on its disk before it answers."""
        return cls(appendonly="yes", appendfsync="always")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = self.folder / "redis.conf"
        settings = self._settings | {"dir": self.folder}
        config.write_text("".join(f"{name.replace('_', '-')} {value}\n" for name, value in settings.items()))
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self._binary, str(config)], stdout=log, stderr=log)
        wait_for(self.answers, f"redis-server on {self.port}")

    def answers(self) -> bool:
        """It is there and has loaded its data."""
        if self._settings["port"] == 0:
            return b"Ready to accept connections" in (self.folder / "log").read_bytes()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def kill(self) -> None:
        """As the kernel would, out of memory."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def pause(self) -> None:
        """It is there, and does nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """Lose the disk; to be called while it is down."""
        for name in ("appendonlydir", "dump.rdb"):
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def copy_disk(self) -> Path:
        """What a replica that lags would have."""
        return Path(shutil.copytree(self.folder / "appendonlydir", self.folder / f"copy-{time.monotonic_ns()}"))

    def restore_disk(self, copy: Path) -> None:
        self.forget()
        shutil.copytree(copy, self.folder / "appendonlydir")

    def stop(self) -> None:
        if self._process is not None:
            self.go_on()
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One for all tests that do it no harm; each takes a namespace of its own."""
    with RedisServer() as server:
        yield server


Way = Literal["pass", "hold answers", "swallow", "cut", "trickle"]


class Proxy:
    """A TCP proxy whose way with what it carries can be changed at any time.

    "hold answers" lets questions through and keeps the answers; "swallow" takes everything and passes nothing on;
    "cut" closes each connection once the question is through; "trickle" gives the answer a byte at a time.
    """

    def __init__(self, port: int, *, delay: float = 0.0) -> None:
        self.target, self.delay, self.way = port, delay, "pass"
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def set(self, way: Way, *, delay: float = 0.0) -> None:
        """From now on."""
        self.way, self.delay = way, delay

    def drop(self) -> None:
        """Cut every connection there is."""
        while self._open:
            _close(self._open.pop())

    def close(self) -> None:
        self._over.set()
        _close(self._server)
        self.drop()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _spawn(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self._open.append(client)
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                _close(client)
                continue
            self._open.append(server)
            self._spawn(self._carry, client, server, "question")
            self._spawn(self._carry, server, client, "answer")

    def _carry(self, source: socket.socket, sink: socket.socket, kind: str) -> None:
        source.settimeout(0.1)
        while not self._over.is_set():
            try:
                data = source.recv(65_536)
                self._over.wait(self.delay)
                if data:
                    self._pass_on(data, sink, kind)
            except TimeoutError:
                continue
            except OSError:
                break
            if not data:
                break
        _close(sink)

    def _pass_on(self, data: bytes, sink: socket.socket, kind: str) -> None:
        way = self.way
        if way == "swallow" or (way == "hold answers" and kind == "answer"):
            return
        if way == "cut" and kind == "answer":
            raise OSError
        if way == "trickle" and kind == "answer":
            for at in range(len(data)):
                sink.sendall(data[at : at + 1])
                self._over.wait(0.2)
            return
        sink.sendall(data)


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
