"""The ledgers. See `base` for what every one of them does."""

from .base import Account, Balance, Grant, Ledger, LedgerError, Offer, Refusal, Settlement
from .memory import MemoryLedger
from .notes import Note
from .records import About, Outcome, UsageRecord
from .redis import RedisLedger
from .sqlite import SQLiteLedger
from .unknowns import UnknownCall

__all__ = [
    "About",
    "Account",
    "Balance",
    "Grant",
    "Ledger",
    "LedgerError",
    "MemoryLedger",
    "Note",
    "Offer",
    "Outcome",
    "RedisLedger",
    "Refusal",
    "SQLiteLedger",
    "Settlement",
    "UnknownCall",
    "UsageRecord",
]
