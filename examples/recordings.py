"""Recorded agent conversations: readers for tau-bench, InterCode and mini-SWE, and a chat model that answers them.

The format is told by the content:

| format | a file holds |
|---|---|
| tau | a list of conversations, each `task_id`, `reward` and `traj`, OpenAI chat messages |
| InterCode | an object of episodes, each `query` and `turn_history`: lists of actions, observations, rewards |
| mini-SWE | JSON lines, one model call each: `input` (the whole prompt), `output`, `session_id`, `timestamp` |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolCall, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field, InstanceOf, Json, TypeAdapter, ValidationError

T = TypeVar("T")

SQL_TOOL = "execute_sql"
"""InterCode records what was executed, not a tool's name: this is the name it gets."""

_EXPECTED = (
    "expected a JSON list of {task_id, traj} (tau), a JSON object of {query, turn_history} (InterCode), "
    "or JSON lines of {input, output, session_id, timestamp} (mini-SWE)"
)


class RecordingError(Exception):
    """A file cannot be read as recordings; the message names it and says what was expected."""


class Call(NamedTuple):
    """One recorded model call: what the model was shown, and what it answered."""

    prompt: tuple[BaseMessage, ...]
    answer: AIMessage


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded run of an agent.

    `messages` is the conversation from the first message to the last, for an agent loop to go through; it is empty
    where only whole prompts were recorded. `solved` is the recording's own verdict, None where it has none.
    """

    id: str
    calls: tuple[Call, ...]
    messages: tuple[BaseMessage, ...]
    solved: bool | None


def read(path: Path) -> list[Recording]:
    """Every recording in a file, or in the `*.jsonl` files of a directory, in a fixed order.

    Raises:
        RecordingError: there is none, or one cannot be read.
    """
    try:
        files = sorted(file for file in path.glob("*.jsonl") if file.is_file()) if path.is_dir() else [path]
        if not files:
            raise RecordingError(f"{path}: a directory without any *.jsonl file")
        return [recording for file in files for recording in _read_file(file)]
    except OSError as error:
        raise RecordingError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None


def _read_file(path: Path) -> list[Recording]:
    text = _text(path)
    try:
        whole = _parsed(text)
    except ValueError as error:
        return _read_lines(path, text, error)
    if isinstance(whole, list) and whole:
        return [_tau(path, item) for item in _checked(path, "tau", list[_Tau], whole)]
    if isinstance(whole, dict) and "input" in whole:
        return _sessions(_checked(path, "mini-SWE", list[_Line], [whole]))
    if isinstance(whole, dict) and whole and all(isinstance(item, dict) for item in whole.values()):
        episodes = _checked(path, "InterCode", dict[str, _Episode], whole)
        return [_episode(path, name, episode) for name, episode in episodes.items()]
    raise RecordingError(f"{path}: no recording; {_EXPECTED}")


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RecordingError(f"{path}: not UTF-8 text; {_EXPECTED}") from None
    if not text.strip():
        raise RecordingError(f"{path}: empty; {_EXPECTED}")
    return text


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _read_lines(path: Path, text: str, as_a_whole: ValueError) -> list[Recording]:
    # Not by str.splitlines: a JSON string may hold separators such as U+2028 as they are.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    values: list[Any] = []
    for number, line in lines:
        try:
            values.append(_parsed(line))
        except ValueError as error:
            told = as_a_whole if not values else f"line {number}: {error}"
            raise RecordingError(f"{path}: not valid JSON: {told}; {_EXPECTED}") from None
    return _sessions(_checked(path, "mini-SWE", list[_Line], values))


def _checked(path: Path, format: str, shape: type[T], value: object) -> T:
    try:
        return TypeAdapter(shape).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the top"
        raise RecordingError(f"{path}: no {format} recording: at {where}: {first['msg']}; {_EXPECTED}") from None


def _label(value: object) -> str:
    """An id as it is shown, on one line and in ASCII, whatever the file put into it."""
    return json.dumps(str(value))[1:-1]


# tau


class _Function(BaseModel):
    name: str = Field(min_length=1)
    arguments: Json[dict[str, Any]]


class _ToolCall(BaseModel):
    id: str
    function: _Function


class _Message(BaseModel):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None

    def spoken(self) -> BaseMessage:
        """As LangChain's message."""
        text = self.content or ""
        if self.role == "assistant":
            calls = [ToolCall(name=c.function.name, args=c.function.arguments, id=c.id) for c in self.tool_calls or ()]
            return AIMessage(text, tool_calls=calls)
        if self.role == "tool":
            return ToolMessage(text, tool_call_id=self.tool_call_id or "")
        return SystemMessage(text) if self.role == "system" else HumanMessage(text)


class _Tau(BaseModel):
    task_id: int | str
    reward: float | None = None
    traj: list[_Message] = Field(min_length=1)


def _tau(path: Path, item: _Tau) -> Recording:
    messages = tuple(message.spoken() for message in item.traj)
    name = _label(item.task_id)
    try:
        _check_order(messages)
    except ValueError as error:
        raise RecordingError(f"{path}: conversation {name} is no agent's: {error}") from None
    return _conversation(name, messages, None if item.reward is None else item.reward == 1)


_AFTER = {
    "start": ("system", "human"),
    "system": ("human",),
    "human": ("ai",),
    "ai": ("human",),
    "ai with tool calls": ("tool",),
    "tool": ("ai",),
}


def _check_order(messages: Sequence[BaseMessage]) -> None:
    """An agent loop's order: a user's turn, then answers, each followed by the answers to all its tool calls."""
    before, open_calls = "start", set[str]()
    for number, message in enumerate(messages):
        if isinstance(message, ToolMessage) and message.tool_call_id in open_calls:
            open_calls.remove(message.tool_call_id)
        elif open_calls or message.type not in _AFTER[before] or isinstance(message, ToolMessage):
            raise ValueError(f"message {number} ({message.type}) cannot follow {before}")
        before = message.type
        if isinstance(message, AIMessage) and message.tool_calls:
            before, open_calls = "ai with tool calls", {str(call["id"]) for call in message.tool_calls}
            _check_calls(number, message)
    if open_calls or not any(isinstance(message, AIMessage) for message in messages):
        raise ValueError("it ends before the tool calls are answered" if open_calls else "no model answer in it")


def _check_calls(number: int, message: AIMessage) -> None:
    """What a real tool node can carry out."""
    calls = message.tool_calls
    if len({call["id"] for call in calls}) < len(calls):
        raise ValueError(f"two tool calls of message {number} share an id")
    for name in (name for call in calls for name in call["args"]):
        if name == "self" or name.startswith("$"):
            raise ValueError(f"message {number} calls a tool with an argument {name!r}, which no Python tool can have")


def _conversation(name: str, messages: tuple[BaseMessage, ...], solved: bool | None) -> Recording:
    calls = tuple(Call(messages[:at], said) for at, said in enumerate(messages) if isinstance(said, AIMessage))
    return Recording(name, calls, messages, solved)


# InterCode


class _History(BaseModel):
    actions: list[str] = Field(min_length=1)
    observations: list[str]
    rewards: list[float] = []


class _Episode(BaseModel):
    query: str
    turn_history: _History


def _episode(path: Path, key: str, episode: _Episode) -> Recording:
    """Every action is a tool call, also the last: there the environment ended the episode, the model did not."""
    history, name = episode.turn_history, _label(key)
    if len(history.actions) != len(history.observations):
        count = f"{len(history.actions)} actions and {len(history.observations)} observations"
        raise RecordingError(f"{path}: episode {name} has {count}; expected as many of the one as of the other")
    messages: list[BaseMessage] = [HumanMessage(episode.query)]
    for number, (action, observation) in enumerate(zip(history.actions, history.observations, strict=True)):
        call = ToolCall(name=SQL_TOOL, args={"query": action}, id=f"call_{number}")
        messages += [AIMessage("", tool_calls=[call]), ToolMessage(observation, tool_call_id=f"call_{number}")]
    return _conversation(name, tuple(messages), max(history.rewards) == 1 if history.rewards else None)


# mini-SWE


class _Line(BaseModel):
    input: str
    output: str
    session_id: str
    timestamp: int | float


def _sessions(lines: Iterable[_Line]) -> list[Recording]:
    """A recording a session. The lines of a file are in no order; time puts a session's prompts in theirs."""
    sessions: dict[str, list[Call]] = {}
    for line in sorted(lines, key=lambda line: (line.session_id, line.timestamp)):
        call = Call((HumanMessage(line.input),), AIMessage(line.output))
        sessions.setdefault(line.session_id, []).append(call)
    return [Recording(_label(name), tuple(calls), (), None) for name, calls in sessions.items()]


# The model that answers them

TOKENS_PER_BYTE = 0.25
"""Of UTF-8, rounded up for each message: o200k measured .212 on English prose and .27 to .295 on JSON."""

TOKENS_PER_MESSAGE = 4


class Diverged(RuntimeError):
    """The loop went another way than the recording."""


def tokens(text: str) -> int:
    """The tokens the scripted provider counts in a text."""
    return ceil(len(text.encode("utf-8", "surrogatepass")) * TOKENS_PER_BYTE)


def _said(message: BaseMessage) -> str:
    calls = message.tool_calls if isinstance(message, AIMessage) else ()
    return message.text + "".join(_dumped({"name": call["name"], "arguments": call["args"]}) for call in calls)


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def usage_of(prompt: Sequence[BaseMessage], tools: Iterable[object], answer: AIMessage) -> tuple[int, int]:
    """Input and output tokens of one call, as the provider bills them."""
    shown = sum(TOKENS_PER_MESSAGE + tokens(_said(message)) for message in prompt)
    return shown + sum(tokens(_dumped(tool)) for tool in tools), tokens(_said(answer))


def longest_answer(recording: Recording) -> int:
    """The output cap that its calls needed."""
    return max(1, *(tokens(_said(answer)) for _, answer in recording.calls))


class ScriptedModel(BaseChatModel):
    """Answers what was recorded, call by call, and keeps a bill of its own."""

    model: str
    max_tokens: int
    recording: InstanceOf[Recording] = Field(repr=False)
    served: list[tuple[int, int]] = Field(default_factory=list, repr=False)

    @property
    def over(self) -> bool:
        """Nothing more was recorded."""
        return len(self.served) == len(self.recording.calls)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Offer tools; their schemas are billed as input."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        answer = self._next(messages).answer
        inputs, outputs = usage_of(messages, kwargs.get("tools") or (), answer)
        self.served.append((inputs, outputs))
        spoken = AIMessage(
            answer.content,
            tool_calls=answer.tool_calls,
            usage_metadata=UsageMetadata(input_tokens=inputs, output_tokens=outputs, total_tokens=inputs + outputs),
            response_metadata={"model_name": self.model, "finish_reason": _finish(answer)},
        )
        return ChatResult(generations=[ChatGeneration(message=spoken)])

    def _next(self, messages: Sequence[BaseMessage]) -> Call:
        if self.over:
            raise Diverged(f"run {self.recording.id}: one model call more than was recorded")
        call = self.recording.calls[len(self.served)]
        if [_content(message) for message in messages] != [_content(message) for message in call.prompt]:
            raise Diverged(f"run {self.recording.id}: call {len(self.served) + 1} was shown what was not recorded")
        return call

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(
            ls_provider="openai", ls_model_name=self.model, ls_model_type="chat", ls_max_tokens=self.max_tokens
        )

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # The answers are bounded and nothing is retried; said here, it makes every call hard.
        return {"model": self.model, "max_tokens": self.max_tokens, "max_retries": 0}

    @property
    def _llm_type(self) -> str:
        return "recorded"


def _finish(answer: AIMessage) -> str:
    return "tool_calls" if answer.tool_calls else "stop"


def _content(message: BaseMessage) -> tuple[object, ...]:
    calls = [(c["name"], c["args"], c["id"]) for c in message.tool_calls] if isinstance(message, AIMessage) else []
    answers = message.tool_call_id if isinstance(message, ToolMessage) else None
    return message.type, message.content, calls, answers
