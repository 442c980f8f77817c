"""The core of runcap: budgets, prices, the ledger and the guard. Knows no framework and no telemetry."""

from .budget import Budget
from .errors import (
    BudgetBusy,
    BudgetExceeded,
    LedgerUnavailable,
    LoopHalted,
    MissingTag,
    RefusalDetails,
    Refused,
    RuncapError,
    UnboundedCall,
    UnpricedModel,
)
from .events import (
    AgentEnded,
    AgentStarted,
    BudgetWarned,
    CallEnded,
    CallReconciled,
    CallRefused,
    CallStarted,
    Event,
    LoopWarned,
    PrefixBroken,
    RunEnded,
    RunPaused,
    RunStarted,
    RunStopped,
    RunToppedUp,
    Sink,
    TierSwitched,
    ToolEnded,
    ToolStarted,
)
from .guard import Guard
from .history import History, HistoryTooLong
from .ledger import Balance, Ledger, LedgerError, MemoryLedger, SQLiteLedger, UnknownCall, UsageRecord
from .limits import Limit
from .loops import Loop, LoopPolicy
from .pricing import NoPrice, PriceBook, PriceContext, PriceLike, TokenPrice
from .run import Run
from .tiers import Tier
from .usage import Usage

__all__ = [
    "AgentEnded",
    "AgentStarted",
    "Balance",
    "Budget",
    "BudgetBusy",
    "BudgetExceeded",
    "BudgetWarned",
    "CallEnded",
    "CallReconciled",
    "CallRefused",
    "CallStarted",
    "Event",
    "Guard",
    "History",
    "HistoryTooLong",
    "Ledger",
    "LedgerError",
    "LedgerUnavailable",
    "Limit",
    "Loop",
    "LoopHalted",
    "LoopPolicy",
    "LoopWarned",
    "MemoryLedger",
    "MissingTag",
    "NoPrice",
    "PrefixBroken",
    "PriceBook",
    "PriceContext",
    "PriceLike",
    "RefusalDetails",
    "Refused",
    "Run",
    "RunEnded",
    "RunPaused",
    "RunStarted",
    "RunStopped",
    "RunToppedUp",
    "RuncapError",
    "SQLiteLedger",
    "Sink",
    "Tier",
    "TierSwitched",
    "TokenPrice",
    "ToolEnded",
    "ToolStarted",
    "UnboundedCall",
    "UnknownCall",
    "UnpricedModel",
    "Usage",
    "UsageRecord",
]
