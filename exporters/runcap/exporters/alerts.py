"""Events -> a callable that tells a person: a webhook, a pager, a mail."""

from __future__ import annotations

import inspect
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import TracebackType
from typing import Literal, NamedTuple, Self, get_args

from runcap.guardrails import forks
from runcap.guardrails.amounts import UNITS
from runcap.guardrails.errors import RefusalDetails
from runcap.guardrails.events import (
    BudgetWarned,
    CallEnded,
    CallRefused,
    Event,
    LoopWarned,
    RunEnded,
    RunPaused,
    RunStopped,
    RunToppedUp,
    TierSwitched,
)
from runcap.guardrails.ledger import Balance
from runcap.guardrails.money import show_usd, to_usd
from runcap.guardrails.refusals import CAP_PREFIX

from .worker import Worker

AlertKind = Literal["budget", "refused", "stopped", "paused", "loop", "unknown", "unpriced", "tier"]
"""What an alert is about: a share of a cap reached, a call refused, a run stopped, a run that waits for an answer, a
loop, a call that may have been billed, a call without a price, a step down the ladder of models."""

KINDS: tuple[AlertKind, ...] = get_args(AlertKind)

_DEFAULT: tuple[AlertKind, ...] = ("budget", "refused", "stopped", "paused", "loop", "unknown", "unpriced")

_RUNS = 1_000
"""Runs of which it is remembered what was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """What a person is told. Never any content.

    `title` is one sentence. `cap`, `spent`, `held` and `unknown` are dollars where `unit` is `"usd"`, else counts or
    seconds, and None where the event has no such figure. `scope` is `"run"`, or the tag of the limit it is of.
    `repeats` is how many alerts of this run were held back as repeats since the last one that was told.
    """

    kind: AlertKind
    title: str
    run_id: str
    conversation_id: str
    time_ns: int
    parent_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    scope: str = "run"
    unit: str | None = None
    share: float | None = None
    cap: Decimal | None = None
    spent: Decimal | None = None
    held: Decimal | None = None
    unknown: Decimal | None = None
    model: str | None = None
    repeats: int = 0


class _Found(NamedTuple):
    """An event that is worth an alert; `what` tells apart those of one kind, unit and scope."""

    kind: AlertKind
    what: object
    title: str
    scope: str = "run"
    unit: str | None = None
    share: float | None = None
    figures: tuple[Decimal | None, Decimal | None, Decimal | None, Decimal | None] = (None, None, None, None)
    model: str | None = None


@dataclass(slots=True)
class _Told:
    """What was told of a run."""

    keys: set[tuple[object, ...]] = field(default_factory=set)
    repeats: int = 0


class AlertSink:
    """Calls `tell` with an `Alert` for what a person should know, on a thread of its own: the agent never waits for it.

    The same is told once a run: a storm of refusals is one alert for each kind, unit and scope; the next alert of the
    run says how many repeats were held back. A top-up begins anew.

        import json, urllib.request

        def to_slack(alert):
            body = json.dumps({"text": f"{alert.title} (run {alert.run_id}, {dict(alert.tags)})"}).encode()
            post = urllib.request.Request(SLACK_WEBHOOK_URL, body, {"Content-Type": "application/json"})
            urllib.request.urlopen(post, timeout=5).close()

        guard = Guard(Budget(usd="5"), sinks=(OTelSink(), AlertSink(to_slack)))

    What `tell` raises is said in the log by its type, once. At the end of the program it has a second and a half for
    the alerts that are left.

    Args:
        tell: called with one `Alert` at a time, never from two threads at once. No coroutine function: let it call
            `asyncio.run(...)`.
        on: the kinds to tell; without `on`, all but `"tier"`.
        queue: alerts that may wait; the oldest are dropped beyond that, which the log says once.

    Raises:
        TypeError: `tell` is not callable, or a coroutine function; `on` is no collection of names.
        ValueError: an unknown kind, none at all, or a `queue` below 1.
    """

    def __init__(
        self,
        tell: Callable[[Alert], object],
        on: Collection[AlertKind] = _DEFAULT,
        *,
        queue: int = 100,
    ) -> None:
        self._tell = _checked_tell(tell)
        self._on = _checked_kinds(on)
        if type(queue) is not int or queue < 1:
            raise ValueError(f"AlertSink.queue must be a whole number of alerts, at least 1; got {queue!r}")
        self._room = queue
        self._waiting: deque[Alert] = deque()
        self._told: OrderedDict[str, _Told] = OrderedDict()
        self._lock = forks.rlock()
        self._worker = Worker(self._work, "alerts", self._waiting.clear)

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, (RunEnded, RunToppedUp)):
            with self._lock:
                self._told.pop(event.run.id, None)
            return
        found = _found(event)
        if found is None or found.kind not in self._on or self._worker.closed:
            return
        with self._lock:
            alert = self._new(event, found)
            if alert is None:
                return
            full = len(self._waiting) >= self._room
            if full:
                self._waiting.popleft()
            self._waiting.append(alert)
        if full:
            self._worker.report(AlertsDropped())
        self._worker.wake()

    def close(self, timeout: float = 1.5) -> None:
        """Tell what is left, for `timeout` seconds at most; then nothing more."""
        self._worker.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _new(self, event: Event, found: _Found) -> Alert | None:
        """The alert, None where the run was told that already."""
        told = self._told.setdefault(event.run.id, _Told())
        self._told.move_to_end(event.run.id)
        if len(self._told) > _RUNS:
            self._told.popitem(last=False)
        key = (found.kind, found.unit, found.scope, found.what)
        if key in told.keys:
            told.repeats += 1
            return None
        told.keys.add(key)
        repeats, told.repeats = told.repeats, 0
        return _alert(event, found, repeats)

    def _work(self, last: bool) -> float | None:
        while (alert := self._next()) is not None:
            try:
                answer = self._tell(alert)
            except Exception as error:  # noqa: BLE001 - foreign code
                self._worker.report(error)
            else:
                if inspect.iscoroutine(answer):
                    answer.close()
                    self._worker.report(TypeError())
        return None

    def _next(self) -> Alert | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None


class AlertsDropped(Exception):
    """More alerts came than `tell` could take; the oldest were dropped. Its name is what the log says."""


def _alert(event: Event, found: _Found, repeats: int) -> Alert:
    cap, spent, held, unknown = found.figures
    return Alert(
        kind=found.kind,
        title=found.title,
        run_id=event.run.id,
        conversation_id=event.run.conversation_id,
        parent_id=event.run.parent_id,
        time_ns=event.time_ns,
        tags=event.run.tags,
        scope=found.scope,
        unit=found.unit,
        share=found.share,
        cap=cap,
        spent=spent,
        held=held,
        unknown=unknown,
        model=found.model,
        repeats=repeats,
    )


def _found(event: Event) -> _Found | None:  # noqa: PLR0911 - one for each kind
    match event:
        case BudgetWarned():
            title = f"{event.share:.0%} of the cap on {event.unit} is used ({event.scope})"
            figures = _of_balance(event.balance, event.unit)
            return _Found("budget", event.share, title, event.scope, event.unit, event.share, figures)
        case CallRefused():
            d = event.details
            numbers = f": {d.unit} cap {d.show(d.cap)}, spent {d.show(d.spent)}" if d.unit is not None else ""
            return _refused("refused", event.kind, f"A call was refused with {event.kind} ({d.scope}){numbers}", d)
        case RunPaused():
            return _refused("paused", None, "A run is at its cap and waits for an answer", event.details)
        case RunStopped():
            why = event.reason
            cap = why.removeprefix(CAP_PREFIX) if why.startswith(CAP_PREFIX) else None
            title = f"A run was stopped: {why}" if cap is None else f"A run was stopped at its cap on {cap}"
            return _Found("stopped", why, title, unit=cap)
        case LoopWarned(loop=loop, halted=halted):
            end = "; the run is stopped" if halted else ""
            return _Found("loop", (loop.kind, loop.tools, halted), f"An agent repeats itself: {loop}{end}")
        case TierSwitched():
            title = f"A run goes on with {event.tier} at {event.share:.0%} of its dollars"
            return _Found("tier", event.tier, title, share=event.share, model=event.tier)
        case CallEnded():
            return _of_call(event)
        case _:
            return None


def _refused(kind: AlertKind, what: object, title: str, details: RefusalDetails) -> _Found:
    amounts = (details.cap, details.spent, details.held, details.unknown)
    cap, spent, held, unknown = (
        to_usd(int(amount)) if details.unit == "usd" else Decimal(str(amount)) for amount in amounts
    )
    figures = (cap, spent, held, unknown) if details.unit is not None else (None, None, None, None)
    return _Found(kind, what, title, details.scope, details.unit, None, figures, details.model)


def _of_call(event: CallEnded) -> _Found | None:
    model = event.model or "a model"
    if event.state == "unknown":
        title = f"A call of {model} may have been billed up to {show_usd(event.unknown_nano)} more than was seen"
        figures = _of_balance(event.balance, "usd") if event.balance is not None else (None, None, None, None)
        return _Found("unknown", event.model, title, unit="usd", figures=figures, model=event.model)
    if event.state == "settled" and event.usage is not None and event.cost_nano is None:
        return _Found("unpriced", event.model, f"No price is known for {model}: its cost is unknown", model=event.model)
    return None


def _of_balance(balance: Balance, unit: str) -> tuple[Decimal | None, Decimal | None, Decimal | None, Decimal | None]:
    if unit not in UNITS:
        return (None, None, None, None)
    index = UNITS.index(unit)
    amounts = (balance.caps[index], balance.spent[index], balance.held[index], balance.unknown[index])
    cap, spent, held, unknown = (
        None if amount is None else to_usd(amount) if unit == "usd" else Decimal(amount) for amount in amounts
    )
    return cap, spent, held, unknown


def _checked_tell(tell: Callable[[Alert], object]) -> Callable[[Alert], object]:
    if not callable(tell):
        raise TypeError(f"AlertSink.tell must be a function of an Alert, got {type(tell).__name__}")
    if inspect.iscoroutinefunction(tell) or inspect.iscoroutinefunction(getattr(tell, "__call__", None)):  # noqa: B004
        raise TypeError(
            "AlertSink.tell must not be a coroutine function, for it is called on a thread without an event loop: "
            "pass lambda alert: asyncio.run(tell(alert))"
        )
    return tell


def _checked_kinds(on: Collection[AlertKind]) -> frozenset[AlertKind]:
    if isinstance(on, str) or not isinstance(on, Collection):
        raise TypeError(f'AlertSink.on must be a collection of kinds such as ("refused", "loop"), got {on!r}')
    for kind in on:
        if kind not in KINDS:
            raise ValueError(f"AlertSink.on has no kind {kind!r}; there are {', '.join(KINDS)}")
    if not on:
        raise ValueError("AlertSink.on names no kind, so nothing would ever be told")
    return frozenset(on)
