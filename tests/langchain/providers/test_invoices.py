"""From the wire to the dollar: mistakes other trackers made, each with the figures of its report."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from runcap.guardrails import PriceBook, Usage

from ..conftest import Watch
from . import test_anthropic, test_openai
from .wire import Wire


def spent(watch: Watch) -> Decimal | None:
    watch.idle()
    return watch.guard.default_run.spent_usd


@pytest.mark.parametrize("stream", [False, True])
def test_cached_tokens_are_part_of_the_prompt(wire: Wire, stream: bool) -> None:
    """litellm#6215; counted twice: langfuse#12306; at full price: openlit#1378."""
    usage = {
        "prompt_tokens": 2006,
        "completion_tokens": 300,
        "total_tokens": 2306,
        "prompt_tokens_details": {"cached_tokens": 1920},
    }
    watch = Watch(usd=1)
    model = test_openai.openai(wire, model="gpt-4o", max_tokens=1000)
    if stream:
        wire.events(*(chunk | {"model": "gpt-4o-2024-08-06"} for chunk in test_openai.chunks(usage)))
        list(model.stream("hi", watch.config))
    else:
        wire.json(test_openai.chat(usage, model="gpt-4o-2024-08-06"))
        model.invoke("hi", watch.config)
    assert spent(watch) == Decimal("0.005615")


@pytest.mark.filterwarnings("ignore:The model 'claude-3-7-sonnet-20250219' is deprecated:DeprecationWarning")
@pytest.mark.parametrize("stream", [False, True])
def test_claudes_input_is_not_charged_as_if_it_left_cached_tokens_out(wire: Wire, stream: bool) -> None:
    """litellm#9812; Anthropic's rule on LangChain's usage: posthog#39901; input at $0: langsmith-sdk#2519."""
    usage: dict[str, Any] = {
        "input_tokens": 3,
        "cache_creation_input_tokens": 12304,
        "cache_read_input_tokens": 0,
        "output_tokens": 550,
    }
    watch = Watch(usd=1)
    model = test_anthropic.claude(wire, model="claude-3-7-sonnet-20250219")
    answer = test_anthropic.message() | {"model": "claude-3-7-sonnet-20250219", "usage": usage}
    if stream:
        events = test_anthropic.stream(test_anthropic.delta("end_turn", **usage))
        events[0]["message"] |= {"model": answer["model"], "usage": usage | {"output_tokens": 1}}
        wire.events(*events, done=False)
        list(model.stream("hi", watch.config))
    else:
        wire.json(answer)
        model.invoke("hi", watch.config)
    assert spent(watch) == Decimal("0.054399")


@pytest.mark.parametrize("stream", [False, True])
def test_priority_is_not_priced_as_standard(wire: Wire, stream: bool) -> None:
    """langfuse#13780, with the tokens of langchain#40666."""
    usage = Usage(2304, 300, cache_read_tokens=256, cache_write_tokens=1024, reasoning_tokens=128)
    model, prices = "gpt-5.6-sol", PriceBook()
    priority = prices.cost(model, usage, provider="openai", context="priority")
    watch = Watch(usd=1)
    chat = test_openai.openai(wire, model=model, max_tokens=1000, use_responses_api=False)
    if stream:
        wire.events(*(chunk | {"model": model} for chunk in test_openai.chunks(tier="priority")))
        list(chat.stream("hi", watch.config))
    else:
        wire.json(test_openai.chat(tier="priority", model=model))
        chat.invoke("hi", watch.config)
    assert spent(watch) == priority
    assert priority > prices.cost(model, usage, provider="openai")
