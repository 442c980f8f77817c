"""The guard: one budget policy, the runs under it, and the one way through for every call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal
from weakref import WeakMethod

from . import forks, noting, telling
from .admission import Reservation, areserve, reserve
from .amounts import UNITS, Amounts
from .books import Books
from .budget import Budget
from .checks import check_parts, check_run_id, check_tags
from .clock import Clock, NewId, SystemClock, new_id
from .dispatch import Dispatcher
from .errors import BudgetExceeded, RefusalDetails, Refused
from .estimate import Measured, TypicalOutput
from .events import BudgetWarned, CallRefused, Event, RunEnded, RunStarted, RunStopped, Sink
from .history import History
from .inflight import InFlight
from .ledger import Balance, Grant, Ledger, MemoryLedger, Offer, Settlement
from .limits import Limit, checked_limits, say_tag
from .looping import Looping
from .loops import Loop, LoopPolicy
from .offload import may_block
from .paused import PausedRuns
from .permit import Permit
from .plan import Plan, Renew, check_clock
from .pricing import PriceBook
from .reasons import hints, turn_away_late
from .refusals import cut_short, scarcest
from .request import Request
from .run import Run, ambient
from .saved import SavedRun, restore
from .tiers import SwitchAt, Tier, checked_tiers
from .waiting import WaitingRoom

_log = logging.getLogger("runcap")

_ONE = Amounts(tool_calls=1)
_TOOL_CALL = Offer(_ONE, _ONE, _ONE)


class Guard:
    """Holds runs to a budget. Hand it, or a bare `Budget`, to any attach point.

    Args:
        budget: the caps of each run; every root run gets the whole of it.
        limits: caps on wider scopes, over every run and process that shares the ledger. They need an explicit `ledger`.
        tiers: a ladder of models, dearest first; a run goes down as its dollars go, and up again only when it is topped
            up. Takes a `BudgetMiddleware`.
        switch_at: `"turn"` goes down only where a user's turn begins, unless a call fits only further down.
        history: how much of a conversation is sent. Takes a `BudgetMiddleware`.
        loops: when to warn of agents that repeat themselves, and when to halt them; None does not look.
        prices: where prices come from; the bundled data by default.
        ledger: where holds and spend are kept: this process's memory by default, or a `SQLiteLedger` or `RedisLedger`.
        on_warning: called with a `BudgetWarned` when a share of `Budget.warn_at` is reached.
        sinks: who is told what happened. None lets the adapter add its default (spans on the global tracer
            provider); `()` is none.
        unscoped: `"share"` puts calls outside every run and agent into one default run that lasts as long as the
            guard; `"refuse"` refuses them.
        clock: where time comes from.
        new_id: where run ids come from.

    Raises:
        TypeError: `budget` is no Budget, or another part not what it must be.
        ValueError: `unscoped` is neither `"share"` nor `"refuse"`, or limits without a ledger to keep them in.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        limits: Sequence[Limit] = (),
        tiers: Sequence[Tier] = (),
        switch_at: SwitchAt = "any",
        history: History | None = None,
        loops: LoopPolicy | None = None,
        prices: PriceBook | None = None,
        ledger: Ledger | None = None,
        on_warning: Callable[[BudgetWarned], None] | None = None,
        sinks: Sequence[Sink] | None = None,
        unscoped: Literal["share", "refuse"] = "share",
        clock: Clock | None = None,
        new_id: NewId = new_id,
    ) -> None:
        if not isinstance(budget, Budget):
            raise TypeError(f'Guard needs a Budget, e.g. Guard(Budget(usd="0.50")); got {type(budget).__name__}')
        if unscoped not in ("share", "refuse"):
            raise ValueError(f'Guard.unscoped must be "share" or "refuse", got {unscoped!r}')
        check_parts(prices=prices, sinks=sinks, loops=loops, history=history, on_warning=on_warning, ledger=ledger)
        self.budget = budget
        self.limits = checked_limits(limits, own_ledger=ledger is not None)
        self.tiers = checked_tiers(tiers, switch_at, dollars=budget.usd is not None)
        self.switch_at = switch_at
        if history is not None and history.summarize is True and not self.tiers:
            raise ValueError("History(summarize=True) takes the last of Guard.tiers, and there are none: name a model")
        self.history = history
        nudges = budget.tell_agent or (loops is not None and loops.nudge)
        self.unsteered = bool(self.tiers) or history is not None or budget.on_breach != "raise" or nudges
        """It has settings that only a middleware can carry out, and there has been none."""
        self.loops = loops
        self.looping = Looping(loops, self)
        self.prices = prices if prices is not None else PriceBook()
        self.ledger: Ledger = ledger if ledger is not None else MemoryLedger()
        self.books = Books(self)
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.measured = Measured()
        self.typical_output = TypicalOutput()
        self.room = WaitingRoom()
        self.calls = InFlight(self.room.nudge)
        self.paused = PausedRuns()
        self.notes: dict[object, Any] = {}
        """What adapters remember while the guard lasts."""
        self.sinks = Dispatcher(sinks)
        """Who is told what happened."""
        self._warnings = Dispatcher(() if on_warning is None else (partial(_only_warnings, on_warning),))
        self.new_id = new_id
        self._unscoped = unscoped
        self._named: dict[str, Run] = {}
        self._naming = forks.rlock()  # a finalizer may end a run in the middle of naming another
        self._default: Run | None = None
        self._said: dict[str, object] = {}
        self._locators: list[WeakMethod[Callable[[], Run | None]]] = []
        self.prices.warm()

    # Runs

    def run(self, *, budget: Budget | None = None, **tags: str) -> Run:
        """A run, to be entered with `with` or `async with`.

        Tags such as `task`, `user`, `feature`, `team` and `prompt_version` label it. `budget` is its own caps: by
        default the guard's for an outermost run, and none but the outer run's for a nested one.

        Raises:
            TypeError: a tag that is no string, or a budget that is none.
            ValueError: a tag named `run_id`, or none for a limit of the guard.
        """
        check_tags(tags)
        if budget is not None and not isinstance(budget, Budget):
            raise TypeError(f"budget must be a Budget, got {type(budget).__name__}")
        parent = self.current_run() or self._located()
        own = budget if budget is not None or parent is not None else self.budget
        run = Run(self, run_id=self.new_id(), parent=parent, budget=own, tags=tags)
        limit = self.limits.lacking(run.tags)
        if limit is not None:
            raise ValueError(f"there is a limit on {limit.scope}, and this run has no such tag. {say_tag(limit.scope)}")
        return run

    def current_run(self) -> Run | None:
        """The innermost `with guard.run(...)` around this call that is not over; None outside of any."""
        run = ambient.get()
        while run is not None and (run.ended or not run.belongs_to(self)):
            run = run.enclosing()
        return run

    def open_run(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        conversation_id: str | None = None,
        saved: SavedRun | None = None,
    ) -> Run:
        """For adapters: a run with the whole budget, or a saved one gone on with; end it with `run.end()`."""
        run_id = self.new_id() if saved is None else saved.run_id
        run = Run(self, run_id=run_id, budget=self.budget, tags=tags, conversation_id=conversation_id)
        if saved is not None:
            run.account.before_next(partial(restore, saved, run, self.ledger))
            run.course.restored = saved
            run.course.top_ups.update(saved.top_ups)
        self.opened(run)
        return run

    def named_run(self, run_id: str, tags: dict[str, str] | None = None) -> Run:
        """The run of this id, begun at its first call; the same one until it is ended with `run.end()`.

        Raises:
            TypeError, ValueError: the id is no text.
        """
        check_run_id(run_id)
        with self._naming:
            run = self._named.get(run_id)
            if run is not None and not run.ended:
                return run
            run = self._named[run_id] = Run(self, run_id=run_id, budget=self.budget, tags=tags)
        self.opened(run)
        return run

    @property
    def default_run(self) -> Run:
        """The run of all calls outside every other; it lasts as long as the guard."""
        with self._naming:
            if self._default is not None and not self._default.ended:
                return self._default
            run = self._default = Run(self, run_id=self.new_id(), budget=self.budget)
        self.opened(run)
        return run

    def scope(self, run: Run | None, model: str | None = None) -> Run:
        """The run a call belongs to: `run` if given, else the ambient one, else the default run.

        Raises:
            BudgetExceeded: it would be the default run, and the guard was made with `unscoped="refuse"`.
        """
        while run is not None and run.ended and run.went_on_as is not None:
            run = run.went_on_as
        if run is not None and not run.ended:
            return run
        for outer in run.outward() if run is not None else ():
            if not outer.ended:
                return outer
        run = self.current_run()
        if run is not None:
            return run
        if self._unscoped == "share":
            return self.default_run
        raise BudgetExceeded(
            RefusalDetails(
                reason="a call outside every run",
                way_out='Wrap it in "with guard.run():", or allow it with Guard(unscoped="share")',
                run_id="-",
                model=model,
            )
        )

    def limit_balances(self, **tags: str) -> tuple[Balance, ...]:
        """What runs with these tags have used of the guard's limits in the windows of now, beside this guard's caps.

        Raises:
            LedgerError: the ledger did not answer, or the clock jumped.
            Refused: a tag is missing that is limited.
            TypeError, ValueError: a tag is no text.
        """
        return self.books.limits(tags)

    async def alimit_balances(self, **tags: str) -> tuple[Balance, ...]:
        """`limit_balances`, without blocking the loop: there, the other shows them as this process saw them last."""
        return await self.books.alimits(tags)

    def add_locator(self, locate: Callable[[], Run | None]) -> None:
        """For adapters: how to find the run of the agent or tool that is running in this context, if any."""
        # Weakly: handlers come and go with requests, the guard stays.
        self._locators = [*(known for known in self._locators if known() is not None), WeakMethod(locate)]

    def opened(self, run: Run) -> None:
        """A run began."""
        self.emit(RunStarted(time_ns=self.clock.time_ns(), run=run.info))

    def closed(self, run: Run) -> None:
        """A run ended."""
        with self._naming:
            self._named.pop(run.id, None)
        now = self.clock.time_ns()
        run.account.once_paid(lambda: self.emit(RunEnded(now, run.info, run.seen, run.verdict)))

    def stopped(self, run: Run, reason: str) -> None:
        """A run was stopped."""
        self.emit(RunStopped(time_ns=self.clock.time_ns(), run=run.info, reason=reason))

    # Calls

    def admit(
        self, request: Request, run: Run | None = None, *, wait: bool = False, renew: Renew | None = None
    ) -> Permit:
        """Admit a model call, or refuse it. `run` as in `scope`.

        With `wait`, it waits for money that calls in flight hold, on a thread that may block; `renew` then describes
        the call anew each time it is tried.

        Raises:
            Refused: one of its kinds; nothing was held and no call may be made.
        """
        self.calls.drain()
        run = self.scope(run, request.model)
        try:
            run = self.books.ready(run, request.model)
            plan = Plan(self, request, run, wait=wait and may_block(), renew=renew)
            grant = reserve(plan, self.ledger)
            if run.ended and run.went_on_as is not None:
                self.books.take_back(request.call_id, run, request.model)
                return self.admit(request, run.went_on_as, wait=wait, renew=renew)
            turn_away_late(request.call_id, run, self, request.model)
        except Refused as refused:
            raise self._refused(request.call_id, request.parent_id, run, refused, request) from refused.__cause__
        return self._permit(plan, grant)

    async def aadmit(
        self, request: Request, run: Run | None = None, *, wait: bool = False, renew: Renew | None = None
    ) -> Permit:
        """`admit`, without blocking the loop."""
        self.calls.drain()
        run = self.scope(run, request.model)
        try:
            run = await self.books.aready(run, request.model)
            plan = Plan(self, request, run, wait=wait, renew=renew)
            grant = await areserve(plan, self.ledger)
            if run.ended and run.went_on_as is not None:
                await self.books.atake_back(request.call_id, run, request.model)
                return await self.aadmit(request, run.went_on_as, wait=wait, renew=renew)
            turn_away_late(request.call_id, run, self, request.model)
        except asyncio.CancelledError:
            # It may have landed, or land yet: a release frees it, or leaves a tombstone for it to land on.
            await self.books.give_back(request.call_id)
            raise
        except Refused as refused:
            raise self._refused(request.call_id, request.parent_id, run, refused, request) from refused.__cause__
        return self._permit(plan, grant)

    def admit_tool(self, call_id: str, run: Run | None = None, parent_id: str | None = None) -> None:
        """Count a tool call, or refuse it.

        Raises:
            Refused: the run's tool calls or its seconds are used up, or it is stopped.
        """
        run = self.scope(run)
        try:
            run = self.books.ready(run)
            check_clock(run, None)
            grant = reserve(Reservation(call_id, _TOOL_CALL, run.accounts), self.ledger)
            if run.ended and run.went_on_as is not None:
                self.admit_tool(f"{call_id}:again", run.went_on_as, parent_id)
                return
            turn_away_late(call_id, run, self)
        except Refused as refused:
            raise self._refused(call_id, parent_id, run, refused) from refused.__cause__
        self._warn(run, grant)

    async def aadmit_tool(self, call_id: str, run: Run | None = None, parent_id: str | None = None) -> None:
        """`admit_tool`, without blocking the loop."""
        run = self.scope(run)
        try:
            run = await self.books.aready(run)
            check_clock(run, None)
            grant = await areserve(Reservation(call_id, _TOOL_CALL, run.accounts), self.ledger)
            if run.ended and run.went_on_as is not None:
                await self.aadmit_tool(f"{call_id}:again", run.went_on_as, parent_id)
                return
            turn_away_late(call_id, run, self)
        except Refused as refused:
            raise self._refused(call_id, parent_id, run, refused) from refused.__cause__
        self._warn(run, grant)

    def saw_tool_call(self, run: Run, name: str, arguments: int, parent_id: str | None = None) -> Loop | None:
        """An agent is about to call a tool; `arguments` is a digest. The loop, if it is one that was warned of now.

        Raises:
            LoopHalted: the policy halts this loop; the run is stopped and the call may not be made.
        """
        try:
            return self.looping.called(run, name, arguments, parent_id)
        except Refused as refused:
            raise self._refused(self.new_id(), parent_id, run, refused) from None

    def cut_short(self, permit: Permit) -> BudgetExceeded:
        """The error for an answer that was cut, where a part of it is of no use."""
        account = scarcest(permit.accounts, permit.grant.balances)
        balance = permit.run.seen if account is permit.accounts[0] else self.ledger.peek(account.id)
        return cut_short(balance, account, permit.output_cap, permit.request.model)

    def ended(self, permit: Permit, settlement: Settlement | None) -> None:
        """A permit ended: forget it, warn, and close runs that were waiting for it."""
        self.calls.end(permit)
        if self.room:
            for account in permit.accounts:
                self.room.wake(account.id)
        chain = permit.run.outward()
        if settlement is not None:
            self._warn(permit.run, settlement)
        for run in chain:
            if run.ended:
                run.account.close_when_idle()

    # Sinks

    def add_default_sinks(self, sinks: Sequence[Sink]) -> None:
        """For adapters: use these if the user left `sinks` to the adapter."""
        self.sinks.default(sinks)

    def emit(self, event: Event) -> None:
        """Tell the sinks, and a ledger that lasts."""
        self.sinks.emit(event)
        self._warnings.emit(event)
        if self.ledger.lasting:
            noting.keep(event, self)

    def say_once(self, message: str) -> None:
        """Log a warning, the first time only."""
        if self._said.setdefault(message, token := object()) is token:
            _log.warning("runcap: %s", message)

    # Inside

    def _located(self) -> Run | None:
        found = (locate() for known in self._locators if (locate := known()) is not None)
        return next((run for run in found if run is not None and not run.ended and run is not self._default), None)

    def _permit(self, plan: Plan, grant: Grant) -> Permit:
        permit = Permit(self, plan, grant)
        if plan.request.purpose.root:
            plan.run.course.spare = plan.spare
        self.calls.begin(permit)
        try:
            self.emit(telling.started(permit))
            self._warn(plan.run, grant)
        except BaseException as error:
            permit.release(type(error).__name__)  # a sink ends the program: the call is not made
            raise
        return permit

    def _warn(self, run: Run, after: Grant | Settlement) -> None:
        by_id = {balance.account_id: balance for balance in after.balances}
        for outer in run.outward():
            balance = by_id.get(outer.accounts[0].id)
            if balance is not None:
                outer.warn(balance)
        if not self.limits:
            return
        for limit, unit, share, balance in self.limits.reached(after.balances):
            now, name = self.clock.time_ns(), UNITS[unit]
            self.emit(BudgetWarned(now, run.info, name, share, balance, scope=limit.scope))

    def _refused(
        self, call_id: str, parent_id: str | None, run: Run, refused: Refused, request: Request | None = None
    ) -> Refused:
        for hint in hints(refused, shared=run is self._default, request=request):
            refused = refused.hinting(hint)
        for outer in run.outward():
            outer.tell_if_stopped()
        now, kind = self.clock.time_ns(), type(refused).__name__
        self.emit(
            CallRefused(
                time_ns=now, run=run.info, call_id=call_id, parent_id=parent_id, kind=kind, details=refused.details
            )
        )
        return refused


def _only_warnings(tell: Callable[[BudgetWarned], None], event: Event) -> None:
    if isinstance(event, BudgetWarned):
        tell(event)
