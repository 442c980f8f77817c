from __future__ import annotations

from typing import Any

import pytest

from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.guardrails.testing.provider import Script
from runcap.integrations.langchain import BudgetMiddleware, guard_model

from ..langchain.conftest import Caller, Serve, Watch, called, caller, claude, hasty, openai, serve

__all__ = ["Caller", "Serve", "Watch", "books", "called", "caller", "claude", "hasty", "middleware", "openai", "serve"]


def middleware(watch: Watch) -> BudgetMiddleware:
    return BudgetMiddleware(watch.guard)


def books(watch: Watch, provider: ScriptedProvider, steps: int | None = None, run: Any = None) -> None:
    """What one run counted is what the provider received and billed; nothing is left behind."""
    watch.idle()
    run = run or watch.handler.last_run
    assert (run.steps, run.spent_usd, run.held_usd) == (provider.received, provider.cost_usd, 0)
    chats = [span for span in watch.spans if span.name.startswith("chat ")]
    assert len(chats) == provider.received
    if steps is not None:
        assert provider.received == steps
    caps = run.budget
    if caps is not None and caps.usd is not None:
        assert provider.cost_usd + run.unknown_usd <= caps.usd


both = pytest.mark.parametrize("make", [openai, claude], ids=["openai", "anthropic"])
_OK = Reply(text="ok")


both = pytest.mark.parametrize("make", [openai, claude], ids=["openai", "anthropic"])
_OK = Reply(text="ok")


def a_guarded(make: Any, serve: Serve, script: Script = _OK, **budget: Any) -> Any:
    provider, watch = serve(script), Watch(**(budget or {"usd": 1}))
    return provider, watch, guard_model(make(provider), watch.guard)


def total(watch: Watch, provider: ScriptedProvider, steps: int) -> None:
    books(watch, provider, steps=steps, run=watch.guard.default_run)
