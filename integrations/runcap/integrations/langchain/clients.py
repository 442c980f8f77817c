"""The retries that clients make by themselves: taken over, so that every attempt is a call of its own.

Known are the clients of openai (and of the packages built on langchain-openai) and of anthropic. They are read by
attribute; neither package is imported.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from langchain_core.language_models import BaseChatModel

_DEFAULT = 2
"""What both SDKs do where nothing is said."""

_RETRIED = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)
_NEVER_ANSWERED = "APIConnectionError"
"""Of both SDKs; their time-outs derive from it."""

_making = threading.RLock()  # two threads must not each make a client, the later one a retrying one

_FIRST_DELAY, _LONGEST_DELAY, _LONGEST_TOLD = 0.5, 8.0, 60.0
_OPENAI = {False: ("root_client", "client"), True: ("root_async_client", "async_client")}
_ANTHROPIC = {False: "_client", True: "_async_client"}


def take_over_retries(model: BaseChatModel, *, asynchronous: bool) -> int | None:
    """Switch the client's retries off, in place; how many are now ours to make. None where the client is not known."""
    state = model.__dict__
    if "root_client" in state:
        for root, leaf in _OPENAI.values():
            # The leaf makes the calls, so it comes first: a thread that comes meanwhile finds it quiet already. It may
            # be the user's own, of a client that is not the model's.
            own = getattr(state.get(leaf), "_client", None)
            if own is not None and getattr(own, "max_retries", False):
                state[leaf] = own.with_options(max_retries=0).chat.completions
            if state.get(root) is not None and state[root].max_retries:
                state[root] = state[root].with_options(max_retries=0)
        known = getattr(state.get(_OPENAI[asynchronous][1]), "_client", None)
        return _wanted(model) if hasattr(known, "max_retries") else None
    if hasattr(type(model), "_client_params"):
        name = _ANTHROPIC[asynchronous]
        with _making:
            client = getattr(model, name, None)
            if client is None or not hasattr(client, "max_retries"):
                return None
            if client.max_retries:
                state[name] = client.with_options(max_retries=0)
        return _wanted(model)
    return None


def _wanted(model: BaseChatModel) -> int:
    told = getattr(model, "max_retries", None)
    return told if isinstance(told, int) else _DEFAULT


def is_worth_retrying(error: Exception) -> bool:
    """What both SDKs try again: lost connections, time-outs, 408, 409, 429 and 5xx, unless the provider says not to."""
    told = _headers(error).get("x-should-retry")
    if told in ("true", "false"):
        return bool(told == "true")
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status in _RETRIED or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return any(base.__name__ == _NEVER_ANSWERED for base in type(error).__mro__)


def delay_before(attempt: int, error: Exception) -> float:
    """Seconds to wait before this attempt (the first retry is 1): what the provider says, else longer each time."""
    headers = _headers(error)
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            told = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 < told <= _LONGEST_TOLD:
            return told
    longest = min(_FIRST_DELAY * 2.0 ** (attempt - 1), _LONGEST_DELAY)
    return longest * (1 - 0.25 * random.random())  # noqa: S311 - spreads retries, guards no secret


def _headers(error: Exception) -> Mapping[str, Any]:
    headers = getattr(getattr(error, "response", None), "headers", None)
    return headers if isinstance(headers, Mapping) else {}
