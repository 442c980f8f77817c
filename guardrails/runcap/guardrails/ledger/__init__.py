"""The ledgers. See `base` for what every one of them does."""

from .base import Account, Balance, Grant, Ledger, LedgerError, Offer, Refusal, Settlement
from .memory import MemoryLedger

__all__ = [
    "Account",
    "Balance",
    "Grant",
    "Ledger",
    "LedgerError",
    "MemoryLedger",
    "Offer",
    "Refusal",
    "Settlement",
]
