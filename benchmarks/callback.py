"""What a cap of $1 costs in truth: 60 calls of $0.05 to $0.10, one after another, with and without runcap.

    python benchmarks/callback.py

The bill is the scripted provider's own. gpt-4o list prices; 47 kB of English, about 10,000 tokens, in each prompt;
2,500 to 7,500 tokens out; max_tokens 7,500; max_retries 0. The last column is the bill over the cap.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from runcap.guardrails import Budget, BudgetExceeded
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetCallbackHandler

CALLS, CAP = 60, Decimal(1)
SENTENCE = "All work and no play makes Jack a dull boy. "
PROMPT = SENTENCE * (47_000 // len(SENTENCE))
KEY = SecretStr("none")


def answers(seed: int) -> Callable[[int, Mapping[str, Any]], Reply]:
    """Answers of random length, the same for every row."""
    rng = random.Random(seed)
    return lambda _number, _body: Reply(text="done", input_tokens=10_000, output_tokens=rng.randint(2_500, 7_500))


def openai(provider: ScriptedProvider, **more: Any) -> BaseChatModel:
    """gpt-4o at the scripted provider."""
    settings: dict[str, Any] = {"model": "gpt-4o", "max_tokens": 7_500, "max_retries": 0, **more}
    return ChatOpenAI(base_url=provider.openai_url, api_key=KEY, **settings)


def claude(provider: ScriptedProvider, **more: Any) -> BaseChatModel:
    """Claude Sonnet 5 at the scripted provider."""
    settings: dict[str, Any] = {"model": "claude-sonnet-5", "max_tokens": 7_500, "max_retries": 0, **more}
    return ChatAnthropic(base_url=provider.root_url, api_key=KEY, **settings)


def row(name: str, make: Callable[..., BaseChatModel], *, guarded: bool, in_constructor: bool = False) -> Decimal:
    """Run the calls and print the bill."""
    with ScriptedProvider(answers(7)) as provider:
        handler = BudgetCallbackHandler(Budget(usd=CAP)) if guarded else None
        model = make(provider, callbacks=[handler] if handler is not None and in_constructor else None)
        config: Any = {"callbacks": [handler]} if handler is not None and not in_constructor else {}
        for _ in range(CALLS):
            try:
                model.invoke(PROMPT, config)
            except BudgetExceeded:
                continue
        bill = provider.cost_usd
        print(f"{name:<44} {provider.received:>5} calls   ${bill:>8.4f}   {bill / CAP:>7.1%} of the cap", flush=True)
        return bill


def main() -> None:
    """Print the table."""
    print(f"{CALLS} sequential calls, cap ${CAP}")
    bare = row("no guard, ChatOpenAI", openai, guarded=False)
    held = row("runcap, ChatOpenAI, callback in config", openai, guarded=True)
    row("runcap, ChatOpenAI, callback in constructor", openai, guarded=True, in_constructor=True)
    row("no guard, ChatAnthropic", claude, guarded=False)
    row("runcap, ChatAnthropic, callback in config", claude, guarded=True)
    print(f"guarded / unguarded, ChatOpenAI: {held / bare:.3f}")


if __name__ == "__main__":
    main()
