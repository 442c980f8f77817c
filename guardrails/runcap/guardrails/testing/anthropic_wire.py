"""Anthropic messages, as the anthropic package speaks it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .wire import Answer, Wire, event, split

_FINISH = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class _Anthropic:
    def output_cap(self, body: Mapping[str, Any]) -> int | None:
        cap = body.get("max_tokens")
        return cap if isinstance(cap, int) else None

    def wants_usage(self, body: Mapping[str, Any]) -> bool:
        return True

    def whole(self, answer: Answer, *, usage: bool) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
        content += [{"type": "tool_use", "id": i, "name": name, "input": args} for i, name, args in answer.calls]
        return _message(answer, content) | {
            "stop_reason": _FINISH[answer.finish],
            "usage": _usage(answer) if usage else {"input_tokens": 0, "output_tokens": 0},
        }

    def pieces(self, answer: Answer, *, usage: bool) -> Iterator[tuple[bytes, int]]:
        start = _message(answer, []) | {"stop_reason": None, "usage": {**_usage(answer), "output_tokens": 0}}
        yield _event("message_start", message=start), 0
        index = 0
        if answer.text:
            yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""}), 0
            for piece, tokens in split(answer.text, answer.output_tokens):
                yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece}), tokens
            yield _event("content_block_stop", index=0), 0
            index = 1
        for call_id, name, args in answer.calls:
            block = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(args)}
            yield _event("content_block_start", index=index, content_block=block), 0
            yield _event("content_block_delta", index=index, delta=delta), 0 if answer.text else answer.output_tokens
            yield _event("content_block_stop", index=index), 0
            index += 1
        end = {"stop_reason": _FINISH[answer.finish], "stop_sequence": None}
        yield _event("message_delta", delta=end, usage=_usage(answer)), 0
        yield _event("message_stop"), 0

    def error(self, status: int) -> dict[str, Any]:
        return {"type": "error", "error": {"type": "scripted", "message": f"scripted {status}"}}


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


def _message(answer: Answer, content: list[dict[str, Any]]) -> dict[str, Any]:
    head = {"id": answer.id, "type": "message", "role": "assistant", "model": answer.told_model}
    return {**head, "content": content, "stop_sequence": None}


def _usage(answer: Answer) -> dict[str, Any]:
    return {
        "input_tokens": answer.input_tokens - answer.cached_tokens - answer.cache_write_tokens,
        "cache_read_input_tokens": answer.cached_tokens,
        "cache_creation_input_tokens": answer.cache_write_tokens,
        "output_tokens": answer.output_tokens,
    }


WIRE: Wire = _Anthropic()
