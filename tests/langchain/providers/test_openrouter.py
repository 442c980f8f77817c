"""langchain-openrouter, fed with the answers OpenRouter documents.

https://openrouter.ai/docs/use-cases/usage-accounting, https://openrouter.ai/docs/api-reference/overview,
https://openrouter.ai/docs/use-cases/byok.
"""

from __future__ import annotations

from decimal import Context, Decimal, Inexact, localcontext
from typing import Any

import pytest
from langchain_openrouter import ChatOpenRouter
from pydantic import SecretStr

from runcap.guardrails import Usage

from ..conftest import Watch
from .wire import JSON, Wire, ainvoked, invoked, streamed

USAGE: JSON = {
    "completion_tokens": 60,
    "completion_tokens_details": {"reasoning_tokens": 20},
    "cost": 0.00135,
    "cost_details": {
        "upstream_inference_cost": 0.00135,
        "upstream_inference_prompt_cost": 0.0012,
        "upstream_inference_completions_cost": 0.00015,
    },
    "is_byok": False,
    "prompt_tokens": 10339,
    "prompt_tokens_details": {"cached_tokens": 10318, "cache_write_tokens": 0, "audio_tokens": 0},
    "total_tokens": 10399,
}
COUNTED = Usage(10339, 60, cache_read_tokens=10318, reasoning_tokens=20)
BASE: JSON = {"id": "gen-1757450112-xyz", "created": 1757450112, "model": "anthropic/claude-sonnet-4.5"}


def answer(usage: JSON | None) -> JSON:
    message = {"role": "assistant", "content": "Hello there!", "refusal": None, "reasoning": None}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": "stop",
        "native_finish_reason": "end_turn",
        "logprobs": None,
    }
    told = BASE | {
        "object": "chat.completion",
        "choices": [choice],
        "provider": "Anthropic",
        "system_fingerprint": None,
    }
    return told | ({"usage": usage} if usage else {})


def chunks(usage: JSON | None, *, choiceless: bool) -> list[JSON]:
    base = BASE | {"object": "chat.completion.chunk", "provider": "Anthropic", "system_fingerprint": None}
    words = {"index": 0, "delta": {"role": "assistant", "content": "Hello"}, "finish_reason": None, "logprobs": None}
    end = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "stop", "logprobs": None}
    told = {"usage": usage} if usage else {}
    if choiceless:
        return [base | {"choices": [words]}, base | {"choices": [end]}, base | {"choices": []} | told]
    return [base | {"choices": [words]}, base | {"choices": [end]} | told]


def openrouter(wire: Wire, **more: Any) -> ChatOpenRouter:
    return ChatOpenRouter(
        model="anthropic/claude-sonnet-4.5", base_url=wire.url, api_key=SecretStr("none"), max_retries=0, **more
    )


def test_the_cost_is_the_one_billed(wire: Wire) -> None:
    wire.json(answer(USAGE))
    heard = invoked(openrouter(wire))
    assert heard.usage == COUNTED
    assert heard.response.billed_nano == 1_350_000
    assert heard.response.model == "anthropic/claude-sonnet-4.5"
    assert heard.response.id == "gen-1757450112-xyz"
    assert heard.response.finish_reasons == ("stop",)


async def test_in_async_code(wire: Wire) -> None:
    wire.json(answer(USAGE))
    assert (await ainvoked(openrouter(wire))).response.billed_nano == 1_350_000


@pytest.mark.parametrize("choiceless", [False, True])
def test_a_stream(wire: Wire, choiceless: bool) -> None:
    """Its last chunk has the cost, with or without choices."""
    wire.events(*chunks(USAGE, choiceless=choiceless))
    heard = streamed(openrouter(wire))
    assert heard.usage == COUNTED
    assert heard.response.billed_nano == 1_350_000
    assert heard.response.model == "anthropic/claude-sonnet-4.5"


@pytest.mark.parametrize(
    ("cost", "upstream", "nano"),
    [
        (0.95, 19, 19_950_000_000),  # the guide's own figures: a fee of 5 %, and the provider's invoice
        (0, 0.0042, 4_200_000),  # a key of one's own within the free allowance
        (0.0050000000001, 0.005, 5_000_000),  # no such key: the two are the same, up to the last digits
        (0.006, 0.004, 6_000_000),  # a plugin's fee on top
        (0, 0, 0),  # a free model
        (0.0000000125, None, 12),  # half a nano-dollar goes to the even one
        (1e-7, None, 100),
    ],
)
def test_a_key_of_ones_own(wire: Wire, cost: float, upstream: float | None, nano: int) -> None:
    """BYOK: `cost` is OpenRouter's share then, and LangChain drops `is_byok`."""
    details = USAGE["cost_details"] | {"upstream_inference_cost": upstream}
    wire.json(answer(USAGE | {"cost": cost, "cost_details": details}))
    assert invoked(openrouter(wire)).response.billed_nano == nano


def test_the_cost_is_exact_whatever_the_callers_decimal_context(wire: Wire) -> None:
    details = USAGE["cost_details"] | {"upstream_inference_cost": 1.234567891}
    wire.json(answer(USAGE | {"cost": 0.123456789, "cost_details": details}))
    heard = invoked(openrouter(wire))
    with localcontext(Context(prec=3, traps=[Inexact])):
        assert heard.response.billed_nano == 1_358_024_680


@pytest.mark.parametrize("cost", [None, -1.0, 1e12])
def test_no_cost_is_not_a_cost_of_nothing(wire: Wire, cost: float | None) -> None:
    wire.json(answer(USAGE | {"cost": cost}))
    heard = invoked(openrouter(wire))
    assert heard.response.billed_nano is None
    assert heard.usage == COUNTED


def test_without_usage_there_is_none(wire: Wire) -> None:
    wire.json(answer(None))
    assert invoked(openrouter(wire)).usage is None
    wire.events(*chunks(None, choiceless=False))
    assert streamed(openrouter(wire)).usage is None


def test_a_run_spends_what_was_billed(wire: Wire) -> None:
    """Whatever the price list says: it would be $0.0040584 here."""
    wire.json(answer(USAGE))
    watch = Watch(usd=1)
    openrouter(wire, max_tokens=100).invoke("hi", watch.config)
    assert watch.guard.default_run.spent_usd == Decimal("0.00135")
    watch.idle()
