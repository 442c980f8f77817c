"""What the content of a message becomes when another provider's model is to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, HumanMessage

from .parts import as_json

Block = dict[str, Any]
Blocks = list[str | Block]
Content = str | list[str | Block]

IMAGE_MOVED = "[image: see the next user message]"
IMAGE_LOST = "[image not available to this model]"
FILE_LOST = "[file not available to this model]"
LOST = "[content not available to this model]"
MOVED_IMAGES = "[images of the messages above]"

_CALLS = frozenset({"custom_tool_call", "function_call", "tool_call", "tool_use"})
_FILES = frozenset({"audio", "document", "file", "input_audio", "input_file", "media", "text-plain", "video"})
_IMAGES = frozenset({"image", "image_url", "input_image"})
_REASONING = frozenset({"reasoning", "reasoning_content", "redacted_thinking", "thinking"})
_TEXTS = frozenset({"input_text", "output_text", "text", "text-plain"})
_OPENAI_FORMS = frozenset({"input_audio", "input_file", "input_image", "input_text"})
_CLAUDE_FORMS = frozenset({"container_upload", "document", "search_result"})
_UNTYPED = ("image", "document", "video", "text", "json")

_ITEM_IDS = ("fc_", "msg_", "rs_")
_REASONING_KEYS = frozenset({"__openai_function_call_ids__", "reasoning", "reasoning_content", "reasoning_details"})
# What OpenAI's own tools did: items of the Responses API, which refuses them without the reasoning that led there.
_HOSTED = frozenset(
    {
        *("code_interpreter_call", "computer_call", "file_search_call", "image_generation_call", "mcp_call"),
        *("mcp_list_tools", "server_tool_call", "server_tool_result", "tool_search_call", "web_search_call"),
    }
)
_REFUSED = {"anthropic": ("audio", "video"), "aws": ("audio",), "google": ()}
_REFUSED_ELSEWHERE = ("video",)
_RESULTS_WITH_IMAGES = frozenset({"anthropic", "aws", "google"})


class Form(NamedTuple):
    """What the target of a history takes in its messages."""

    family: str | None
    responses: bool = False

    @property
    def cache_marks(self) -> bool:
        """Its blocks may say where the prompt cache breaks."""
        return self.family in ("anthropic", "aws")

    @property
    def result_images(self) -> bool:
        """A tool's result may have images."""
        return self.responses or self.family in _RESULTS_WITH_IMAGES

    @property
    def strings(self) -> bool:
        """A list of blocks may have bare strings."""
        return self.family in _RESULTS_WITH_IMAGES

    @property
    def urls(self) -> bool:
        """It, or its package, fetches files by their address."""
        return self.responses or self.family in ("anthropic", "google")


def user_content(content: Content, form: Form, *, foreign_files: bool) -> Content:
    """What a user, or the system, said; the same object where nothing needs a change."""
    if isinstance(content, str):
        return content
    made = [_portable(block, form, foreign_files=foreign_files) for block in content]
    kept = [block for block in made if block is not None]
    return content if _unchanged(content, kept) else kept


def result_content(content: Content, form: Form, *, foreign_files: bool) -> tuple[Content, list[Block]]:
    """What a tool gave, and the images that a user's message must bring in its place."""
    if isinstance(content, str):
        return content, []
    images: list[Block] = []
    made: Blocks = []
    for block in content:
        portable = _portable(block, form, foreign_files=foreign_files)
        if portable is not None:
            made.append(_in_result(portable, form, images))
    return (content if _unchanged(content, made) else made), images


def answer_text(message: AIMessage, form: Form) -> tuple[str, list[Block]]:
    """What a model said in plain text, and the images it made; its reasoning and citations are left out."""
    told = _Told(form)
    for block in [message.content] if isinstance(message.content, str) else message.content:
        told.add(block)
    extra = message.additional_kwargs
    audio = extra.get("audio")
    for text in (extra.get("refusal"), audio.get("transcript") if isinstance(audio, Mapping) else None):
        if isinstance(text, str) and text not in told.texts:
            told.add_text(text)
    return told.text(), told.images


def images_message(images: Sequence[Block]) -> HumanMessage:
    """The user's message that brings images which may not stand where they were."""
    return HumanMessage([{"type": "text", "text": MOVED_IMAGES}, *images])


def is_plain_answer(message: AIMessage) -> bool:
    """It is text and tool calls, and nothing that only the provider of its model would understand."""
    if message.additional_kwargs or message.invalid_tool_calls or message.response_metadata.get("output_version"):
        return False
    if isinstance(message.content, str):
        return True
    return all(isinstance(block, str) or (block.keys() == {"type", "text"}) for block in message.content)


def without_reasoning(message: AIMessage, form: Form) -> AIMessage:
    """The answer for another model of the same provider: no reasoning, and no ids of items that hang on it."""
    extra = {key: value for key, value in message.additional_kwargs.items() if key not in _REASONING_KEYS}
    content = message.content
    if not isinstance(content, str):
        dropped = _REASONING | _HOSTED if _loses_hosted(content, form) else _REASONING
        made = [_without_item_id(block) for block in content if _kind(block) not in dropped]
        content = content if _unchanged(content, made) else made
    if content is message.content and len(extra) == len(message.additional_kwargs):
        return message
    return message.model_copy(update={"content": content or "", "additional_kwargs": extra})


def says_nothing(message: AIMessage) -> bool:
    """It has no text, no calls, and nothing but reasoning besides."""
    if message.tool_calls or message.invalid_tool_calls:
        return False
    if isinstance(message.content, str):
        refusal = message.additional_kwargs.get("refusal") or message.additional_kwargs.get("audio")
        return not (message.content.strip() or refusal)
    return all(
        not block.strip()
        if isinstance(block, str)
        else _kind(block) in _REASONING or (_kind(block) == "text" and not str(block.get("text") or "").strip())
        for block in message.content
    )


def is_call(block: str | Block) -> bool:
    """A copy of a tool call."""
    return _kind(block) in _CALLS


class _Told:
    """Puts the text of an answer together."""

    def __init__(self, form: Form) -> None:
        self.texts: list[str] = []
        self.images: list[Block] = []
        self._form = form
        self._joins = False

    def text(self) -> str:
        return "".join(self.texts).strip()

    def add_text(self, text: str) -> None:
        # Claude cuts one text into blocks where it cites; anything else in between starts a paragraph.
        if self.texts and not self._joins:
            self.texts.append("\n\n")
        self.texts.append(text)
        self._joins = True

    def add(self, block: str | Block) -> None:
        if isinstance(block, str):
            self.add_text(block)
            return
        kind = block.get("type")
        if kind == "non_standard" and isinstance(block.get("value"), dict):
            self.add(block["value"])
        elif kind in _TEXTS or kind == "refusal":
            self.add_text(str(block.get("refusal" if kind == "refusal" else "text") or ""))
        else:
            self._joins = False
            self._add_medium(block)

    def _add_medium(self, block: Block) -> None:
        if block.get("type") == "image_generation_call":
            block = {"type": "image", "base64": block.get("result") or "", "mime_type": "image/png"}
        if block.get("type") in _IMAGES:
            self.add_text(_moved(_standard(block, self._form), self._form, self.images))
        elif block.get("type") in _FILES:
            self.add_text(FILE_LOST)
        else:
            return  # reasoning, tool calls (they stand in `tool_calls` too), and what the provider did by itself
        self._joins = False


def _portable(block: str | Block, form: Form, *, foreign_files: bool) -> str | Block | None:
    """A block the target can read; None where it is a mark that means nothing to it."""
    if isinstance(block, str):
        return block if form.strings else _text(block)
    if not form.cache_marks:
        if "cachePoint" in block:
            return None
        block = _without_marks(block)
    native = _native_to(block)
    if native is not None and native == form.family:
        return block
    if _is_reference(block) and (native is not None or foreign_files):
        return _text(FILE_LOST)
    return _taken(block if native is None else _standard(block, form), form)


def _native_to(block: Block) -> str | None:
    """The provider whose own form this is; None for LangChain's, and for those every package takes."""
    kind = block.get("type")
    if kind is None:
        return "aws" if any(name in block for name in _UNTYPED) else None
    if kind in _CLAUDE_FORMS or (kind == "image" and "source" in block):
        return "anthropic"
    if kind in _OPENAI_FORMS or (kind == "file" and "file" in block):
        return "openai"
    return "google" if kind == "media" or (kind == "image_url" and isinstance(block.get("image_url"), str)) else None


def _is_reference(block: Block) -> bool:
    """It names a file that was uploaded to one provider."""
    inner = block.get("source") or block.get("file") or block
    if block.get("source_type") == "id" or block.get("file_uri"):
        return True
    return isinstance(inner, Mapping) and bool(inner.get("file_id"))


def _standard(block: Block, form: Form) -> Block:
    """A provider's own form as a standard block; a text in its place where there is none."""
    try:
        made: Block = dict(HumanMessage([_usual(block)]).content_blocks[0])
    except (IndexError, KeyError, TypeError, ValueError):
        return _text(LOST)
    if made.get("type") == "non_standard":
        return _text(_text_in(block) or LOST)
    if str(made.get("id", "")).startswith("lc_"):
        del made["id"]  # minted at random, and the same history must give the same bytes
    extras = made.pop("extras", None) or {}
    if made.get("type") == "file" and "base64" in made and not form.strings:
        made["filename"] = str(extras.get("filename") or extras.get("title") or "file")
    return made


def _usual(block: Block) -> Block:
    """A form that LangChain has no reading for, as one that it has."""
    kind = block.get("type")
    if kind == "input_text":
        return _text(str(block.get("text")))
    if kind == "input_image" or (kind == "image_url" and isinstance(block.get("image_url"), str)):
        return {"type": "image_url", "image_url": {"url": block["image_url"]}}
    if kind == "input_file":
        return {"type": "file", "file": {name: value for name, value in block.items() if name != "type"}}
    if kind == "media":
        mime = str(block.get("mime_type"))
        major = mime.partition("/")[0]
        form = major if major in ("image", "audio", "video") else "file"
        return {"type": form, "base64": block["data"], "mime_type": mime}
    return block


def _taken(block: Block, form: Form) -> Block:
    """A standard block; a text in its place where the target's package would refuse it."""
    kind = block.get("type")
    if kind == "text-plain" and form.family != "anthropic":
        return _text(str(block.get("text") or block.get("base64") or ""))
    address = _address(block)
    if kind == "file" and address and not form.urls:
        return _text(FILE_LOST)
    if kind in _IMAGES and form.family == "aws" and address and not address.startswith("data:"):
        return _text(IMAGE_LOST)
    return _text(LOST) if kind in _REFUSED.get(form.family or "", _REFUSED_ELSEWHERE) else block


def _in_result(block: str | Block, form: Form, images: list[Block]) -> str | Block:
    """A block of a tool's result; images that may not stand there go to the others."""
    kind = _kind(block)
    if isinstance(block, str) or kind == "text" or form.family == "anthropic":
        return block
    if kind in _IMAGES:
        return block if form.result_images else _text(_moved(block, form, images))
    if kind in _FILES:
        return block if form.result_images else _text(FILE_LOST)
    if form.family == "aws" and kind is None:
        return block
    return _text(_text_in(block) or as_json(block))


def _moved(block: Block, form: Form, images: list[Block]) -> str:
    """What stands in an image's place; the image goes to the others, where it is there and may follow."""
    there = _kind(block) in _IMAGES and bool(_address(block) or block.get("base64") or block.get("data"))
    # Mistral takes no user's message after a tool's.
    if not there or form.family == "mistral" or _taken(block, form) is not block:
        return IMAGE_LOST
    images.append(block)
    return IMAGE_MOVED


def _address(block: Block) -> str:
    where = block.get("image_url") or block
    found = where.get("url") if isinstance(where, Mapping) else where
    return found if isinstance(found, str) else ""


def _text_in(block: object) -> str:
    """The text of a block whose kind is not known."""
    if isinstance(block, str):
        return block
    if isinstance(block, list):
        return "\n".join(filter(None, map(_text_in, block)))
    if isinstance(block, Mapping):
        return _text_in(block.get("text") or block.get("content") or block.get("source"))
    return ""


def _without_marks(block: Block) -> Block:
    extras = block.get("extras")
    if isinstance(extras, dict) and "cache_control" in extras:
        block = {**block, "extras": {key: value for key, value in extras.items() if key != "cache_control"}}
    return {key: value for key, value in block.items() if key != "cache_control"} if "cache_control" in block else block


def _loses_hosted(content: Sequence[str | Block], form: Form) -> bool:
    """What OpenAI's own tools did cannot be sent: to Chat Completions never, elsewhere not without its reasoning."""
    reasons = any(_kind(block) in _REASONING for block in content)
    return form.family == "openai" and (reasons or not form.responses)


def _without_item_id(block: str | Block) -> str | Block:
    if isinstance(block, str):
        return block
    if str(block.get("id")).startswith(_ITEM_IDS):
        block = {key: value for key, value in block.items() if key != "id"}
    extras = block.get("extras")
    if isinstance(extras, dict) and "item_id" in extras:
        block = {**block, "extras": {key: value for key, value in extras.items() if key != "item_id"}}
    return block


def _kind(block: str | Block) -> object:
    return block.get("type") if isinstance(block, dict) else None


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _unchanged(before: Sequence[str | Block], after: Sequence[str | Block]) -> bool:
    return len(before) == len(after) and all(one is other for one, other in zip(before, after, strict=True))
