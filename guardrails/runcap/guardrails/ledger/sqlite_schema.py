"""What is in the file of a `SQLiteLedger`, and how a file comes to have it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from .base import LedgerError
from .records import TOKEN_FIELDS

APPLICATION_ID = 0x7263_6170
"""Marks a SQLite file as ours: "rcap"."""

_AMOUNTS = ("nano", "tokens", "steps", "tool_calls")

ACCOUNT_FIGURES = (
    *(f"cap_{unit}" for unit in _AMOUNTS),
    *(f"extra_{unit}" for unit in _AMOUNTS),
    *(f"spent_{unit}" for unit in _AMOUNTS),
    *(f"{kind}_{unit}" for kind in ("held", "unknown", "expected") for unit in _AMOUNTS[:2]),
    "in_flight",
    "stopped",
)
"""The columns of an account after its number and its id."""

HOLD_COLUMNS = (
    "call_id",
    "owner",
    "state",
    "offer",
    *_AMOUNTS,
    *(f"{kind}_{unit}" for kind in ("expected", "charged", "unknown") for unit in _AMOUNTS[:2]),
    "since_ns",
    "revision",
    "accounts",
    "about",
)

USAGE_COLUMNS = (
    "call_id",
    "revision",
    "run_id",
    "parent_run_id",
    "tags",
    "provider",
    "model",
    "tier",
    "attempt",
    "started_ns",
    "ended_ns",
    "state",
    *TOKEN_FIELDS,
    "cost_nano",
    "unknown_nano",
    "price_source",
    "latency_ns",
    "error_type",
    "resolved_by",
)


def _column(name: str) -> str:
    if name in ("stopped", "owner", "state", "accounts", "about"):
        return f"{name} TEXT" if name in ("stopped", "about") else f"{name} TEXT NOT NULL"
    return f"{name} INTEGER" if name.startswith("cap_") else f"{name} INTEGER NOT NULL DEFAULT 0"


_USAGE_TYPES = {
    "call_id": "TEXT NOT NULL",
    "run_id": "TEXT NOT NULL",
    "tags": "TEXT NOT NULL",
    "state": "TEXT NOT NULL",
    **dict.fromkeys(("revision", "attempt", "started_ns", "ended_ns", "unknown_nano"), "INTEGER NOT NULL"),
    **dict.fromkeys((*TOKEN_FIELDS, "cost_nano", "latency_ns"), "INTEGER"),
}

_FIRST = f"""
CREATE TABLE accounts (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, {", ".join(map(_column, ACCOUNT_FIGURES))});
CREATE TABLE top_ups (account INTEGER NOT NULL, key TEXT NOT NULL, {", ".join(map(_column, _AMOUNTS))}, at_ns INTEGER NOT NULL,
  PRIMARY KEY (account, key)) WITHOUT ROWID;
CREATE TABLE holds (call_id TEXT PRIMARY KEY, {", ".join(map(_column, HOLD_COLUMNS[1:]))}) WITHOUT ROWID;
CREATE INDEX held_by_owner ON holds (owner) WHERE state = 'held';
CREATE TABLE tombstones (call_id TEXT PRIMARY KEY, at_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE owners (id TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, beat_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE usage (n INTEGER PRIMARY KEY AUTOINCREMENT,
  {", ".join(f"{name} {_USAGE_TYPES.get(name, 'TEXT')}" for name in USAGE_COLUMNS)});
CREATE INDEX usage_by_run ON usage (run_id);
CREATE INDEX usage_revised ON usage (call_id) WHERE revision > 0;
CREATE TABLE verdicts (run_id TEXT PRIMARY KEY, verdict TEXT NOT NULL, at_ns INTEGER NOT NULL) WITHOUT ROWID;
"""  # noqa: E501 - one line a table

_SECOND = """
CREATE TABLE notes (n INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, parent_run_id TEXT, tags TEXT NOT NULL,
  kind TEXT NOT NULL, what TEXT, scope TEXT, unit TEXT, model TEXT, count INTEGER NOT NULL, tokens INTEGER NOT NULL,
  cost_nano INTEGER, first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL);
CREATE UNIQUE INDEX notes_by_run
  ON notes (run_id, kind, ifnull(what, ''), ifnull(scope, ''), ifnull(unit, ''), ifnull(model, ''));
"""

MIGRATIONS = (_FIRST, _SECOND)
"""What takes a file from version n to n + 1. Never changed, only added to: files of every version are out there."""

VERSION = len(MIGRATIONS)


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables, or bring those of an earlier version up to this one.

    Raises:
        LedgerError: the file is something else, or of a later version.
    """
    if version_of(connection, path) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for script in MIGRATIONS[version_of(connection, path) :]:  # another process may have been first
            for statement in script.split(";\n"):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a file that is ours, 0 where it is empty. Changes nothing.

    Raises:
        LedgerError: as `prepare`.
    """
    began = not connection.in_transaction
    if began:
        connection.execute("BEGIN")  # one view of it: another process may be making it right now
    try:
        [application] = connection.execute("PRAGMA application_id").fetchone()
        [version] = connection.execute("PRAGMA user_version").fetchone()
        [tables] = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    finally:
        if began:
            connection.execute("ROLLBACK")
    if application != APPLICATION_ID and (tables or application or version):
        raise LedgerError(f"{path} is a SQLite file of something else, no ledger: give SQLiteLedger a path of its own")
    if version > VERSION:
        raise LedgerError(
            f"{path} was written by a newer runcap (ledger schema {version}, this one knows {VERSION}): upgrade runcap"
        )
    return int(version)
