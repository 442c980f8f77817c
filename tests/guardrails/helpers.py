"""Requests and guards as the core's tests want them."""

from __future__ import annotations

from itertools import count
from typing import Any

from runcap.guardrails import Budget, Guard
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.request import Request
from runcap.guardrails.testing import Recorder

_ids = count()


def request(*, output_cap: int | None = 1000, input_tokens: int = 0, **more: Any) -> Request:
    """gpt-4o: $2.5 and $10 a million, so 1,000 tokens out cost a cent at most."""
    defaults: dict[str, Any] = {"model": "gpt-4o", "provider": "openai", "output_ceiling": 16_384}
    prompt = more.pop("prompt", Prompt(measured=input_tokens))
    return Request(call_id=f"c{next(_ids)}", prompt=prompt, output_cap=output_cap, **(defaults | more))


def guard(seen: Recorder | None = None, **caps: Any) -> Guard:
    return Guard(Budget(**(caps or {"usd": "0.05"})), sinks=(seen,) if seen else ())
