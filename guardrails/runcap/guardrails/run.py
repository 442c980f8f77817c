"""One agent run: a budget, its tags, and what it has cost so far."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from .amounts import UNITS, ZERO, Amounts
from .budget import Budget, OnBreach
from .course import Course
from .errors import Refused
from .events import BudgetWarned, RunInfo, RunToppedUp
from .ledger import Account, Balance
from .money import Money, to_usd
from .run_account import RunAccount
from .tally import NO_USAGE, Tally
from .topups import check_top_up
from .usage import Usage

if TYPE_CHECKING:
    from .guard import Guard

P = ParamSpec("P")
R = TypeVar("R")

ambient: ContextVar[Run | None] = ContextVar("runcap_run", default=None)
"""The innermost `with guard.run(...)` of this context, of whichever guard."""


class Run:
    """A run, as a snapshot at any time and as a context manager while it lasts.

    Made by `guard.run(...)`; inside the `with`, every call this guard sees in the same context belongs to it, also in
    sub-agents, tools, tasks and threads that carry the context. Nested runs spend from the outer one too.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        run_id: str,
        parent: Run | None = None,
        budget: Budget | None = None,
        tags: Mapping[str, str] | None = None,
        conversation_id: str | None = None,
    ) -> None:
        self._guard = guard
        self.parent = parent
        """The run around it that it spends from too."""
        self.went_on_as: Run | None = None
        """The run it turned out to be the rest of."""
        self._outer: Run | None = None
        self._entered = False
        self._started = guard.clock.monotonic()
        self._ended = False
        self._stopping = False
        self._paused: float | None = None
        self._verdict: str | None = None
        self._warned: dict[tuple[str, float], object] = {}
        self._tally = Tally()
        self._chain: tuple[Run, ...] = (self, *(parent.outward() if parent else ()))
        self._watched = () if budget is None else budget.watched
        self.notes: dict[Any, Any] = {}
        """What adapters remember while the run lasts."""
        account = Account(f"run:{run_id}", budget.caps) if budget else Account(f"run:{run_id}")
        self.accounts: tuple[Account, ...] = (account, *(parent.accounts if parent else ()))
        self.account = RunAccount(guard, account)
        """Its own account in the ledger, for adapters."""
        self.info: RunInfo = RunInfo(
            id=run_id,
            conversation_id=conversation_id or (parent.info.conversation_id if parent else run_id),
            parent_id=parent.id if parent else None,
            tags={**(parent.info.tags if parent else {}), **(tags or {})},
            budget=budget,
        )
        above = parent.timed if parent else ()
        self.timed: tuple[Run, ...] = (self, *above) if budget and budget.seconds is not None else above
        """This run and those around it, as far as they have a cap on seconds."""
        self.strict: bool = bool(budget and budget.strict) or bool(parent and parent.strict)
        """A budget it spends from refuses calls that are not hard."""
        budgets = [run.budget for run in self._chain if run.budget is not None]
        self.min_output_tokens: int = max((one.min_output_tokens for one in budgets), default=0)
        """The smallest output cap any budget it spends from allows to be set."""
        self.course: Course = parent.course if parent is not None and budget is None else Course()
        """Where it is on the way to its cap; without a cap of its own, where the run around it is."""
        self.on_breach: OnBreach = next((one.on_breach for one in budgets), "raise")
        """What a middleware does at the cap; the innermost budget says."""
        self.tells_agent: bool = any(one.tell_agent for one in budgets)
        """Its agents are told of warnings."""
        finishing = [one.finish_max_input for one in budgets if one.on_breach == "finish"]
        self.finish_max_input: int | None = min(finishing, default=None)
        """Tokens of the prompt of its last answer, at most; None where no last answer is kept room for."""
        self.max_wait: float | None = min((one.max_wait for one in budgets if one.max_wait is not None), default=None)
        """Seconds a call may wait; None without a limit."""

    def __repr__(self) -> str:
        return f"<Run {self.id} spent {self.spent_usd} held {self.held_usd} steps {self.steps}>"

    @property
    def id(self) -> str:
        """The run's id."""
        return self.info.id

    @property
    def budget(self) -> Budget | None:
        """Its own caps; None for a nested run that has only the outer one's."""
        return self.info.budget

    @property
    def tags(self) -> Mapping[str, str]:
        """Its tags, and those of the runs around it."""
        return self.info.tags

    @property
    def balance(self) -> Balance:
        """Every figure at this instant, in integers.

        With a ledger that does I/O, code that runs on an event loop gets them as of the last call of this process.
        """
        self._guard.calls.drain()
        return self.account.balance

    @property
    def seen(self) -> Balance:
        """The balance as this process saw it last: never any I/O."""
        return self.account.seen

    @property
    def spent_usd(self) -> Decimal | None:
        """Dollars settled so far. None once a call without a known price was made: the sum is then not known."""
        return to_usd(self.balance.spent.nano) if self._tally.is_priced else None

    @property
    def held_usd(self) -> Decimal:
        """Dollars reserved by calls in flight."""
        return to_usd(self.balance.held.nano)

    @property
    def unknown_usd(self) -> Decimal:
        """Dollars that may have been billed by calls that reported no usage. Counts against the cap, never as cost."""
        return to_usd(self.balance.unknown.nano)

    @property
    def remaining_usd(self) -> Decimal | None:
        """Dollars left under this run's own cap; None without one."""
        free = self.balance.free(0)
        return None if free is None else to_usd(free)

    @property
    def steps(self) -> int:
        """Model calls admitted."""
        return self.balance.spent.steps

    @property
    def tool_calls(self) -> int:
        """Tool calls admitted."""
        return self.balance.spent.tool_calls

    @property
    def usage(self) -> Usage:
        """Tokens of all calls that ended."""
        return self._tally.usage

    @property
    def tier(self) -> str | None:
        """The model of the guard's tiers it is on; None before its first call, or without tiers."""
        return self.course.tier

    @property
    def capped(self) -> Run:
        """The innermost run with a budget of its own, of this one and those around it; itself where none has."""
        return next((run for run in self._chain if run.budget is not None), self)

    @property
    def spare(self) -> Amounts:
        """What the last answers of this run and those around it would cost, the dearest in each unit."""
        return _most(run.course.spare for run in self._chain)

    @property
    def spare_around(self) -> Amounts:
        """The same of those around it alone."""
        return _most(run.course.spare for run in self._chain if run.course is not self.course)

    @property
    def stopped(self) -> str | None:
        """Why every further call is refused; None while the run may go on."""
        return self.balance.stopped

    @property
    def halted(self) -> bool:
        """No further call will be admitted, as far as this process knows; no I/O."""
        return self.stopping or self.seen.stopped is not None

    @property
    def verdict(self) -> str | None:
        """`"succeeded"`, `"failed"` (with its reason after a colon), or None."""
        return self._verdict

    def top_up(
        self,
        *,
        usd: Money | None = None,
        steps: int = 0,
        tool_calls: int = 0,
        tokens: int = 0,
        key: str | None = None,
    ) -> bool:
        """Raise this run's caps and let it go on if it was stopped.

        Given a `key`, once per key: False where it was used before. A unit without a cap stays without one.

        Raises:
            RuntimeError: the run is over.
            ValueError: nothing to add, or a negative amount.
            LedgerUnavailable: the ledger did not answer.
        """
        key, extra = self._top_up_key(key), check_top_up(usd=usd, steps=steps, tool_calls=tool_calls, tokens=tokens)
        return self._topped_up(self.account.top_up(key, extra), key, extra)

    async def atop_up(
        self,
        *,
        usd: Money | None = None,
        steps: int = 0,
        tool_calls: int = 0,
        tokens: int = 0,
        key: str | None = None,
    ) -> bool:
        """`top_up`, without blocking the loop."""
        key, extra = self._top_up_key(key), check_top_up(usd=usd, steps=steps, tool_calls=tool_calls, tokens=tokens)
        return self._topped_up(await self.account.atop_up(key, extra), key, extra)

    def stop(self, reason: str) -> None:
        """Refuse every further call of this run, whoever makes it.

        Calls in flight still settle; streams of guarded models end early, with what has come.
        """
        self._stopping = True
        if self._ended:
            return  # it makes no more calls; those in flight end early
        self.account.stop(reason, self._told_to_stop)

    def _told_to_stop(self) -> None:
        self.tell_if_stopped()
        self._guard.room.wake(self.accounts[0].id)

    @property
    def stopping(self) -> bool:
        """`stop()` was called on it or on a run around it, in this process; a top-up takes that back."""
        return any(run._stopping for run in self._chain)  # noqa: SLF001 - other runs

    def succeed(self) -> None:
        """Record that the task was done, for cost per successful task."""
        self._judge("succeeded")

    def fail(self, reason: str = "") -> None:
        """Record that the task was not done."""
        self._judge(f"failed: {reason}" if reason else "failed")

    def _judge(self, verdict: str) -> None:
        self._verdict = verdict
        self.account.judge(self.id, verdict)

    def bind(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, carried into this run wherever it is called: raw threads and executors lose the context."""

        @functools.wraps(function)
        def bound(*args: P.args, **kwargs: P.kwargs) -> R:
            before = ambient.get()
            ambient.set(self)
            try:
                return function(*args, **kwargs)
            finally:
                ambient.set(before)

        return bound

    def __enter__(self) -> Self:
        if self._entered:
            raise RuntimeError(f"run {self.id} was entered before; make another with guard.run(...)")
        self._entered = True
        self._outer = ambient.get()
        ambient.set(self)
        self._guard.opened(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if ambient.get() is self:
            ambient.set(self._outer)
        self.end()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, tb)
        await self.account.closed()

    @property
    def ended(self) -> bool:
        """The run is over; no call can join it."""
        return self._ended

    def is_limited_by(self, refused: Refused) -> bool:
        """A limit of its guard was the cause."""
        return refused.scope in self._guard.limits.scopes

    def outward(self) -> tuple[Run, ...]:
        """This run and the runs around it, inside out."""
        return self._chain

    def enclosing(self) -> Run | None:
        """The run that was ambient when this one was entered, of whichever guard."""
        return self._outer

    def belongs_to(self, guard: Guard) -> bool:
        """Made by this guard."""
        return self._guard is guard

    def seconds_left(self) -> float | None:
        """Seconds until the first cap on them is reached; None without one."""
        caps = [(run, run.budget.seconds) for run in self.timed if run.budget is not None]
        return min((seconds - run.elapsed() for run, seconds in caps if seconds is not None), default=None)

    def elapsed(self) -> float:
        """Seconds since the run began, without those it was paused for."""
        now = self._guard.clock.monotonic() if self._paused is None else self._paused
        return now - self._started

    @property
    def paused(self) -> bool:
        """It waits for a person's answer: its clock stands, and its agent's end does not end it."""
        return self._paused is not None

    def pause(self) -> None:
        """Stop its clock."""
        if self._paused is None:
            self._paused = self._guard.clock.monotonic()

    def go_on(self) -> None:
        """Let its clock run again."""
        if self._paused is not None:
            self._started += self._guard.clock.monotonic() - self._paused
            self._paused = None

    def count(self, usage: Usage, *, priced: bool, instead_of: Usage = NO_USAGE) -> None:
        """Add a call's tokens, in place of what was counted for it before."""
        for run in self._chain:
            run._tally.add(usage, priced=priced, instead_of=instead_of)  # noqa: SLF001 - other runs

    def reconciled(self, charged: Amounts, unknown: Amounts, charge: Amounts) -> None:
        """Correct the last balances of runs that ended before a call's usage arrived."""
        for run in self._chain:
            run.account.correct(charged, unknown, charge)

    def warn(self, balance: Balance) -> None:
        """Emit a `BudgetWarned` for every share of a cap that was reached for the first time."""
        for unit, share in self._watched:
            cap = balance.caps[unit]
            if cap is not None and balance.spent[unit] >= cap * share and self._first((UNITS[unit], share)):
                now = self._guard.clock.time_ns()
                warned = BudgetWarned(time_ns=now, run=self.info, unit=UNITS[unit], share=share, balance=balance)
                if self.budget is not None and self.budget.tell_agent:
                    self.course.unsaid.append(f"{share:.0%} of the budget of this run ({UNITS[unit]}) is used.")
                self._guard.emit(warned)

    def tell_if_stopped(self) -> None:
        """Emit `RunStopped`, once, if the run was stopped: by its cap, by `stop()`, or in another process."""
        reason = self.seen.stopped
        if reason is not None and self._first(("stopped", 0.0)):
            self._guard.stopped(self, reason)

    def _first(self, warning: tuple[str, float]) -> bool:
        token = object()
        return self._warned.setdefault(warning, token) is token

    def end(self) -> None:
        """End the run. Calls still in flight settle into it; no other can join."""
        if self._ended:
            return
        self._ended = True
        self.notes.clear()
        self._guard.closed(self)
        self.account.close_when_idle()

    def _top_up_key(self, key: str | None) -> str:
        if self._ended:
            raise RuntimeError(
                f"run {self.id} is over and cannot go on. An agent's own run lasts for one invocation: "
                'put the invocations into "with guard.run() as run:" to top it up in between'
            )
        return key if key is not None else uuid.uuid4().hex

    def _topped_up(self, done: bool, key: str, extra: Amounts) -> bool:
        if done:
            self._stopping = False
            self._warned.clear()
            self.course.begin_anew(key, extra)
            self._guard.room.wake(self.accounts[0].id)
            event = RunToppedUp(time_ns=self._guard.clock.time_ns(), run=self.info, key=key, balance=self.seen)
            self._guard.emit(event)
        return done


def _most(kept: Iterable[Amounts]) -> Amounts:
    return Amounts(*(max(unit) for unit in zip(ZERO, *kept, strict=True)))
