"""What tests on ledgers run in processes of their own: `python -m tests.ledgers.worker COMMAND ARGUMENTS`.

A process says what it does by lines on its standard output, each written in one piece: also of a process that is
killed, everything it was told is there to read.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NoReturn

from runcap.guardrails.amounts import ZERO, Amounts, Caps
from runcap.guardrails.ledger import About, Account, Balance, Grant, Offer, Outcome, Refusal
from runcap.guardrails.usage import Usage

from .spec import LONG, AnyLedger, Spec, end_of, fork, main, say

SHARED = "limit:team=core/total"
"""The account that all calls are charged to, beside their run's."""

Steps = Generator[tuple[str, tuple[Any, ...]], Any, None]
"""Operations of a ledger by name, with their arguments; the answers come back."""


@dataclass
class Tally:
    """What one thread or task was told. `charged` is by run; `rests`, left unknown, are (charged, unknown) by call."""

    granted: int = 0
    clamped: int = 0
    released: int = 0
    reconciled: int = 0
    refused: int = 0
    seen: int = 0
    charged: dict[str, int] = field(default_factory=dict)
    rests: dict[str, tuple[int, int]] = field(default_factory=dict)
    last_refused: tuple[int, int] | None = None
    wrong: list[str] = field(default_factory=list)

    def check(self, fine: bool, *what: object) -> None:
        """Note what is wrong."""
        if not fine:
            self.wrong.append(" ".join(map(str, what)))

    def see(self, balances: Iterable[Balance]) -> None:
        """At no instant anybody is told of is more used than there is."""
        for balance in balances:
            self.seen += 1
            self.check(balance.used.nano <= (balance.caps.nano or 0), "above the cap:", balance)

    def grant(self, grant: Grant, offers: tuple[Offer, ...]) -> None:
        """As much was held as was asked for, or all that there was."""
        self.granted += 1
        self.see(grant.balances)
        offer, nano = offers[grant.offer], grant.amount.nano
        full = any(balance.free(0) == 0 for balance in grant.balances)
        self.check(nano == offer.most.nano or (full and nano >= offer.least.nano), "cut too short:", grant)
        self.clamped += nano < offer.most.nano

    def refuse(self, refusal: Refusal, offers: tuple[Offer, ...]) -> None:
        """What was refused did not fit."""
        self.refused += 1
        self.see((refusal.balance,))
        least, free = offers[-1].least.nano, refusal.balance.free(0) or 0
        self.check(refusal.unit == "usd" and refusal.needed.nano == least > free, "would have fitted:", refusal)
        self.last_refused = (least, free)

    def charge(self, run: str, nano: int) -> None:
        """So much more was charged."""
        self.charged[run] = self.charged.get(run, 0) + nano


def trades(who: str, rounds: int | None, rng: random.Random, tally: Tally, *, cap: int, run_cap: int) -> Steps:
    """Calls of all sizes, which end in all ways; `rounds` of them, or without end."""
    run = f"run:{who}"
    accounts = (Account(run, Caps(nano=run_cap)), Account(SHARED, Caps(nano=cap), "team"))
    about = About(who, tags={"team": "core"}, provider="test", model="small", started_ns=time.time_ns())
    mine = tally.rests
    for turn in itertools.count() if rounds is None else range(rounds):
        call, offers = f"{who}/{turn}", _offers(rng)
        answer = yield "reserve", (call, offers, accounts, about)
        if isinstance(answer, Refusal):
            tally.refuse(answer, offers)
            continue
        tally.grant(answer, offers)
        fate, held = rng.random(), answer.amount.nano
        if fate < 0.2:
            answer = yield "release", (call, Outcome(about, "released", cost_nano=0))
            tally.released += 1
        else:
            charge = rng.randint(0, held)
            rest = rng.randint(0, held - charge) if fate < 0.4 else 0
            outcome = Outcome(about, "unknown" if rest else "settled", Usage(7, 3), charge, "test")
            answer = yield "settle", (call, Amounts(charge), Amounts(rest), outcome)
            tally.charge(run, charge)
            if rest:
                mine[call] = (charge, rest)
        tally.check(answer is not None, "nobody knew of", call)
        tally.see(answer.balances if answer is not None else ())
        if mine and rng.random() < 0.2:
            late = rng.choice(list(mine))
            charged, rest = mine.pop(late)
            final = rng.randint(0, charged + rest)
            outcome = Outcome(about, "settled", Usage(7, 3), final, "test", resolved_by="late")
            answer = yield "settle", (late, Amounts(final), ZERO, outcome)
            tally.charge(run, final - charged)
            tally.reconciled += 1
            tally.check(answer is not None, "nobody knew of", late)


def _offers(rng: random.Random) -> tuple[Offer, ...]:
    most = int(10 ** rng.uniform(3, 7.7))
    least = most if rng.random() < 0.5 else rng.randint(1, most)
    lower = [(most // 10, rng.randint(1, least))] if rng.random() < 0.3 and most // 10 >= least else []
    return tuple(offer(*each) for each in [(most, least), *lower])


def offer(most: int, least: int) -> Offer:
    least = min(least, most)
    return Offer(Amounts(most, steps=1), Amounts(least, steps=1), Amounts(least // 2, steps=1))


def drive(steps: Steps, ledger: AnyLedger) -> None:
    """Do it by the sync face."""
    answer = None
    try:
        while True:
            name, args = steps.send(answer)
            answer = getattr(ledger, name)(*args)
    except StopIteration:
        return


async def adrive(steps: Steps, ledger: AnyLedger) -> None:
    """Do it by the async face."""
    answer = None
    try:
        while True:
            name, args = steps.send(answer)
            answer = await getattr(ledger, f"a{name}")(*args)
    except StopIteration:
        return


def oversell(spec: Spec, processes: int, threads: int, rounds: int, cap: int, run_cap: int) -> None:
    """So many processes of so many threads, each thread a run of its own; all begin at once, when told to."""
    spec.warm_up()
    reader, writer = os.pipe()

    def child(process: int) -> None:
        os.close(writer)
        tallies = [Tally() for _ in range(threads)]
        with spec.open() as ledger:

            def work(n: int, tally: Tally) -> None:
                rng = random.Random(1_000 * process + n)
                try:
                    drive(trades(f"{process}.{n}", rounds, rng, tally, cap=cap, run_cap=run_cap), ledger)
                except Exception:  # noqa: BLE001 - the test is to hear of it
                    tally.wrong.append(traceback.format_exc()[-1_000:])

            os.read(reader, 1)  # until nobody has the other end any more
            in_threads(work, *enumerate(tallies))
        for tally in tallies:
            say(json.dumps(asdict(tally)))

    children = [fork(partial(child, process)) for process in range(processes)]
    say("ready")
    sys.stdin.readline()
    os.close(writer)
    sys.exit(any(set(map(end_of, children))))


def in_threads(work: Callable[..., None], *each: tuple[Any, ...]) -> None:
    """Do it for each at once."""
    threads = [threading.Thread(target=work, args=args) for args in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def kills(spec: Spec, times: int, seed: int, alive: int, threads: int, cap: int) -> None:
    """A fork server: has some children use the ledger, and kills one after the other."""
    rng = random.Random(seed)
    spec.warm_up()
    children: dict[int, int] = {}
    forked = 0
    for number in range(times):
        began = None
        while len(children) < alive and forked < times:
            reader, writer = os.pipe()
            pid = fork(partial(_child, spec, str(forked), threads, cap, writer))
            os.close(writer)
            children[pid] = began = reader
            forked += 1
        if began is not None and rng.random() < 0.9:  # one in ten may die before it has opened the ledger
            select.select([began], [], [], LONG)
        time.sleep(rng.uniform(0.001, 0.03))
        victim = rng.choice(list(children))
        os.kill(victim, signal.SIGKILL)
        os.close(children.pop(victim))
        say("killed" if end_of(victim) == -signal.SIGKILL else "wrong", number)


def _child(spec: Spec, name: str, threads: int, cap: int, began: int) -> None:
    ledger = spec.open()

    def work(n: int) -> None:
        tally, rng = Tally(), random.Random(f"{name}.{n}")
        try:
            _tell(trades(f"{name}.{n}", None, rng, tally, cap=cap, run_cap=cap), ledger, tally, rng)
        except BaseException:  # noqa: BLE001 - the test is to hear of it
            say("wrong", traceback.format_exc().replace("\n", " | "))

    os.write(began, b"x")
    in_threads(work, *((n,) for n in range(threads)))


def _tell(steps: Steps, ledger: AnyLedger, tally: Tally, rng: random.Random) -> NoReturn:
    """Do it, and tell of each step before and after: will CALL STEP CHARGE REST, did CALL STEP HELD."""
    answer = None
    while True:
        name, args = steps.send(answer)
        charge, rest = (args[1].nano, args[2].nano) if name == "settle" else (0, 0)
        say("will", args[0], name, charge, rest)
        answer = getattr(ledger, name)(*args)
        say("did", args[0], name, answer.amount.nano if isinstance(answer, Grant) else -1)
        for wrong in tally.wrong:
            say("wrong", wrong)
        tally.wrong.clear()
        if rng.random() < 0.02:
            ledger.beat()
        time.sleep(rng.uniform(0, 0.006))  # the call itself


def sleeper(spec: Spec, cap: int) -> None:
    """Holds three calls; ends them once told to, each in another way."""
    accounts = (Account("run:asleep", Caps(nano=cap)), Account(SHARED, Caps(nano=cap), "team"))
    about = About("asleep", tags={"team": "core"})
    with spec.open() as ledger:
        for call in ("a", "b", "c"):
            ledger.reserve(call, (offer(100, 100),), accounts, about)
        ledger.beat()
        say("holds")
        sys.stdin.readline()
        ledger.settle("a", Amounts(40), ZERO, Outcome(about, "settled", Usage(7, 3), 40, "test"))
        ledger.settle("b", Amounts(10), Amounts(5), Outcome(about, "unknown", Usage(7, 3), 10, "test"))
        ledger.release("c", Outcome(about, "released", cost_nano=0))
        say("ended")
        sys.stdin.readline()


if __name__ == "__main__":
    main(oversell, kills, sleeper)
