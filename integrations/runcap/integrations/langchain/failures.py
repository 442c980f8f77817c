"""What an error says about the bill, and about how an agent ended. Read by type and status, never by text."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Literal

from runcap.guardrails.errors import Refused
from runcap.guardrails.events import Outcome

Billing = Literal["never", "perhaps", "failed"]
"""`never` sent or refused before any work; `perhaps` billed (a time-out, an abort); the provider `failed` (5xx)."""

# Clients bring their own HTTP library (httpx, httpx2, aiohttp, requests, botocore): known by name, so none is imported.
_NEVER_CONNECTED = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "ConnectionRefusedError",
        "ClientConnectorError",
        "NewConnectionError",
        "EndpointConnectionError",
        "PoolTimeout",
    }
)
_HANDOFFS = frozenset({"ParentCommand"})
_BUBBLES = frozenset({"GraphBubbleUp"})


def billing(error: BaseException) -> Billing:
    """Whether a failed call can have been billed."""
    if isinstance(error, Refused):
        return "never"
    status = _status(error)
    if status is not None and status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "failed"
    if status is not None and status >= HTTPStatus.BAD_REQUEST and status != HTTPStatus.REQUEST_TIMEOUT:
        return "never"
    if any(_named(cause, _NEVER_CONNECTED) for cause in _causes(error)):
        return "never"
    return "perhaps"


def outcome(error: BaseException) -> Outcome:
    """How an agent or tool that raised this ended; hand-offs and interrupts are no errors."""
    if isinstance(error, Refused):
        return "refused"
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return "cancelled"
    if _named(error, _HANDOFFS):
        return "handoff"
    return "interrupted" if _named(error, _BUBBLES) else "error"


def _status(error: BaseException) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        if isinstance(holder, Mapping):  # botocore
            value = (holder.get("ResponseMetadata") or {}).get("HTTPStatusCode")
        else:
            value = getattr(holder, "status_code", None) or getattr(holder, "code", None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        # Not the context: a call made while another's error is handled would inherit that one.
        current = current.__cause__


def _named(error: BaseException, names: frozenset[str]) -> bool:
    return any(base.__name__ in names for base in type(error).__mro__)
