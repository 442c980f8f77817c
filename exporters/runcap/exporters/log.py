"""Events -> structured log lines on stderr; standard output belongs to the program."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import TextIO

import structlog

from runcap.guardrails.events import (
    BudgetWarned,
    CallEnded,
    CallRefused,
    Event,
    LoopWarned,
    PrefixBroken,
    RunEnded,
    RunPaused,
    RunStopped,
    TierSwitched,
    ToolStarted,
)
from runcap.guardrails.money import show_usd


class LogSink:
    """One line an event that matters: calls, tools, refusals, warnings, the end of a run. Never any content.

    Args:
        logger: a structlog logger of your own set-up; by default one line of `key=value` pairs each. A run's
            tags are keys such as `tag.task`.
        stream: where the default logger writes, standard error if not given.
    """

    def __init__(
        self, *, logger: structlog.typing.FilteringBoundLogger | None = None, stream: TextIO | None = None
    ) -> None:
        self._log = logger if logger is not None else _default_logger(stream or sys.stderr)

    def __call__(self, event: Event) -> None:
        """Log one event."""
        log = self._log.bind(
            run=event.run.id, **{f"tag.{_plain(name)}": value for name, value in event.run.tags.items()}
        )
        match event:
            case CallEnded():
                log.info("call", **_call(event))
            case ToolStarted():
                log.info("tool", name=event.name)
            case TierSwitched():
                log.info("tier", before=event.before, tier=event.tier, share=round(event.share, 4), forced=event.forced)
            case RunEnded():
                spent = event.balance.spent
                log.info("run ended", spent=show_usd(spent.nano), steps=spent.steps, verdict=event.verdict)
            case _:
                _warn(log, event)


def _call(event: CallEnded) -> Mapping[str, object]:
    cost = None if event.cost_nano is None else show_usd(event.cost_nano)
    tokens = event.usage.total_tokens if event.usage else None
    left_out = event.history_cut.messages if event.history_cut is not None else None
    told = {"step": event.step, "model": event.model, "state": event.state, "tokens": tokens, "cost": cost}
    more = {"error": event.error_type, "cut": event.cut, "last": event.last, "tier": event.tier, "left_out": left_out}
    return told | {name: value for name, value in more.items() if value}


def _warn(log: structlog.typing.FilteringBoundLogger, event: Event) -> None:
    match event:
        case CallRefused() | RunPaused():
            d, refused = event.details, isinstance(event, CallRefused)
            kind = {"kind": event.kind} if isinstance(event, CallRefused) else {}
            numbers = {"unit": d.unit, "cap": d.show(d.cap), "spent": d.show(d.spent)}
            log.warning("refused" if refused else "paused", **kind, **numbers)
        case BudgetWarned():
            log.warning("budget", scope=event.scope, unit=event.unit, share=event.share)
        case LoopWarned():
            loop = event.loop
            tools = ",".join(loop.tools)
            log.warning("loop", kind=loop.kind, times=loop.times, tools=tools, halted=event.halted)
        case PrefixBroken():
            cost = None if event.cost_nano is None else show_usd(event.cost_nano)
            log.warning("prefix broken", changed=event.what, tokens=event.tokens, cost=cost)
        case RunStopped():
            log.warning("stopped", reason=event.reason)
        case _:
            pass


def _plain(name: str) -> str:
    """A tag's name as a key of a log line, which has no spaces, quotes or equals signs."""
    return re.sub(r"[\s=\"]", "_", name)


def _default_logger(stream: TextIO) -> structlog.typing.FilteringBoundLogger:
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event", "run"]),
    ]
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(stream), processors=processors, wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return logger
