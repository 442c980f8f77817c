"""The core of runcap: budgets, prices, the ledger and the guard. Knows no framework and no telemetry."""

from .budget import Budget
from .errors import (
    BudgetBusy,
    BudgetExceeded,
    LedgerUnavailable,
    RefusalDetails,
    Refused,
    RuncapError,
    UnboundedCall,
    UnpricedModel,
)
from .events import Event, Sink
from .guard import Guard
from .ledger import Balance, MemoryLedger
from .pricing import NoPrice, PriceBook, TokenPrice
from .run import Run
from .usage import Usage

__all__ = [
    "Balance",
    "Budget",
    "BudgetBusy",
    "BudgetExceeded",
    "Event",
    "Guard",
    "LedgerUnavailable",
    "MemoryLedger",
    "NoPrice",
    "PriceBook",
    "RefusalDetails",
    "Refused",
    "Run",
    "RuncapError",
    "Sink",
    "TokenPrice",
    "UnboundedCall",
    "UnpricedModel",
    "Usage",
]
