"""OpenAI chat completions, as the openai package speaks it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .wire import Answer, Wire, event, split


class _OpenAI:
    def output_cap(self, body: Mapping[str, Any]) -> int | None:
        cap = body.get("max_completion_tokens") or body.get("max_tokens")
        return cap if isinstance(cap, int) else None

    def wants_usage(self, body: Mapping[str, Any]) -> bool:
        return bool((body.get("stream_options") or {}).get("include_usage"))

    def whole(self, answer: Answer, *, usage: bool) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
        if answer.calls:
            message["tool_calls"] = [_call(*call) for call in answer.calls]
        body = _head(answer, "chat.completion")
        body["choices"] = [{"index": 0, "message": message, "finish_reason": answer.finish, "logprobs": None}]
        return body | ({"usage": _usage(answer)} if usage else {})

    def pieces(self, answer: Answer, *, usage: bool) -> Iterator[tuple[bytes, int]]:
        head = _head(answer, "chat.completion.chunk")
        yield _chunk(head, {"role": "assistant", "content": ""}), 0
        calls = [{"index": index, **_call(*call)} for index, call in enumerate(answer.calls)]
        if calls:
            yield _chunk(head, {"tool_calls": calls}), 0 if answer.text else answer.output_tokens
        for piece, tokens in split(answer.text, answer.output_tokens) if answer.text else ():
            yield _chunk(head, {"content": piece}), tokens
        yield _chunk(head, {}, answer.finish), 0
        if usage:
            yield event({**head, "choices": [], "usage": _usage(answer)}), 0
        yield event("[DONE]"), 0

    def error(self, status: int) -> dict[str, Any]:
        return {"error": {"message": f"scripted {status}", "type": "scripted", "param": None, "code": None}}


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    return {"id": answer.id, "object": kind, "created": 1_700_000_000, "model": answer.told_model}


def _call(call_id: str, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(args)}}


def _chunk(head: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None = None) -> bytes:
    return event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _usage(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }


WIRE: Wire = _OpenAI()
