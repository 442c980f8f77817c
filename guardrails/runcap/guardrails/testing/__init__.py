"""What runcap is tested with, for testing your own budgets: a provider on loopback, a clock, an event recorder."""

from .clock import ManualClock
from .ledger import Served
from .provider import Reply, ScriptedProvider
from .recorder import Recorder

__all__ = ["ManualClock", "Recorder", "Reply", "ScriptedProvider", "Served"]
