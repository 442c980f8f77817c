"""What every ledger that outlives a process must do beyond `LedgerContract`, and beyond `LedgerMachine`."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import pytest
from hypothesis.stateful import rule

from runcap.guardrails.amounts import ZERO, Amounts, Caps
from runcap.guardrails.ledger import About, Account, Grant, Ledger, Outcome, Refusal
from runcap.guardrails.ledger.lasting import Lasting
from runcap.guardrails.usage import Usage

from .ledger_contract import LedgerContract, LedgerMachine, account, offer

ABOUT = About("r1", None, {"user": "ada", "task": "refund"}, "openai", "gpt-4o", "gpt-4o", 1, 1_000)
MANY = Account("run:a", Caps(nano=10**12))


def outcome(state: str = "settled", cost: int | None = 25, about: About = ABOUT, **more: Any) -> Outcome:
    return Outcome(about, state, Usage(7, 3), cost, "catalog", 5_000, **more)


class LastingContract(LedgerContract):
    """Subclasses have the fixtures `ledger` and `other`: two clients of one store, as two processes have them."""

    @pytest.fixture
    def lasting(self, ledger: Ledger) -> Lasting:
        assert isinstance(ledger, Lasting)
        return ledger

    def test_another_client_sees_the_same_books(self, lasting: Any, other: Any) -> None:
        lasting.reserve("c", (offer(60),), (account(),))
        assert other.balance("run:a") == lasting.balance("run:a")
        assert isinstance(other.reserve("d", (offer(41),), (account(),)), Refusal)
        assert other.top_up("run:a", "key", Amounts(nano=1))
        assert not lasting.top_up("run:a", "key", Amounts(nano=1))
        other.stop("run:a", "enough")
        assert isinstance(lasting.reserve("e", (offer(1),), (account(),)), Refusal)
        assert lasting.peek("run:a").stopped == "enough"

    def test_a_call_may_be_ended_by_another_client(self, lasting: Any, other: Any) -> None:
        lasting.reserve("c", (offer(60),), (account(), account("limit:b")))
        settled = other.settle("c", Amounts(nano=20))
        assert [balance.account_id for balance in settled.balances] == ["run:a", "limit:b"]
        assert lasting.settle("c", Amounts(nano=20)) is None
        other.release("late")
        assert isinstance(lasting.reserve("late", (offer(1),), (account(),)), Refusal)

    def test_two_clients_never_oversell(self, lasting: Any, other: Any) -> None:
        granted: list[int] = []

        def work(client: Any, index: int) -> None:
            for turn in range(20):
                call = f"{index}-{turn}"
                if isinstance(client.reserve(call, (offer(7),), (account(nano=500),)), Grant):
                    granted.append(1)
                    client.settle(call, Amounts(nano=5))

        threads = [threading.Thread(target=work, args=((lasting, other)[index % 2], index)) for index in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        balance = other.balance("run:a")
        assert balance.spent.nano == 5 * len(granted) <= 500
        assert 500 - balance.spent.nano < 7
        assert (balance.held, balance.in_flight) == (ZERO, 0)

    def test_an_account_opened_anew_is_not_charged_for_the_old_one(self, lasting: Any) -> None:
        lasting.reserve("c", (offer(60),), (account(), account("limit:b")))
        lasting.settle("c", Amounts(nano=10), Amounts(nano=50))
        lasting.close("run:a")
        lasting.reserve("d", (offer(10),), (account(),))
        settled = lasting.settle("c", Amounts(nano=50))
        assert [balance.account_id for balance in settled.balances] == ["limit:b"]
        assert lasting.balance("run:a").used == Amounts(nano=10, steps=1)

    def test_an_account_that_another_client_uses_is_not_closed(self, lasting: Any, other: Any) -> None:
        """A run that two processes share: one of them ends it while the other has a call in flight."""
        lasting.reserve("a", (offer(10),), (account(),))
        lasting.settle("a", Amounts(nano=10))
        other.reserve("c", (offer(60),), (account(),))
        assert lasting.peek("run:a").in_flight == 0, "it does not know of the other's call"
        assert lasting.close("run:a") is None
        assert lasting.peek("run:a").in_flight == 1, "or whoever closes it would try at once, again and again"
        assert other.settle("c", Amounts(nano=50)).balances[0].spent.nano == 60
        closed = lasting.close("run:a")
        assert closed is not None
        assert closed.spent.nano == 60

    def test_every_end_of_a_call_leaves_a_record(self, lasting: Any, other: Any) -> None:
        for call in ("settled", "released", "unknown"):
            lasting.reserve(call, (offer(10),), (account(),), ABOUT)
        lasting.settle("settled", Amounts(nano=7, tokens=10), ZERO, outcome(cost=7))
        lasting.release("released", outcome("released", 0, error_type="ConnectError"))
        lasting.settle("unknown", Amounts(nano=2), Amounts(nano=8), outcome("unknown", 2))
        told = [(one.call_id, one.state, one.cost_nano, one.unknown_nano, one.error_type) for one in other.records()]
        assert told == [
            ("settled", "settled", 7, 0, None),
            ("released", "released", 0, 0, "ConnectError"),
            ("unknown", "unknown", 2, 8, None),
        ]
        for one in other.records():
            assert (one.about, one.usage, one.latency_ns, one.price_source) == (ABOUT, Usage(7, 3), 5_000, "catalog")

    def test_what_does_not_change_the_books_leaves_no_record(self, lasting: Any) -> None:
        lasting.reserve("c", (offer(10),), (account(),), ABOUT)
        lasting.settle("c", Amounts(nano=7), ZERO, outcome(cost=7))
        lasting.settle("c", Amounts(nano=7), ZERO, outcome(cost=7))
        lasting.release("c", outcome("released", 0))
        lasting.release("never", outcome("released", 0))
        assert [one.cost_nano for one in lasting.records(all=True)] == [7]

    def test_records_are_read_by_run_time_and_revision(self, lasting: Any) -> None:
        for number in range(300):
            about = ABOUT._replace(run_id=f"r{number % 2}")
            lasting.reserve(f"c{number}", (offer(1),), (MANY,), about)
            rest = Amounts(nano=1) if number == 1 else ZERO
            lasting.settle(f"c{number}", ZERO, rest, outcome(cost=number, about=about))
        lasting.judge("r1", "succeeded")
        lasting.judge("r1", "failed")
        lasting.settle("c1", Amounts(nano=1), ZERO, outcome(cost=1, resolved_by="late"))
        everything = list(lasting.records())
        assert [one.call_id for one in everything] == ["c0", *(f"c{n}" for n in range(2, 300)), "c1"]
        assert [one.revision for one in lasting.records(all=True) if one.call_id == "c1"] == [0, 1]
        odd = list(lasting.records(run_id="r1"))
        assert [one.cost_nano for one in odd] == [*range(3, 300, 2), 1]
        assert {one.verdict for one in odd} == {"failed"}
        assert {one.verdict for one in lasting.records(run_id="r0")} == {None}
        middle = everything[150].ended_ns
        before, after = list(lasting.records(until_ns=middle)), list(lasting.records(since_ns=middle))
        assert before + after == everything
        assert list(lasting.records(since_ns=middle, until_ns=middle)) == []

    def test_records_are_exported(self, lasting: Any) -> None:
        lasting.reserve("c", (offer(10),), (account(),), ABOUT)
        lasting.settle("c", Amounts(nano=7), ZERO, outcome(cost=7))
        lasting.judge("r1", "succeeded")
        lines, sheet = io.StringIO(), io.StringIO()
        assert lasting.export(lines) == lasting.export(sheet, "csv") == 1
        row = json.loads(lines.getvalue())
        assert (row["call"], row["run"], row["task"], row["tags"]) == ("c", "r1", "refund", {"user": "ada"})
        assert (row["cost_usd"], row["input_tokens"], row["verdict"]) == ("0.000000007", 7, "succeeded")
        assert sheet.getvalue().splitlines()[0].split(",") == list(row)

    def test_unknown_calls_stay_listed_once_their_accounts_are_closed(self, lasting: Any, other: Any) -> None:
        lasting.reserve("c", (offer(60, expected=40),), (account(),), ABOUT)
        lasting.settle("c", Amounts(nano=10), Amounts(nano=50), outcome("unknown", None))
        lasting.close("run:a")
        [call] = other.unknowns()
        assert (call.charged.nano, call.unknown.nano, call.expected.nano) == (10, 50, 40)
        assert call.about == ABOUT
        assert call.record is not None
        assert other.resolve_all("expected") == 1
        assert lasting.unknowns() == []
        told = [(one.revision, one.state, one.cost_nano, one.resolved_by) for one in lasting.records(all=True)]
        assert told == [(0, "unknown", None, None), (1, "settled", 40, "expected")]

    def test_an_unknown_call_is_resolved_by_hand(self, lasting: Any, other: Any) -> None:
        lasting.reserve("c", (offer(60),), (account(), account("limit:b")), ABOUT)
        lasting.settle("c", Amounts(nano=10), Amounts(nano=50), outcome("unknown", 10))
        other.resolve("c", usd="0.000000033")
        for name in ("run:a", "limit:b"):
            balance = lasting.balance(name)
            assert (balance.spent.nano, balance.unknown) == (33, ZERO)
        with pytest.raises(KeyError, match="no unknown call 'c'"):
            other.resolve("c", usd=1)

    def test_holds_of_a_client_that_left_become_unknown(self, lasting: Any, other: Any) -> None:
        lasting.reserve("c", (offer(60),), (account(), account("limit:b")), ABOUT)
        lasting.dispose()
        other.beat()
        balance = other.balance("limit:b")
        assert (balance.held, balance.unknown.nano, balance.in_flight) == (ZERO, 60, 0)
        [record] = other.records()
        assert (record.state, record.cost_nano, record.unknown_nano) == ("unknown", None, 60)
        assert (record.resolved_by, record.about) == ("owner died", ABOUT)
        assert lasting.settle("c", Amounts(nano=5), ZERO, outcome(cost=5)) is not None, "it was only asleep"
        assert other.balance("limit:b").used.nano == 5
        assert sum(one.cost_nano or 0 for one in other.records()) == 5

    def test_ids_may_be_any_text(self, lasting: Any) -> None:
        odd = 'ü\n"{}\\ \u2028 x:y/z=1'
        about = ABOUT._replace(run_id=odd, tags={"user": odd})
        assert isinstance(lasting.reserve(odd, (offer(60),), (account(odd),), about), Grant)
        lasting.settle(odd, Amounts(nano=1), Amounts(nano=2), outcome("unknown", about=about))
        lasting.stop(odd, odd)
        assert lasting.balance(odd).stopped == odd
        [unknown] = lasting.unknowns()
        assert (unknown.call_id, unknown.accounts, unknown.about) == (odd, (odd,), about)
        assert [one.about for one in lasting.records(run_id=odd)] == [about]

    async def test_the_async_face_keeps_records_too(self, lasting: Any, other: Any) -> None:
        await lasting.aready()
        await lasting.areserve("c", (offer(60),), (account(),), ABOUT)
        await lasting.asettle("c", Amounts(nano=25), ZERO, outcome())
        await lasting.areserve("d", (offer(60),), (account(),), ABOUT)
        await lasting.arelease("d", outcome("released", 0))
        assert [one.state for one in other.records()] == ["settled", "released"]
        assert (await other.abalance("run:a")).spent == Amounts(nano=25, steps=2)


class LastingMachine(LedgerMachine):
    """The same with processes that come and go. `again` opens the store anew, as another process does."""

    def again(self) -> Any:
        raise NotImplementedError

    @rule()
    def the_process_ends_and_another_comes(self) -> None:
        """Whatever it held is unknown from then on, all of it; nothing else changes."""
        ledger = self.again()
        ledger.beat()
        self.ledger = ledger
        for model in self.models.values():
            model.unknown.update({call: (0, nano) for call, nano in model.held.items()})
            model.held.clear()
