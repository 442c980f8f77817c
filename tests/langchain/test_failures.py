from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from langgraph.errors import GraphInterrupt, ParentCommand
from langgraph.types import Command

from runcap.guardrails import BudgetExceeded, RefusalDetails, Refused
from runcap.integrations.langchain.errors import bubbling
from runcap.integrations.langchain.failures import billing, outcome

REFUSED = BudgetExceeded(RefusalDetails(reason="r", way_out="w", run_id="x"))


class ConnectError(Exception):
    """As the HTTP clients name it."""


def _error(status: int | None = None, cause: BaseException | None = None, response: object = None) -> Exception:
    error = RuntimeError("secret")
    if status is not None:
        error.status_code = status  # type: ignore[attr-defined]
    if response is not None:
        error.response = response  # type: ignore[attr-defined]
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "bill"),
    [
        (_error(429), "never"),
        (_error(404), "never"),
        (_error(408), "perhaps"),
        (_error(503), "failed"),
        (_error(response={"ResponseMetadata": {"HTTPStatusCode": 400}}), "never"),
        (_error(response=SimpleNamespace(status_code=500)), "failed"),
        (_error(cause=ConnectError()), "never"),
        (_error(cause=_error(cause=ConnectionRefusedError())), "never"),
        (_error(cause=TimeoutError()), "perhaps"),
        (asyncio.CancelledError(), "perhaps"),
        (GeneratorExit(), "perhaps"),
        (REFUSED, "never"),
    ],
)
def test_what_an_error_says_about_the_bill(error: BaseException, bill: str) -> None:
    assert billing(error) == bill


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (GraphInterrupt(), "interrupted"),
        (ParentCommand(Command(goto="x")), "handoff"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (bubbling(REFUSED), "refused"),
        (ValueError(), "error"),
    ],
)
def test_how_an_agent_ended(error: BaseException, how: str) -> None:
    assert outcome(error) == how


def test_a_bubbling_refusal_is_the_same_refusal() -> None:
    import pickle

    from langgraph.errors import GraphBubbleUp

    again = bubbling(REFUSED)
    assert isinstance(again, BudgetExceeded)
    assert isinstance(again, GraphBubbleUp)
    assert type(again) is type(bubbling(REFUSED))
    assert str(again) == str(REFUSED)
    restored = pickle.loads(pickle.dumps(again))
    assert isinstance(restored, Refused)
    assert isinstance(restored, GraphBubbleUp)


def test_without_langgraph_a_refusal_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from runcap.integrations.langchain import errors

    monkeypatch.setitem(sys.modules, "langgraph.errors", None)
    monkeypatch.setattr(errors, "_made", {})
    assert type(bubbling(REFUSED)) is BudgetExceeded
