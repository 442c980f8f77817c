"""Rows of the file of a `SQLiteLedger`, to and from what they mean."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..amounts import ZERO, Amounts, Caps
from ..usage import Usage
from .base import Account
from .records import TOKEN_FIELDS, About, Outcome, UsageRecord
from .sqlite_schema import ACCOUNT_FIGURES, HOLD_COLUMNS, USAGE_COLUMNS
from .state import State
from .unknowns import UnknownCall


@dataclass(slots=True, eq=False)
class Row(State):
    """An account in the file; `n` is its number, by which holds know it."""

    n: int = 0


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
        return (
            self.call_id,
            self.owner,
            self.state,
            self.offer,
            *self.amount,
            *self.expected[:2],
            *self.charged[:2],
            *self.unknown[:2],
            self.since_ns,
            self.revision,
            json.dumps(self.accounts, separators=(",", ":")),
            self.about,
        )


_FIGURES = ", ".join(ACCOUNT_FIGURES)
_SELECT_ACCOUNT = f"SELECT n, id, {_FIGURES} FROM accounts WHERE"
_UPDATE_ACCOUNT = f"UPDATE accounts SET {', '.join(f'{name} = ?' for name in ACCOUNT_FIGURES)} WHERE n = ?"
_INSERT_HOLD = f"INSERT OR REPLACE INTO holds VALUES ({', '.join('?' * len(HOLD_COLUMNS))})"
_HOLD = f"SELECT {', '.join(HOLD_COLUMNS)} FROM holds"
_INSERT_USAGE = f"INSERT INTO usage ({', '.join(USAGE_COLUMNS)}) VALUES ({', '.join('?' * len(USAGE_COLUMNS))})"
_USAGE = f"SELECT usage.n, {', '.join(f'usage.{name}' for name in USAGE_COLUMNS)}, verdict FROM usage"
_LATEST = """NOT EXISTS (SELECT 1 FROM usage later WHERE later.call_id = usage.call_id AND later.revision > 0
  AND later.revision > usage.revision)"""


def rows_of(connection: sqlite3.Connection, accounts: Sequence[Account]) -> list[Row]:
    """The accounts of a call, with the caps it came with; those never used before are opened."""
    marks = ", ".join("?" * len(accounts))
    found = connection.execute(f"{_SELECT_ACCOUNT} id IN ({marks})", [one.id for one in accounts])
    known = {row.id: row for row in map(_row, found)}
    states = [known.get(account.id) or open_row(connection, account.id) for account in accounts]
    for state, account in zip(states, accounts, strict=True):
        state.give(account.caps)
    return states


def row_of(connection: sqlite3.Connection, account_id: str) -> Row | None:
    """An account by its id."""
    values = connection.execute(f"{_SELECT_ACCOUNT} id = ?", (account_id,)).fetchone()
    return None if values is None else _row(values)


def charged_rows(connection: sqlite3.Connection, hold: Hold) -> list[Row]:
    """The accounts a hold is charged to, but for those closed since."""
    select = f"{_SELECT_ACCOUNT} n = ?"
    found = [connection.execute(select, (n,)).fetchone() for n, _ in hold.accounts]
    return [_row(values) for values in found if values is not None]


def open_row(connection: sqlite3.Connection, account_id: str) -> Row:
    """A new account."""
    return Row(account_id, n=connection.execute("INSERT INTO accounts (id) VALUES (?)", (account_id,)).lastrowid or 0)


def write_row(connection: sqlite3.Connection, row: Row) -> None:
    """Keep an account's figures."""
    figures = (*row.given, *row.extra, *row.spent, *row.held[:2], *row.unknown[:2], *row.expected[:2])
    connection.execute(_UPDATE_ACCOUNT, (*figures, row.in_flight, row.stopped, row.n))


def hold_of(connection: sqlite3.Connection, call_id: str) -> Hold | None:
    """A call that is held, or left something unknown."""
    values = connection.execute(f"{_HOLD} WHERE call_id = ?", (call_id,)).fetchone()
    return None if values is None else _hold(values)


def holds_of(connection: sqlite3.Connection, state: str) -> list[Hold]:
    """All calls in this state, oldest first."""
    return list(map(_hold, connection.execute(f"{_HOLD} WHERE state = ? ORDER BY since_ns, call_id", (state,))))


def write_hold(connection: sqlite3.Connection, hold: Hold) -> None:
    """Keep a hold."""
    connection.execute(_INSERT_HOLD, hold.values())


def append_usage(
    connection: sqlite3.Connection, call_id: str, revision: int, ended_ns: int, outcome: Outcome, unknown: Amounts
) -> None:
    """Append a usage record."""
    about = outcome.about
    counts = (None,) * len(TOKEN_FIELDS) if outcome.usage is None else outcome.usage.counts()
    values = (
        call_id,
        revision,
        about.run_id,
        about.parent_run_id,
        json.dumps(dict(about.tags), separators=(",", ":"), ensure_ascii=False) if about.tags else "{}",
        about.provider,
        about.model,
        about.tier,
        about.attempt,
        about.started_ns,
        ended_ns,
        outcome.state,
        *counts,
        outcome.cost_nano,
        unknown.nano,
        outcome.price_source,
        outcome.latency_ns,
        outcome.error_type,
        outcome.resolved_by,
    )
    connection.execute(_INSERT_USAGE, values)


def usage_page(
    connection: sqlite3.Connection,
    after: int,
    size: int,
    *,
    run_id: str | None,
    since_ns: int,
    until_ns: int,
    every_revision: bool,
) -> list[tuple[int, UsageRecord]]:
    """The next records after number `after`, each with its number."""
    where = ["usage.n > ?", "ended_ns >= ?", "ended_ns < ?"]
    values: list[Any] = [after, since_ns, until_ns]
    if run_id is not None:
        where.append("usage.run_id = ?")
        values.append(run_id)
    if not every_revision:
        where.append(_LATEST)
    sql = f"{_USAGE} LEFT JOIN verdicts ON verdicts.run_id = usage.run_id WHERE {' AND '.join(where)}"
    return [_usage(row) for row in connection.execute(f"{sql} ORDER BY usage.n LIMIT ?", (*values, size))]


def last_record(connection: sqlite3.Connection, call_id: str, run_id: str) -> UsageRecord | None:
    """The latest revision of a call's record."""
    sql = f"{_USAGE} LEFT JOIN verdicts ON verdicts.run_id = usage.run_id WHERE usage.run_id = ? AND call_id = ?"
    values = connection.execute(f"{sql} ORDER BY revision DESC LIMIT 1", (run_id, call_id)).fetchone()
    return None if values is None else _usage(values)[1]


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


def _row(values: Sequence[Any]) -> Row:
    given, extra = Caps(*values[2:6]), Amounts(*values[6:10])
    return Row(
        id=values[1],
        given=given,
        caps=given.plus(extra) if any(extra) else given,
        extra=extra,
        spent=Amounts(*values[10:14]),
        held=Amounts(*values[14:16]),
        unknown=Amounts(*values[16:18]),
        expected=Amounts(*values[18:20]),
        in_flight=values[20],
        stopped=values[21],
        n=values[0],
    )


def _hold(values: Sequence[Any]) -> Hold:
    accounts: Iterable[tuple[int, str]] = ((n, account_id) for n, account_id in json.loads(values[16]))
    return Hold(
        call_id=values[0],
        owner=values[1],
        state=values[2],
        offer=values[3],
        amount=Amounts(*values[4:8]),
        expected=Amounts(*values[8:10]),
        charged=Amounts(*values[10:12]) if any(values[10:12]) else ZERO,
        unknown=Amounts(*values[12:14]) if any(values[12:14]) else ZERO,
        since_ns=values[14],
        revision=values[15],
        accounts=list(accounts),
        about=values[17],
    )


def _usage(values: Sequence[Any]) -> tuple[int, UsageRecord]:
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
    record = UsageRecord(
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
    return values[0], record
