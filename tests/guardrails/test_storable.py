"""What no store keeps: halves of surrogate pairs in text from a model, numbers of tokens that nobody can have meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runcap.guardrails import Budget, BudgetExceeded, Guard, MemoryLedger, SQLiteLedger, Usage
from runcap.guardrails.checks import storable
from runcap.guardrails.events import CallEnded
from runcap.guardrails.ledger import LedgerError
from runcap.guardrails.ledger.redis_wire import LARGEST
from runcap.guardrails.request import Response
from runcap.guardrails.testing import ManualClock, Recorder

from .helpers import request
from .ledger_contract import account, offer
from .test_unknowns import CENT, clock, ledger, make, path

__all__ = ["clock", "ledger", "path"]

HALF = "a \ud83d"


def test_text_stays_as_it_is_but_for_what_is_none() -> None:
    assert [storable(one) for one in ("cap:usd", "größer 😀", HALF)] == ["cap:usd", "größer 😀", "a \\ud83d"]


class TestHalfASurrogatePair:
    def test_in_a_verdict_or_a_reason_is_written_out(self, ledger: SQLiteLedger) -> None:
        guard = Guard(Budget(usd=1), ledger=ledger, sinks=())
        with guard.run() as run:
            guard.admit(request(), run).settle(CENT)
            run.fail(HALF)
            run.top_up(usd=1, key=HALF)
            run.stop(HALF)
            with pytest.raises(BudgetExceeded, match=r"run stopped: a \\ud83d"):
                guard.admit(request(), run)
        [record] = ledger.records()
        assert record.verdict == "failed: a \\ud83d"

    def test_in_what_a_provider_is_called_is_written_out(self, ledger: SQLiteLedger) -> None:
        guard = Guard(Budget(steps=5), ledger=ledger, sinks=())
        guard.admit(request(model=HALF, provider=HALF)).release(error_type=HALF)
        [record] = ledger.records()
        assert (record.about.model, record.about.provider, record.error_type) == ("a \\ud83d",) * 3

    def test_in_the_id_of_a_run_is_refused(self, ledger: SQLiteLedger) -> None:
        guard = Guard(Budget(usd=1), ledger=ledger, sinks=())
        with pytest.raises(ValueError, match="a run's id must be text, and this holds a lone surrogate"):
            guard.named_run(HALF)
        wrong: Any = 5
        with pytest.raises(TypeError, match="a run's id must be a string, got int"):
            guard.named_run(wrong)

    def test_that_comes_to_the_ledger_all_the_same_is_its_clear_error(self, path: Path, clock: ManualClock) -> None:
        with make(path, clock) as ledger:
            with pytest.raises(LedgerError, match="holds half of a surrogate pair, which no file can keep"):
                ledger.stop("run:a", HALF)
            with pytest.raises(LedgerError, match="surrogate"):
                ledger.reserve(HALF, (offer(1),), (account(),))
            with pytest.raises(LedgerError, match="surrogate"):
                ledger.balance(HALF)


class _Exact(MemoryLedger):
    """Takes what every ledger keeps exactly, and nothing beyond."""

    def settle(self, call_id: str, charge: Any, unknown: Any = (0, 0), outcome: Any = None) -> Any:
        if max(*charge, *unknown) > LARGEST:
            raise ValueError("larger than what Redis counts exactly")
        return super().settle(call_id, charge, unknown, outcome)


class TestAbsurdNumbers:
    @pytest.mark.parametrize("usage", [Usage(10**19, 5), Usage(5, 10**19), Usage(10**19, 10**19, 10**18), Usage(2**53)])
    def test_of_tokens_are_charged_as_far_as_can_be(self, usage: Usage, caplog: pytest.LogCaptureFixture) -> None:
        seen = Recorder()
        guard = Guard(Budget(usd=100), ledger=_Exact(), sinks=(seen,))
        with guard.run() as run:
            assert guard.admit(request(), run).settle(usage)
            assert len(guard.calls) == 0
            with pytest.raises(BudgetExceeded):
                guard.admit(request(), run)
        with guard.run() as another:
            guard.admit(request(), another).settle(usage)
        assert caplog.text.count("gpt-4o reported more tokens than can be counted") == 1
        [ended] = [one for one in seen.of(CallEnded) if one.run.id == run.id]
        assert 100 * 10**9 < (ended.cost_nano or 0) <= LARGEST

    def test_of_dollars_are_charged_as_far_as_can_be(self) -> None:
        guard = Guard(Budget(usd=100), ledger=_Exact(), sinks=())
        with guard.run() as run:
            guard.admit(request(), run).settle(CENT, Response(billed_nano=10**30))
            assert run.balance.spent.nano == LARGEST

    def test_that_come_late_or_in_part_too(self) -> None:
        guard = Guard(Budget(usd=100), ledger=_Exact(), sinks=())
        with guard.run() as run:
            permit = guard.admit(request(), run)
            permit.abandon("TimeoutError")
            permit.settle(Usage(10**19))
            assert run.balance.unknown.nano == 0
            assert run.balance.spent.nano > 100 * 10**9
        part = guard.admit(request(), guard.run())
        part.abandon("TimeoutError", partial=Usage(10**19, 10**19))
        assert part.state == "unknown"

    def test_are_kept_in_a_file(self, ledger: SQLiteLedger) -> None:
        guard = Guard(Budget(usd=100), ledger=ledger, sinks=())
        with guard.run() as run:
            assert guard.admit(request(), run).settle(Usage(10**19, 5))
        [record] = ledger.records()
        assert record.usage == Usage(LARGEST // 2, 5)
        guard.admit(request(), guard.run()).settle(CENT)


def test_metadata_that_names_a_run_by_no_text_is_refused() -> None:
    from runcap.integrations.langchain import scope

    with pytest.raises(ValueError, match=r'metadata\["runcap"\] must be a mapping of strings .*; wrong: run_id'):
        scope.read_metadata({"runcap": {"run_id": HALF, "user": "ada"}})
