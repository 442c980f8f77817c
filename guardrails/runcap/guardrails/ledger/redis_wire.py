"""What goes to Redis and comes back: keys, arguments and replies of the scripts, to and from what they mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

from ..amounts import UNITS, ZERO, Amounts, Caps
from ..usage import Usage
from .base import Account, Balance, Grant, Offer, Refusal, Settlement
from .lasting import Ending
from .records import SCHEMA, TOKEN_FIELDS, About, Outcome, UsageRecord
from .unknowns import UnknownCall

Reply = Sequence[Any]
"""What a script answers: a status, the number of the last write, Redis' time in microseconds, the number of the owner's
last write, and what was asked for."""

HEAD = 4
"""How many items stand before what was asked for."""

LARGEST = 2**53 - 1
"""The largest amount Redis' scripts count exactly: nine million dollars in nano-dollars."""

_ACCOUNT, _FIGURES, _HOLD, _OFFER, _CAPS = (Struct(f"<{count}q") for count in (20, 12, 13, 15, 4))
"""Numbers as they are packed: see common.lua. An account's figures come first, then what raises its caps, and these."""

_NO_CAP = -1

_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_new = tuple.__new__  # see amounts


class Keys:
    """The keys of one namespace. They have one hash tag, and so one slot: a script may use several."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.tag = f"{{runcap:{namespace}}}"
        self.meta = f"{self.tag}:meta"
        self.held = f"{self.tag}:held"
        self.unknown = f"{self.tag}:unknown"
        self.owners = f"{self.tag}:owners"
        self.dead = f"{self.tag}:dead"
        self.usage = f"{self.tag}:usage"
        self.revised = f"{self.tag}:revised"
        self.verdicts = f"{self.tag}:verdicts"
        self.noted = f"{self.tag}:noted"
        self.base = (self.meta, self.owners)
        self.fixed = (
            *self.base,
            self.held,
            self.unknown,
            self.dead,
            self.usage,
            self.revised,
            self.verdicts,
            self.noted,
        )
        self._account, self._hold = f"{self.tag}:a:", f"{self.tag}:h:"
        self._before_hold = (*self.base, self.held, self.dead)

    def account(self, account_id: str) -> str:
        """An account; see common.lua."""
        return self._account + account_id

    def top_ups(self, account_id: str) -> str:
        """A hash: the keys of an account's top-ups."""
        return f"{self.tag}:t:{account_id}"

    def hold(self, call_id: str) -> str:
        """A call that is held, or left something unknown; see common.lua."""
        return self._hold + call_id

    def run(self, run_id: str) -> str:
        """A list: which usage records are a run's."""
        return f"{self.tag}:run:{run_id}"

    def notes(self, run_id: str) -> str:
        """A hash: a run's notes; see note.lua."""
        return f"{self.tag}:n:{run_id}"

    def for_reserve(self, call_id: str, accounts: Iterable[Account]) -> tuple[str, ...]:
        """The keys of reserve.lua."""
        prefix = self._account
        return (*self._before_hold, self._hold + call_id, *[prefix + account.id for account in accounts])

    def for_settle(self, call_id: str, run_id: str, accounts: Iterable[str]) -> tuple[str, ...]:
        """The keys of settle.lua."""
        prefix = self._account
        fixed = (self.held, self.unknown, self.dead, self.usage, self.run(run_id), self.revised)
        return (*self.base, *fixed, self._hold + call_id, *[prefix + account_id for account_id in accounts])

    def for_bury(self, hold: Hold) -> tuple[str, ...]:
        """The keys of bury.lua."""
        fixed = (self.held, self.unknown, self.usage, self.run(hold.about.run_id))
        return (*self.base, *fixed, self.hold(hold.call_id), *map(self.account, hold.accounts))


class Mine(NamedTuple):
    """A hold as the client that made it remembers it, in case Redis loses it. `told` is the end of its text."""

    accounts: tuple[str, ...]
    epoch: str
    offer: int
    amount: Amounts
    expected: Amounts
    about: About | None
    told: str

    def lost(self) -> tuple[bytes, str]:
        """The last arguments of settle.lua."""
        return _HOLD.pack(self.offer, *self.amount, self.expected[0], self.expected[1], *[0] * 6), self.told


class Hold(NamedTuple):
    """A hold as it stands in Redis."""

    call_id: str
    state: str
    owner: str
    accounts: tuple[str, ...]
    since_ns: int
    amount: Amounts
    charged: Amounts
    unknown: Amounts
    expected: Amounts
    about_json: str
    record: UsageRecord | None

    @property
    def about(self) -> About:
        """Who made the call."""
        return About.from_json(self.about_json)

    def unknown_call(self) -> UnknownCall:
        """As it is listed."""
        return UnknownCall(
            call_id=self.call_id,
            about=self.about,
            accounts=self.accounts,
            since_ns=self.since_ns,
            charged=self.charged,
            unknown=self.unknown,
            expected=self.expected,
            record=self.record,
        )


def told_of(accounts: Sequence[Account], about: About | None) -> str:
    """The end of a hold: what Redis keeps of it, and does not look at."""
    ids = _ids_json(tuple([account.id for account in accounts]))
    return f"{ids}\n" if about is None else f"{ids}\n{about.to_json()}"


@lru_cache(1_024)
def _ids_json(ids: tuple[str, ...]) -> str:
    return _to_json(ids)


_MADE = 2
"""How reserve.lua is told that a call was made already."""


def reserve_args(call_id: str, offers: Sequence[Offer], accounts: Sequence[Account], told: str) -> list[Any]:
    """The arguments of reserve.lua.

    Raises:
        ValueError: an amount is larger than what Redis counts exactly.
    """
    args: list[Any] = [call_id, told, len(offers)]
    for most, least, expected, spare, last in offers:
        figures = (*most, *least, expected[0], expected[1], *spare, _MADE if last == "spent" else int(last))
        if max(figures) > LARGEST:
            raise ValueError(f"an offer is larger than what Redis counts exactly ({LARGEST}): {most}")
        args.append(_OFFER.pack(*figures))
    args += [_packed(account.caps) for account in accounts]
    return args


@lru_cache(1_024)
def _packed(caps: Caps) -> bytes:
    # A cap beyond what can be counted is never reached; the nearest one that can be told is as good.
    return _CAPS.pack(*(_NO_CAP if cap is None else min(cap, LARGEST) for cap in caps))


def settle_args(ending: Ending, mine: Mine | None) -> tuple[Any, ...]:
    """The arguments of settle.lua, before those for a hold that was lost."""
    call_id, charge, unknown, outcome = ending
    nano, tokens = charge[:2] if charge is not None else (0, 0)
    kind = "release" if charge is None else "settle"
    run_id, record = "", ""
    if outcome is not None:
        about = outcome.about
        same = mine is not None and mine.about is about
        about_json = mine.told.partition("\n")[2] if mine is not None and same else about.to_json()
        run_id, record = about.run_id, record_json(outcome, about_json, unknown[0])
    epoch = "" if mine is None else mine.epoch
    return (call_id, kind, nano, tokens, unknown[0], unknown[1], run_id, record, epoch)


def check_amounts(*amounts: Amounts) -> None:
    """Check that Redis can count them.

    Raises:
        ValueError: it cannot.
    """
    for amount in amounts:
        if max(amount) > LARGEST:
            raise ValueError(f"an amount is larger than what Redis counts exactly ({LARGEST}): {amount}")


def balance_of(account_id: str, stored: bytes | None) -> Balance:
    """An account as it is stored; see common.lua."""
    if stored is None:
        return Balance(account_id)
    _, in_flight, nano, tokens, steps, tool_calls, held, held_tokens, unknown, unknown_tokens, expected, more = (
        _FIGURES.unpack_from(stored)
    )
    stopped = stored[_ACCOUNT.size :]
    values = (
        account_id,
        _caps(stored[_FIGURES.size : _ACCOUNT.size]),
        _new(Amounts, (nano, tokens, steps, tool_calls)),
        _new(Amounts, (held, held_tokens, 0, 0)),
        _new(Amounts, (unknown, unknown_tokens, 0, 0)),
        _new(Amounts, (expected, more, 0, 0)),
        in_flight,
        json.loads(readable(stopped)) if stopped else None,
    )
    return _new(Balance, values)


@lru_cache(1_024)
def _caps(stored: bytes) -> Caps:
    extra, given = _CAPS.unpack_from(stored), _CAPS.unpack_from(stored, _CAPS.size)
    return Caps(*(None if cap == _NO_CAP else cap for cap in given)).plus(Amounts(*extra))


def readable(reply: Any) -> Any:
    """A reply, or a part of one, as text."""
    if isinstance(reply, bytes):
        return reply.decode("utf-8", "surrogatepass")
    return [readable(item) for item in reply] if isinstance(reply, list) else reply


def reservation(
    call_id: str, offers: Sequence[Offer], accounts: tuple[Account, ...], reply: Reply
) -> tuple[Grant | Refusal, tuple[Balance, ...]]:
    """What reserve.lua answered, and the accounts it told of."""
    if reply[0] == b"OK":
        balances = tuple(map(balance_of, [account.id for account in accounts], reply[9:]))
        return _new(Grant, (call_id, reply[4], _new(Amounts, reply[5:9]), balances)), balances
    account, unit, last = accounts[reply[4] - 1], reply[5], offers[-1]
    balance = balance_of(account.id, reply[6])
    needed = last.least if unit is None else last.least.plus(last.spare)
    return Refusal(call_id, account, balance, None if unit is None else UNITS[unit], needed), (balance,)


def settlement(ending: Ending, accounts: Sequence[str], reply: Reply) -> Settlement | None:
    """What settle.lua answered."""
    if reply[0] != b"OK":
        return None
    told = zip(reply[HEAD::2], reply[HEAD + 1 :: 2], strict=True)
    balances = tuple([balance_of(accounts[n - 1], text) for n, text in told])
    return _new(Settlement, (ending.call_id, ending.charge or ZERO, ending.unknown, balances))


def record_json(outcome: Outcome, about: str, unknown_nano: int) -> str:
    """A usage record as it is stored. What is not known is left out, and counts of zero."""
    _, state, usage, cost_nano, price_source, latency_ns, error_type, resolved_by = outcome
    parts = [f'{{"v":{SCHEMA},"about":{about},"state":"{state}","unknown_nano":{unknown_nano}']
    if usage is not None:
        counts = [f'"{name}":{n}' for name, n in zip(TOKEN_FIELDS, usage.counts(), strict=True) if n]
        parts.append(f',"usage":{{{",".join(counts)}}}')
    if cost_nano is not None:
        parts.append(f',"cost_nano":{cost_nano}')
    if latency_ns is not None:
        parts.append(f',"latency_ns":{latency_ns}')
    told = (("price_source", price_source), ("error_type", error_type), ("resolved_by", resolved_by))
    parts += [f',"{name}":{_to_json(value)}' for name, value in told if value is not None]
    parts.append("}")
    return "".join(parts)


def record_of(entry: Reply, verdict: str | None) -> UsageRecord:
    """A usage record as it is read back. Redis numbers entries by its time, in milliseconds: that is when it ended."""
    entry_id, (_, call_id, _, run_id, _, revision, _, text) = entry[:2]
    told = json.loads(text)
    usage = told.get("usage")
    about = About(**{name: value for name, value in told["about"].items() if name in About._fields})
    return UsageRecord(
        call_id=call_id,
        revision=int(revision),
        ended_ns=int(entry_id.partition("-")[0]) * 1_000_000,
        about=about._replace(run_id=run_id),
        state=told["state"],
        usage=None if usage is None else Usage(**{name: usage.get(name, 0) for name in TOKEN_FIELDS}),
        cost_nano=told.get("cost_nano"),
        unknown_nano=told.get("unknown_nano", 0),
        price_source=told.get("price_source"),
        latency_ns=told.get("latency_ns"),
        error_type=told.get("error_type"),
        resolved_by=told.get("resolved_by"),
        verdict=verdict,
    )


def hold_of(call_id: str, told: Reply) -> Hold | None:
    """A hold out of the reply of holds.lua; None where there is none."""
    stored, entry, verdict = told
    if stored is None:
        return None
    state, owner, _, _, accounts, about = readable(stored[_HOLD.size :]).split("\n", 5)
    _, nano, tokens, steps, tool_calls, expected, expected_tokens, since_us, *rest = _HOLD.unpack_from(stored)
    charged, charged_tokens, unknown, unknown_tokens, _ = rest
    return Hold(
        call_id=call_id,
        state=state,
        owner=owner,
        accounts=tuple(json.loads(accounts)),
        since_ns=since_us * 1_000,
        amount=Amounts(nano, tokens, steps, tool_calls),
        charged=Amounts(charged, charged_tokens),
        unknown=Amounts(unknown, unknown_tokens),
        expected=Amounts(expected, expected_tokens),
        about_json=about,
        record=None if entry is None else record_of(readable(entry), readable(verdict)),
    )
