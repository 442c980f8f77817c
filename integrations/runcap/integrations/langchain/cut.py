"""Answers that end before their time: told by a mark on the message, and failed where the cut went through a tool call.

A cut is runcap's doing: the output cap it set, a stream that used the budget up, or `run.stop()`. An answer cut by the
caller's own `max_tokens` is none of its business.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.outputs.chat_generation import merge_chat_generation_chunks

from runcap.guardrails.errors import BudgetExceeded
from runcap.guardrails.guard import Guard
from runcap.guardrails.permit import Permit

from .contents import tell_answered
from .errors import bubbling
from .settling import end, fail, meter, size_of_chunk

_log = logging.getLogger("runcap")

MARK = "runcap"
"""Where an answer that was cut says so: `message.response_metadata["runcap"] = {"cut": "clamp", "output_cap": 512}`."""

_REASONS = ("finish_reason", "stop_reason", "stopReason", "done_reason")
_AT_THE_CAP = frozenset({"length", "max_tokens", "max_output_tokens"})
_FAILED = BudgetExceeded.__name__


def finish(guard: Guard, permit: Permit, result: ChatResult) -> bool:
    """A whole answer: marked if it was cut, and settled. True where that was inside a tool call: see `check_whole`."""
    for generation in result.generations:
        message = generation.message
        # As LangChain itself will put it together a moment later, and as callbacks see it.
        told = {**(result.llm_output or {}), **(generation.generation_info or {}), **message.response_metadata}
        message.response_metadata = told
        if permit.clamped and _ended_at_cap(told):
            permit.cut = "clamp"
            told[MARK] = _mark(permit)
    lost = permit.cut is not None and any(_calls_tools(one.message) for one in result.generations)
    _settle(guard, permit, LLMResult(generations=[[*result.generations]], llm_output=result.llm_output), lost=lost)
    return lost


def check_whole(guard: Guard, permit: Permit, *, lost: bool) -> None:
    """Refuse an answer that was cut inside a tool call: nothing can be done with it. Once its end is in the books.

    Raises:
        BudgetExceeded: it was.
    """
    if lost:
        raise bubbling(guard.cut_short(permit))


class Reader:
    """A stream as it is read."""

    def __init__(self, guard: Guard, permit: Permit) -> None:
        self._guard = guard
        self._permit = permit
        self._chunks: list[ChatGenerationChunk] = []
        self._looked_at = 0

    @property
    def began(self) -> bool:
        """Something was passed on."""
        return bool(self._chunks)

    def read(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        """Meter a chunk and pass it on; the one that says how the answer ended also says if that was a cut."""
        message, permit = chunk.message, self._permit
        meter(permit, size_of_chunk(message.content, message), message if _has_usage(message) else None)
        if permit.clamped and _ended_at_cap({**(chunk.generation_info or {}), **message.response_metadata}):
            permit.cut = "clamp"
            message.response_metadata = {**message.response_metadata, MARK: _mark(permit)}
        self._chunks.append(chunk)
        return chunk

    def is_cut(self) -> bool:
        """It must end here: its run was stopped, or it has used up more than its hold and the budget has no more."""
        permit = self._permit
        if permit.cut is None and permit.run.stopping:
            permit.cut = "stopped"
            return True
        if permit.cut is None and not permit.estimate.hard and permit.is_beyond_its_means():
            permit.cut = "hold"
            return True
        return False

    def mark(self) -> ChatGenerationChunk:
        """The last chunk of a stream that was cut."""
        content: Any = "" if isinstance(self._chunks[-1].message.content, str) else []
        chunk = ChatGenerationChunk(
            message=AIMessageChunk(content=content, response_metadata={MARK: _mark(self._permit)})
        )
        self._chunks.append(chunk)
        return chunk

    def finish(self) -> bool:
        """The stream is over. As `finish`."""
        result = self._result()
        generation = result.generations[0][0] if result is not None else None
        message = generation.message if isinstance(generation, ChatGeneration) else None
        lost = self._permit.cut is not None and message is not None and _calls_tools(message)
        _settle(self._guard, self._permit, result or LLMResult(generations=[]), lost=lost)
        return lost

    def failed(self, error: BaseException) -> None:
        """The stream, or whoever read it, failed."""
        result = self._result()
        tell_answered(self._guard.sinks, self._permit, result)
        fail(self._permit, error, result)

    def _result(self) -> LLMResult | None:
        merged = merge_chat_generation_chunks(self._chunks)
        if merged is None:
            return None
        merged.message.response_metadata = {**(merged.generation_info or {}), **merged.message.response_metadata}
        return LLMResult(generations=[[merged]])


def _settle(guard: Guard, permit: Permit, result: LLMResult, *, lost: bool) -> None:
    try:
        end(guard, permit, result, error_type=_FAILED if lost else None)
    except Exception as error:  # noqa: BLE001 - an answer that is paid for is not lost to a fault in the books
        _log.warning("runcap: settling failed with %s; the call keeps its hold", type(error).__name__)


def _has_usage(message: BaseMessage) -> bool:
    return bool(getattr(message, "usage_metadata", None))


def _ended_at_cap(told: Mapping[str, Any]) -> bool:
    reasons = [str(told.get(name)).lower() for name in _REASONS if told.get(name)]
    return any(reason in _AT_THE_CAP for reason in reasons) or told.get("status") == "incomplete"


def _calls_tools(message: BaseMessage) -> bool:
    return isinstance(message, AIMessage) and bool(
        message.tool_calls or message.invalid_tool_calls or getattr(message, "tool_call_chunks", None)
    )


def _mark(permit: Permit) -> dict[str, Any]:
    return {"cut": permit.cut, "output_cap": permit.output_cap}
