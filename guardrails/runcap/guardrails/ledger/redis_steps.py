"""What a `RedisLedger` asks of Redis, step by step, whoever carries it there and back: see `redis_clients`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ..amounts import Amounts
from ..clock import new_id
from . import redis_errors as errors
from . import redis_notes
from . import redis_wire as wire
from .base import Account, Balance, Grant, LedgerError, Offer, Refusal, Settlement
from .lasting import Ending
from .notes import Note
from .records import About, Outcome
from .redis_clients import Commands, Request, Steps
from .redis_scripts import all_scripts, script
from .redis_state import Known
from .redis_target import Address, Target
from .redis_wire import HEAD, Hold, Keys, Mine, Reply
from .timekeeper import elapsed_ns

PAGE = 250
"""How many holds or records one script looks at: it has Redis to itself meanwhile."""

_OWNERS = 10_000
"""How many owners Redis remembers: those that gave a sign of life last."""

_HOPS = 5
"""How often a cluster may send us elsewhere before that counts as an error."""

_EVICTING = "allkeys"

_NOT_OURS = frozenset((b"FOREIGN", b"NEWER", "FOREIGN", "NEWER"))


class Asking:
    """A conversation with Redis. `owner` gives the client's id, `saw_time` hears when something was last written."""

    def __init__(
        self,
        target: Target,
        namespace: str,
        epoch: str | None,
        *,
        owner: Callable[[], str],
        beat_every_ns: int,
        saw_time: Callable[[int], None],
    ) -> None:
        self.target = target
        self.keys = Keys(namespace)
        self.known = Known(epoch)
        self.open: dict[str, Mine] = {}
        self._owner = owner
        self._beat_every_ns = beat_every_ns
        self._saw_time = saw_time
        self._home: Address | None = None
        self._nodes: list[Address] = []

    @property
    def where(self) -> str:
        """The server as errors call it."""
        return self.target.named(self._home)

    # Operations

    def reserve(
        self, call_id: str, offers: tuple[Offer, ...], accounts: tuple[Account, ...], about: About | None
    ) -> Steps[Grant | Refusal]:
        """See `Ledger.reserve`."""
        told = wire.told_of(accounts, about)
        args = wire.reserve_args(call_id, offers, accounts, told)
        reply = yield from self._run("reserve", self.keys.for_reserve(call_id, accounts), args)
        answer, balances = wire.reservation(call_id, offers, accounts, reply)
        self.known.saw(reply, balances)
        if isinstance(answer, Grant) and (answer.amount[0] or answer.amount[1]):
            ids = tuple([account.id for account in accounts])
            epoch, expected = self.known.epoch or "", offers[answer.offer].expected
            self.open[call_id] = Mine(ids, epoch, answer.offer, answer.amount, expected, about, told)
        return answer

    def end(self, ending: Ending) -> Steps[Settlement | None]:
        """See `Ledger.settle` and `Ledger.release`."""
        mine = self.open.get(ending.call_id)
        accounts = (yield from self._accounts_of(ending.call_id)) if mine is None else mine.accounts
        args = wire.settle_args(ending, mine)
        keys = self.keys.for_settle(ending.call_id, args[6], accounts)
        reply = yield from self._run("settle", keys, args, signs=False)
        if reply[0] == b"GONE" and mine is not None:
            reply = yield from self._run("settle", keys, args + mine.lost(), signs=False)
        settled = wire.settlement(ending, accounts, reply)
        if settled is not None:
            self.known.saw(reply, settled.balances)
        self.open.pop(ending.call_id, None)
        return settled

    def top_up(self, account_id: str, key: str, extra: Amounts, mark: str) -> Steps[bool]:
        """See `Ledger.top_up`. `mark` tells this attempt from others: it may be made twice where a connection broke."""
        keys = (*self.keys.base, self.keys.account(account_id), self.keys.top_ups(account_id))
        reply = yield from self._run("top_up", keys, (key, mark, *extra))
        self.known.saw(reply, (wire.balance_of(account_id, reply[HEAD + 1]),))
        return bool(reply[HEAD])

    def stop(self, account_id: str, reason: str) -> Steps[None]:
        """See `Ledger.stop`."""
        yield from self._figures("stop", account_id, (json.dumps(reason, ensure_ascii=False),))

    def balance(self, account_id: str) -> Steps[Balance]:
        """See `Ledger.balance`."""
        return (yield from self._figures("balance", account_id))

    def close(self, account_id: str) -> Steps[Balance | None]:
        """See `Ledger.close`."""
        keys = (*self.keys.base, self.keys.account(account_id), self.keys.top_ups(account_id))
        reply = yield from self._run("close", keys, (), again=False)
        balance, busy = wire.balance_of(account_id, reply[HEAD]), reply[0] == b"BUSY"
        self.known.saw(reply, (balance if busy else Balance(account_id),))
        return None if busy else balance

    def judge(self, run_id: str, verdict: str) -> Steps[None]:
        """See `Ledger.judge`."""
        yield from self._run("judge", (*self.keys.base, self.keys.verdicts), (run_id, verdict))

    def ready(self) -> Steps[None]:
        """Look at the ledger, if that was not done yet."""
        if not self.known.met:
            yield from self._meet()

    def reopen(self) -> Steps[bool]:
        """Go on after a loss; whether there was one."""
        reply = yield from self._run("reopen", self.keys.base, (new_id(),))
        if reply[0] == b"OK":
            self.known.join(wire.readable(reply))
        return bool(reply[0] == b"OK")

    def beat(self) -> Steps[None]:
        """Say that this owner lives, and see that Redis may still be trusted."""
        yield from self._meet()
        self.known.beat_ns = None  # due
        yield from self._run("beat", self.keys.base, (_OWNERS,))

    def leave(self) -> Steps[None]:
        """Say that this owner is gone."""
        yield from self._run("leave", (*self.keys.base, self.keys.held), tuple(self.open), signs=False)

    def aged(self, silent_us: int, passed: int) -> Steps[tuple[list[Hold], bool]]:
        """A page of old holds whose owners fell silent, or do not know them; `passed`: those to pass over.

        And whether there are more.
        """
        reply = yield from self._run("aged", (*self.keys.base, self.keys.held), (silent_us, passed, PAGE))
        call_ids = wire.readable(reply[HEAD])
        holds = yield from self._holds(call_ids)
        owners = sorted({hold.owner for hold in holds})
        reply = yield from self._run("silent", self.keys.base, (silent_us, *owners))
        silent = set(wire.readable(reply[HEAD]))
        found = [hold for hold in holds if hold.owner in silent or self._is_orphan(hold)]
        return found, len(call_ids) >= PAGE

    def bury(self, hold: Hold, silent_us: int) -> Steps[bool]:
        """Make a hold unknown, if its owner is silent still."""
        record = ""
        if hold.about_json:
            outcome = Outcome(hold.about, "unknown", resolved_by="owner died")
            record = wire.record_json(outcome, hold.about_json, hold.amount.nano)
        args = (hold.call_id, silent_us, "1" if self._is_orphan(hold) else "0", hold.about.run_id, record)
        reply = yield from self._run("bury", self.keys.for_bury(hold), args)
        return bool(reply[0] == b"OK")

    def unknowns(self) -> Steps[list[Hold]]:
        """Every hold that is unknown, oldest first."""
        reply = yield from self._run("unknown", (*self.keys.base, self.keys.unknown), ())
        call_ids, found = wire.readable(reply[HEAD]), []
        for at in range(0, len(call_ids), PAGE):
            found += yield from self._holds(call_ids[at : at + PAGE])
        return [hold for hold in found if hold.state == "unknown"]

    def page(self, run_id: str | None, begin: str | int, end: str) -> Steps[list[Any]]:
        """The next entries of the usage stream, from an entry's id on, or of a run's list, from a position on."""
        of_run = () if run_id is None else (self.keys.run(run_id),)
        keys = (*self.keys.base, self.keys.usage, self.keys.verdicts, self.keys.revised, *of_run)
        reply = yield from self._run("page", keys, (begin, end, PAGE))
        entries: list[Any] = wire.readable(reply[HEAD])
        return entries

    def note(self, number: int, notes: Sequence[Note]) -> Steps[None]:
        """Add notes up with those that are kept, unless a step of this number did."""
        keys = (*self.keys.base, self.keys.noted, *[self.keys.notes(note.run_id) for note in notes])
        yield from self._run("note", keys, redis_notes.args(number, notes))

    def notes(self, run_id: str | None, after: int) -> Steps[tuple[list[Note], int | None]]:
        """The notes of a run; or those of the next runs, from a place on, and the place to go on from."""
        run_ids = [] if run_id is None else [run_id]
        if run_id is None:
            reply = yield from self._run("noted", (*self.keys.base, self.keys.noted), (after, redis_notes.PAGE))
            run_ids = wire.readable(reply[HEAD])
        if not run_ids:
            return [], None
        reply = yield from self._run("notes", (*self.keys.base, *map(self.keys.notes, run_ids)), ())
        told = zip(run_ids, wire.readable(reply[HEAD:]), strict=True)
        found = [note for run, stored in told for note in redis_notes.read(run, stored)]
        return found, None if run_id is not None else after + len(run_ids)

    # Inside

    def _figures(self, name: str, account_id: str, args: tuple[Any, ...] = ()) -> Steps[Balance]:
        reply = yield from self._run(name, (*self.keys.base, self.keys.account(account_id)), args)
        balance = wire.balance_of(account_id, reply[HEAD])
        self.known.saw(reply, (balance,))
        return balance

    def _accounts_of(self, call_id: str) -> Steps[tuple[str, ...]]:
        holds = yield from self._holds([call_id])
        return holds[0].accounts if holds else ()

    def _holds(self, call_ids: list[str]) -> Steps[list[Hold]]:
        if not call_ids:
            return []
        keys = (*self.keys.base, self.keys.usage, self.keys.verdicts, *map(self.keys.hold, call_ids))
        reply = yield from self._run("holds", keys, ())
        told = zip(call_ids, reply[HEAD:], strict=True)
        return [hold for hold in (wire.hold_of(call_id, each) for call_id, each in told) if hold is not None]

    def _is_orphan(self, hold: Hold) -> bool:
        return hold.owner == self._owner() and hold.call_id not in self.open

    def _beat_due(self) -> bool:
        last = self.known.beat_ns
        return last is None or elapsed_ns() - last > self._beat_every_ns

    def _run(
        self, name: str, keys: tuple[str, ...], args: Any, *, again: bool = True, signs: bool = True
    ) -> Steps[Reply]:
        """Run a script; its reply, where it is one that the caller has to know.

        `signs`: a sign of life may go with it. It does not with what ends a call, which begins by freeing memory.
        """
        it, known = script(name), self.known
        if not known.met:
            yield from self._meet()
        due = signs and self._beat_due()
        for _ in range(_HOPS):
            first = known.args(self._owner(), due=due)
            rest = (len(keys), *keys, *first, *args)
            [reply] = yield from self._ask((("EVALSHA", it.sha, *rest),), again=again)
            if isinstance(reply, self.target.errors.NoScriptError):
                [reply] = yield from self._ask((("EVAL", it.text, *rest),), again=again)
            if isinstance(reply, Exception):
                raise errors.answered(reply, self.where)
            status = reply[0]
            if status == b"EPOCH":
                known.join(wire.readable(reply))
                continue
            if status in _NOT_OURS:
                self._check_ours(reply)
            known.note(reply, first[0])
            if due:
                known.beat_ns = elapsed_ns()
            if status == b"LOST":
                raise errors.lost(wire.readable(reply[HEAD]), self.keys.tag, self.where)
            answer: Reply = reply
            return answer
        raise LedgerError(f"the ledger in Redis changes its epoch all the time ({self.keys.tag} at {self.where})")

    def _meet(self) -> Steps[None]:
        """The first word: is it ours, can it be trusted, how far has it come?"""
        known, it = self.known, script("contact")
        arguments = (known.epoch or "", known.seq, new_id())
        commands: list[tuple[Any, ...]] = [("INFO", "memory")]
        if not known.met:
            commands += [("SCRIPT", "LOAD", each.text) for each in all_scripts()]
        commands.append(("EVAL", it.text, len(self.keys.fixed), *self.keys.fixed, *arguments))
        replies = yield from self._ask(tuple(commands))
        known.met = False
        for reply in replies:
            if isinstance(reply, Exception):
                raise errors.answered(reply, self.where)
        self._check_policy(wire.readable(replies[0]))
        reply = wire.readable(replies[-1])
        self._check_ours(reply)
        if known.epoch is None:
            known.join(reply)
        elif reply[HEAD] != known.epoch and not known.joined:
            self._check_pin(reply)
        self._saw_time(reply[HEAD + 1] * 1_000)
        known.note(reply, reply[HEAD])
        known.met = True

    def _check_pin(self, reply: Reply) -> None:
        """The user named an epoch: of this ledger, or of another. That is between him and this client."""
        epoch, former = reply[HEAD], reply[HEAD + 2].split()
        if self.known.epoch not in former:
            raise errors.pinned(str(self.known.epoch), epoch, self.where)
        self.known.join(reply)

    def _check_policy(self, info: str) -> None:
        policy = next((line for line in info.splitlines() if line.startswith("maxmemory_policy:")), "")
        name = policy.partition(":")[2].strip()
        if name.startswith(_EVICTING):
            raise errors.evicting(name, self.where)

    def _check_ours(self, reply: Reply) -> None:
        if reply[0] not in _NOT_OURS:
            return
        self.known.met = False
        status, _, _, _, *told = wire.readable(reply)
        raise errors.foreign(*told) if status == "FOREIGN" else errors.newer(*told)

    def _ask(self, commands: Commands, *, again: bool = True) -> Steps[list[Any]]:
        """Ask the node that has the namespace."""
        try:
            replies = yield Request(commands, self._home, again)
        except errors.Unanswered:
            self._home = self._nodes.pop(0) if self._nodes else None  # the next may ask another node
            raise
        if isinstance(replies[-1], Exception):
            moved = errors.redirect(replies[-1])
            if moved is not None:
                replies = yield from self._follow(moved, commands, again=again)
        return replies

    def _follow(self, moved: tuple[str, str, int] | None, commands: Commands, *, again: bool) -> Steps[list[Any]]:
        """Go where a cluster sends us."""
        at, replies = self._home or self.target.host, list[Any]()
        for _ in range(_HOPS):
            if moved is None:
                return replies[-len(commands) :]
            kind, host, port = moved
            at = (host or at[0], port)
            if kind == "MOVED":
                self._home = at
                yield from self._learn_nodes(at)
                replies = yield Request(commands, at, again)
            else:
                replies = yield Request((("ASKING",), *commands), at, again)
            moved = errors.redirect(replies[-1])
        raise LedgerError(f"the Redis cluster at {self.target.where} sends us from node to node")

    def _learn_nodes(self, node: Address) -> Steps[None]:
        """Whom to ask where this node is gone."""
        [slots] = yield Request((("CLUSTER", "SLOTS"),), node)
        if isinstance(slots, list):
            nodes = {(host or node[0], int(port)) for _, _, *nodes in wire.readable(slots) for host, port, *_ in nodes}
            self._nodes = sorted(nodes - {node})
