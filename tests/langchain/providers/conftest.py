from __future__ import annotations

from collections.abc import Iterator

import pytest

from .wire import Wire


@pytest.fixture(scope="session")
def server() -> Iterator[Wire]:
    with Wire() as running:
        yield running


@pytest.fixture
def wire(server: Wire) -> Wire:
    server.json({})
    return server
