"""The model calls under way: admitted before they are made, settled when they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID
from weakref import ref

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import LLMResult

from runcap.guardrails.errors import Refused
from runcap.guardrails.guard import Guard
from runcap.guardrails.inflight import release_everywhere
from runcap.guardrails.permit import Permit
from runcap.guardrails.usage import Usage

from .errors import bubbling
from .failures import billing
from .messages import Walks, answer_digest
from .nodes import Nodes
from .quiet import close_pending
from .sketch import Sketches
from .tree import Node
from .usage import (
    StreamUsage,
    as_asked,
    is_cache_hit,
    message_of,
    read_response,
    read_text_usage,
    read_usage,
    text_of,
)


@dataclass(slots=True)
class _Note:
    """What is remembered of a call in flight."""

    end: int
    base: int
    watch: ref[object]
    stream: StreamUsage | None = None


class Calls:
    """Takes LangChain's model calls through the guard."""

    def __init__(self, guard: Guard, nodes: Nodes) -> None:
        self._guard = guard
        self._nodes = nodes
        self._sketches = Sketches()

    def begin(
        self,
        run_id: UUID,
        parent: Node | None,
        messages: Sequence[BaseMessage],
        serialized: Mapping[str, Any],
        metadata: Mapping[str, Any],
        params: Mapping[str, Any],
    ) -> None:
        """Admit a call.

        Raises:
            Refused: it does not fit; nothing may be sent.
        """
        key = run_id.hex
        if not self._guard.calls.claim(key, self):
            return
        try:
            sketch = self._sketches.get(serialized, params, metadata)
            run = self._guard.scope(self._nodes.run_of(parent, metadata), sketch.model)
            self._nodes.last_run = run
            walks: Walks = run.notes.get(Walks) or run.notes.setdefault(Walks, Walks())
            walk = walks.walk(sketch.base, messages, self._guard.measured)
            shown = parent.shown() if parent is not None else None
            permit = self._guard.admit(sketch.request(walk, call_id=key, parent_id=shown), run)
        except Refused as refused:
            self._guard.calls.unclaim(key)
            release_everywhere(key)
            close_pending()
            raise bubbling(refused) from None
        except BaseException:
            self._guard.calls.unclaim(key)
            raise
        permit.note = _Note(walk.end, walk.base, self._nodes.watch(run_id, key))
        if parent is not None:
            parent.calls.add(key)
        self._guard.calls.reap_with_task(permit)

    def stream(self, run_id: UUID, size: int, counted: BaseMessage | None = None) -> None:
        """Meter `size` bytes of a stream, so that an aborted one is charged for what came. `counted` carries usage."""
        permit = self._guard.calls.get(run_id.hex)
        if permit is None:
            return
        permit.seen(size)
        note = permit.note
        if counted is not None and isinstance(note, _Note):
            note.stream = note.stream or StreamUsage()
            note.stream.add(counted)

    def end(self, run_id: UUID, parent: Node | None, result: LLMResult) -> None:
        """A call ended well: settle it from the usage it reported."""
        permit = self._take(run_id, parent)
        if permit is None:
            return
        message = message_of(result)
        told, usage = read_response(result, message), self._usage(permit, result, message)
        if is_cache_hit(message):
            permit.free(told)
        elif usage is not None and usage.input_tokens:
            permit.settle(usage, told)
            self._remember(permit, message, usage.input_tokens, usage.output_tokens)
        elif usage is not None:
            # Claude's streams may report the output alone, and LangChain drops what they said of the input.
            permit.abandon(response=told, partial=usage)
        else:
            answer = message.text if message is not None else text_of(result)
            permit.abandon(response=told, answer_bytes=size_of(answer))

    def fail(self, run_id: UUID, parent: Node | None, error: BaseException, result: LLMResult | None) -> None:
        """A call failed: settle it from the usage that came, as never billed, or as unknown beyond what was seen."""
        permit = self._take(run_id, parent)
        if permit is None:
            return
        kind, bill = type(error).__name__, billing(error)
        message = message_of(result)
        told, usage = read_response(result, message), self._usage(permit, result, message)
        if usage is not None and usage.input_tokens and told.finish_reasons:
            permit.settle(usage, told, error_type=kind)  # the answer was whole; its reader failed
        elif bill == "never" and not permit.streamed:
            permit.release(kind)
        else:
            permit.abandon(kind, response=told, partial=usage, prompt_billed=bill != "failed")

    def _usage(self, permit: Permit, result: LLMResult | None, message: BaseMessage | None) -> Usage | None:
        note = permit.note
        stream = note.stream if isinstance(note, _Note) else None
        usage = read_usage(message, result, stream) or read_text_usage(result)
        return None if usage is None else as_asked(usage, message, permit.request)

    def _take(self, run_id: UUID, parent: Node | None) -> Permit | None:
        if parent is not None:
            parent.calls.discard(run_id.hex)
        return self._guard.calls.get_ended(run_id.hex)

    def _remember(self, permit: Permit, message: BaseMessage | None, input_tokens: int, output_tokens: int) -> None:
        note = permit.note
        if isinstance(note, _Note):
            if input_tokens > permit.estimate.input_most and permit.estimate.hard:
                self._outgrew(permit, note, input_tokens)
            self._guard.measured.put(note.end, input_tokens)
            if isinstance(message, AIMessage):
                self._guard.measured.put(answer_digest(note.base, message), output_tokens)

    def _outgrew(self, permit: Permit, note: _Note, input_tokens: int) -> None:
        # A message edited in place deep in the history, or text a tokenizer makes more tokens of than it has bytes.
        walks = permit.run.notes.get(Walks)
        if walks is not None:
            walks.forget(note.base)
        self._guard.say_once(
            f"{permit.request.model} counted {input_tokens:,} input tokens where at most "
            f"{permit.estimate.input_most:,} were held: edit messages by replacing them; Budget(strict=True) holds more"
        )


def size_of(part: object) -> int:
    """Bytes of streamed text, in whichever shape it comes."""
    if isinstance(part, str):
        return len(part) if part.isascii() else len(part.encode("utf-8", "surrogatepass"))
    if isinstance(part, list):
        return sum(size_of(block.get("text") if isinstance(block, Mapping) else block) for block in part)
    return 0
