"""What every ledger must do. A store's test module subclasses `LedgerContract` and `LedgerMachine`."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from runcap.guardrails.amounts import UNITS, ZERO, Amounts, Caps
from runcap.guardrails.ledger import Account, Grant, Ledger, Offer, Refusal


def offer(nano: int, *, least: int | None = None, expected: int | None = None, tokens: int = 0) -> Offer:
    """One step that costs `nano`."""
    return Offer(
        most=Amounts(nano=nano, tokens=tokens, steps=1),
        least=Amounts(nano=nano if least is None else least, tokens=tokens, steps=1),
        expected=Amounts(nano=nano if expected is None else expected, tokens=tokens, steps=1),
    )


def account(
    name: str = "run:a", nano: int | None = 100, steps: int | None = None, tokens: int | None = None
) -> Account:
    return Account(name, Caps(nano=nano, steps=steps, tokens=tokens))


class LedgerContract:
    """Deterministic behaviour, on one ledger made by `make`."""

    def make(self) -> Ledger:
        raise NotImplementedError

    @pytest.fixture
    def ledger(self) -> Ledger:
        return self.make()

    def test_holds_then_spends(self, ledger: Ledger) -> None:
        grant = ledger.reserve("c", (offer(60),), (account(),))
        assert isinstance(grant, Grant)
        assert grant.balances[0].held == Amounts(nano=60)
        assert grant.balances[0].spent == Amounts(steps=1)
        settled = ledger.settle("c", Amounts(nano=25))
        assert settled is not None
        assert settled.balances[0] == ledger.balance("run:a")
        assert ledger.balance("run:a").spent == Amounts(nano=25, steps=1)
        assert ledger.balance("run:a").held == ZERO

    def test_refuses_what_does_not_fit_and_says_which_unit(self, ledger: Ledger) -> None:
        ledger.reserve("c", (offer(60),), (account(),))
        refusal = ledger.reserve("d", (offer(41),), (account(),))
        assert isinstance(refusal, Refusal)
        assert refusal.unit == "usd"
        assert refusal.balance.in_flight == 1
        assert isinstance(ledger.reserve("e", (offer(40),), (account(),)), Grant)

    def test_grants_min_of_most_and_free(self, ledger: Ledger) -> None:
        grant = ledger.reserve("c", (offer(300, least=80),), (account(),))
        assert isinstance(grant, Grant)
        assert grant.amount == Amounts(nano=100, steps=1)

    def test_takes_the_first_offer_that_fits(self, ledger: Ledger) -> None:
        grant = ledger.reserve("c", (offer(300), offer(90), offer(10)), (account(),))
        assert isinstance(grant, Grant)
        assert grant.offer == 1

    def test_every_account_must_have_room_or_none_is_touched(self, ledger: Ledger) -> None:
        small, large = account("run:child", 10), account("run:root", 100)
        refusal = ledger.reserve("c", (offer(20),), (small, large))
        assert isinstance(refusal, Refusal)
        assert refusal.account.id == "run:child"
        assert ledger.balance("run:root").held == ZERO
        assert ledger.balance("run:root").spent == ZERO

    def test_steps_count_when_admitted_and_stay_after_a_release(self, ledger: Ledger) -> None:
        one_step = account(steps=1)
        assert isinstance(ledger.reserve("c", (offer(1),), (one_step,)), Grant)
        ledger.release("c")
        assert ledger.balance("run:a").spent == Amounts(steps=1)
        refusal = ledger.reserve("d", (offer(1),), (one_step,))
        assert isinstance(refusal, Refusal)
        assert refusal.unit == "steps"

    def test_a_count_without_a_hold_needs_no_settling(self, ledger: Ledger) -> None:
        one = Amounts(tool_calls=1)
        tools = Account("run:a", Caps(tool_calls=1))
        assert isinstance(ledger.reserve("t", (Offer(one, one, one),), (tools,)), Grant)
        assert ledger.balance("run:a").in_flight == 0
        assert isinstance(ledger.reserve("u", (Offer(one, one, one),), (tools,)), Refusal)

    def test_reserving_again_gives_the_same_grant(self, ledger: Ledger) -> None:
        first = ledger.reserve("c", (offer(60),), (account(),))
        assert ledger.reserve("c", (offer(60),), (account(),)) == first
        assert ledger.balance("run:a").held == Amounts(nano=60)

    def test_settles_once(self, ledger: Ledger) -> None:
        ledger.reserve("c", (offer(60),), (account(),))
        assert ledger.settle("c", Amounts(nano=25)) is not None
        assert ledger.settle("c", Amounts(nano=25)) is None
        assert ledger.release("c") is None
        assert ledger.balance("run:a").spent.nano == 25

    def test_an_overrun_is_recorded_in_full(self, ledger: Ledger) -> None:
        ledger.reserve("c", (offer(60),), (account(),))
        ledger.settle("c", Amounts(nano=130))
        assert ledger.balance("run:a").spent.nano == 130
        assert ledger.balance("run:a").free(0) == 0
        assert isinstance(ledger.reserve("d", (offer(1),), (account(),)), Refusal)

    def test_unknown_keeps_its_hold_and_is_no_spend(self, ledger: Ledger) -> None:
        ledger.reserve("c", (offer(60),), (account(),))
        ledger.settle("c", Amounts(nano=10), Amounts(nano=50))
        balance = ledger.balance("run:a")
        assert (balance.spent.nano, balance.held.nano, balance.unknown.nano) == (10, 0, 50)
        assert isinstance(ledger.reserve("d", (offer(41),), (account(),)), Refusal)

    def test_unknown_is_reconciled_by_settling_again(self, ledger: Ledger) -> None:
        ledger.reserve("c", (offer(60),), (account(),))
        ledger.settle("c", Amounts(nano=10), Amounts(nano=50))
        ledger.settle("c", Amounts(nano=33))
        balance = ledger.balance("run:a")
        assert (balance.spent.nano, balance.unknown.nano) == (33, 0)

    def test_a_release_before_the_reservation_leaves_a_tombstone(self, ledger: Ledger) -> None:
        ledger.release("late")
        refusal = ledger.reserve("late", (offer(1),), (account(),))
        assert isinstance(refusal, Refusal)
        assert refusal.unit is None
        assert ledger.balance("run:a").held == ZERO

    def test_stopped_refuses_until_topped_up(self, ledger: Ledger) -> None:
        ledger.stop("run:a", "enough")
        ledger.stop("run:a", "second reason")
        refusal = ledger.reserve("c", (offer(1),), (account(),))
        assert isinstance(refusal, Refusal)
        assert refusal.balance.stopped == "enough"
        assert ledger.top_up("run:a", "key", Amounts(nano=1))
        assert isinstance(ledger.reserve("d", (offer(101),), (account(),)), Grant)

    def test_a_top_up_counts_once_a_key(self, ledger: Ledger) -> None:
        assert ledger.top_up("run:a", "key", Amounts(nano=50))
        assert not ledger.top_up("run:a", "key", Amounts(nano=50))
        grant = ledger.reserve("c", (offer(150),), (account(),))
        assert isinstance(grant, Grant)
        assert grant.balances[0].caps.nano == 150

    def test_closing_ends_an_account_and_leaves_the_others(self, ledger: Ledger) -> None:
        both = (account("run:child"), account("run:root"))
        ledger.reserve("c", (offer(60),), both)
        ledger.settle("c", Amounts(nano=10), Amounts(nano=50))
        closed = ledger.close("run:child")
        assert closed is not None
        assert closed.unknown.nano == 50
        assert ledger.balance("run:child").spent == ZERO
        ledger.settle("c", Amounts(nano=33))
        assert ledger.balance("run:root").spent.nano == 33
        assert ledger.balance("run:root").unknown == ZERO

    def test_an_account_with_a_call_in_flight_is_not_closed(self, ledger: Ledger) -> None:
        ledger.reserve("c", (offer(60),), (account(),))
        assert ledger.close("run:a") is None
        ledger.settle("c", Amounts(nano=10))
        closed = ledger.close("run:a")
        assert closed is not None
        assert closed.spent.nano == 10

    async def test_the_async_face_is_the_same_ledger(self, ledger: Ledger) -> None:
        assert isinstance(await ledger.areserve("c", (offer(60),), (account(),)), Grant)
        assert await ledger.asettle("c", Amounts(nano=25)) is not None
        await ledger.areserve("d", (offer(10),), (account(),))
        await ledger.arelease("d")
        assert ledger.balance("run:a").used == Amounts(nano=25, steps=2)
        await ledger.astop("run:a", "enough")
        assert await ledger.atop_up("run:a", "key", Amounts(nano=5))
        assert ledger.balance("run:a").stopped is None

    def test_100_threads_never_oversell(self, ledger: Ledger) -> None:
        barrier = threading.Barrier(100)
        granted: list[str] = []

        def work(index: int) -> None:
            barrier.wait()
            for turn in range(20):
                call = f"{index}-{turn}"
                if isinstance(ledger.reserve(call, (offer(7),), (account(nano=1_000),)), Grant):
                    granted.append(call)
                    ledger.settle(call, Amounts(nano=5))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        balance = ledger.balance("run:a")
        assert balance.spent.nano == 5 * len(granted) <= 1_000
        assert balance.held == ZERO
        assert balance.in_flight == 0
        assert 1_000 - balance.spent.nano < 7, "the last affordable call was refused"

    @pytest.mark.parametrize("unit", range(4), ids=UNITS)
    def test_spare_stays_free_beside_the_hold_in_every_unit(self, ledger: Ledger, unit: int) -> None:
        def amounts(size: int) -> Amounts:
            return ZERO._replace(**{Amounts._fields[unit]: size})

        capped = Account("run:a", Caps(**{Amounts._fields[unit]: 10}))
        most = Offer(amounts(7), amounts(7), ZERO, amounts(4))
        refusal = ledger.reserve("c", (most,), (capped,))
        assert isinstance(refusal, Refusal)
        assert refusal.unit == UNITS[unit]
        assert refusal.needed[unit] == 11, "a refusal says the whole room that is needed"
        assert ledger.balance("run:a").used == ZERO
        assert isinstance(ledger.reserve("d", (most._replace(spare=amounts(3)),), (capped,)), Grant)
        assert ledger.balance("run:a").used == amounts(7), "spare is kept free, not held"

    def test_a_hold_is_cut_to_what_is_free_beside_spare(self, ledger: Ledger) -> None:
        grant = ledger.reserve("c", (offer(300, least=50)._replace(spare=Amounts(nano=40)),), (account(),))
        assert isinstance(grant, Grant)
        assert grant.amount == Amounts(nano=60, steps=1)
        assert isinstance(ledger.reserve("last", (offer(40),), (account(),)), Grant)

    def test_spare_is_kept_free_in_every_account(self, ledger: Ledger) -> None:
        child, root = account("run:child", 100), account("run:root", 60)
        spared = offer(50)._replace(spare=Amounts(nano=20))
        refusal = ledger.reserve("c", (spared,), (child, root))
        assert isinstance(refusal, Refusal)
        assert refusal.account.id == "run:root"
        assert isinstance(ledger.reserve("d", (spared._replace(spare=Amounts(nano=10)),), (child, root)), Grant)

    def test_each_offer_keeps_its_own_spare(self, ledger: Ledger) -> None:
        dear, cheap = offer(60)._replace(spare=Amounts(nano=60)), offer(50)._replace(spare=Amounts(nano=50))
        grant = ledger.reserve("c", (dear, cheap), (account(),))
        assert isinstance(grant, Grant)
        assert grant.offer == 1

    @pytest.mark.parametrize("reason", ["cap:usd", "cap:steps", "loop: look_up, 3 times"])
    def test_the_last_answer_is_granted_after_a_cap_or_a_loop(self, ledger: Ledger, reason: str) -> None:
        ledger.reserve("c", (offer(60),), (account(),))
        ledger.settle("c", Amounts(nano=60))
        ledger.stop("run:a", reason)
        assert isinstance(ledger.reserve("d", (offer(1),), (account(),)), Refusal)
        last = offer(30, least=10)._replace(last=True)
        assert isinstance(ledger.reserve("last", (last,), (account(),)), Grant)
        balance = ledger.balance("run:a")
        assert (balance.stopped, balance.held.nano) == (reason, 30)
        over = ledger.reserve("more", (last,), (account(),))
        assert isinstance(over, Grant)
        assert over.amount.nano == 10, "never above the cap"
        refusal = ledger.reserve("yet more", (last,), (account(),))
        assert isinstance(refusal, Refusal)
        assert refusal.unit == "usd"

    @pytest.mark.parametrize("reason", ["a person said so", "cap:steps", None])
    def test_what_was_spent_already_is_booked_whatever_the_account_says(
        self, ledger: Ledger, reason: str | None
    ) -> None:
        full = Account("run:a", Caps(nano=10, steps=1))
        assert isinstance(ledger.reserve("c", (offer(10),), (full,)), Grant)
        ledger.settle("c", Amounts(nano=10))
        if reason is not None:
            ledger.stop("run:a", reason)
        made = Offer(Amounts(7, 3, 2, 1), ZERO, ZERO, last="spent")
        grant = ledger.reserve("made", (made,), (Account("run:a"),))
        assert isinstance(grant, Grant)
        assert grant.amount == Amounts(7, 3, 2, 1)
        ledger.settle("made", Amounts(5, 3))
        balance = ledger.balance("run:a")
        assert balance.caps == full.caps, "it came with none, and leaves those there are"
        assert (balance.spent, balance.held, balance.stopped) == (Amounts(15, 3, 3, 1), ZERO, reason)
        ledger.release("dead")
        assert isinstance(ledger.reserve("dead", (made,), (Account("run:a"),)), Refusal)

    def test_no_last_answer_after_a_user_stopped_the_run(self, ledger: Ledger) -> None:
        ledger.stop("run:root", "enough")
        ledger.stop("run:child", "cap:usd")
        last = offer(1)._replace(last=True)
        both = (account("run:child"), account("run:root"))
        refusal = ledger.reserve("last", (last,), both)
        assert isinstance(refusal, Refusal)
        assert (refusal.account.id, refusal.unit) == ("run:root", None)
        assert isinstance(ledger.reserve("again", (last,), both[:1]), Grant)

    def test_100_threads_leave_spare_free_at_every_instant(self, ledger: Ledger) -> None:
        spared = offer(7)._replace(spare=Amounts(nano=50, steps=1))
        capped = account(nano=1_000, steps=101)
        barrier, least = threading.Barrier(100), []

        def work(index: int) -> None:
            barrier.wait()
            for turn in range(5):
                answer = ledger.reserve(f"{index}-{turn}", (spared,), (capped,))
                if isinstance(answer, Grant):
                    [balance] = answer.balances
                    least.append((balance.free(0) or 0, balance.free(2) or 0))
                    ledger.settle(f"{index}-{turn}", Amounts(nano=7 if turn % 2 else 2))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert min(nano for nano, _ in least) >= 50
        assert min(steps for _, steps in least) >= 1
        ledger.stop("run:a", "cap:steps")
        assert isinstance(ledger.reserve("last", (offer(50)._replace(last=True),), (capped,)), Grant)
        assert ledger.balance("run:a").spent.steps <= 101


@dataclass
class _Model:
    cap: int
    spent: int = 0
    held: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, tuple[int, int]] = field(default_factory=dict)
    steps: int = 0
    overrun: int = 0
    stopped: bool = False

    @property
    def used(self) -> int:
        return self.spent + sum(self.held.values()) + sum(rest for _, rest in self.unknown.values())


class LedgerMachine(RuleBasedStateMachine):
    """Random operations against a plain-dict model: a child account inside a root account."""

    calls = Bundle("calls")

    def make(self) -> Ledger:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.make()
        self.models = {"run:child": _Model(400), "run:root": _Model(1_000)}
        self.keys: set[str] = set()
        self.dead: set[str] = set()
        self.count = 0

    def _accounts(self, names: tuple[str, ...]) -> tuple[Account, ...]:
        base = {"run:child": 400, "run:root": 1_000}
        return tuple(Account(name, Caps(nano=base[name])) for name in names)

    @rule(target=calls, nano=st.integers(0, 300), least=st.integers(0, 300), nested=st.booleans())
    def reserve(self, nano: int, least: int, nested: bool) -> str:
        self.count += 1
        call = f"c{self.count}"
        names = ("run:child", "run:root") if nested else ("run:root",)
        least = min(least, nano)
        answer = self.ledger.reserve(call, (offer(nano, least=least),), self._accounts(names))
        free = min(max(0, self.models[name].cap - self.models[name].used) for name in names)
        stopped = any(self.models[name].stopped for name in names)
        if stopped or least > free:
            assert isinstance(answer, Refusal)
            return call
        assert isinstance(answer, Grant)
        assert answer.amount.nano == min(nano, free)
        for name in names:
            self.models[name].steps += 1
            if answer.amount.nano:
                self.models[name].held[call] = answer.amount.nano
        return call

    @rule(call=calls, charge=st.integers(0, 400), rest=st.integers(0, 300))
    def settle(self, call: str, charge: int, rest: int) -> None:
        for model in self.models.values():
            if call in model.held:
                rest = min(rest, max(0, model.held[call] - charge))
            elif call in model.unknown:
                rest = 0
        self.ledger.settle(call, Amounts(nano=charge), Amounts(nano=rest))
        for model in self.models.values():
            hold = model.held.pop(call, None)
            before = model.unknown.pop(call, None)
            if hold is None and before is None:
                continue
            room = hold if hold is not None else sum(before or (0, 0))
            model.overrun += max(0, charge - room)
            model.spent += charge - (before[0] if before else 0)
            if rest:
                model.unknown[call] = (charge, rest)

    @rule(call=consumes(calls))
    def release(self, call: str) -> None:
        self.ledger.release(call)
        for model in self.models.values():
            model.held.pop(call, None)
            charged = model.unknown.pop(call, None)
            model.spent -= charged[0] if charged else 0

    @rule(number=st.integers(0, 5), extra=st.integers(1, 50), name=st.sampled_from(["run:child", "run:root"]))
    def top_up(self, number: int, extra: int, name: str) -> None:
        key = f"{name}-{number}"
        assert self.ledger.top_up(name, key, Amounts(nano=extra)) == (key not in self.keys)
        if key not in self.keys:
            self.keys.add(key)
            self.models[name].cap += extra
            self.models[name].stopped = False

    @rule(name=st.sampled_from(["run:child", "run:root"]))
    def stop(self, name: str) -> None:
        self.ledger.stop(name, "stopped")
        self.models[name].stopped = True

    @rule(target=calls, number=st.integers(1, 3))
    def late_word_about_a_dead_call(self, number: int) -> str:
        call = f"dead{number}"
        self.ledger.release(call)
        assert isinstance(self.ledger.reserve(call, (offer(1),), self._accounts(("run:root",))), Refusal)
        return call

    @rule()
    def nothing(self) -> None:
        multiple()

    @invariant()
    def books_agree(self) -> None:
        for name, model in self.models.items():
            balance = self.ledger.balance(name)
            assert balance.spent.nano == model.spent
            assert balance.held.nano == sum(model.held.values())
            assert balance.unknown.nano == sum(rest for _, rest in model.unknown.values())
            assert balance.in_flight == len(model.held)
            assert balance.spent.steps == model.steps

    @invariant()
    def never_above_the_cap_but_by_recorded_overruns(self) -> None:
        for model in self.models.values():
            assert model.used <= model.cap + model.overrun
