"""Content on spans and in log events, where that is asked for: what may be recorded, how much, and for how long."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple, get_args

from opentelemetry._logs import Logger, LoggerProvider, LogRecord, get_logger
from opentelemetry.context import Context
from opentelemetry.trace import Span, set_span_in_context

from runcap.guardrails import forks
from runcap.guardrails.sinks import Content

from . import semconv_content as sc
from .joint import here
from .jsontext import LEAST_LIMIT, bounded_json

_log = logging.getLogger("runcap")

ContentMode = Literal["none", "span", "event", "both"]
Redact = Callable[[Content], Any]

DEFAULT_LIMIT: Final = 16_384
"""Bytes of UTF-8 an attribute has at most."""

_PENDING_SIZE = 64 * 2**20
"""Characters kept in all of calls that have not ended."""
_PENDING = 10_000

_NAMES: Final[Mapping[str, str]] = {
    "system": sc.SYSTEM_INSTRUCTIONS,
    "input": sc.INPUT_MESSAGES,
    "output": sc.OUTPUT_MESSAGES,
    "tools": sc.TOOL_DEFINITIONS,
    "arguments": sc.TOOL_CALL_ARGUMENTS,
    "result": sc.TOOL_CALL_RESULT,
}
_OF_TOOLS = frozenset({"arguments", "result"})
_TOLD: Final[Mapping[str, ContentMode]] = {
    "": "none",
    "no_content": "none",
    "false": "none",
    "0": "none",
    "span_only": "span",
    "event_only": "event",
    "span_and_event": "both",
    # Older instrumentations know on and off; on meant the span, for those that had no events.
    "true": "span",
    "1": "span",
}


class _Pending(NamedTuple):
    attributes: dict[str, str]
    size: int


class Contents:
    """Keeps what was said in a call or a tool until that ends, as JSON strings ready to be attributes.

    Args:
        mode: where content goes: `"span"` attributes, the log `"event"`
            `gen_ai.client.inference.operation.details`, `"both"` or `"none"`. None leaves it to
            OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT, as it stands now. What tools are given and give back
            stands on spans only: no event is for that.
        redact: is given each piece of content and returns the value to record, None for nothing. It gets the whole,
            before anything is shortened. Where it raises, nothing is recorded of that piece.
        limit: bytes of UTF-8 each attribute has at most. What is longer is shortened, and says by how much.
        logger_provider: where events go; None is the global one.

    Raises:
        ValueError: an unknown mode, or a limit below 256.
        TypeError: `redact` is not a plain function of one argument, or `limit` is no integer.
    """

    def __init__(
        self,
        mode: ContentMode | None = None,
        redact: Redact | None = None,
        limit: int = DEFAULT_LIMIT,
        logger_provider: LoggerProvider | None = None,
    ) -> None:
        _check(mode, redact, limit)
        self.mode: ContentMode = _told() if mode is None else mode
        self.enabled: Final = self.mode != "none"
        """Content is asked for."""
        self._redact = redact
        self._limit = limit
        self._on_spans = self.mode in ("span", "both")
        self._on_events = self.mode in ("event", "both")
        self._logger: Logger | None = None
        if self._on_events:
            self._logger = get_logger("runcap", logger_provider=logger_provider)
        self._pending: dict[str, _Pending] = {}
        self._size = 0
        self._lock = forks.rlock()
        self._said: set[str] = set()

    def __len__(self) -> int:
        """Calls and tools of which content is kept."""
        return len(self._pending)

    def take(self, content: Content) -> None:
        """Keep a piece of content until `end`. Never raises."""
        name = _NAMES.get(content.kind)
        if name is None or not self.enabled or (content.kind in _OF_TOOLS and not self._on_spans):
            return
        try:
            value = content.value if self._redact is None else self._redact(content)
        except Exception as error:  # noqa: BLE001 - foreign code; without it nothing may be recorded
            self._say(f"redact failed with {type(error).__name__}: that content is not recorded")
            return
        if value is not None:
            self._keep(content.of_id, name, bounded_json(value, self._limit))

    def end(self, of_id: str, span: Span, about: Mapping[str, Any], time_ns: int) -> None:
        """The call or tool is over: its content goes on its span, which has not ended, and into an event.

        Args:
            of_id: the call's id, or the tool's node id.
            span: its span.
            about: what else the event says: the attributes of the span.
            time_ns: when it ended, since the epoch.
        """
        attributes = self.pop_attributes(of_id)
        if attributes and self._on_spans:
            span.set_attributes(attributes)
        if attributes and self._on_events and not attributes.keys() <= _TOOL_NAMES:
            self.emit_event({**about, **attributes}, span, time_ns)

    def pop_attributes(self, of_id: str) -> dict[str, str]:
        """All that is kept of a call or tool, by attribute; it is kept no longer."""
        with self._lock:
            known = self._pending.pop(of_id, None)
            if known is None:
                return {}
            self._size -= known.size
            return known.attributes

    def clear(self) -> None:
        """Forget all that is kept."""
        self._pending.clear()
        self._size = 0

    def emit_event(self, attributes: Mapping[str, Any], span: Span, time_ns: int) -> None:
        """Emit the log event of an inference, within its span. Never raises."""
        logger = self._logger
        if logger is None:
            return
        try:
            if not logger.enabled(event_name=sc.EVENT_INFERENCE_DETAILS):
                self._say("content is to go into log events, but no logger provider takes any: set_logger_provider()")
                return
            record = LogRecord(
                timestamp=time_ns,
                context=set_span_in_context(here(span), Context()),
                attributes=dict(attributes),
                event_name=sc.EVENT_INFERENCE_DETAILS,
            )
            logger.emit(record)
        except Exception as error:  # noqa: BLE001 - foreign code: log processors and exporters
            self._say(f"a log event failed with {type(error).__name__}")

    def _keep(self, of_id: str, name: str, text: str) -> None:
        with self._lock:
            known = self._pending.pop(of_id, None) or _Pending({}, 0)
            size = known.size + len(text) - len(known.attributes.get(name, ""))
            self._pending[of_id] = _Pending({**known.attributes, name: text}, size)
            self._size += size - known.size
            while len(self._pending) > 1 and (self._size > _PENDING_SIZE or len(self._pending) > _PENDING):
                self.pop_attributes(next(iter(self._pending)))
                self._say("too much content is pending; that of calls that have not ended for long is dropped")

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _log.warning("runcap: %s; said once", what)


_TOOL_NAMES = frozenset(_NAMES[kind] for kind in _OF_TOOLS)


def _check(mode: object, redact: object, limit: object) -> None:
    if mode is not None and mode not in get_args(ContentMode):
        raise ValueError(f'content must be "none", "span", "event", "both" or None, got {mode!r}')
    if mode in _WITH_EVENTS and not _EVENTS:
        raise ValueError(f'content={mode!r} {_TOO_OLD}, or content="span"')
    if redact is not None and not callable(redact):
        raise TypeError(f"redact must be a function of one Content, got {type(redact).__name__}")
    if inspect.iscoroutinefunction(redact):
        raise TypeError("redact must be a plain function, not a coroutine function: content is recorded at once")
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise TypeError(f"content_limit must be a number of bytes, got {type(limit).__name__}")
    if limit < LEAST_LIMIT:
        raise ValueError(f"content_limit must be at least {LEAST_LIMIT} bytes, got {limit}")


def _told() -> ContentMode:
    """What the variable says. A value nobody knows records nothing, and is said once."""
    told = os.environ.get(sc.CAPTURE, "").strip()
    mode = _TOLD.get(told.lower())
    if mode is None:
        _say_unknown(told)
    if mode in _WITH_EVENTS and not _EVENTS:
        _log.warning("runcap: %s=%s %s; no events are made", sc.CAPTURE, told, _TOO_OLD)
        return "span" if mode == "both" else "none"
    return mode or "none"


_WITH_EVENTS = ("event", "both")
_EVENTS = hasattr(Logger, "enabled")
_TOO_OLD = "needs a later OpenTelemetry, whose log records have an event name: pip install -U opentelemetry-sdk"

_unknown: set[str] = set()


def _say_unknown(told: str) -> None:
    if told not in _unknown:
        _unknown.add(told)
        known = "NO_CONTENT, SPAN_ONLY, EVENT_ONLY or SPAN_AND_EVENT"
        _log.warning("runcap: %s must be %s, got %r; no content is recorded", sc.CAPTURE, known, told)
