"""A model call on its way in: what it is estimated at, what could be made of it, and how long it may wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import telling
from .admission import Reservation
from .amounts import HELD_UNITS, ZERO, Amounts
from .course import LAST_OUTPUT
from .errors import BudgetExceeded, RefusalDetails, UnboundedCall, UnpricedModel
from .estimate import Estimate, estimate
from .inflight import calls_around
from .ledger import Account, Grant, LedgerError, Offer
from .pricing import NoPrice
from .ratecard import RateCard
from .reasons import missing
from .refusals import unavailable
from .request import Request
from .run import Run
from .steps import Patience

if TYPE_CHECKING:
    from .guard import Guard

THINKING_FLOOR = 256
"""Output tokens left beside a thinking budget, at least: with fewer there is thought and no answer."""

_SHARE = 4
"""A last answer is kept at most one part in so many of a cap, unless no answer were possible with that."""

Renew = Callable[[], Request]
"""Describes the same call once more, with what has been learnt of its size since."""

_UNKNOWN = Offer(ZERO, ZERO, ZERO)


class Plan(Reservation):
    """One call: made of its request, renewed as long as it waits, and read when it is granted.

    Raises:
        Refused: it has no price, is not bounded, or comes too late.
    """

    __slots__ = ("_guard", "_renew", "card", "known", "request", "run", "spare")

    def __init__(self, guard: Guard, request: Request, run: Run, *, wait: bool, renew: Renew | None) -> None:
        super().__init__(request.call_id, _UNKNOWN, run.accounts, request.model)
        self._guard = guard
        self._renew = renew
        self.request = request
        self.run = run
        self.known: Estimate
        self.card: RateCard | None
        self.spare = ZERO
        self.stops = request.purpose.stops
        if guard.ledger.lasting:
            self.about = telling.about(request, run, guard.clock.time_ns())
        self._look()
        if wait:
            self.patience = _patience(guard, run)

    def renew(self) -> None:
        """See `Reservation`."""
        self._guard.calls.drain()
        if self._renew is not None:
            self.request = self._renew()
        self._look()

    def granted(self, grant: Grant) -> tuple[Estimate, int | None]:
        """What is known of the call as it was granted, and the output cap to be set on it; None leaves its own."""
        request, known = self.request, self.known
        if not request.may_clamp:
            return known, None
        if known.output_most is None or not known.hard:
            return known, None
        if grant.amount.nano >= known.hold.nano and grant.amount.tokens >= known.hold.tokens:
            own = request.output_cap and not request.purpose.last
            return known, None if own else known.output_most // request.choices
        cap = self._affordable(grant.amount)
        output = cap * request.choices
        return known._replace(output_most=output, output_expected=min(known.output_expected, output)), cap

    @property
    def floor(self) -> int:
        """The smallest output cap the call is still made with, tokens a choice."""
        request = self.request
        thinking = request.thinking_tokens + THINKING_FLOOR if request.thinking_tokens else 0
        whole = self.known.output_expected // request.choices if request.purpose.whole else 0
        return max(self.run.min_output_tokens, thinking, whole)

    def _look(self) -> None:
        if self.run.timed:
            check_clock(self.run, self.request.model)
        if self._guard.limits:
            self.accounts = (*self.run.accounts, *self._limits())
        self.card = self._card()
        self.known = known = self._estimate()
        hold = known.hold
        self.spare = spare = self._spare()
        last = self.request.purpose.last
        self.as_is = Offer(hold, hold, known.expected, spare, last)
        self.degraded = ()
        if self.request.may_clamp and known.hard and known.output_most is not None:
            least = self._most(self.floor * self.request.choices)
            if least.tokens < hold.tokens:
                self.degraded = (Offer(hold, least, known.expected, spare, last),)

    def _limits(self) -> tuple[Account, ...]:
        guard, run, model = self._guard, self.run, self.request.model
        try:
            now = guard.ledger.now_ns(guard.clock) if guard.limits.windowed else 0
        except LedgerError as error:
            raise unavailable(run.accounts[0], error, model) from error
        return guard.limits.accounts(run.tags, now, run.id, model)

    def _spare(self) -> Amounts:
        """What has to stay free beside this call, for the run's last answer: on this prompt and what comes to it.

        At most a share of each cap, so that a small budget is not kept for its last answer whole; but enough for a
        short one on this prompt.
        """
        run, purpose = self.run, self.request.purpose
        if run.finish_max_input is None:
            return ZERO
        if purpose.last:
            return run.spare_around
        if not purpose.root:
            return run.spare
        size = self.known.input_most + self.known.input_most // 4
        good, short = self._last(size + LAST_OUTPUT, LAST_OUTPUT), self._last(size, run.min_output_tokens)
        around = run.spare_around
        nano, tokens = (max(self._kept(unit, good[unit], short[unit]), around[unit]) for unit in range(HELD_UNITS))
        return Amounts(nano, tokens, 1 + around.steps)

    def _last(self, size: int, output: int) -> Amounts:
        """The dearest a last answer of this length can be."""
        size = min(size, self.run.finish_max_input or 0)
        output += self.request.thinking_tokens
        nano = 0 if self.card is None else self.card.most_nano(size, output, self.request.cache_writes)
        return Amounts(nano, size + output)

    def _kept(self, unit: int, good: int, short: int) -> int:
        caps = [cap for account in self.accounts if (cap := account.caps[unit]) is not None]
        return min(good, max(short, min(caps) // _SHARE)) if caps else good

    def _most(self, output_tokens: int) -> Amounts:
        """The dearest the call can be with this much output."""
        request, known = self.request, self.known
        nano = 0
        if self.card is not None:
            audio = request.audio or request.prompt.audio
            nano = self.card.most_nano(known.input_most, output_tokens, request.cache_writes, audio=audio)
        return Amounts(nano, known.input_most + output_tokens, 1)

    def _affordable(self, amount: Amounts) -> int:
        """The largest output cap that `amount` covers: the price grows with the output, so halving finds it."""
        low, high = self.floor, (self.known.output_most or 0) // self.request.choices
        while low < high:
            middle = (low + high + 1) // 2
            most = self._most(middle * self.request.choices)
            if most.nano <= amount.nano and most.tokens <= amount.tokens:
                low = middle
            else:
                high = middle - 1
        return low

    def _estimate(self) -> Estimate:
        request, run = self.request, self.run
        prompt, cap = request.prompt, request.output_cap
        if request.purpose.last and request.may_clamp:
            cap = min(cap or LAST_OUTPUT, LAST_OUTPUT) + request.thinking_tokens
        known = estimate(
            prompt if request.bounded else prompt._replace(bounded=False),
            provider=request.provider,
            card=self.card,
            output_cap=cap,
            output_ceiling=request.output_ceiling,
            choices=request.choices,
            typical_output=self._guard.typical_output.get(request.model),
            attempts_seen=request.attempts_seen,
            cache_writes=request.cache_writes,
            audio=request.audio or prompt.audio,
            strict=run.strict,
            may_clamp=request.may_clamp,
        )
        if run.strict and not known.hard:
            reason = f"a strict budget and a call that bounds its cost no further: {'; '.join(known.soft_because)}"
            way_out = "Bound the request, or use Budget(strict=False)"
            raise UnboundedCall(RefusalDetails(reason=reason, way_out=way_out, run_id=run.id, model=request.model))
        return known

    def _card(self) -> RateCard | None:
        request, run = self.request, self.run
        try:
            card = self._guard.prices.card(
                request.model or "", provider=request.provider, context=request.context, regional=request.regional
            )
        except NoPrice as error:
            reason = str(error)
        else:
            lacks = missing(card, request)
            if lacks is None:
                return card
            reason = f"no price for {lacks} of model {request.model!r}"
        if all(account.caps.nano is None for account in self.accounts):
            return None
        way_out = "Give the price, or use a budget without dollars"
        raise UnpricedModel(RefusalDetails(reason=reason, way_out=way_out, run_id=run.id, model=request.model))


def check_clock(run: Run, model: str | None) -> None:
    """Refuse what comes after a run's seconds.

    Raises:
        BudgetExceeded: it does.
    """
    for outer in run.timed:
        seconds = outer.budget.seconds if outer.budget else None
        if seconds is not None and (elapsed := outer.elapsed()) >= seconds:
            raise BudgetExceeded(
                RefusalDetails(
                    reason="budget exceeded",
                    way_out="The way out: a larger Budget(seconds=...)",
                    run_id=outer.id,
                    unit="seconds",
                    cap=seconds,
                    spent=elapsed,
                    model=model,
                )
            )


def _patience(guard: Guard, run: Run) -> Patience:
    clock = guard.clock
    seconds = [left for left in (run.max_wait, run.seconds_left()) if left is not None]
    # A call made inside another one of its run would wait for what that one holds: for itself.
    excused = frozenset(account.id for permit in calls_around() for account in permit.accounts)
    until = clock.monotonic() + min(seconds) if seconds else None
    return Patience(guard.room, clock, until, excused, polls=guard.ledger.shared)
