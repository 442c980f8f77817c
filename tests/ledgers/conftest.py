"""The ledgers that outlive a process, each new."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..guardrails.redis_server import REQUIRED, RedisServer, redis_server
from .spec import Spec

__all__ = ["redis_server"]


KINDS = ["sqlite", pytest.param("redis", marks=pytest.mark.redis)]


@pytest.fixture(params=KINDS)
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> Spec:
    """How to open a ledger that nobody has used."""
    return in_redis(request) if request.param == "redis" else in_a_file(tmp_path)


@pytest.fixture(params=KINDS)
def light(request: pytest.FixtureRequest) -> Spec:
    """The same, for hundreds of them: their files are in memory."""
    return in_redis(request) if request.param == "redis" else in_a_file(request.getfixturevalue("scratch"))


@pytest.fixture
def light_file(scratch: Path) -> Spec:
    """The same, files only."""
    return in_a_file(scratch)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def in_a_file(folder: Path) -> Spec:
    """A ledger of its own."""
    return Spec(kind="sqlite", where=str(folder / "ledger.db"))


def in_redis(request: pytest.FixtureRequest) -> Spec:
    """A namespace of its own on a real server."""
    if not os.environ.get(REQUIRED):
        pytest.importorskip("redis")
    server: RedisServer = request.getfixturevalue("redis_server")
    return Spec(kind="redis", where=server.url, namespace=uuid.uuid4().hex)
