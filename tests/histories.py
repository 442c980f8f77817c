"""Random histories as LangChain's agents have them, ending where a model would be called next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from hypothesis import strategies as st
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from .validators import sign

Origin = Literal["anthropic", "openai", "mixed"]
Draw = Callable[[st.SearchStrategy[Any]], Any]

CLAUDE, OTHER_CLAUDE, GPT, OTHER_GPT, GEMINI = (
    *("claude-sonnet-5", "claude-haiku-4-5-20251001"),
    *("gpt-4o", "gpt-4o-mini", "gemini-2.5-flash"),
)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

_WORDS = st.text(alphabet="abc é中", min_size=1, max_size=12).map(lambda text: f"w{text}")
_ARGS = st.dictionaries(st.sampled_from(["q", "n"]), _WORDS | st.integers(0, 9), max_size=2)
_MAKERS: dict[Origin, tuple[str, ...]] = {
    "anthropic": (CLAUDE,),
    "openai": (GPT,),
    "mixed": (CLAUDE, OTHER_CLAUDE, GPT, OTHER_GPT, "responses", GEMINI, "unmarked", "odd"),
}


def text_block(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def image_block() -> dict[str, Any]:
    return {"type": "image", "base64": PIXEL, "mime_type": "image/png"}


def claude_image() -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "data": PIXEL, "media_type": "image/png"}}


def image_url() -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}


@st.composite
def histories(draw: Draw, origin: Origin = "mixed", *, rounds: int = 3) -> list[BaseMessage]:
    """A history with one or more rounds of a user's message, tool calls with their results, and an answer."""
    maker = _Maker(draw, origin)
    messages: list[BaseMessage] = []
    if draw(st.booleans()):
        marked: list[str | dict[str, Any]] = [text_block(draw(_WORDS), cache_control={"type": "ephemeral"})]
        plain: str = draw(_WORDS)
        messages.append(SystemMessage(marked if origin != "openai" and draw(st.booleans()) else plain))
    last = draw(st.integers(1, rounds))
    for at in range(1, last + 1):
        messages.append(maker.user())
        steps = draw(st.integers(0, 2))
        for _ in range(steps):
            messages += maker.step()
        # The end: a model is called on a user's message, or on the results of tools.
        if at < last:
            messages += maker.ending()
    return messages


def signed(messages: Sequence[BaseMessage], model: ChatAnthropic) -> list[BaseMessage]:
    """The history with the signatures that a Claude model would have given, were its thinking bound to what it read."""
    made: list[BaseMessage] = []
    for message in messages:
        if isinstance(message, AIMessage) and isinstance(message.content, list):
            payload = model._get_request_payload(made)
            signature = sign(payload.get("system"), payload["messages"])
            content = [
                {**block, "signature": signature} if isinstance(block, dict) and block["type"] == "thinking" else block
                for block in message.content
            ]
            made.append(message.model_copy(update={"content": content}))
        else:
            made.append(message)
    return made


class _Maker:
    def __init__(self, draw: Draw, origin: Origin) -> None:
        self._draw = draw
        self._origin = origin
        self._count = 0

    def user(self) -> HumanMessage:
        images = [image_block, image_url, *([claude_image] if self._origin != "openai" else [])]
        if self._draw(st.integers(0, 3)):
            return HumanMessage(self._draw(_WORDS))
        return HumanMessage([text_block(self._draw(_WORDS)), self._draw(st.sampled_from(images))()])

    def step(self) -> list[BaseMessage]:
        by = self._by()
        calls = [self._call(by) for _ in range(self._draw(st.integers(1, 3)))]
        answer = _ANSWERS[by](self, self._draw(_WORDS) if self._draw(st.booleans()) else "", calls)
        results = [self._result(call["id"]) for call in calls]
        if by == "odd" and self._draw(st.booleans()):
            bad = {"type": "invalid_tool_call", "name": "f", "args": '{"q": ', "id": self._id("bad"), "error": "cut"}
            answer = answer.model_copy(update={"invalid_tool_calls": [bad]})
            results.append(self._result(bad["id"]))
        return [answer, *self._draw(st.permutations(results))]

    def ending(self) -> list[BaseMessage]:
        by = self._by()
        if by == "odd":
            return [self._draw(st.sampled_from(_ODD))()]
        answer: BaseMessage = _ANSWERS[by](self, self._draw(_WORDS), [])
        if self._origin == "mixed" and not self._draw(st.integers(0, 7)):
            return [answer, SystemMessage(self._draw(_WORDS))]
        return [answer]

    def _by(self) -> str:
        return str(self._draw(st.sampled_from(_MAKERS[self._origin])))

    def _id(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count:04d}"

    def _call(self, by: str) -> dict[str, Any]:
        prefix = {CLAUDE: "toolu_", OTHER_CLAUDE: "toolu_", GPT: "call_", OTHER_GPT: "call_", "responses": "call_"}
        if by == "odd":
            # Ids that no provider but the one they come from would take, and one that comes again and again.
            call_id = self._draw(st.sampled_from(["again", self._id("functions.f:"), self._id("x" * 50)]))
        else:
            call_id = self._id(prefix.get(by, "id-"))
        return {"name": "look_up", "args": self._draw(_ARGS), "id": call_id, "type": "tool_call"}

    def _result(self, call_id: str) -> ToolMessage:
        choice = self._draw(st.integers(0, 3))
        content: Any = self._draw(_WORDS)
        if choice == 1:
            content = [text_block(content)]
        elif choice == 2 and self._origin != "openai":
            content = [text_block(content), self._draw(st.sampled_from([image_block, claude_image]))()]
        return ToolMessage(content, tool_call_id=call_id, name="look_up")

    def by_claude(self, text: str, calls: list[dict[str, Any]], *, model: str = CLAUDE) -> AIMessage:
        content: list[str | dict[str, Any]] = []
        if self._draw(st.booleans()):
            content.append({"type": "thinking", "thinking": self._draw(_WORDS), "signature": self._id("sig")})
        content += [text_block(text)] if text else []
        content += [{"type": "tool_use", "id": one["id"], "name": one["name"], "input": one["args"]} for one in calls]
        plain = text if len(content) == 1 and text else content
        return AIMessage(plain, tool_calls=calls, response_metadata=_made_by("anthropic", model))

    def by_gpt(self, text: str, calls: list[dict[str, Any]], *, model: str = GPT) -> AIMessage:
        told = _made_by("openai", f"{model}-2024-08-06")
        return AIMessage(text, tool_calls=calls, additional_kwargs={"refusal": None}, response_metadata=told)

    def by_responses(self, text: str, calls: list[dict[str, Any]]) -> AIMessage:
        content: list[str | dict[str, Any]] = [{"type": "reasoning", "id": self._id("rs_"), "summary": []}]
        content += [text_block(text, id=self._id("msg_"), annotations=[])] if text else []
        for one in calls:
            item = {"type": "function_call", "name": one["name"], "arguments": "{}", "call_id": one["id"]}
            content.append({**item, "id": self._id("fc_")})
        return AIMessage(content, tool_calls=calls, response_metadata=_made_by("openai", "o3-2025-04-16"))

    def by_gemini(self, text: str, calls: list[dict[str, Any]]) -> AIMessage:
        content: list[str | dict[str, Any]] = [{"type": "thinking", "thinking": "hm", "signature": "c2ln"}]
        content += [text_block(text)] if text else []
        signatures = {"__gemini_function_call_thought_signatures__": {one["id"]: "c2ln" for one in calls}}
        return AIMessage(
            content, tool_calls=calls, additional_kwargs=signatures, response_metadata=_made_by("google_genai", GEMINI)
        )

    def unmarked(self, text: str, calls: list[dict[str, Any]]) -> AIMessage:
        return AIMessage(text, tool_calls=calls)


def _made_by(provider: str, model: str) -> dict[str, Any]:
    return {"model_provider": provider, "model_name": model}


_ANSWERS: dict[str, Callable[[_Maker, str, list[dict[str, Any]]], AIMessage]] = {
    CLAUDE: _Maker.by_claude,
    OTHER_CLAUDE: lambda maker, text, calls: maker.by_claude(text, calls, model=OTHER_CLAUDE),
    GPT: _Maker.by_gpt,
    OTHER_GPT: lambda maker, text, calls: maker.by_gpt(text, calls, model=OTHER_GPT),
    "responses": _Maker.by_responses,
    GEMINI: _Maker.by_gemini,
    "unmarked": _Maker.unmarked,
    "odd": _Maker.unmarked,
}
_ODD: tuple[Callable[[], AIMessage], ...] = (
    lambda: AIMessage(""),
    lambda: AIMessage(" "),
    lambda: AIMessage([{"type": "refusal", "refusal": "no"}], response_metadata=_made_by("openai", "o3")),
    lambda: AIMessage([text_block("see"), image_url()], response_metadata=_made_by("google_genai", GEMINI)),
    lambda: AIMessage([{"type": "redacted_thinking", "data": "x"}], response_metadata=_made_by("anthropic", "old")),
    lambda: AIMessage(
        [{"type": "executable_code", "executable_code": "1", "language": "PYTHON"}, text_block("ran")],
        response_metadata=_made_by("google_genai", GEMINI),
    ),
    lambda: AIMessage(
        [{"type": "web_search_call", "id": "ws_1", "status": "completed"}, text_block("found", id="msg_1")],
        response_metadata=_made_by("openai", "o3"),
    ),
)
