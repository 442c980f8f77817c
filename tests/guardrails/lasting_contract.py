"""What every ledger that outlives a process must do beyond `LedgerContract`, and beyond `LedgerMachine`."""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from runcap.guardrails.amounts import ZERO, Amounts, Caps
from runcap.guardrails.ledger import About, Account, Grant, Ledger, Note, Outcome, Refusal
from runcap.guardrails.ledger.lasting import Lasting
from runcap.guardrails.ledger.notes import MOST
from runcap.guardrails.usage import Usage

from ..effort import examples
from .ledger_contract import LedgerContract, LedgerMachine, account, offer

ABOUT = About("r1", None, {"user": "ada", "task": "refund"}, "openai", "gpt-4o", "gpt-4o", 1, 1_000)
NOTE = Note("r1", "r0", {"user": "ada"}, "refused", "BudgetExceeded", "run", "usd", "gpt-4o", first_ns=7, last_ns=7)
MANY = Account("run:a", Caps(nano=10**12))


_runs = count()

NOTES = st.builds(
    Note,
    run_id=st.just("r"),
    parent_run_id=st.none(),
    tags=st.just({}),
    kind=st.sampled_from(["refused", "prefix"]),
    what=st.sampled_from([None, "a", "b"]),
    scope=st.none(),
    unit=st.none(),
    model=st.sampled_from([None, "a"]),
    count=st.integers(1, 5),
    tokens=st.integers(0, 10**9),
    cost_nano=st.none() | st.integers(0, 10**12),
    first_ns=st.integers(0, 2 * 10**18),
    last_ns=st.integers(0, 2 * 10**18),
)


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

    # Notes

    def test_notes_alike_are_added_up_whoever_made_them(self, lasting: Any, other: Any) -> None:
        lasting.note(NOTE._replace(tokens=5))
        other.note(NOTE._replace(tokens=3, cost_nano=9, first_ns=2, last_ns=2))
        lasting.note(NOTE._replace(first_ns=30, last_ns=30))
        expected = NOTE._replace(count=3, tokens=8, cost_nano=9, first_ns=2, last_ns=30)
        assert list(lasting.notes()) == list(other.notes()) == [expected]

    @pytest.mark.parametrize("field", ["run_id", "kind", "what", "scope", "unit", "model"])
    def test_notes_of_something_else_are_not(self, lasting: Any, other: Any, field: str) -> None:
        def of(value: str | None) -> Note:
            told: dict[str, Any] = {field: value}
            return NOTE._replace(**told)

        lasting.note(NOTE)
        other.note(of("else"))
        if field not in ("run_id", "kind"):
            lasting.note(of(None))
        expected = {getattr(NOTE, field): 1, "else": 1} | ({} if field in ("run_id", "kind") else {None: 1})
        assert {getattr(note, field): note.count for note in other.notes()} == expected

    def test_notes_are_read_by_run_and_by_their_last_time(self, lasting: Any, other: Any) -> None:
        for number in range(1_200):
            lasting.note(NOTE._replace(run_id=f"r{number % 300}", what=str(number), first_ns=number, last_ns=number))
        lasting.note(NOTE._replace(run_id="r5", what="5", first_ns=5_000, last_ns=5_000))
        everything = list(lasting.notes())
        assert sorted(int(note.what) for note in everything) == list(range(1_200))
        assert sorted(note.what for note in other.notes(run_id="r5")) == ["305", "5", "605", "905"]
        assert [note.what for note in other.notes(run_id="r5", since_ns=900)] in (["905", "5"], ["5", "905"])
        assert [note.what for note in other.notes(run_id="r5", until_ns=600)] == ["305"]
        assert sorted(int(note.what) for note in other.notes(since_ns=1_190)) == [5, *range(1_190, 1_200)]
        assert list(other.notes(since_ns=7, until_ns=7)) == list(other.notes(run_id="nobody")) == []

    def test_a_storm_of_notes_leaves_one_and_is_not_written_one_by_one(
        self, lasting: Any, other: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add, written = lasting._add_notes, list[int]()

        def counted(number: int, notes: Any) -> None:
            written.append(number)
            add(number, notes)

        monkeypatch.setattr(lasting, "_add_notes", counted)
        for number in range(10_000):
            lasting.note(NOTE._replace(last_ns=number))
        assert len(written) < 1_000
        lasting.beat()
        assert list(other.notes()) == [NOTE._replace(count=10_000, first_ns=7, last_ns=9_999)]

    def test_notes_keep_any_text_and_figures_stay_countable(self, lasting: Any, other: Any) -> None:
        odd = 'ü\n"{}\\ \u2028 x:y/z=1 \ud800'
        most = 2**70
        note = Note(odd, odd, {odd: odd}, odd, odd, odd, odd, odd, most, most, most, 2**60 + 1, most)
        lasting.note(note)
        lasting.note(note)
        text = odd.replace("\ud800", "\\ud800")
        expected = Note(text, text, {text: text}, text, text, text, text, text, MOST, MOST, MOST, 2**60 + 1, 2**63 - 1)
        assert list(other.notes()) == [expected]
        lasting.note(NOTE._replace(run_id="", what="", count=-3, tokens=-1, cost_nano=-1, first_ns=-1, last_ns=-1))
        assert list(other.notes(run_id="")) == [
            NOTE._replace(run_id="", what=None, count=0, tokens=0, cost_nano=0, first_ns=0, last_ns=0)
        ]

    @settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.integers(0, 3), NOTES), max_size=12))
    def test_notes_add_up_in_any_order_and_from_any_process(
        self, lasting: Any, other: Any, made: list[tuple[int, Note]]
    ) -> None:
        """`how`: by which client, and whether what it had is written before."""
        run_id, model = f"h{next(_runs)}", dict[Any, list[Note]]()
        for how, note in made:
            client = (lasting, other)[how % 2]
            client.note(note._replace(run_id=run_id))
            model.setdefault(note._replace(run_id=run_id).key, []).append(note)
            if how > 1:
                client.beat()
        lasting.beat()
        other.beat()
        found = {note.key: note for note in other.notes(run_id=run_id)}
        assert found.keys() == model.keys()
        for key, notes in model.items():
            costs = [note.cost_nano for note in notes if note.cost_nano is not None]
            one = found[key]
            assert (one.count, one.tokens) == (sum(n.count for n in notes), sum(n.tokens for n in notes))
            assert one.cost_nano == (sum(costs) if costs else None)
            assert (one.first_ns, one.last_ns) == (min(n.first_ns for n in notes), max(n.last_ns for n in notes))

    def test_many_threads_lose_no_note(self, lasting: Any, other: Any) -> None:
        def work(client: Any, index: int) -> None:
            for turn in range(100):
                client.note(NOTE._replace(what=str((index + turn) % 3), tokens=turn))

        threads = [threading.Thread(target=work, args=((lasting, other)[index % 2], index)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lasting.beat()
        other.beat()
        assert sum(note.count for note in other.notes()) == 800
        assert sum(note.tokens for note in other.notes()) == 8 * 4_950

    def test_notes_change_neither_records_nor_balances(self, lasting: Any, other: Any) -> None:
        lasting.reserve("c", (offer(60),), (account(),), ABOUT)
        lasting.note(NOTE)
        lasting.settle("c", Amounts(nano=25), ZERO, outcome())
        before = other.balance("run:a")
        lasting.note(NOTE)
        assert other.balance("run:a") == before
        assert lasting.export(io.StringIO()) == len(list(other.records())) == 1
        assert [note.count for note in other.notes()] == [2]

    def test_a_note_in_the_middle_of_an_operation_is_written_after_it(
        self, lasting: Any, other: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A finalizer, run by the garbage collector, may bring it there."""
        with lasting._turn():
            lasting.note(NOTE)
            assert len(lasting._noted) == 1
        assert list(other.notes()) == []
        lasting.note(NOTE)
        assert [note.count for note in other.notes()] == [2]

    def test_what_waits_is_written_as_the_ledger_is_let_go_of_and_after_a_restart(
        self, lasting: Any, other: Any
    ) -> None:
        for _ in range(50):
            lasting.note(NOTE)
        lasting.dispose()
        assert [note.count for note in other.notes()] == [50]
        lasting.note(NOTE)
        lasting.dispose()
        assert [note.count for note in other.notes()] == [51]

    def test_a_forked_child_leaves_its_parents_notes_to_it(self, lasting: Any, other: Any) -> None:
        with lasting._turn():
            lasting.note(NOTE)
        lasting._pid += 1  # as a child sees it
        lasting.note(NOTE._replace(what="child"))
        assert [note.what for note in other.notes()] == ["child"]


class LastingMachine(LedgerMachine):
    """The same with processes that come and go. `again` opens the store anew, as another process does."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: Counter[str] = Counter()

    def again(self) -> Any:
        raise NotImplementedError

    @rule(run=st.sampled_from(["r1", "r2"]))
    def something_is_noted(self, run: str) -> None:
        self.noted[run] += 1
        self.ledger.note(NOTE._replace(run_id=run))

    @rule()
    def the_process_ends_and_another_comes(self) -> None:
        """Whatever it held is unknown from then on, all of it; nothing else changes."""
        ledger = self.again()
        ledger.beat()
        self.ledger = ledger
        for model in self.models.values():
            model.unknown.update({call: (0, nano) for call, nano in model.held.items()})
            model.held.clear()
        assert {note.run_id: note.count for note in ledger.notes()} == self.noted
