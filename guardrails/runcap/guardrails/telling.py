"""What is told of a call: to the sinks as events, and to a ledger that lasts as its record."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .checks import storable
from .events import CallEnded, CallStarted, State
from .ledger import About, Balance, Outcome
from .request import Request, Response
from .run import Run
from .usage import Usage

if TYPE_CHECKING:
    from .permit import Permit

_NOTHING = Response()


class Told(NamedTuple):
    """How a call ended, at `ended_ns`."""

    state: State
    ended_ns: int
    usage: Usage | None = None
    cost: int | None = None
    unknown: int = 0
    source: str | None = None
    response: Response = _NOTHING
    error_type: str | None = None
    cached: bool = False


def about(request: Request, run: Run, now_ns: int) -> About:
    """What is known of a call when it is admitted."""
    provider, model, tier = request.provider, request.model, request.purpose.tier
    return About(
        run_id=run.id,
        parent_run_id=run.info.parent_id,
        tags=run.info.tags,
        provider=provider and storable(provider),
        model=model and storable(model),
        tier=tier and storable(tier),
        attempt=request.attempt,
        started_ns=now_ns,
    )


def outcome(permit: Permit, told: Told, resolved_by: str | None = None) -> Outcome:
    """A call's record, but for who made it."""
    return Outcome(
        about=about(permit.request, permit.run, permit.started_ns),
        state=told.state,
        usage=told.usage,
        cost_nano=told.cost,
        price_source=told.source,
        latency_ns=max(0, told.ended_ns - permit.started_ns),
        error_type=told.error_type and storable(told.error_type),
        resolved_by=resolved_by,
    )


def started(permit: Permit) -> CallStarted:
    """A call was admitted."""
    request = permit.request
    return CallStarted(
        time_ns=permit.started_ns,
        run=permit.run.info,
        call_id=request.call_id,
        parent_id=request.parent_id,
        model=request.model,
        provider=request.provider,
        stream=request.stream,
        output_cap=permit.output_cap or request.output_cap,
        guarantee="hard" if permit.estimate.hard else "expected",
        held_nano=permit.grant.amount.nano,
        step=permit.step,
        clamped=permit.clamped,
        waited_s=permit.waited_s,
        tier=request.purpose.tier,
        history_cut=request.purpose.cut,
        last=request.purpose.last,
    )


def ended(permit: Permit, told: Told, balance: Balance | None) -> CallEnded:
    """A call is over."""
    request, response = permit.request, told.response
    return CallEnded(
        time_ns=told.ended_ns,
        run=permit.run.info,
        call_id=permit.call_id,
        parent_id=request.parent_id,
        model=request.model,
        provider=request.provider,
        started_ns=permit.started_ns,
        state=told.state,
        guarantee="hard" if permit.estimate.hard else "expected",
        usage=told.usage,
        cost_nano=told.cost,
        unknown_nano=told.unknown,
        price_source=told.source,
        balance=balance,
        first_chunk_s=None if permit.first_chunk_ns is None else (permit.first_chunk_ns - permit.started_ns) / 1e9,
        stream=request.stream or permit.streamed,
        output_cap=permit.output_cap or request.output_cap,
        response_model=response.model,
        response_id=response.id,
        finish_reasons=response.finish_reasons,
        error_type=told.error_type,
        cached=told.cached,
        step=permit.step,
        clamped=permit.clamped,
        cut=permit.cut,
        waited_s=permit.waited_s,
        tier=request.purpose.tier,
        history_cut=request.purpose.cut,
        last=request.purpose.last,
    )
