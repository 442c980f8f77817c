"""Rows of the file of a `SQLiteLedger`, to and from what they mean."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

from ..amounts import ZERO, Amounts, Caps
from ..usage import Usage
from .base import Account, Balance, Grant, LedgerError
from .records import TOKEN_FIELDS, About, Outcome, UsageRecord
from .sqlite_schema import ACCOUNT_FIGURES, HOLD_COLUMNS, USAGE_COLUMNS
from .state import State
from .unknowns import UnknownCall

_new = tuple.__new__  # see amounts
_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

_RUNS = 1_024
"""How many sets of accounts are remembered as text: a run's calls all have the same."""

_REACH = 10_000
"""How many usage records are looked at in one go."""


@dataclass(slots=True, eq=False)
class Row(State):
    """An account in the file. Holds know it by its number, `n`; `recapped` says that its caps are news to the file."""

    n: int = 0
    recapped: bool = False


class Hold(NamedTuple):
    """A hold in the file. `accounts` are those it is charged to, by number and id."""

    call_id: str
    owner: str
    state: str
    offer: int
    amount: Amounts
    expected: Amounts
    charged: Amounts
    unknown: Amounts
    since_ns: int
    revision: int
    accounts: Sequence[tuple[int, str]]
    about: str | None

    def values(self) -> tuple[Any, ...]:
        """Its row."""
        expected, charged, unknown = self.expected, self.charged, self.unknown
        return (
            self.call_id,
            self.owner,
            self.state,
            self.offer,
            *self.amount,
            expected[0],
            expected[1],
            charged[0],
            charged[1],
            unknown[0],
            unknown[1],
            self.since_ns,
            self.revision,
            _accounts_to_json(tuple(self.accounts)),
            self.about,
        )


@lru_cache(_RUNS)
def _accounts_to_json(accounts: tuple[tuple[int, str], ...]) -> str:
    return json.dumps(accounts, separators=(",", ":"))


@lru_cache(_RUNS)
def _accounts_from_json(text: str) -> tuple[tuple[int, str], ...]:
    return tuple([(n, account_id) for n, account_id in json.loads(text)])


_FIGURES = ", ".join(ACCOUNT_FIGURES)
_SELECT_ACCOUNT = f"SELECT n, id, {_FIGURES} FROM accounts WHERE"
_UPDATE_ACCOUNT = f"UPDATE accounts SET {', '.join(f'{name} = ?' for name in ACCOUNT_FIGURES)} WHERE n = ?"
_UPDATE_HELD = """UPDATE accounts SET spent_steps = ?, spent_tool_calls = ?, held_nano = ?, held_tokens = ?,
  expected_nano = ?, expected_tokens = ?, in_flight = ? WHERE n = ?"""
_UPDATE_LANDED = """UPDATE accounts SET spent_nano = ?, spent_tokens = ?, held_nano = ?, held_tokens = ?,
  expected_nano = ?, expected_tokens = ?, in_flight = ? WHERE n = ?"""
_INSERT_HOLD = f"INSERT OR REPLACE INTO holds VALUES ({', '.join('?' * len(HOLD_COLUMNS))})"
HOLD = f"SELECT {', '.join(HOLD_COLUMNS)} FROM holds"
INSERT_USAGE = f"INSERT INTO usage ({', '.join(USAGE_COLUMNS)}) VALUES ({', '.join('?' * len(USAGE_COLUMNS))})"
_KNOWN_CALL = """EXISTS (SELECT 1 FROM holds WHERE call_id = ?),
  EXISTS (SELECT 1 FROM tombstones WHERE call_id = ?)"""
_KNOWN = f"SELECT {_KNOWN_CALL}"
_NO_COUNTS = (None,) * len(TOKEN_FIELDS)
_USAGE = f"SELECT usage.n, {', '.join(f'usage.{name}' for name in USAGE_COLUMNS)}, verdict FROM usage"
_LATEST = """NOT EXISTS (SELECT 1 FROM usage later WHERE later.call_id = usage.call_id AND later.revision > 0
  AND later.revision > usage.revision)"""


class Asked(NamedTuple):
    """What is read before a call is reserved: its accounts, whether it is held, whether it was released before."""

    states: list[Row]
    held: bool
    dead: bool


def asked(connection: sqlite3.Connection, call_id: str, accounts: Sequence[Account], *, recap: bool) -> Asked:
    """A call and its accounts; those never used before are opened. `recap`: with the caps it came with."""
    found = connection.execute(_ask(len(accounts)), (call_id, call_id, *[one.id for one in accounts])).fetchall()
    known = {values[1]: _row(values) for values in found}
    states: list[Row] = []
    for account_id, caps, _ in accounts:
        state = known.get(account_id)
        if state is None:
            state = known[account_id] = open_row(connection, account_id)
        if recap and state.given != caps:
            state.give(caps)
            state.recapped = True
        states.append(state)
    held, dead = found[0][-2:] if found else connection.execute(_KNOWN, (call_id, call_id)).fetchone()
    return Asked(states, bool(held), bool(dead))


@cache
def _ask(accounts: int) -> str:
    """The statement for so many accounts. What is known of the call is looked up once, and told with each."""
    return f"SELECT n, id, {_FIGURES}, {_KNOWN_CALL} FROM accounts WHERE id IN ({', '.join('?' * accounts)})"


def row_of(connection: sqlite3.Connection, account_id: str) -> Row | None:
    """An account by its id."""
    values = connection.execute(f"{_SELECT_ACCOUNT} id = ?", (account_id,)).fetchone()
    return None if values is None else _row(values)


def charged_rows(connection: sqlite3.Connection, hold: Hold) -> list[Row]:
    """The accounts a hold is charged to, but for those closed since."""
    numbers = [n for n, _ in hold.accounts]
    found = {values[0]: _row(values) for values in connection.execute(_charged(len(numbers)), numbers)}
    return [found[n] for n in numbers if n in found]


@cache
def _charged(accounts: int) -> str:
    return f"{_SELECT_ACCOUNT} n IN ({', '.join('?' * accounts)})"


def open_row(connection: sqlite3.Connection, account_id: str) -> Row:
    """A new account."""
    return Row(account_id, n=connection.execute("INSERT INTO accounts (id) VALUES (?)", (account_id,)).lastrowid or 0)


def top_up(
    connection: sqlite3.Connection, account_id: str, key: str, extra: Amounts, at_ns: int
) -> tuple[Balance, ...]:
    """Raise an account's caps, and let it go on; its balance, nothing where the key was used before."""
    row = row_of(connection, account_id) or open_row(connection, account_id)
    insert = "INSERT OR IGNORE INTO top_ups VALUES (?, ?, ?, ?, ?, ?, ?)"
    if not connection.execute(insert, (row.n, key, *extra, at_ns)).rowcount:
        return ()
    row.top_up(extra)
    write_row(connection, row)
    return (row.balance(),)


def stop(connection: sqlite3.Connection, account_id: str, reason: str) -> tuple[Balance, ...]:
    """Stop an account, unless it is; its balance."""
    row = row_of(connection, account_id) or open_row(connection, account_id)
    row.stopped = row.stopped or reason
    write_row(connection, row)
    return (row.balance(),)


def write_row(connection: sqlite3.Connection, row: Row) -> None:
    """Keep an account's figures."""
    figures = (*row.given, *row.extra, *row.spent, *row.held[:2], *row.unknown[:2], *row.expected[:2])
    connection.execute(_UPDATE_ACCOUNT, (*figures, row.in_flight, row.stopped, row.n))


def write_held(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Keep what a reservation changes."""
    if any(row.recapped for row in rows):
        for row in rows:
            write_row(connection, row)
        return
    values = []
    for row in rows:
        spent, held, expected = row.spent, row.held, row.expected
        values.append((spent[2], spent[3], held[0], held[1], expected[0], expected[1], row.in_flight, row.n))
    connection.executemany(_UPDATE_HELD, values)


def write_landed(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Keep what the end of a call changes that leaves nothing unknown."""
    values = []
    for row in rows:
        spent, held, expected = row.spent, row.held, row.expected
        values.append((spent[0], spent[1], held[0], held[1], expected[0], expected[1], row.in_flight, row.n))
    connection.executemany(_UPDATE_LANDED, values)


def hold_of(connection: sqlite3.Connection, call_id: str) -> Hold | None:
    """A call that is held, or left something unknown."""
    values = connection.execute(f"{HOLD} WHERE call_id = ?", (call_id,)).fetchone()
    return None if values is None else to_hold(values)


def granted_before(connection: sqlite3.Connection, call_id: str, states: list[Row]) -> Grant:
    """The grant of a call that is held.

    Raises:
        LedgerError: it was, and is no more.
    """
    hold = hold_of(connection, call_id)
    if hold is None:
        raise LedgerError(f"the hold of call {call_id} is gone")
    return Grant(call_id, hold.offer, hold.amount, tuple([state.balance() for state in states]))


def unknown_holds(connection: sqlite3.Connection) -> list[Hold]:
    """All calls that left something unknown, oldest first."""
    return list(map(to_hold, connection.execute(f"{HOLD} WHERE state = 'unknown' ORDER BY since_ns, call_id")))


def write_hold(connection: sqlite3.Connection, hold: Hold) -> None:
    """Keep a hold."""
    connection.execute(_INSERT_HOLD, hold.values())


def append_usage(
    connection: sqlite3.Connection, call_id: str, revision: int, ended_ns: int, outcome: Outcome, unknown: Amounts
) -> None:
    """Append a usage record."""
    connection.execute(INSERT_USAGE, usage_values(call_id, revision, ended_ns, outcome, unknown))


def usage_values(call_id: str, revision: int, ended_ns: int, outcome: Outcome, unknown: Amounts) -> tuple[Any, ...]:
    """A usage record's row."""
    about, state, usage, cost_nano, price_source, latency_ns, error_type, resolved_by = outcome
    run_id, parent_run_id, tags, provider, model, tier, attempt, started_ns = about
    return (
        call_id,
        revision,
        run_id,
        parent_run_id,
        _to_json(dict(tags)) if tags else "{}",
        provider,
        model,
        tier,
        attempt,
        started_ns,
        ended_ns,
        state,
        *(_NO_COUNTS if usage is None else usage.counts()),
        cost_nano,
        unknown[0],
        price_source,
        latency_ns,
        error_type,
        resolved_by,
    )


def usage_page(
    connection: sqlite3.Connection,
    after: int,
    size: int,
    *,
    run_id: str | None,
    since_ns: int,
    until_ns: int,
    every_revision: bool,
) -> tuple[list[UsageRecord], int | None]:
    """The next records after number `after`, and the number to go on after; None at the end.

    Of a run's, which have an index, they are the next that match; else those that match among the next few thousand,
    so that nobody waits while a long file is searched.
    """
    where = ["usage.n > ?", "ended_ns >= ?", "ended_ns < ?"]
    values: list[Any] = [after, since_ns, until_ns]
    if run_id is not None:
        where.append("usage.run_id = ?")
        values.append(run_id)
        last = None
    else:
        where.append("usage.n <= ?")
        values.append(after + _REACH)
        [last] = connection.execute("SELECT max(n) FROM usage").fetchone()
    if not every_revision:
        where.append(_LATEST)
    sql = f"{_USAGE} LEFT JOIN verdicts ON verdicts.run_id = usage.run_id WHERE {' AND '.join(where)}"
    found = connection.execute(f"{sql} ORDER BY usage.n LIMIT ?", (*values, size)).fetchall()
    page = [_usage(row) for row in found]
    if len(found) == size:
        return page, found[-1][0]
    return page, after + _REACH if last is not None and last > after + _REACH else None


def last_record(connection: sqlite3.Connection, call_id: str, run_id: str) -> UsageRecord | None:
    """The latest revision of a call's record."""
    sql = f"{_USAGE} LEFT JOIN verdicts ON verdicts.run_id = usage.run_id WHERE usage.run_id = ? AND call_id = ?"
    values = connection.execute(f"{sql} ORDER BY revision DESC LIMIT 1", (run_id, call_id)).fetchone()
    return None if values is None else _usage(values)


def unknown_call(connection: sqlite3.Connection, hold: Hold) -> UnknownCall:
    """A hold whose cost is not fully known, as it is listed."""
    about = About.from_json(hold.about)
    return UnknownCall(
        call_id=hold.call_id,
        about=about,
        accounts=tuple(account_id for _, account_id in hold.accounts),
        since_ns=hold.since_ns,
        charged=hold.charged,
        unknown=hold.unknown,
        expected=hold.expected,
        record=last_record(connection, hold.call_id, about.run_id),
    )


def _row(values: tuple[Any, ...]) -> Row:
    given, extra = _new(Caps, values[2:6]), _new(Amounts, values[6:10])
    return Row(
        values[1],
        given,
        given.plus(extra) if any(extra) else given,
        extra,
        _new(Amounts, values[10:14]),
        _new(Amounts, (values[14], values[15], 0, 0)),
        _new(Amounts, (values[16], values[17], 0, 0)),
        _new(Amounts, (values[18], values[19], 0, 0)),
        values[20],
        values[21],
        values[0],
    )


def to_hold(values: tuple[Any, ...]) -> Hold:
    """A row as `HOLD` gives it."""
    call_id, owner, state, offer = values[:4]
    expected_nano, expected_tokens, charged_nano, charged_tokens, unknown_nano, unknown_tokens = values[8:14]
    since_ns, revision, accounts, about = values[14:]
    figures = (
        call_id,
        owner,
        state,
        offer,
        _new(Amounts, values[4:8]),
        _new(Amounts, (expected_nano, expected_tokens, 0, 0)),
        _new(Amounts, (charged_nano, charged_tokens, 0, 0)) if charged_nano or charged_tokens else ZERO,
        _new(Amounts, (unknown_nano, unknown_tokens, 0, 0)) if unknown_nano or unknown_tokens else ZERO,
        since_ns,
        revision,
        _accounts_from_json(accounts),
        about,
    )
    return _new(Hold, figures)


def _usage(values: Sequence[Any]) -> UsageRecord:
    told = dict(zip(USAGE_COLUMNS, values[1:-1], strict=True))
    counts = [told[name] for name in TOKEN_FIELDS]
    about = About(
        told["run_id"],
        told["parent_run_id"],
        json.loads(told["tags"]),
        told["provider"],
        told["model"],
        told["tier"],
        told["attempt"],
        told["started_ns"],
    )
    return UsageRecord(
        call_id=told["call_id"],
        revision=told["revision"],
        ended_ns=told["ended_ns"],
        about=about,
        state=told["state"],
        usage=None if counts[0] is None else Usage(*counts),
        cost_nano=told["cost_nano"],
        unknown_nano=told["unknown_nano"],
        price_source=told["price_source"],
        latency_ns=told["latency_ns"],
        error_type=told["error_type"],
        resolved_by=told["resolved_by"],
        verdict=values[-1],
    )
