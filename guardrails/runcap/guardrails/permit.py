"""What a caller holds while a call is in flight. It ends exactly once: settled, released, or unknown."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from . import telling
from .amounts import ZERO, Amounts
from .estimate import expected_tokens
from .events import CallReconciled, Cut, State
from .ledger import Grant, LedgerError, Outcome, Settlement
from .money import MAX_NANO
from .offload import until, wait
from .pricing import NoPrice, PriceContext
from .ratecard import BILLED, RateCard, Unpriced
from .request import Response
from .telling import Told
from .usage import Usage

if TYPE_CHECKING:
    from .guard import Guard
    from .plan import Plan

_log = logging.getLogger("runcap")

_NOTHING = Response()
_SAY_THEIR_BILL = ("openrouter", "perplexity", "x-ai")
"""Who is believed that a call cost nothing; proxies fill the field with zeros."""
_LOOK_EVERY = 64
"""Output tokens of a stream between two looks at what its budgets have left."""
_MOST = MAX_NANO - 1
"""Nano-dollars or tokens one call is charged at most: what every ledger keeps exactly. A cap is passed long before."""
_MOST_TOKENS = _MOST // 2
"""Tokens in, or out, that are believed of one call."""
_UNBOOKED = (ZERO, ZERO, Usage())


class Permit:
    """The right to make one model call. Made by `Guard.admit`; methods may be called from any thread.

    Whoever makes the call ends the permit with one of `settle`, `release` or `abandon`; only the first counts. Usage
    that arrives after the call was abandoned reconciles it.
    """

    def __init__(self, guard: Guard, plan: Plan, grant: Grant) -> None:
        self.call_id = plan.call_id
        self.request = plan.request
        self.grant = grant
        self.run = plan.run
        self.accounts = plan.accounts
        """What it is charged to: its runs, and the limits on them."""
        self.estimate, self.output_cap = plan.granted(grant)
        self.clamped = self.estimate is not plan.known
        """The output cap to be set is less than was asked for: the budget affords no more."""
        self.cut: Cut | None = None
        """Why the answer ended before its time."""
        since = plan.waiting_since
        self.waited_s = 0.0 if since is None else guard.clock.monotonic() - since
        self.started_ns = guard.clock.time_ns()
        self.step = grant.balances[0].spent.steps
        self._guard = guard
        self._card = plan.card
        self._pid = os.getpid()
        self._open = [True]  # popping is atomic: whoever pops ends the permit
        self._state: State | None = None
        self._booked = _UNBOOKED
        self._booking: Future[None] | None = None
        self._seen_bytes = 0
        self._looked_at = 0
        self.streamed = False
        self.first_chunk_ns: int | None = None
        """When the first chunk of a stream came."""
        self.note: object = None
        """The adapter's own."""

    @property
    def state(self) -> State | None:
        """How it ended; None while the call is in flight."""
        return self._state

    def seen(self, size: int) -> None:
        """Count `size` more bytes of streamed output, for the case that no usage ever arrives."""
        self._seen_bytes += size
        if not self.streamed:
            self.streamed = True
            self.first_chunk_ns = self._now()

    def is_beyond_its_means(self) -> bool:
        """A stream has likely cost more than its hold, by more than anything its budgets have left."""
        seen = expected_tokens(self._seen_bytes, self.request.provider)
        if seen <= self.estimate.output_expected or seen < self._looked_at + _LOOK_EVERY:
            return False
        self._looked_at = seen
        likely = Usage(self.estimate.input_expected, seen)
        nano = 0 if self._card is None else self._nano(self._card, likely)
        more = Amounts(nano, likely.total_tokens).minus(self.grant.amount.held_part()).at_least_zero()
        ledger = self._guard.ledger
        return any(ledger.peek(account.id).lacking(more) is not None for account in self.accounts)

    async def booked(self) -> None:
        """Wait until its end is in the books. In async code a ledger that does I/O writes it on another thread."""
        await until(self._booking)

    def wait_until_booked(self) -> None:
        """`booked`, for a sync call on a thread whose loop is running: it blocks that thread all the while anyway."""
        wait(self._booking)

    def settle(self, usage: Usage, response: Response = _NOTHING, *, error_type: str | None = None) -> bool:
        """Charge what the provider reported. False where the permit had ended (as unknown: it is reconciled)."""
        if not self._turn("settled"):
            return self._reconcile(usage, response)
        usage = self._believable(usage)
        nano, source = self._price(usage, response)
        charge = Amounts(nano=nano or 0, tokens=usage.total_tokens)
        self.run.count(usage, priced=nano is not None)
        self._guard.typical_output.add(self.request.model, usage.output_tokens)
        told = Told("settled", self._now(), usage, nano, source=source, response=response, error_type=error_type)
        self._close(told, charge)
        return True

    def free(self, response: Response = _NOTHING) -> bool:
        """The answer came from a cache: nothing was sent and nothing is charged; the step stays counted."""
        if not self._turn("released"):
            return False
        self._close(Told("released", self._now(), cost=0, response=response, cached=True), None)
        return True

    def release(self, error_type: str | None = None) -> bool:
        """The call was never sent, or refused by the provider before it cost anything."""
        if not self._turn("released"):
            return False
        self._close(Told("released", self._now(), cost=0, error_type=error_type), None)
        return True

    def abandon(
        self,
        error_type: str | None = None,
        *,
        response: Response = _NOTHING,
        answer_bytes: int = 0,
        partial: Usage | None = None,
        prompt_billed: bool = True,
    ) -> bool:
        """No full usage will come: charge what was seen and the prompt's expected cost; the rest is unknown.

        Args:
            error_type: name of the error's type; None where the call ended well but reported no usage.
            response: what the provider said about itself so far.
            answer_bytes: size of an answer that did not come as a stream.
            partial: what the provider reported so far; without input, the prompt's expected size stands in.
            prompt_billed: False where the provider failed before it did any work (5xx): nothing is charged then.
        """
        if not self._turn("unknown"):
            return False
        usage = self._believable(self._likely_usage(answer_bytes, partial)) if prompt_billed else Usage()
        nano = None if self._card is None else self._likely_nano(self._card, usage)
        charge = Amounts(nano=nano or 0, tokens=usage.total_tokens)
        unknown = self.grant.amount.held_part().minus(charge).at_least_zero()
        self.run.count(usage, priced=nano is not None)
        if error_type is None and self.cut is None:
            self._guard.say_once(
                f"{self.request.model} reported no usage: its calls are charged by size, the rest of their holds stays "
                "reserved as unknown. Streams of ChatOpenAI(base_url=...) need stream_usage=True"
            )
        self._booked = (charge, unknown, usage)
        told = Told("unknown", self._now(), usage, nano, unknown.nano, response=response, error_type=error_type)
        self._close(told, charge, unknown)
        return True

    def _is_anothers(self) -> bool:
        """A forked child has a copy of it, and no say."""
        return os.getpid() != self._pid

    def _turn(self, state: State) -> bool:
        if self._is_anothers():
            return False
        try:
            self._open.pop()
        except IndexError:
            return False
        self._state = state
        return True

    def _likely_usage(self, answer_bytes: int, partial: Usage | None) -> Usage:
        told = partial if partial is not None else Usage()
        seen = expected_tokens(self._seen_bytes or answer_bytes, self.request.provider)
        most = self.estimate.output_most
        answer = max(told.output_tokens, seen if most is None else min(seen, most))
        return replace(told, input_tokens=told.input_tokens or self.estimate.input_expected, output_tokens=answer)

    def _likely_nano(self, card: RateCard, usage: Usage) -> int:
        # An estimate never says that a hard call cost more than it can.
        nano = self._nano(card, usage)
        return min(nano, self.grant.amount.nano) if self.estimate.hard else nano

    def _believable(self, usage: Usage) -> Usage:
        if max(usage.counts()) <= _MOST_TOKENS:
            return usage
        self._guard.say_once(f"{self.request.model} reported more tokens than can be counted, and is charged the most")
        return Usage(min(usage.input_tokens, _MOST_TOKENS), min(usage.output_tokens, _MOST_TOKENS))

    def _price(self, usage: Usage, response: Response) -> tuple[int | None, str | None]:
        if response.billed_nano or (response.billed_nano == 0 and self.request.provider in _SAY_THEIR_BILL):
            return min(response.billed_nano, _MOST), BILLED
        card = self._settle_card(response)
        return (None, None) if card is None else (self._nano(card, usage), card.source)

    def _nano(self, card: RateCard, usage: Usage) -> int:
        try:
            return min(card.nano(usage), _MOST)
        except Unpriced as error:
            self._guard.say_once(f"{self.request.model}: {error}; its calls cost more than is shown")
            known = replace(usage, input_audio_tokens=0, output_audio_tokens=0, web_searches=0)
            return min(card.nano(known), _MOST)

    def _settle_card(self, response: Response) -> RateCard | None:
        request, card = self.request, self._card
        model = response.model or request.model
        context = request.context if response.context is None else response.context
        context = None if context == "standard" else context
        regional = request.regional or response.regional
        if model is None or (model, context, regional) == (request.model, request.context, request.regional):
            return card
        try:
            told = self._told_card(model, context, regional=regional)
        except NoPrice as error:
            if response.context in ("priority", "fast") or response.regional:
                self._guard.say_once(f"a call was priced at the standard price: {error}")
            return card
        return told if told.prices_output else card

    def _told_card(self, model: str, context: PriceContext | None, *, regional: bool) -> RateCard:
        prices, asked, provider = self._guard.prices, self.request.model, self.request.provider
        own = self._card is not None and self._card.own and asked is not None
        if own and prices.overrides(model, provider):
            try:
                return prices.card(model, provider=provider, context=context, regional=regional)
            except NoPrice:
                pass  # no such tier in it; the price of the model asked for may have it
        # Providers answer with a dated name of the same model: the user's price of it stands.
        return prices.card(asked if own and asked else model, provider=provider, context=context, regional=regional)

    def _now(self) -> int:
        return self._guard.clock.time_ns()

    def _close(self, told: Told, charge: Amounts | None, unknown: Amounts = ZERO) -> None:
        if told.source is None and self._card is not None:
            told = told._replace(source=self._card.source)
        self._hand_over(partial(self._book_and_tell, told, charge, unknown))

    def _hand_over(self, action: Callable[[], None]) -> None:
        self._booking = done = self._guard.books.off_loop(action, self.call_id)
        for run in self.run.outward() if done is not None else ():
            run.account.owes(done)

    def _book_and_tell(self, told: Told, charge: Amounts | None, unknown: Amounts) -> None:
        record = telling.outcome(self, told) if self._guard.ledger.lasting else None
        settlement = self._book(charge, unknown, record)
        own = self.accounts[0].id
        balances = settlement.balances if settlement is not None else ()
        balance = next((one for one in balances if one.account_id == own), None)
        try:
            self._guard.emit(telling.ended(self, told, balance))
        finally:
            self._guard.ended(self, settlement)  # also where a sink ends the program

    def _book(self, charge: Amounts | None, unknown: Amounts, record: Outcome | None) -> Settlement | None:
        ledger = self._guard.ledger
        try:
            if charge is None:
                return ledger.release(self.call_id, record)
            return ledger.settle(self.call_id, charge, unknown, record)
        except LedgerError as error:
            # The hold stays in the ledger, so nothing is lost and the cap still holds.
            _log.warning("runcap: a call could not be settled yet and keeps its hold: %s", error)
            return None

    def _reconcile(self, usage: Usage, response: Response) -> bool:
        if self._state != "unknown" or not any(self._booked[1]) or self._is_anothers():
            return False
        usage = self._believable(usage)
        nano, source = self._price(usage, response)
        charge = Amounts(nano=nano or 0, tokens=usage.total_tokens)
        before, self._booked = self._booked, (charge, Amounts(), usage)
        now = self._now()
        told = Told("settled", now, usage, nano, source=source, response=response)
        record = telling.outcome(self, told, "late") if self._guard.ledger.lasting else None
        self._hand_over(partial(self._book_again, self._booking, charge, record))
        self.run.reconciled(before[0], before[1], charge)
        self.run.count(usage, priced=True, instead_of=before[2])
        event = CallReconciled(time_ns=now, run=self.run.info, call_id=self.call_id, usage=usage, cost_nano=nano)
        self._guard.emit(event)
        return False

    def _book_again(self, first: Future[None] | None, charge: Amounts, record: Outcome | None) -> None:
        wait(first)
        self._book(charge, ZERO, record)
