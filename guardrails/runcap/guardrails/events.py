"""What happened, as frozen values for the sinks. No event carries content: no prompt, no answer, no argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from .budget import Budget
from .errors import RefusalDetails
from .ledger import Balance
from .money import to_usd
from .usage import Usage

State = Literal["settled", "released", "unknown"]
"""How a hold ended: charged as billed, never billed, or charged what was seen with a rest that may have been billed."""

Guarantee = Literal["hard", "expected"]
"""Whether a call was held at its bound or at its expected cost."""

Outcome = Literal["completed", "interrupted", "handoff", "cancelled", "refused", "error"]
"""How an agent or a tool ended. Only the last two are errors."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Which run: its id, the ids around it, its tags and caps."""

    id: str
    conversation_id: str
    parent_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    budget: Budget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Anything that happened: when (nanoseconds since the epoch) and in which run."""

    time_ns: int
    run: RunInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """A run ended, with its last balance and the verdict if one was given."""

    balance: Balance
    verdict: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStopped(Event):
    """From now on every call of the run is refused, until a top-up."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunToppedUp(Event):
    """The run's caps were raised."""

    key: str
    balance: Balance


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetWarned(Event):
    """A share of a cap was reached; `unit` names the cap."""

    unit: str
    share: float
    balance: Balance


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted(Event):
    """A model call was admitted. `held_nano` is its reservation in nano-dollars."""

    call_id: str
    parent_id: str | None
    model: str | None
    provider: str | None
    stream: bool
    output_cap: int | None
    guarantee: Guarantee
    held_nano: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded(Event):
    """A model call is over and accounted for. Unknown cost is None, never zero."""

    call_id: str
    parent_id: str | None
    model: str | None
    provider: str | None
    started_ns: int
    state: State
    guarantee: Guarantee
    usage: Usage | None
    cost_nano: int | None
    unknown_nano: int
    price_source: str | None
    balance: Balance | None
    stream: bool = False
    output_cap: int | None = None
    response_model: str | None = None
    response_id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    error_type: str | None = None
    cached: bool = False
    step: int = 0

    @property
    def cost_usd(self) -> Decimal | None:
        """`cost_nano` in dollars."""
        return None if self.cost_nano is None else to_usd(self.cost_nano)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallReconciled(Event):
    """The usage of a call that had ended as unknown arrived after all."""

    call_id: str
    usage: Usage
    cost_nano: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRefused(Event):
    """A model or tool call was refused before it was made; `kind` is the error's name."""

    call_id: str
    parent_id: str | None
    kind: str
    details: RefusalDetails


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStarted(Event):
    """A tool call was admitted."""

    node_id: str
    parent_id: str | None
    name: str
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolEnded(Event):
    """A tool call is over."""

    node_id: str
    outcome: Outcome
    error_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStarted(Event):
    """An agent or graph began; `time_ns` may lie a little back, for a graph shows itself by its first node."""

    node_id: str
    parent_id: str | None
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEnded(Event):
    """An agent or graph ended, with its run's balance then."""

    node_id: str
    outcome: Outcome
    balance: Balance
    error_type: str | None = None


Sink = Callable[[Event], None]
"""Whoever is told what happened. A sink that raises is reported once in the log and never touches the call."""
