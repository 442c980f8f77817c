"""Claude's thinking: signed, bound to all that came before it, and wanted where an answer goes on from tools.

After a cut it is left out whole, and stays out; where it is missing, thinking on a budget given by hand is turned off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

_CLAUDES_ALONE = "redacted_thinking"
_THINKING = ("thinking", _CLAUDES_ALONE, "reasoning", "reasoning_content")
_SELLERS = ("anthropic", "bedrock", "amazon_bedrock")


def is_claudes(message: AIMessage) -> bool:
    """Claude said it, as far as it tells."""
    seller = message.response_metadata.get("model_provider")
    if seller:
        return str(seller).startswith(_SELLERS)
    return isinstance(message.content, list) and any(_type_of(block) == _CLAUDES_ALONE for block in message.content)


def without_thinking(message: AIMessage) -> AIMessage:
    """The answer without its thinking; itself where it has none."""
    content = message.content
    if isinstance(content, str):
        return message
    kept = [block for block in content if not is_thinking(block)]
    return message if len(kept) == len(content) else message.model_copy(update={"content": kept})


def is_thinking(block: object) -> bool:
    """A block of thinking, readable or not."""
    return _type_of(block) in _THINKING


def needs_thinking(messages: Sequence[BaseMessage]) -> bool:
    """It goes on from the results of an answer that does not begin with thinking: Claude refuses to think on there."""
    for index in range(len(messages) - 1, -1, -1):
        answer = messages[index]
        if isinstance(answer, AIMessage):
            goes_on = any(isinstance(one, ToolMessage) for one in messages[index + 1 :])
            content = answer.content
            return goes_on and not (isinstance(content, list) and bool(content) and is_thinking(content[0]))
    return False


def thinks_by_hand(model: BaseChatModel, settings: Mapping[str, Any]) -> bool:
    """The call's thinking has a budget that was given by hand."""
    return any(
        isinstance(told, Mapping) and told.get("type") == "enabled"
        for told in (getattr(model, "thinking", None), settings.get("thinking"))
    )


def _type_of(block: object) -> object:
    return block.get("type") if isinstance(block, Mapping) else None
