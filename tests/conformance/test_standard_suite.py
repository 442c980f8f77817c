"""LangChain's own standard tests of chat models, on guarded ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumpd
from langchain_openai import ChatOpenAI
from langchain_tests.unit_tests import ChatModelUnitTests

from runcap.guardrails import Budget, Guard
from runcap.integrations.langchain import guard_model

GUARD = Guard(Budget(usd=1))

pytestmark = [  # of the suite itself
    pytest.mark.filterwarnings("ignore:The function `load` is in beta"),
    pytest.mark.filterwarnings("ignore:Unrecognized structured output method"),
    pytest.mark.filterwarnings("ignore:The method `BaseChatModel.dict` was deprecated"),
]


class _Suite(ChatModelUnitTests):
    bare: type[BaseChatModel]
    key: str

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class of guarded models: what it makes is guarded, too."""
        return type(guard_model(self.bare(**self.chat_model_params), GUARD))

    def _made(self, more: Mapping[str, Any]) -> BaseChatModel:
        return self.bare(**{**self.standard_chat_model_params, **self.chat_model_params, **more})

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> BaseChatModel:
        return guard_model(self._made(getattr(request, "param", None) or {}), GUARD)

    @pytest.fixture
    def snapshot(self, model: BaseChatModel) -> Callable[..., Any]:
        """It is serialised as the bare model is."""
        expected = dumpd(self._made({}))
        return lambda name: expected

    @pytest.fixture
    def benchmark(self, benchmark: Any) -> Any:
        """Once: how fast the packages make models is not ours to measure."""
        benchmark.disabled = True
        return benchmark

    def test_the_model_under_test_is_guarded(self, model: BaseChatModel) -> None:
        assert type(model) is self.chat_model_class
        assert type(model) is not self.bare
        assert isinstance(model, self.bare)


class TestChatOpenAI(_Suite):
    bare = ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "gpt-4o", "api_key": "none"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        env = {"OPENAI_API_KEY": "api_key", "OPENAI_ORG_ID": "org_id", "OPENAI_API_BASE": "api_base"}
        told = {"openai_api_key": "api_key", "openai_organization": "org_id", "openai_api_base": "api_base"}
        return env, {"model": "gpt-4o"}, told


class TestChatAnthropic(_Suite):
    bare = ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "claude-haiku-4-5", "api_key": "none"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"ANTHROPIC_API_KEY": "api_key"}, {"model": "claude-haiku-4-5"}, {"anthropic_api_key": "api_key"}
