"""Events -> metrics, by the names, units and buckets of `semconv_metrics`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from runcap.guardrails import forks
from runcap.guardrails.amounts import UNITS
from runcap.guardrails.events import (
    AgentEnded,
    AgentStarted,
    BudgetWarned,
    CallEnded,
    CallReconciled,
    CallRefused,
    Event,
    LoopWarned,
    PrefixBroken,
    RunEnded,
    RunPaused,
    RunStopped,
    TierSwitched,
    ToolEnded,
    ToolStarted,
)
from runcap.guardrails.money import NANO
from runcap.guardrails.usage import Usage

from . import semconv as sc
from . import semconv_metrics as sm
from .backlog import Backlog
from .series import Attributes, CallSeries, Series, Tags

WAITING = 1_024
"""Events that wait for a reader at most."""
_OPEN = 4_096
"""Agents and tools under way, and unknown calls, that are remembered; the oldest goes first."""
_FAILED = frozenset({"refused", "error"})
_NO_CONTEXT = Context()  # so that the SDK looks for no span to take an exemplar of: the call's is not current here


class Meters:
    """Metrics on a meter provider: the global one if None is given.

    What is recorded is counted when a reader collects, on the reader's thread. All `Meters` on one provider share
    their instruments. Every attribute of free origin (an agent, a model, a type of error, a tag) has 100 distinct
    values at most; all further ones are `_other`.

    Costs are recorded as the ledger charged them when a call ended; `runcap.calls.reconciled.cost` is what came to be
    known of unknown calls later. Both together add up to what was spent. Tokens are those that providers reported.

    Args:
        meter_provider: where metrics go.
        tags: names of the run's tags that become attributes, as `runcap.tag.*`. Each multiplies the number of series.

    Raises:
        TypeError: `tags` are no collection of names.
    """

    def __init__(self, meter_provider: MeterProvider | None = None, *, tags: Collection[str] = ()) -> None:
        if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
            raise TypeError(f'tags of metrics must be names of tags, e.g. ("task", "feature"); got {tags!r}')
        self._tags = tuple((name, sc.TAG + name) for name in sorted(set(tags)))
        self._recorder = _recorder(meter_provider if meter_provider is not None else metrics.get_meter_provider())

    def __call__(self, event: Event, agent_name: str | None = None, *, standard: bool = True) -> None:
        """Take one event.

        Args:
            event: what happened; what is in no metric is passed over.
            agent_name: the agent that a call or a tool belongs to.
            standard: False leaves out `gen_ai.*` but cost, where another instrumentation records them already.
        """
        if type(event) in _RECORDED:
            self._recorder.backlog.put(_Waiting(event, agent_name, standard, self._tags))

    def wants(self, event: Event) -> bool:
        """It is recorded: metrics tell of such events, and there is a provider."""
        return type(event) in _RECORDED and not self._recorder.is_idle()


class _Waiting(NamedTuple):
    event: Event
    agent_name: str | None
    standard: bool
    tags: tuple[tuple[str, str], ...]


class _Unknown(NamedTuple):
    """A call that ended as unknown: its series, what was charged for it in nano-dollars, and `standard` as above."""

    series: CallSeries
    nano: int
    standard: bool


class _Recorder:
    """The instruments on one provider. Events are recorded one at a time, in order."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("runcap")
        # The API's stand-in until a global provider is set: until then there is nothing to be done.
        self._stand_in = provider if type(provider).__name__ == "_ProxyMeterProvider" else None
        self.backlog: Backlog[_Waiting] = Backlog(self._record, WAITING)
        self._add = {one.name: _instrument(meter, one) for one in sm.METRICS}
        self._series = Series()
        self._started: dict[str, tuple[int, str]] = {}
        self._unknown: dict[str, _Unknown] = {}
        # One of its own for each recorder: the SDK keeps only the first callback of instruments of the same name.
        meter.create_observable_gauge(f"runcap.metrics.collected.{next(_numbers)}", [self._collect])

    def is_idle(self) -> bool:
        """No provider has been set yet."""
        return self._stand_in is not None and metrics.get_meter_provider() is self._stand_in

    def forget(self) -> None:
        """After a fork: what is under way is the parent's."""
        self.backlog.forget()
        self._started.clear()
        self._unknown.clear()

    def _collect(self, options: CallbackOptions) -> Iterable[Observation]:
        """What a reader calls before it reads the other instruments; it observes nothing itself."""
        del options
        self.backlog.drain()
        return ()

    def _record(self, waiting: _Waiting) -> None:
        if self.is_idle():
            return
        event, agent_name, standard, names = waiting
        tags: Tags = ()
        if names:
            carried = event.run.tags
            tags = tuple((attribute, carried[name]) for name, attribute in names if name in carried)
        match event:
            case CallEnded():
                self._call(event, agent_name, tags, standard=standard)
            case AgentStarted() | ToolStarted():
                _keep(self._started, event.node_id, (event.time_ns, event.name))
            case AgentEnded() | ToolEnded():
                self._ended(event, agent_name, tags, standard=standard)
            case CallReconciled():
                self._reconciled(event)
            case RunEnded():
                self._run(event, tags)
            case _:
                self._count(event, tags)

    def _call(self, event: CallEnded, agent_name: str | None, tags: Tags, *, standard: bool) -> None:
        series = self._series.of_call(
            event.model, event.provider, event.response_model, event.error_type, agent_name, tags
        )
        if standard:
            self._measure(event, series)
        if event.cost_nano or (event.cost_nano == 0 and event.state == "settled"):
            self._add[sm.CALL_COST.name](event.cost_nano / NANO, series.whole)
        if event.state == "unknown":
            _keep(self._unknown, event.call_id, _Unknown(series, event.cost_nano or 0, standard))
            self._add[sm.UNKNOWN.name](1, series.ended)
            self._add[sm.UNKNOWN_COST.name](event.unknown_nano / NANO, series.ended)
        self._oddities(event, series.asked)

    def _measure(self, event: CallEnded, series: CallSeries) -> None:
        if event.state != "released" or event.error_type is not None:  # else nothing was sent
            self._add[sm.CALL_DURATION.name](max(0, event.time_ns - event.started_ns) / 1e9, series.whole)
        if event.state == "settled" and event.usage is not None:
            self._count_tokens(event.usage, series)
        if event.first_chunk_s is not None:
            self._add[sm.FIRST_CHUNK.name](max(0.0, event.first_chunk_s), series.whole)

    def _count_tokens(self, usage: Usage, series: CallSeries) -> None:
        add = self._add[sm.TOKEN_USAGE.name]
        add(usage.input_tokens, series.inputs)
        add(usage.output_tokens, series.outputs)

    def _oddities(self, event: CallEnded, asked: Attributes) -> None:
        """What most calls have none of."""
        if event.cost_nano is None:
            self._add[sm.UNPRICED.name](1, asked)
        if event.cached:
            self._add[sm.CACHED.name](1, asked)
        if event.clamped:
            self._add[sm.CLAMPED.name](1, asked)
        if event.waited_s > 0:
            self._add[sm.WAITS.name](event.waited_s, asked)
        if event.history_cut is not None:
            self._add[sm.TRIMS.name](1, asked)
            self._add[sm.TRIMMED.name](event.history_cut.tokens, asked)

    def _reconciled(self, event: CallReconciled) -> None:
        before = self._unknown.pop(event.call_id, None)
        if before is None:
            return  # so long ago that whose it was is forgotten
        series = before.series
        self._add[sm.RECONCILED.name](1, series.whole)
        if before.standard:
            self._count_tokens(event.usage, series)
        self._add[sm.CORRECTION.name](((event.cost_nano or 0) - before.nano) / NANO, series.whole)

    def _ended(self, event: AgentEnded | ToolEnded, agent_name: str | None, tags: Tags, *, standard: bool) -> None:
        started = self._started.pop(event.node_id, None)
        if started is None or not standard:
            return
        since, name = started
        is_agent = isinstance(event, AgentEnded)
        told = {
            sc.OPERATION_NAME: sc.OPERATION_AGENT if is_agent else sc.OPERATION_TOOL,
            sc.AGENT_NAME: name if is_agent else agent_name,
            sc.TOOL_NAME: None if is_agent else name,
            sc.OUTCOME: event.outcome,
            sc.ERROR_TYPE: event.error_type if event.outcome in _FAILED else None,
        }
        metric = sm.AGENT_DURATION if is_agent else sm.TOOL_DURATION
        self._add[metric.name](max(0, event.time_ns - since) / 1e9, self._series.of(tags, told))

    def _run(self, event: RunEnded, tags: Tags) -> None:
        # A verdict's reason is free text.
        verdict = event.verdict.partition(":")[0] if event.verdict else sm.NO_VERDICT
        self._add[sm.RUNS.name](1, self._series.of(tags, {sm.VERDICT: verdict}))
        used = event.balance.used
        for unit, cap in enumerate(event.balance.caps):
            if cap:
                about = self._series.of(tags, {sc.WARNED_UNIT: UNITS[unit]})
                self._add[sm.UTILIZATION.name](used[unit] / cap, about)

    def _count(self, event: Event, tags: Tags) -> None:
        """What happens now and then, and is counted."""
        about: Mapping[str, str | bool | None]
        match event:
            case CallRefused(details=why):
                metric = sm.REFUSALS
                about = {sc.REFUSED_KIND: event.kind, sc.REFUSED_UNIT: why.unit, sc.REFUSED_SCOPE: why.scope}
            case RunPaused(details=why):
                metric, about = sm.PAUSES, {sc.REFUSED_UNIT: why.unit, sc.REFUSED_SCOPE: why.scope}
            case RunStopped():
                metric, about = sm.STOPS, {sc.STOPPED: _why(event.reason)}
            case BudgetWarned():
                share = f"{event.share:g}"
                metric = sm.WARNINGS
                about = {sc.WARNED_UNIT: event.unit, sc.WARNED_SCOPE: event.scope, sc.WARNED_SHARE: share}
            case TierSwitched():
                metric, about = sm.SWITCHES, {sc.TIER: event.tier, sc.TIER_FORCED: event.forced}
            case LoopWarned():
                metric, about = sm.LOOPS, {sc.LOOP_KIND: event.loop.kind, sc.LOOP_HALTED: event.halted}
            case PrefixBroken():
                metric, about = sm.PREFIX_BREAKS, {sc.PREFIX_WHAT: event.what.partition(" ")[0]}
                if event.cost_nano:
                    self._add[sm.PREFIX_COST.name](event.cost_nano / NANO, self._series.of(tags, about))
            case _:
                return
        self._add[metric.name](1, self._series.of(tags, about))


_RECORDED = frozenset(
    {
        *(AgentEnded, AgentStarted, BudgetWarned, CallEnded, CallReconciled, CallRefused, LoopWarned, PrefixBroken),
        *(RunEnded, RunPaused, RunStopped, TierSwitched, ToolEnded, ToolStarted),
    }
)

_recorders: WeakKeyDictionary[MeterProvider, _Recorder] = WeakKeyDictionary()
_recorders_lock = forks.lock()
_numbers = itertools.count()


def _recorder(provider: MeterProvider) -> _Recorder:
    with _recorders_lock:
        known = _recorders.get(provider)
        if known is None:
            known = _recorders[provider] = _Recorder(provider)
        return known


def _instrument(meter: Meter, metric: sm.Metric) -> Callable[[float, Attributes], object]:
    name, unit, about = metric.name, metric.unit, metric.about
    if metric.kind == "histogram":
        record = meter.create_histogram(name, unit, about, explicit_bucket_boundaries_advisory=metric.buckets).record
        return lambda amount, attributes: record(amount, attributes, _NO_CONTEXT)
    make: Any = meter.create_counter if metric.kind == "counter" else meter.create_up_down_counter
    add = make(name, unit, about).add
    return lambda amount, attributes: add(amount, attributes, _NO_CONTEXT)


def _why(reason: str) -> str:
    """A reason to stop without what is free in it: `cap:usd`, `loop`, or `asked`."""
    if reason.startswith("cap:"):
        return reason
    return "loop" if reason.startswith("loop:") else "asked"


def _keep(kept: dict[str, Any], key: str, value: object) -> None:
    kept[key] = value
    if len(kept) > _OPEN:
        del kept[next(iter(kept))]


def _forget() -> None:
    for recorder in list(_recorders.values()):
        recorder.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
