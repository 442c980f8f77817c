"""The last answer of a run at its cap: no tools, and as much of the conversation as there is still money for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.types import Command

from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain.agents.middleware.types import ExtendedModelResponse
from runcap.guardrails.course import Purpose
from runcap.guardrails.errors import Refused
from runcap.guardrails.history import SHORTEST, CacheRates, History, HistoryTooLong

from .cut import MARK
from .dialogue import with_text
from .parts import measure
from .rewriting import Target
from .rungs import thinking_if_taken
from .steps import Tell
from .thinking import is_claudes, without_thinking
from .trimming import Conversation, shortened

ASK = (
    "The budget of this run is used up ({unit}): this is your last answer, and no tool can be called any more. "
    "Answer now from what you have: say what is done, and what is left to do."
)
UNSAID = "The budget of this run is used up ({unit}). It ends here; what was not done until now is left to do."

_SHORT = 64
"""Tokens that the newest tool results are shortened to, where they do not fit."""

_NO_CHOICE = {
    "anthropic": {"type": "none"},
    **dict.fromkeys(("openai", "azure", "google", "mistral", "groq", "x-ai", "deepseek"), "none"),
}
"""How a provider is told to call no tool: the prompt stays cached with its tools. Bedrock and Ollama know no way."""

_KEEP_TOOLS = ("aws",)
"""Refuses a history with tool calls in it where no tools are given."""

_ANY = CacheRates()


def requests(request: ModelRequest[Any], target: Target, unit: str) -> Iterator[ModelRequest[Any]]:
    """The last call, in ways that take less and less of a prompt. `request` is what would be sent otherwise."""
    silent, messages = _silenced(request, target), request.messages
    for fewer in _fewer(messages, request.system_message, target):
        asked = _asked(fewer, target, ASK.format(unit=unit))
        yield thinking_if_taken(silent.override(messages=asked), asked)
    if silent.tools and not any(isinstance(message, ToolMessage) for message in messages):
        # Claude takes no history of tool calls without tools; where there is none, they need not be paid for.
        asked = _asked([*messages], target, ASK.format(unit=unit))
        yield silent.override(messages=asked, tools=[], tool_choice=None)


def directly(request: ModelRequest[Any], purpose: Purpose) -> Tell:
    """The same call past whatever else the agent puts around its calls, which may have calls of its own refused."""
    model, messages = request.model, [*request.messages]
    if request.system_message is not None:
        messages.insert(0, request.system_message)
    bound: Any = model
    if request.tools:
        choice = {} if request.tool_choice is None else {"tool_choice": request.tool_choice}
        bound = model.bind_tools(request.tools, **choice, **request.model_settings)
    elif request.model_settings:
        bound = model.bind(**request.model_settings)
    return Tell(model, messages, purpose, bound, aside=False)


def spoken(result: Any, unit: str) -> AIMessage:
    """The last answer as it ends the agent: without the tool calls some models make all the same."""
    found = message_in(result)
    text = found.text if found is not None else ""
    if found is None or not (text or found.tool_calls):
        return unsaid(unit)
    if is_claudes(found):
        found = without_thinking(found)  # bound to what was asked for here, which no later prompt has
    content = text or UNSAID.format(unit=unit) if found.tool_calls or found.invalid_tool_calls else found.content
    kept = {key: value for key, value in found.additional_kwargs.items() if key != "tool_calls"}
    told = {**found.response_metadata, MARK: {**found.response_metadata.get(MARK, {}), "ended": unit}}
    clean = {"content": content, "tool_calls": [], "invalid_tool_calls": [], "additional_kwargs": kept}
    return found.model_copy(update={**clean, "response_metadata": told})


def unsaid(unit: str) -> AIMessage:
    """An end without a call, where there is no money for one."""
    return AIMessage(UNSAID.format(unit=unit), response_metadata={MARK: {"ended": unit}})


def ending(message: AIMessage, request: ModelRequest[Any]) -> Any:
    """The last answer as what ends the agent: one that owes a structured answer would ask for it again and again."""
    if request.response_format is None:
        return message
    return ExtendedModelResponse(ModelResponse([message]), Command(update={"jump_to": "end"}))


def unit_of(refused: Refused) -> str:
    """What ran out, in a word."""
    return refused.unit or "loop"


def message_in(result: Any) -> AIMessage | None:
    """The model's answer in whatever a middleware may give back."""
    if isinstance(result, ExtendedModelResponse):
        result = result.model_response
    if isinstance(result, ModelResponse):
        return next((one for one in reversed(result.result) if isinstance(one, AIMessage)), None)
    return result if isinstance(result, AIMessage) else None


def _silenced(request: ModelRequest[Any], target: Target) -> ModelRequest[Any]:
    settings = {name: value for name, value in request.model_settings.items() if name != "parallel_tool_calls"}
    choice = _NO_CHOICE.get(target.provider or "") if request.tools else None
    gone = choice is None and target.provider not in _KEEP_TOOLS
    return request.override(
        tool_choice=choice,
        response_format=None,
        tools=[] if gone else request.tools,
        model_settings=settings if gone else request.model_settings,
    )


def _fewer(
    messages: Sequence[BaseMessage], system: SystemMessage | None, target: Target
) -> Iterator[list[BaseMessage]]:
    def tokens(message: BaseMessage) -> int:
        return measure(message).prompt.expected(target.provider)

    yield [*messages]
    newest = [*messages]
    for index in range(len(newest) - 1, -1, -1):
        message = newest[index]
        if not isinstance(message, ToolMessage):
            break
        if isinstance(message.content, str) and tokens(message) > _SHORT:
            newest[index] = shortened(message, _SHORT, tokens)
    if newest != [*messages]:
        yield newest
    size = sum(map(tokens, messages))
    while (size := size // 2) > SHORTEST:
        conversation = Conversation(History(size, keep=0.9), target.provider)
        try:
            conversation.take(newest, _ANY, system)
            conversation.cut()
            conversation.decide(_ANY)
        except HistoryTooLong:
            return
        yield conversation.view()


def _asked(messages: list[BaseMessage], target: Target, text: str) -> list[Any]:
    last = messages[-1]
    if target.provider == "mistral" and isinstance(last, ToolMessage):
        # It takes no user message after a tool's.
        return [*messages[:-1], last.model_copy(update={"content": with_text(last.content, text)})]
    return [*messages, HumanMessage(text)]
