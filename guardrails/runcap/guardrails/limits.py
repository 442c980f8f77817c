"""Caps on a wider scope than a run: on a user, a team, a feature or any tag, for a day, a month, or for good."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Literal, get_args
from urllib.parse import quote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .amounts import Caps
from .budget import count, dollars, shares
from .errors import MissingTag, RefusalDetails
from .ledger import Account, Balance
from .money import Money, to_nano
from .recent import Recent

Per = Literal["day", "month", "total"]
"""How long a limit's window is: a calendar day, a calendar month, or for good."""

Missing = Literal["refuse", "skip"]
"""What a call is to whose run does not carry the limit's tag: refused, or not limited."""

_TAG = re.compile(r"[\w.-]+")
_RESERVED = ("run", "run_id")
_FORMATS = {"day": "%Y-%m-%d", "month": "%Y-%m"}
_KEPT = 4_096


@dataclass(frozen=True, slots=True, init=False)
class Limit:
    """A cap on all runs that carry a tag of the same value, in every process that shares the ledger.

    Each window is an account of its own. A call belongs to the window it was reserved in, whenever it ends.

    Args:
        scope: the tag: `"user"`, `"team"`, `"feature"` or any of one's own. Each value of it has the cap to itself.
        usd: dollars, as for `Budget`.
        steps: model calls.
        tokens: input and output together.
        per: `"day"`, `"month"` or `"total"`.
        zone: the time zone whose midnight ends a day or a month, e.g. `"Europe/Berlin"`.
        missing: `"refuse"` refuses the calls of runs without this tag; `"skip"` does not limit them.
        warn_at: shares of the cap at which each process emits a `BudgetWarned`, once a window.

    Raises:
        TypeError, ValueError: an argument is not what it should be; the message names it and the fix.
    """

    scope: str
    usd: Decimal | None
    steps: int | None
    tokens: int | None
    per: Per
    zone: str
    missing: Missing
    warn_at: tuple[float, ...]

    def __init__(
        self,
        scope: str,
        usd: Money | None = None,
        *,
        per: Per,
        steps: int | None = None,
        tokens: int | None = None,
        zone: str = "UTC",
        missing: Missing = "refuse",
        warn_at: Sequence[float] = (0.8,),
    ) -> None:
        if not isinstance(scope, str) or not _TAG.fullmatch(scope) or scope in _RESERVED:
            raise ValueError(f'Limit.scope must name a tag of runs, e.g. "user" or "team"; got {scope!r}')
        if usd is None and steps is None and tokens is None:
            raise ValueError('Limit needs a cap: usd, steps or tokens, e.g. Limit("user", usd="5", per="day")')
        if per not in get_args(Per):
            raise ValueError(f'Limit.per must be "day", "month" or "total", got {per!r}')
        if missing not in get_args(Missing):
            raise ValueError(f'Limit.missing must be "refuse" or "skip", got {missing!r}')
        _zone(zone)
        for name, value in (("scope", scope), ("per", per), ("zone", zone), ("missing", missing)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "usd", None if usd is None else dollars(usd, "Limit.usd"))
        object.__setattr__(self, "steps", count(steps, "Limit.steps"))
        object.__setattr__(self, "tokens", count(tokens, "Limit.tokens"))
        object.__setattr__(self, "warn_at", shares(warn_at, "Limit.warn_at"))

    @property
    def caps(self) -> Caps:
        """The caps as a ledger keeps them, dollars in nano-dollars."""
        nano = None if self.usd is None else to_nano(self.usd, "usd")
        return Caps(nano=nano, tokens=self.tokens, steps=self.steps)

    def window(self, time_ns: int) -> str:
        """The window a moment is in: `"2026-11-26"`, `"2026-11"`, or nothing where there is but one."""
        if self.per == "total":
            return ""
        return datetime.fromtimestamp(time_ns // 10**9, _zone(self.zone)).strftime(_FORMATS[self.per])

    def account(self, value: str, time_ns: int) -> Account:
        """What a call is charged to at this moment whose run carries this value of the tag."""
        window = self.window(time_ns)
        where = f"/{window}" if window else ""
        zone = f"@{self.zone}" if window and self.zone != "UTC" else ""
        return Account(f"limit:{self.scope}={quote(value, safe='')}/{self.per}{where}{zone}", self.caps, self.scope)


class Limits:
    """The limits of a guard."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = tuple(limits)
        self._known: Recent[tuple[Limit, str, int], Account] = Recent(_KEPT)
        self._limit_of: Recent[str, Limit] = Recent(_KEPT)
        self._warned: Recent[tuple[str, int, float], object] = Recent(_KEPT)
        self.scopes = frozenset(limit.scope for limit in self._limits)
        """The tags they limit."""
        self.windowed = any(limit.per != "total" for limit in self._limits)
        """They begin anew with time."""

    def __bool__(self) -> bool:
        return bool(self._limits)

    def accounts(self, tags: Mapping[str, str], time_ns: int, run_id: str, model: str | None) -> tuple[Account, ...]:
        """What a call of a run with these tags is charged to at this moment.

        Raises:
            MissingTag: it does not carry a tag that is limited.
        """
        found = []
        for limit in self._limits:
            value = tags.get(limit.scope)
            if value is not None:
                found.append(self._account(limit, value, time_ns))
            elif limit.missing == "refuse":
                raise _untagged(limit, run_id, model)
        return tuple(found)

    def lacking(self, tags: Mapping[str, str]) -> Limit | None:
        """The first limit on a tag that is not among these, and must be."""
        return next((one for one in self._limits if one.missing == "refuse" and one.scope not in tags), None)

    def _account(self, limit: Limit, value: str, time_ns: int) -> Account:
        # Wherever midnight is, it is at a whole minute. The same account each time, so that its caps are compared fast.
        key = (limit, value, time_ns // 60_000_000_000 if limit.per != "total" else 0)
        known = self._known.get(key)
        if known is None:
            known = self._known.keep(key, limit.account(value, time_ns))
            self._limit_of.put(known.id, limit)
        return known

    def reached(self, balances: Sequence[Balance]) -> Iterator[tuple[Limit, int, float, Balance]]:
        """Every share of a limit that was reached for the first time here: its limit, its unit, and the balance."""
        for balance in balances:
            limit = self._limit_of.get(balance.account_id)
            for share in () if limit is None else limit.warn_at:
                for unit, cap in enumerate(balance.caps):
                    key = (balance.account_id, unit, share)
                    if limit is None or cap is None or balance.spent[unit] < cap * share or key in self._warned:
                        continue
                    self._warned.put(key, None)
                    yield limit, unit, share, balance


def checked_limits(limits: Sequence[Limit], *, own_ledger: bool) -> Limits:
    """The limits of a guard, checked. `own_ledger`: the user gave a ledger.

    Raises:
        TypeError: not a sequence of `Limit`.
        ValueError: two of them are on the same tag and window, or there is no ledger they could be kept in.
    """
    if isinstance(limits, (str, Limit)) or not isinstance(limits, Sequence):
        raise TypeError(
            f'Guard.limits must be a sequence of Limit, e.g. [Limit("user", usd="5", per="day")]; got {limits!r}'
        )
    seen: set[tuple[str, str, str]] = set()
    for limit in limits:
        if not isinstance(limit, Limit):
            raise TypeError(f"Guard.limits must hold Limit, got {limit!r}")
        key = (limit.scope, limit.per, "" if limit.per == "total" else limit.zone)
        if key in seen:
            raise ValueError(f"two limits on {limit.scope} per {limit.per}: give one Limit all of its caps")
        seen.add(key)
    if limits and not own_ledger:
        raise ValueError(
            'limits outlive a guard and need a ledger of their own: Guard(..., ledger=SQLiteLedger("budget.db")), '
            "RedisLedger(url) for more than one machine, or MemoryLedger() for this process alone"
        )
    return Limits(limits)


def _untagged(limit: Limit, run_id: str, model: str | None) -> MissingTag:
    return MissingTag(
        RefusalDetails(
            reason=f"a limit on {limit.scope}, and a run that carries no such tag",
            way_out=f'{say_tag(limit.scope)}, or do not limit such runs: Limit({limit.scope!r}, missing="skip", ...)',
            run_id=run_id,
            scope="run",
            model=model,
        )
    )


def say_tag(scope: str) -> str:
    """How to give a run a tag."""
    tag = f'{scope}="..."' if scope.isidentifier() else f'**{{"{scope}": "..."}}'
    return f'Say guard.run({tag}), or metadata={{"runcap": {{"{scope}": "..."}}}}'


def _zone(name: object) -> tzinfo:
    if name == "UTC":
        return UTC
    if not isinstance(name, str):
        raise TypeError(f'Limit.zone must be the name of a time zone, e.g. "Europe/Berlin"; got {name!r}')
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f'Limit.zone must be the name of a time zone, e.g. "Europe/Berlin"; got {name!r}') from None
