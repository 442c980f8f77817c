"""A Redis of the benchmark's own, and the least that could be sent to it in place of a `RedisLedger`."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import redis
import redis.asyncio

_LINE = re.compile(rb'"((?:[^"\\]|\\.)*)"')
NAMESPACE = "ours"
"""The ledger's; what is bare has keys of its own, as long as these."""

_EXAMPLE = "an-example-of-a-call"
Command = tuple[bytes, ...]


class Script(NamedTuple):
    """The writes of one step as a script: `keys` and `args` of the call `_EXAMPLE`."""

    text: str
    keys: tuple[bytes, ...]
    args: tuple[bytes, ...]

    @classmethod
    def of(cls, writes: list[Command]) -> Script:
        """A script that does just that: keys as KEYS, all else as ARGV, so that as much is sent."""
        keys = tuple(dict.fromkeys(key for _, key, *_ in writes))
        own_keys = tuple(key.replace(f":{NAMESPACE}}}".encode(), b":bare}") for key in keys)
        args = tuple(dict.fromkeys(arg for _, _, *rest in writes for arg in rest))
        lines = []
        for name, key, *rest in writes:
            told = [
                f"'{name.decode()}'",
                f"KEYS[{keys.index(key) + 1}]",
                *[f"ARGV[{args.index(arg) + 1}]" for arg in rest],
            ]
            lines.append(f"redis.call({', '.join(told)})")
        return cls("\n".join([*lines, "return 'OK'"]), own_keys, args)

    def for_call(self, call_id: str) -> tuple[int | bytes, ...]:
        """The arguments of EVALSHA for another call."""
        example, other = _EXAMPLE.encode(), call_id.encode()
        return (len(self.keys), *[one.replace(example, other) for one in (*self.keys, *self.args)])


class Bare:
    """EVALSHA through redis-py's client. Its scripts read nothing, and write what the ledger's were seen to write."""

    def __init__(self, url: str, port: int, pair: Callable[[str], object]) -> None:
        self._client = redis.Redis.from_url(url)
        pair("first")  # what is written only once is out of the way
        self._scripts = [Script.of(self._writes(step)) for step in _steps(port, pair)]
        self._hashes = [self._client.script_load(script.text) for script in self._scripts]
        assert len(self._scripts) == 2, "one round trip to reserve, one to settle"  # noqa: PLR2004

    def pair(self, call_id: str) -> None:
        """One round trip to reserve, one to settle."""
        for sha, script in zip(self._hashes, self._scripts, strict=True):
            self._client.evalsha(sha, *script.for_call(call_id))

    async def async_pair(self, client: redis.asyncio.Redis, call_id: str) -> None:
        """The same by the async client, of which each loop needs its own."""
        for sha, script in zip(self._hashes, self._scripts, strict=True):
            await client.evalsha(sha, *script.for_call(call_id))

    def describe(self) -> str:
        """What the scripts do, in short."""
        names = [re.findall(r"redis\.call\('(\w+)'", script.text) for script in self._scripts]
        return "; ".join(" ".join(each) for each in names)

    def _writes(self, commands: list[Command]) -> list[Command]:
        flags = {name: self._client.execute_command("COMMAND", "INFO", name) for name in {one[0] for one in commands}}
        return [one for one in commands if "write" in str(flags[one[0]])]


def _steps(port: int, pair: Callable[[str], object]) -> list[list[Command]]:
    """What the scripts of a pair do, as the server saw it, by script."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(b"MONITOR\r\n")
        seen = line.recv(64)
        pair(_EXAMPLE)
        with redis.Redis(port=port) as client:
            client.echo("that was it")
        while b"that was it" not in seen:
            seen += line.recv(65_536)
    steps: list[list[Command]] = []
    for told in seen.split(b"\r\n"):
        words = [word.decode("unicode_escape").encode("latin-1") for word in _LINE.findall(told)]
        if b"lua]" in told:
            steps[-1].append(tuple(words))
        elif words and words[0].lower() == b"evalsha":
            steps.append([])
    return steps


def client(url: str) -> redis.asyncio.Redis:
    """An async client, for one loop."""
    return redis.asyncio.Redis.from_url(url)


@contextmanager
def server() -> Iterator[int]:
    """The port of a redis-server that keeps nothing on a disk: what clients and scripts cost is all there is."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="runcap-redis-")
    settings = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder)
    binary = shutil.which("redis-server")
    assert binary is not None, "redis-server is not installed"
    process = subprocess.Popen([binary, *settings], stdout=subprocess.DEVNULL)  # noqa: S603 - found above
    try:
        with redis.Redis(port=port) as probing:
            for _ in range(500):
                with suppress(redis.ConnectionError):
                    probing.ping()
                    break
                time.sleep(0.01)
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
