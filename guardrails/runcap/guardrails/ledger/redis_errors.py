"""What goes wrong with Redis, in words that say what to do."""

from __future__ import annotations

from .base import LedgerError

_ADVICE = (
    ("OOM", "its memory is full (maxmemory): give it more, no call can be reserved until then"),
    ("READONLY", "it is a read-only replica: give RedisLedger the URL of the primary"),
    ("WRONGTYPE", "a key of this namespace is of another type, so it is not the ledger's: give it another namespace"),
    ("NOAUTH", "it wants a password: put it into the URL, redis://user:password@host"),
    ("WRONGPASS", "it refused the user or the password"),
    ("NOPERM", "the user lacks a permission: allow evalsha, eval, info and the namespace's keys"),
    ("LOADING", "it is still loading its data"),
    ("CLUSTERDOWN", "the cluster is down"),
    ("MASTERDOWN", "it is a replica that has lost its primary"),
    ("BUSY", "a script of somebody else blocks it"),
    ("NOREPLICAS", "too few replicas are connected for it to take writes"),
    ("ERR unknown command", "it is too old, or not Redis: version 6 or later is needed"),
)


_CODES = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "NoPermissionError": "NOPERM",
    "BusyLoadingError": "LOADING",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "MovedError": "MOVED",
    "AskError": "ASK",
}
"""What Redis said, of errors that redis-py before version 8 tells by their class alone."""


class Unanswered(LedgerError):
    """What was asked may have happened, and nobody said so."""


def answered(error: Exception, where: str) -> LedgerError:
    """Redis answered with an error."""
    code, text = _code(error), str(error)
    told = text if text.startswith(code) else f"{code} {text}"
    advice = next((advice for start, advice in _ADVICE if told.startswith(start)), None)
    return LedgerError(f"Redis at {where} cannot keep the ledger: " + (f"{advice} ({told})" if advice else told))


def _code(error: Exception) -> str:
    if type(error).__name__ == "AuthenticationError" and getattr(error, "status_code", None) is None:
        return "NOAUTH" if "required" in str(error) else "WRONGPASS"
    return getattr(error, "status_code", None) or _CODES.get(type(error).__name__, "")


def redirect(error: object) -> tuple[str, str, int] | None:
    """Where a cluster sends us: "MOVED" for good or "ASK" once, the host ("" is the same), the port."""
    if not isinstance(error, Exception):
        return None
    code, *rest = f"{_code(error)} {error}".split()
    code = rest.pop(0) if rest and rest[0] in ("MOVED", "ASK") else code
    if code not in ("MOVED", "ASK") or len(rest) != _SLOT_AND_NODE:
        return None
    host, _, port = rest[1].rpartition(":")
    return code, host, int(port)


_SLOT_AND_NODE = 2


def too_late(where: str, seconds: float) -> Unanswered:
    """The deadline passed."""
    return Unanswered(f"Redis at {where} did not answer within {seconds:g} s")


def unreachable(error: Exception, where: str) -> Unanswered:
    """The connection could not be made, or broke."""
    return Unanswered(f"Redis at {where} cannot be reached: {error}")


def pinned(given: str, found: str, where: str) -> LedgerError:
    """The user named another epoch than this ledger's."""
    return LedgerError(
        f"the ledger in Redis at {where} is not the one of epoch={given!r}, but {found!r}: its data was lost and it "
        "began anew, or this is another one. Look at the bill, then give RedisLedger the epoch it has now"
    )


def lost(why: str, tag: str, where: str) -> LedgerError:
    """Something acknowledged is gone."""
    return LedgerError(
        f"the ledger in Redis lost data ({why}; {tag} at {where}), so what was spent may be more than it says: look at "
        "the bill, then ledger.reopen()"
    )


def foreign(key: str) -> LedgerError:
    """Somebody else's key is where the ledger's would be."""
    return LedgerError(
        f"the key {key} in Redis is not this ledger's: give RedisLedger another namespace, or another database"
    )


def newer(theirs: object, ours: object) -> LedgerError:
    """A later version of this package wrote it."""
    return LedgerError(
        f"the ledger in Redis was written by a newer runcap (schema {theirs}, this one knows {ours}): upgrade runcap"
    )


def evicting(policy: str, where: str) -> LedgerError:
    """Redis may drop what was spent."""
    return LedgerError(
        f"Redis at {where} drops keys when its memory is full (maxmemory-policy {policy}), and with them what was "
        "spent: set maxmemory-policy noeviction"
    )
