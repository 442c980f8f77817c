"""The ledgers. See `base` for what every one of them does."""

from .base import Account, Balance, Grant, Ledger, LedgerError, Offer, Refusal, Settlement
from .memory import MemoryLedger
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
    "Offer",
    "Outcome",
    "RedisLedger",
    "Refusal",
    "SQLiteLedger",
    "Settlement",
    "UnknownCall",
    "UsageRecord",
]
