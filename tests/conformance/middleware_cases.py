"""Every middleware that langchain ships, in its smallest real configuration, with what the provider answers to it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from langchain.agents import middleware as shipped
from langchain.agents.middleware import (
    AutoModeMiddleware,
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    FilesystemFileSearchMiddleware,
    HostExecutionPolicy,
    HumanInTheLoopMiddleware,
    LLMToolEmulator,
    LLMToolSelectorMiddleware,
    ModelCallLimitMiddleware,
    ModelChoice,
    ModelFallbackMiddleware,
    ModelRefusalMiddleware,
    ModelRetryMiddleware,
    ModelRouterMiddleware,
    PIIMiddleware,
    ProviderToolSearchMiddleware,
    ShellToolMiddleware,
    SummarizationMiddleware,
    TodoListMiddleware,
    ToolCallLimitMiddleware,
    ToolErrorMiddleware,
    ToolRetryMiddleware,
)
from langchain_core.decisions import BaseDecisionModel, ClassifierResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool, tool

from runcap.guardrails.testing import Reply, ScriptedProvider

from ..langchain.conftest import LOOK_UP
from .conftest import claude, openai


@dataclass
class Kit:
    provider: ScriptedProvider
    folder: Path

    def mini(self, **more: Any) -> BaseChatModel:
        return openai(self.provider, model="gpt-4o-mini", **more)


@dataclass(frozen=True)
class Case:
    """A middleware; the requests of a whole run; whether an agent whose model never stops goes on for ever with it."""

    make: Callable[[Kit], Any]
    requests: int = 2
    loops: bool = True
    ask: tuple[str, Mapping[str, Any]] = ("look_up", {"query": "ada@example.org"})
    failures: int = 0
    tool: Callable[[], BaseTool] = lambda: LOOK_UP
    model: Callable[[ScriptedProvider], BaseChatModel] = openai

    def script(self, *, endless: bool) -> Callable[[int, Mapping[str, Any]], Reply]:
        name, given = self.ask

        def answer(number: int, body: Mapping[str, Any]) -> Reply:
            if number < self.failures and not endless:
                return Reply(status=429)
            if "response_format" in body:
                return Reply(text='{"tools": ["look_up"]}')
            may_ask = name in json.dumps(body.get("tools", "")) and (endless or not _is_answer(body["messages"][-1]))
            return Reply(tool_calls=[(name, given)], output_tokens=300) if may_ask else Reply(text="done")

        return answer


def _is_answer(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return message["role"] == "tool" or (
        isinstance(content, list) and any(block.get("type") == "tool_result" for block in content)
    )


class Classifier(BaseDecisionModel):
    """Core ships the base class alone: this one decides by asking a real chat model."""

    llm: BaseChatModel

    @property
    def _provider(self) -> str:
        return "openai"

    def _classify(self, state: Any, questions: Any) -> ClassifierResponse:
        self.llm.invoke("Which is it?")
        return self._decided(questions)

    async def _aclassify(self, state: Any, questions: Any) -> ClassifierResponse:
        await self.llm.ainvoke("Which is it?")
        return self._decided(questions)

    def _decided(self, questions: Any) -> ClassifierResponse:
        answers = {
            key: {"type": "noul", "noul": 0.1}
            if asked.type == "noul"
            else {"type": "choice", "choice": "cheap", "probabilities": {"cheap": 1.0}, "confidence": 1.0}
            for key, asked in questions.items()
        }
        return ClassifierResponse.model_validate({"model": self.model, "answers": answers})


def _router(kit: Kit) -> Any:
    choices = {"cheap": ModelChoice(openai(kit.provider), "always")}
    return ModelRouterMiddleware(choices=choices, instructions="Choose.", classifier=_classifier(kit))


def _classifier(kit: Kit) -> Classifier:
    return Classifier(model="gpt-4o-mini", llm=kit.mini())


def _failing_once() -> BaseTool:
    calls: list[str] = []

    @tool("look_up")
    def look_up(query: str) -> str:
        """Fail the first time."""
        calls.append(query)
        if len(calls) == 1:
            raise ConnectionError("not yet")
        return "found"

    return look_up


class Shells(HostExecutionPolicy):
    """Remembers its shells: langchain leaves the pipes of a stopped one open, and all of it where an agent fails."""

    started: ClassVar[list[subprocess.Popen[str]]] = []

    def spawn(self, **kwargs: Any) -> subprocess.Popen[str]:
        self.started.append(super().spawn(**kwargs))
        return self.started[-1]

    @classmethod
    def close(cls) -> None:
        while cls.started:
            with cls.started.pop() as shell:
                shell.kill()


_NOW: dict[str, Any] = {"initial_delay": 0, "backoff_factor": 0, "jitter": False}

CASES: Mapping[str, Case] = {
    "AutoModeMiddleware": Case(lambda kit: AutoModeMiddleware(tools=["look_up"], classifier=_classifier(kit)), 3),
    "ContextEditingMiddleware": Case(
        lambda kit: ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=1, keep=0)])
    ),
    "FilesystemFileSearchMiddleware": Case(
        lambda kit: FilesystemFileSearchMiddleware(root_path=str(kit.folder), use_ripgrep=False),
        ask=("glob_search", {"pattern": "*.txt"}),
    ),
    "HumanInTheLoopMiddleware": Case(lambda kit: HumanInTheLoopMiddleware({"look_up": False})),
    "LLMToolEmulator": Case(lambda kit: LLMToolEmulator(model=kit.mini()), 3),
    "LLMToolSelectorMiddleware": Case(lambda kit: LLMToolSelectorMiddleware(), 4),
    "ModelCallLimitMiddleware": Case(lambda kit: ModelCallLimitMiddleware(run_limit=2), loops=False),
    "ModelFallbackMiddleware": Case(lambda kit: ModelFallbackMiddleware(kit.mini()), 3, failures=1),
    "ModelRefusalMiddleware": Case(lambda kit: ModelRefusalMiddleware()),
    "ModelRetryMiddleware": Case(lambda kit: ModelRetryMiddleware(**_NOW), 4, failures=2),
    "ModelRouterMiddleware": Case(_router, 3),
    "PIIMiddleware": Case(lambda kit: PIIMiddleware("email", apply_to_output=True, apply_to_tool_results=True)),
    "ProviderToolSearchMiddleware": Case(
        lambda kit: ProviderToolSearchMiddleware(searchable_tools=["look_up"]), model=claude
    ),
    "ShellToolMiddleware": Case(
        lambda kit: ShellToolMiddleware(kit.folder, execution_policy=Shells()),
        ask=("shell", {"command": "echo found"}),
    ),
    "SummarizationMiddleware": Case(
        lambda kit: SummarizationMiddleware(kit.mini(), trigger=("messages", 3), keep=("messages", 2)), 3
    ),
    "TodoListMiddleware": Case(
        lambda kit: TodoListMiddleware(),
        ask=("write_todos", {"todos": [{"content": "look", "status": "pending"}]}),
    ),
    "ToolCallLimitMiddleware": Case(lambda kit: ToolCallLimitMiddleware(run_limit=1)),
    "ToolErrorMiddleware": Case(lambda kit: ToolErrorMiddleware(lambda error, request: "failed"), tool=_failing_once),
    "ToolRetryMiddleware": Case(lambda kit: ToolRetryMiddleware(**_NOW), tool=_failing_once),
}

SHIPPED: Sequence[str] = [
    name
    for name in shipped.__all__
    if isinstance(kind := getattr(shipped, name), type)
    and issubclass(kind, shipped.AgentMiddleware)
    and kind is not shipped.AgentMiddleware
]
