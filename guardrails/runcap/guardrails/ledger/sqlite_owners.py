"""Owners in the file of a `SQLiteLedger`: their signs of life, the holds of the dead, ids that were released early."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Container

from .sqlite_rows import HOLD, Hold, to_hold

_TOMBSTONES = 65_536
_FORGET = "DELETE FROM tombstones WHERE call_id IN (SELECT call_id FROM tombstones ORDER BY at_ns LIMIT ?)"
_FORGET_OWNERS = """DELETE FROM owners WHERE beat_ns < ?
  AND NOT EXISTS (SELECT 1 FROM holds WHERE holds.owner = owners.id AND holds.state = 'held')"""
_FORGOTTEN_AFTER_NS = 24 * 3600 * 10**9
_SILENT = f"""{HOLD} WHERE state = 'held' AND owner <> ?
  AND owner NOT IN (SELECT id FROM owners WHERE beat_ns BETWEEN ? AND ?) ORDER BY since_ns, call_id"""
_OWN = f"{HOLD} WHERE state = 'held' AND owner = ? AND since_ns < ? ORDER BY since_ns, call_id"


def sign(connection: sqlite3.Connection, owner: str, now_ns: int, dead_after_ns: int) -> None:
    """Keep an owner's sign of life, and forget owners of whom nothing was heard for long."""
    values = (owner, socket.gethostname(), os.getpid(), now_ns)
    connection.execute("INSERT OR REPLACE INTO owners VALUES (?, ?, ?, ?)", values)
    connection.execute(_FORGET_OWNERS, (now_ns - max(_FORGOTTEN_AFTER_NS, dead_after_ns),))


def forget(connection: sqlite3.Connection, owner: str) -> None:
    """An owner is gone: what it holds is held by nobody."""
    connection.execute("DELETE FROM owners WHERE id = ?", (owner,))


def held_by_the_dead(
    connection: sqlite3.Connection, owner: str, known: Container[str], now_ns: int, dead_after_ns: int
) -> list[Hold]:
    """The calls held by owners that gave no sign of life, oldest first, and those of this owner nobody knows of.

    `known` are the calls of this owner that somebody will end. One that was just granted may not be among them yet.
    """
    begin, end = now_ns - dead_after_ns, now_ns + dead_after_ns  # one from the future is none: the clock went back
    silent = list(map(to_hold, connection.execute(_SILENT, (owner, begin, end))))
    own = map(to_hold, connection.execute(_OWN, (owner, begin)))
    return silent + [hold for hold in own if hold.call_id not in known]


def bury_early(connection: sqlite3.Connection, call_id: str, now_ns: int) -> None:
    """A call was released before it was reserved: should that come yet, it finds a tombstone."""
    connection.execute("INSERT OR IGNORE INTO tombstones VALUES (?, ?)", (call_id, now_ns))
    [count] = connection.execute("SELECT count(*) FROM tombstones").fetchone()
    if count > _TOMBSTONES:
        connection.execute(_FORGET, (count - _TOMBSTONES // 2,))
