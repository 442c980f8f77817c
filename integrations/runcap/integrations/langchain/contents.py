"""What was said in calls and tools, told to the sinks that ask for it, in the shapes of the GenAI conventions.

Nothing here is computed while nobody asks, and nothing that goes wrong here touches the call.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, FunctionMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult

from runcap.exporters.otel.jsontext import plain
from runcap.guardrails.dispatch import Dispatcher
from runcap.guardrails.permit import Permit
from runcap.guardrails.sinks import Content

from .contentparts import Part, arguments_of, call, is_call, parts_of, reasoning, response, response_of
from .request import Described

_log = logging.getLogger("runcap")

Kind = Literal["system", "input", "output", "tools", "arguments", "result"]

_ROLES = {"ai": "assistant", "human": "user", "system": "system", "tool": "tool", "function": "tool"}
_REASONS = ("finish_reason", "stop_reason", "stopReason", "done_reason", "status")
_FINISHES = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "completed", "eos", "finish_reason_stop"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "incomplete", "model_length"), "length"),
    **dict.fromkeys(("tool_calls", "tool_use", "tool_call", "function_call"), "tool_call"),
    **dict.fromkeys(("content_filter", "content_filtered", "refusal", "safety"), "content_filter"),
    "guardrail_intervened": "content_filter",
}
_said: set[str] = set()


def tell_asked(sinks: Dispatcher, call_id: str, messages: Sequence[BaseMessage], described: Described) -> None:
    """Tell what is sent: system instructions, messages, and definitions of tools."""
    if not sinks.take_content:
        return
    try:
        told = next((index for index, one in enumerate(messages) if not isinstance(one, SystemMessage)), len(messages))
        system = [part for one in messages[:told] for part in parts_of(one.content)]
        body = described.body
        tools = tool_definitions(body.get("tools") or body.get("functions") or ())
        _tell(sinks, call_id, "system", system)
        _tell(sinks, call_id, "input", [message_of(one) for one in messages[told:]])
        _tell(sinks, call_id, "tools", tools)
    except Exception as error:  # noqa: BLE001 - see above
        _failed(error)


def tell_answered(sinks: Dispatcher, permit: Permit, result: LLMResult | None) -> None:
    """Tell what came of a call, before its end is told; nothing where that was told already."""
    if result is None or not sinks.take_content or permit.state is not None:
        return
    try:
        generations = [one for many in result.generations for one in many]
        _tell(sinks, permit.call_id, "output", [_answer_of(one) for one in generations if isinstance(one, Generation)])
    except Exception as error:  # noqa: BLE001 - see above
        _failed(error)


def tell_arguments(sinks: Dispatcher, node_id: str, arguments: object) -> None:
    """Tell what a tool is given."""
    if not sinks.take_content:
        return
    try:
        _tell(sinks, node_id, "arguments", arguments_of(arguments))
    except Exception as error:  # noqa: BLE001 - see above
        _failed(error)


def tell_result(sinks: Dispatcher, node_id: str, output: object) -> None:
    """Tell what a tool gave, before its end is told."""
    if not sinks.take_content:
        return
    try:
        _tell(sinks, node_id, "result", _result_of(output))
    except Exception as error:  # noqa: BLE001 - see above
        _failed(error)


def message_of(message: BaseMessage) -> dict[str, Any]:
    """A message: its role and its parts, and its name if it has one."""
    if isinstance(message, ToolMessage):
        parts: list[Part] = [response(message.tool_call_id, message.content)]
    elif isinstance(message, FunctionMessage):
        parts = [response(None, message.content)]
    else:
        parts = _spoken(message) if isinstance(message, AIMessage) else parts_of(message.content)
    made: dict[str, Any] = {"role": _role_of(message), "parts": parts}
    return {**made, "name": message.name} if message.name else made


def tool_definitions(tools: object) -> list[dict[str, Any]]:
    """The tools a model may call, in any provider's shape."""
    if not isinstance(tools, Iterable):
        return []
    made: list[dict[str, Any]] = []
    for tool in tools:
        told = tool if isinstance(tool, Mapping) else plain(tool)
        declared = told.get("function_declarations") if isinstance(told, Mapping) else None
        made.extend(_definition(one) for one in declared or [told])
    return made


def _spoken(message: AIMessage) -> list[Part]:
    extra = message.additional_kwargs
    calls = [call(one["id"], one["name"], one["args"]) for one in (*message.tool_calls, *message.invalid_tool_calls)]
    content = message.content
    if calls and isinstance(content, list):
        content = [block for block in content if not is_call(block)]  # the same calls once more
    thought = reasoning(str(extra.get("reasoning_content") or ""))
    parts = [*([thought] if thought else []), *parts_of(content)]
    if extra.get("refusal"):
        parts += parts_of(str(extra["refusal"]))
    if isinstance(extra.get("audio"), Mapping):
        parts += parts_of([{"mime_type": "audio", **extra["audio"], "type": "audio"}])
    legacy = extra.get("function_call")
    if isinstance(legacy, Mapping) and not calls:
        calls = [call(None, legacy.get("name"), legacy.get("arguments"))]
    return parts + calls


def _answer_of(generation: Generation) -> dict[str, Any]:
    told: Mapping[str, Any] = generation.generation_info or {}
    if isinstance(generation, ChatGeneration):
        message = generation.message
        told = {**told, **message.response_metadata}
        made = message_of(message)
    else:
        made = {"role": "assistant", "parts": parts_of(generation.text)}
    reason = next((str(told[name]) for name in _REASONS if told.get(name)), None)
    return made if reason is None else {**made, "finish_reason": _FINISHES.get(reason.lower(), reason)}


def _role_of(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    kind = message.type.removesuffix("MessageChunk").lower()
    return _ROLES.get(kind, kind)


def _definition(tool: object) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        return {"type": "function", "name": str(tool)}
    told = next((tool[name] for name in ("function", "toolSpec") if isinstance(tool.get(name), Mapping)), tool)
    schema = next(
        (told[one] for one in ("parameters", "input_schema", "inputSchema", "parameters_json_schema") if told.get(one)),
        None,
    )
    kind = str(tool.get("type") or "function")
    made: dict[str, Any] = {"type": kind, "name": str(told.get("name") or told.get("title") or kind)}
    if told.get("description"):
        made["description"] = str(told["description"])
    return made if schema is None else {**made, "parameters": plain(schema)}


def _result_of(output: object) -> Any:
    """A tool's output: its text or parts, not what it has beside for the program; of a command, its messages."""
    if isinstance(output, BaseMessage):
        return response_of(output.content)
    if isinstance(output, list) and any(_is_command(one) or isinstance(one, BaseMessage) for one in output):
        return [_result_of(one) for one in output]
    if _is_command(output):
        update = getattr(output, "update", None)
        messages = update.get("messages") if isinstance(update, Mapping) else None
        told = [_result_of(one) for one in messages or () if isinstance(one, BaseMessage)]
        return told[0] if len(told) == 1 else told
    return response_of(output)


def _is_command(output: object) -> bool:
    """LangGraph's, which is no dependency of this module."""
    return type(output).__name__ == "Command" and hasattr(output, "update") and hasattr(output, "goto")


def _tell(sinks: Dispatcher, of_id: str, kind: Kind, value: Any) -> None:
    if value is not None and (value or kind in ("arguments", "result")):
        sinks.tell(Content(of_id, kind, value))


def _failed(error: Exception) -> None:
    kind = type(error).__name__
    if kind not in _said:
        _said.add(kind)
        _log.warning("runcap: content could not be told, with %s; said once", kind)
