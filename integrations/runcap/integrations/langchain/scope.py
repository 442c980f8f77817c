"""Which run a call belongs to, and what the user says about it in `metadata["runcap"]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runcap.guardrails.checks import is_text
from runcap.guardrails.guard import Guard
from runcap.guardrails.run import Run

from .running import configurable_here


class RunMetadata(BaseModel):
    """`metadata["runcap"]`: `run_id` names the run to spend from; every other key is a tag, a string."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    if not TYPE_CHECKING:  # pydantic reads the type of the extra keys here; type checkers take it for a field
        __pydantic_extra__: dict[str, str]

    run_id: str | None = Field(default=None, min_length=1)

    @property
    def tags(self) -> dict[str, str]:
        """The tags: task, user, feature, team, prompt_version, and any of one's own."""
        return dict(self.__pydantic_extra__ or {})


_NONE = RunMetadata()


def read_metadata(metadata: Mapping[str, Any]) -> RunMetadata:
    """What the config's metadata says.

    Raises:
        ValueError: it is no mapping of strings; the message names the key and the fix, never the value.
    """
    raw = metadata.get("runcap")
    if raw is None:
        return _NONE
    try:
        told = RunMetadata.model_validate(raw)
    except ValidationError as error:
        where = ", ".join(".".join(map(str, problem["loc"])) or "it" for problem in error.errors())
    else:
        texts = {"run_id": told.run_id or "", **told.tags}
        where = ", ".join(ascii(name)[1:-1] for name, value in texts.items() if not is_text(name + value))
        if not where:
            return told
    shape = 'a mapping of strings such as {"user": "ada", "task": "refund"}'
    raise ValueError(f'metadata["runcap"] must be {shape}; wrong: {where}')


def scoped_run(guard: Guard, metadata: Mapping[str, Any]) -> Run | None:
    """The run a user named: the ambient one, else the one named in metadata; None where neither is."""
    run = guard.current_run()
    if run is not None or "runcap" not in metadata:
        return run
    told = read_metadata(metadata)
    return guard.named_run(told.run_id, told.tags) if told.run_id else None


def goes_on(inputs: object) -> bool:
    """A graph called with this goes on where its thread stopped: a `Command` or nothing, to it or to one around it."""
    if inputs is None or type(inputs).__name__ == "Command":
        return True
    return configurable_here().get("__pregel_resuming") is True


def agent_run(guard: Guard, metadata: Mapping[str, Any], *, resumed: bool) -> Run:
    """A run of its own for a root agent: the whole budget, the tags of its metadata, its thread as conversation.

    Where a run of its thread waits for a person's answer, and the agent is resumed, it is that run, going on. What
    begins anew on the thread leaves that question unanswered for good.
    """
    thread = metadata.get("thread_id")
    waiting = guard.paused.take(str(thread)) if thread is not None else None
    if waiting is not None and resumed:
        return waiting
    if waiting is not None:
        waiting.end()
    return guard.open_run(
        tags=read_metadata(metadata).tags, conversation_id=str(thread) if thread is not None else None
    )
