"""LangChain's own suite for chat models, on guarded ones: whatever it asks of a bare model."""

from __future__ import annotations

from typing import Any, cast

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumpd
from langchain_openai import ChatOpenAI
from langchain_tests.unit_tests import ChatModelUnitTests

from runcap.guardrails import Budget, Guard
from runcap.integrations.langchain import guard_model


class Guarded(ChatModelUnitTests):
    """The suite asks for the model by this fixture."""

    @pytest.fixture
    def bare(self, request: Any) -> BaseChatModel:
        fixture = cast("Any", ChatModelUnitTests.model)
        return cast("BaseChatModel", fixture.__wrapped__(self, request))

    @pytest.fixture
    def model(self, bare: BaseChatModel) -> BaseChatModel:  # type: ignore[override]
        return guard_model(bare, Guard(Budget(usd=1), sinks=()))

    def test_serdes(self, model: BaseChatModel, bare: BaseChatModel) -> None:  # type: ignore[override]
        """In place of a snapshot: it is written down as the bare model is."""
        assert type(model).is_lc_serializable()
        assert dumpd(model) == dumpd(bare)


class TestOpenAI(Guarded):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "gpt-4o", "api_key": "none"}


# The suite asks for it of every model; ChatAnthropic says so of itself, guarded or not.
@pytest.mark.filterwarnings("ignore:Unrecognized structured output method 'json_mode'")
class TestAnthropic(Guarded):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "claude-sonnet-5", "api_key": "none"}
