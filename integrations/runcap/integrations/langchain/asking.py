"""`on_breach="ask"`: the graph is interrupted with the numbers, and goes on with what the answer adds to the caps.

The run goes on with its old spend. In the process that asked, the guard keeps it for the thread; elsewhere, or after a
restart, it is made again from the record of it in the agent's checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from langchain_core.runnables.config import var_child_runnable_config

from langchain.agents.middleware import AgentState
from langchain.agents.middleware.types import PrivateStateAttr
from runcap.guardrails.amounts import UNITS, Amounts
from runcap.guardrails.errors import Refused
from runcap.guardrails.run import Run
from runcap.guardrails.saved import SavedRun

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
    return _configurable().get("__pregel_checkpointer") is not None


def question(refused: Refused) -> dict[str, Any]:
    """What the interrupt says: the numbers, as strings, and how to answer. A run halted as a loop has none."""
    what: dict[str, Any] = {
        "type": KIND,
        "run_id": refused.run_id,
        "unit": refused.unit,
        "reason": refused.details.reason,
    }
    if refused.unit is not None:
        what |= {name: f"{getattr(refused, name):f}" for name in ("cap", "spent", "held", "unknown", "needed")}
    return {**what, "resume_with": _EXAMPLE}


def key_of(run: Run, number: int) -> str:
    """Names the answer to the node's question of this number: nodes are replayed, and their answers with them."""
    return f"{run.id}:{_configurable().get('checkpoint_ns', '')}:{number}"


def read_answer(answer: Any) -> dict[str, Any]:
    """What to add to the caps; empty where the answer is no.

    Raises:
        ValueError: it is neither.
    """
    if not answer:
        return {}
    if not isinstance(answer, Mapping) or not {*answer} <= {*_ADDS, "key"} or {*answer} == {"key"}:
        raise ValueError(f"a run that asks for more is resumed with {_EXAMPLE}; got {type(answer).__name__}")
    return dict(answer)


def record_of(run: Run, keeper: str) -> dict[str, Any]:
    """A run as it is kept in a checkpoint: plain numbers, no content. `keeper` names the guard."""
    saved = SavedRun.of(run)
    return {
        "keeper": keeper,
        "run_id": saved.run_id,
        "spent": dict(zip(UNITS, saved.spent, strict=True)),
        "unknown": dict(zip(UNITS, saved.unknown, strict=True)),
        "top_ups": {key: dict(zip(UNITS, extra, strict=True)) for key, extra in saved.top_ups.items()},
    }


def read_record(record: object) -> SavedRun | None:
    """The run of a checkpoint; None where there is none, or none that can be read."""
    try:
        if not isinstance(record, Mapping) or not record:
            return None
        return SavedRun(
            str(record["run_id"]),
            _amounts(record["spent"]),
            _amounts(record["unknown"]),
            {str(key): _amounts(extra) for key, extra in record["top_ups"].items()},
            str(record.get("keeper") or ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _amounts(record: Mapping[str, Any]) -> Amounts:
    return Amounts(*(int(record[unit]) for unit in UNITS))


def _configurable() -> Mapping[str, Any]:
    return (var_child_runnable_config.get() or {}).get("configurable") or {}
