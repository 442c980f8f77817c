"""What happened, as frozen values for the sinks. No event carries content: no prompt, no answer, no argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, NamedTuple

from .budget import Budget
from .errors import RefusalDetails
from .history import Cut as HistoryCut
from .ledger import Balance
from .loops import Loop
from .money import to_usd
from .usage import Usage

State = Literal["settled", "released", "unknown"]
"""How a hold ended: charged as billed, never billed, or charged what was seen with a rest that may have been billed."""

Guarantee = Literal["hard", "expected"]
"""Whether a call was held at its bound or at its expected cost."""

Cut = Literal["clamp", "hold", "stopped"]
"""Why an answer ended before its time: the output cap that runcap set, a stream at its hold, or `run.stop()`."""

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


class RunStarted(NamedTuple):
    """A run began."""

    time_ns: int
    run: RunInfo


class RunEnded(NamedTuple):
    """A run ended, with its last balance and the verdict if one was given."""

    time_ns: int
    run: RunInfo
    balance: Balance
    verdict: str | None = None


class RunStopped(NamedTuple):
    """From now on every call of the run is refused, until a top-up."""

    time_ns: int
    run: RunInfo
    reason: str


class RunToppedUp(NamedTuple):
    """The run's caps were raised."""

    time_ns: int
    run: RunInfo
    key: str
    balance: Balance


class BudgetWarned(NamedTuple):
    """A share of a cap was reached; `unit` names the cap. `scope` is `"run"`, or the tag of the limit that it is of."""

    time_ns: int
    run: RunInfo
    unit: str
    share: float
    balance: Balance
    scope: str = "run"


class LoopWarned(NamedTuple):
    """An agent, shown as `parent_id`, repeats itself; `halted`: so often that its run is stopped."""

    time_ns: int
    run: RunInfo
    parent_id: str | None
    loop: Loop
    halted: bool


class CallStarted(NamedTuple):
    """A model call was admitted. `held_nano` is its reservation in nano-dollars.

    `output_cap` is the one in force; `clamped`, that it is less than was asked for; `waited_s`, how long it waited for
    calls in flight; `tier`, the model's tier; `history_cut`, what was cut from its history just before; `last`, that
    it is the run's last answer.
    """

    time_ns: int
    run: RunInfo
    call_id: str
    parent_id: str | None
    model: str | None
    provider: str | None
    stream: bool
    output_cap: int | None
    guarantee: Guarantee
    held_nano: int
    step: int
    clamped: bool = False
    waited_s: float = 0.0
    tier: str | None = None
    history_cut: HistoryCut | None = None
    last: bool = False


class CallEnded(NamedTuple):
    """A model call is over and accounted for. Unknown cost is None, never zero.

    `first_chunk_s` is how long a stream's first chunk took, in seconds; None without one.
    """

    time_ns: int
    run: RunInfo
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
    clamped: bool = False
    cut: Cut | None = None
    waited_s: float = 0.0
    tier: str | None = None
    history_cut: HistoryCut | None = None
    last: bool = False
    first_chunk_s: float | None = None

    @property
    def cost_usd(self) -> Decimal | None:
        """`cost_nano` in dollars."""
        return None if self.cost_nano is None else to_usd(self.cost_nano)


class CallReconciled(NamedTuple):
    """The usage of a call that had ended as unknown arrived after all."""

    time_ns: int
    run: RunInfo
    call_id: str
    usage: Usage
    cost_nano: int | None


class TierSwitched(NamedTuple):
    """A run went down its ladder of models, at this share of its dollars; `forced` where a call fitted only there."""

    time_ns: int
    run: RunInfo
    parent_id: str | None
    before: str | None
    tier: str
    share: float
    forced: bool = False


class PrefixBroken(NamedTuple):
    """A prompt began unlike the one before it, so that the provider had to read again what it had cached.

    `what` is where they part: `"system"`, `"tools"` or `"message 3 (tool)"`; `tokens`, how many came after that, of
    those that had been sent before; `cost_nano`, what reading them again cost, None without a price.
    """

    time_ns: int
    run: RunInfo
    parent_id: str | None
    what: str
    tokens: int
    cost_nano: int | None


class RunPaused(NamedTuple):
    """The run is at its cap and asks for more: the graph is interrupted."""

    time_ns: int
    run: RunInfo
    parent_id: str | None
    details: RefusalDetails


class RunWentOn(NamedTuple):
    """A run that paused in another process goes on here: what began as the run `instead_of`, this node, is its own.

    `trace` says where it was traced before, as `sinks.Traces` told it there.
    """

    time_ns: int
    run: RunInfo
    node_id: str
    instead_of: str
    trace: str | None = None


class CallRefused(NamedTuple):
    """A model or tool call was refused before it was made; `kind` is the error's name."""

    time_ns: int
    run: RunInfo
    call_id: str
    parent_id: str | None
    kind: str
    details: RefusalDetails


class ToolStarted(NamedTuple):
    """A tool call was admitted."""

    time_ns: int
    run: RunInfo
    node_id: str
    parent_id: str | None
    name: str
    tool_call_id: str | None = None
    description: str | None = None


class ToolEnded(NamedTuple):
    """A tool call is over."""

    time_ns: int
    run: RunInfo
    node_id: str
    outcome: Outcome
    error_type: str | None = None


class AgentStarted(NamedTuple):
    """An agent or graph began; `time_ns` may lie a little back, for a graph shows itself by its first node.

    `resumed`: it goes on where its conversation stopped, at an interrupt.
    """

    time_ns: int
    run: RunInfo
    node_id: str
    parent_id: str | None
    name: str
    resumed: bool = False


class AgentEnded(NamedTuple):
    """An agent or graph ended, with its run's balance then."""

    time_ns: int
    run: RunInfo
    node_id: str
    outcome: Outcome
    balance: Balance
    error_type: str | None = None


Event = (
    RunStarted
    | RunEnded
    | RunStopped
    | RunToppedUp
    | BudgetWarned
    | LoopWarned
    | CallStarted
    | CallEnded
    | CallReconciled
    | CallRefused
    | TierSwitched
    | PrefixBroken
    | RunPaused
    | RunWentOn
    | ToolStarted
    | ToolEnded
    | AgentStarted
    | AgentEnded
)
"""Anything that happened. Every event says when (`time_ns`, since the epoch) and in which `run`."""

Sink = Callable[[Event], None]
"""Whoever is told what happened. A sink that raises is reported once in the log and never touches the call.

It may do more: see `Surrounds` and `TakesContent` in `sinks`.
"""
