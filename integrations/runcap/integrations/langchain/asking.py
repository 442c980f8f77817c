"""`on_breach="ask"`: the graph is interrupted with the numbers, and goes on with what the answer adds to the caps.

The run goes on with its old spend. In the process that asked, the guard keeps it for the thread; elsewhere, or after a
restart, it is made again from the record of it in the agent's checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from langgraph.checkpoint.base import BaseCheckpointSaver

from langchain.agents.middleware import AgentState
from langchain.agents.middleware.types import PrivateStateAttr
from runcap.guardrails.amounts import UNITS, Amounts
from runcap.guardrails.errors import Refused
from runcap.guardrails.run import Run
from runcap.guardrails.saved import SavedRun
from runcap.guardrails.topups import check_top_up

from .running import configurable_here

STATE = "runcap"
"""Where in the agent's state the record of its run is."""

KIND = "runcap.budget"
_ADDS = ("usd", "tokens", "steps", "tool_calls")
_EXAMPLE = 'Command(resume={"usd": "0.25"}), also steps, tokens, tool_calls and key; Command(resume=False) declines'


class AskingState(AgentState[Any]):
    """The agent's state, with the record of its run."""

    runcap: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]


def can_interrupt() -> bool:
    """The graph around this call is checkpointed, so that it can be resumed."""
    return configurable_here().get("__pregel_checkpointer") is not None


def question(refused: Refused, record: Mapping[str, Any], wrong: str | None) -> dict[str, Any]:
    """What the interrupt says: the numbers, as strings, and how to answer. A run halted as a loop has none.

    `record` is the run as it stands, for another process to go on from; `wrong` what was wrong with the last answer.
    """
    what: dict[str, Any] = {} if wrong is None else {"error": wrong}
    what |= {
        "type": KIND,
        "run_id": refused.run_id,
        "unit": refused.unit,
        "reason": refused.details.reason,
    }
    if refused.unit is not None:
        what |= {name: f"{getattr(refused, name):f}" for name in ("cap", "spent", "held", "unknown", "needed")}
    return {**what, "resume_with": _EXAMPLE, "record": dict(record)}


def key_of(run: Run, number: int) -> str:
    """Names the answer to the node's question of this number: nodes are replayed, and their answers with them."""
    return f"{run.id}:{configurable_here().get('checkpoint_ns', '')}:{number}"


def read_answer(answer: Any) -> dict[str, Any]:
    """What to add to the caps; empty where the answer is no.

    Raises:
        ValueError, TypeError: it is neither.
    """
    if not answer:
        return {}
    if not isinstance(answer, Mapping) or not {*answer} <= {*_ADDS, "key"} or {*answer} == {"key"}:
        raise ValueError(f"a run that asks for more is resumed with {_EXAMPLE}; got {type(answer).__name__}")
    check_top_up(**{name: value for name, value in answer.items() if name != "key"})
    return dict(answer)


def last_question(checkpoint: Any) -> Mapping[str, Any]:
    """What this very task asked before it was resumed, as its checkpoint has it; empty where it asked nothing."""
    task = configurable_here().get("__pregel_task_id")
    for task_id, channel, interrupts in getattr(checkpoint, "pending_writes", None) or ():
        if task_id == task and channel == "__interrupt__":
            value = getattr(interrupts[0], "value", None) if interrupts else None
            return value if isinstance(value, Mapping) and value.get("type") == KIND else {}
    return {}


def resumed_from() -> tuple[Any, dict[str, Any]] | None:
    """The checkpointer of a task that is resumed, and where its checkpoint is; None for any other."""
    told = configurable_here()
    saver, thread = told.get("__pregel_checkpointer"), told.get("thread_id")
    if not told.get("__pregel_resuming") or thread is None or not isinstance(saver, BaseCheckpointSaver):
        return None
    namespace = str(told.get("checkpoint_ns") or "").rpartition("|")[0]
    return saver, {"configurable": {"thread_id": thread, "checkpoint_ns": namespace}}


def record_of(run: Run, keeper: str, trace: str | None = None) -> dict[str, Any]:
    """A run as it is kept in a checkpoint: plain numbers, no content. `keeper` names the guard, `trace` its trace."""
    saved = SavedRun.of(run)
    return {
        "keeper": keeper,
        "run_id": saved.run_id,
        "spent": dict(zip(UNITS, saved.spent, strict=True)),
        "unknown": dict(zip(UNITS, saved.unknown, strict=True)),
        "top_ups": {key: dict(zip(UNITS, extra, strict=True)) for key, extra in saved.top_ups.items()},
        "trace": trace,
    }


def read_record(record: Any) -> SavedRun | None:
    """The run of a checkpoint; None where there is none.

    Raises:
        ValueError: it cannot be read: to go on without it would be a budget without what was spent of it.
    """
    if not record:
        return None
    try:
        return SavedRun(
            str(record["run_id"]),
            _amounts(record["spent"]),
            _amounts(record["unknown"]),
            {str(key): _amounts(extra) for key, extra in record["top_ups"].items()},
            str(record.get("keeper") or ""),
            str(record["trace"]) if record.get("trace") else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the record of a run in its agent's state ({STATE!r}) cannot be read ({type(error).__name__}): "
            "begin anew with new input on the thread"
        ) from None


def _amounts(record: Mapping[str, Any]) -> Amounts:
    return Amounts(*(int(record[unit]) for unit in UNITS))
