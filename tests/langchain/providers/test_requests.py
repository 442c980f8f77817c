"""What a call will cost, as far as the request says: regions, how long cache writes last, tiers, audio.

https://developers.openai.com/api/docs/guides/data-residency, https://platform.claude.com/docs/en/build-with-claude/data-residency.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_deepseek import ChatDeepSeek
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from .wire import asked

NONE = SecretStr("none")


def openai(**more: Any) -> ChatOpenAI:
    defaults: dict[str, Any] = {"model": "gpt-5.6-sol", "use_responses_api": False}
    return ChatOpenAI(api_key=NONE, **(defaults | more))


@pytest.mark.parametrize(
    ("url", "regional"),
    [
        ("https://us.api.openai.com/v1", True),
        ("https://EU.api.openai.com:443/v1/", True),
        ("https://ae.api.openai.com/v1", True),
        ("https://api.openai.com/v1", False),
        ("https://api.openai.com.evil.example/v1", False),
        ("https://notapi.openai.com/v1", False),
        ("https://proxy.example/us.api.openai.com/v1", False),
        ("http://localhost:8000/v1", False),
        (None, False),
    ],
)
@pytest.mark.parametrize("where", ["base_url", "OPENAI_API_BASE", "OPENAI_BASE_URL"])
def test_openais_regional_endpoints(
    monkeypatch: pytest.MonkeyPatch, where: str, url: str | None, regional: bool
) -> None:
    if where == "base_url":
        assert asked(openai(base_url=url)).regional is regional
        return
    monkeypatch.delenv("OPENAI_API_BASE", raising=False)
    if url is not None:
        monkeypatch.setenv(where, url)
    assert asked(openai()).regional is regional


def test_a_url_of_ones_own_is_stronger_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://eu.api.openai.com/v1")
    assert not asked(openai(base_url="https://api.openai.com/v1")).regional


def test_no_other_provider_has_openais_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://eu.api.openai.com/v1")
    assert not asked(ChatDeepSeek(model="deepseek-chat", api_key=NONE)).regional


def claude(**more: Any) -> ChatAnthropic:
    return ChatAnthropic(model_name="claude-sonnet-5", api_key=NONE, **more)


@pytest.mark.parametrize(
    ("made", "given", "regional", "bounded"),
    [
        ({}, {}, False, True),
        ({"inference_geo": "us"}, {}, True, True),
        ({}, {"inference_geo": "us"}, True, True),
        ({"inference_geo": "global"}, {}, False, True),
        ({"inference_geo": "us"}, {"inference_geo": "global"}, False, True),
        ({"inference_geo": "global"}, {"inference_geo": "us"}, True, True),
        ({"inference_geo": "eu"}, {}, False, False),  # no surcharge is published
    ],
)
def test_claudes_regions(made: dict[str, Any], given: dict[str, Any], regional: bool, bounded: bool) -> None:
    request = asked(claude(**made), **given)
    assert (request.regional, request.bounded) == (regional, bounded)


@pytest.mark.parametrize(
    ("options", "writes"),
    [(None, "5m"), ({"ttl": "30m"}, "5m"), ({"ttl": "12h"}, "12h"), ({"mode": "explicit"}, "5m"), ("12h", "5m")],
)
def test_how_long_openais_cache_writes_last(options: Any, writes: str) -> None:
    given = {} if options is None else {"prompt_cache_options": options}
    assert asked(openai(), **given).cache_writes == writes
    assert asked(openai(extra_body=given)).cache_writes == writes


def test_the_invocations_lifetime_replaces_the_constructors() -> None:
    model = openai(prompt_cache_options={"ttl": "12h"})
    assert asked(model, prompt_cache_options={"ttl": "30m"}).cache_writes == "5m"


@pytest.mark.parametrize(
    ("given", "audio"), [({}, False), ({"modalities": ["text"]}, False), ({"modalities": ["text", "audio"]}, True)]
)
def test_an_answer_in_audio(given: dict[str, Any], audio: bool) -> None:
    assert asked(openai(model="gpt-audio"), **given).audio is audio
