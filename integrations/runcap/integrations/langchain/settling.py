"""How a model call ends: charged by the usage it reported, released, or unknown beyond what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import LLMResult

from runcap.guardrails.guard import Guard
from runcap.guardrails.permit import Permit
from runcap.guardrails.usage import Usage

from .contents import tell_answered
from .failures import billing
from .messages import Walk, Walks, answer_digest
from .usage import StreamUsage, as_asked, is_cache_hit, message_of, read_response, read_text_usage, read_usage, text_of


@dataclass(slots=True)
class Note:
    """What is remembered of a call in flight: its prompt's digests, what its stream said of usage."""

    end: int
    base: int
    shared: int = 0
    watch: object = None
    stream: StreamUsage | None = None

    @classmethod
    def of(cls, walk: Walk) -> Note:
        """For a call with this prompt."""
        return cls(walk.end, walk.base, walk.shared)


def meter(permit: Permit, size: int, counted: BaseMessage | None = None) -> None:
    """Count `size` bytes of a stream, so that an aborted one is charged for what came. `counted` carries usage."""
    permit.seen(size)
    note = permit.note
    if counted is not None and isinstance(note, Note):
        note.stream = note.stream or StreamUsage()
        note.stream.add(counted)


def end(guard: Guard, permit: Permit, result: LLMResult, *, error_type: str | None = None) -> None:
    """The call ended well: settle it from the usage it reported. `error_type` where its answer is of no use."""
    tell_answered(guard.sinks, permit, result)
    message = message_of(result)
    told, usage = read_response(result, message), _usage(permit, result, message)
    if is_cache_hit(message):
        permit.free(told)
    elif usage is not None and usage.input_tokens:
        permit.settle(usage, told, error_type=error_type)
        _remember(guard, permit, message, usage.input_tokens, usage.output_tokens)
    elif usage is not None:
        # Claude's streams may report the output alone, and LangChain drops what they said of the input.
        permit.abandon(error_type, response=told, partial=usage)
    else:
        answer = message.text if message is not None else text_of(result)
        permit.abandon(error_type, response=told, answer_bytes=size_of(answer))


def fail(permit: Permit, error: BaseException, result: LLMResult | None) -> None:
    """The call failed: settle it from the usage that came, as never billed, or as unknown beyond what was seen."""
    kind, bill = type(error).__name__, billing(error)
    message = message_of(result)
    told, usage = read_response(result, message), _usage(permit, result, message)
    if usage is not None and usage.input_tokens and told.finish_reasons:
        permit.settle(usage, told, error_type=kind)  # the answer was whole; its reader failed
    elif bill == "never" and not permit.streamed:
        permit.release(kind)
    else:
        permit.abandon(kind, response=told, partial=usage, prompt_billed=bill != "failed")


def size_of(part: object) -> int:
    """Bytes of streamed text, in whichever shape it comes."""
    if isinstance(part, str):
        return len(part) if part.isascii() else len(part.encode("utf-8", "surrogatepass"))
    if isinstance(part, list):
        return sum(size_of(block.get("text") if isinstance(block, Mapping) else block) for block in part)
    return 0


def size_of_chunk(token: object, message: object) -> int:
    """Bytes of one chunk: its text and the arguments of its tool calls."""
    calls = getattr(message, "tool_call_chunks", None) or ()
    return size_of(token) + sum(size_of(call.get("args")) for call in calls)


def _usage(permit: Permit, result: LLMResult | None, message: BaseMessage | None) -> Usage | None:
    note = permit.note
    stream = note.stream if isinstance(note, Note) else None
    usage = read_usage(message, result, stream) or read_text_usage(result)
    return None if usage is None else as_asked(usage, message, permit.request)


def _remember(guard: Guard, permit: Permit, message: BaseMessage | None, input_tokens: int, output_tokens: int) -> None:
    note = permit.note
    if isinstance(note, Note):
        if input_tokens > permit.estimate.input_most and permit.estimate.hard:
            _outgrew(guard, permit, note)
        guard.measured.put(note.end, input_tokens)
        if note.shared:
            guard.measured.put(note.shared, input_tokens)
        if isinstance(message, AIMessage):
            guard.measured.put(answer_digest(note.base, message), output_tokens)


def _outgrew(guard: Guard, permit: Permit, note: Note) -> None:
    # A message edited in place deep in the history, or text a tokenizer makes more tokens of than it has bytes.
    walks = permit.run.notes.get(Walks)
    if walks is not None:
        walks.forget(note.base)
    guard.say_once(
        f"{permit.request.model} counted more input tokens than were held: edit messages by replacing them; "
        "Budget(strict=True) holds more"
    )
