from __future__ import annotations

import ssl
from collections.abc import Iterator
from functools import cache

import pytest

from .wire import Wire


@pytest.fixture(scope="session")
def server() -> Iterator[Wire]:
    # Every client reads the same certificates, which takes longer than the test.
    with Wire() as running, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
        yield running


@pytest.fixture
def wire(server: Wire) -> Wire:
    server.json({})
    return server
