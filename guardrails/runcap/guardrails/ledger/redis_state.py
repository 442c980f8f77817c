"""What a client knows of the ledger in Redis: how far it has come, what time it is there, what accounts had last."""

from __future__ import annotations

from collections.abc import Iterable

from .. import forks
from .base import Balance
from .redis_wire import HEAD, Reply
from .timekeeper import elapsed_ns

_SEEN = 65_536
"""How many accounts' last balances are remembered."""

FORGOTTEN_AFTER = 24 * 3600.0
"""Seconds of silence after which Redis forgets how far an owner had come."""


class Known:
    """Grows with each reply. Replies arrive in any order: the number of the last write says which is newer."""

    def __init__(self, epoch: str | None) -> None:
        self.epoch = epoch
        self.met = False
        self.joined = False
        self.beat_ns: int | None = None
        self._seq = 0
        self._acknowledged = 0
        self._anchor: tuple[int, int] | None = None
        self._balances: dict[str, tuple[int, Balance]] = {}
        self._lock = forks.rlock()  # a finalizer may look at a balance in the middle of an operation

    @property
    def seq(self) -> int:
        """The highest number of a write that was seen."""
        return self._seq

    def args(self, owner: str, *, due: bool) -> tuple[str, int, str, int, int]:
        """The first arguments of a script. `due`: a sign of life goes with it."""
        beat = self.beat_ns
        forgotten = beat is None or elapsed_ns() - beat > FORGOTTEN_AFTER / 2 * 1e9
        return self.epoch or "", self._seq, owner, 0 if forgotten else self._acknowledged, 1 if due else 0

    def note(self, reply: Reply, epoch: str | None) -> None:
        """A reply arrived, to what was asked in this epoch."""
        _, seq, time_us, own, *_ = reply
        with self._lock:
            self._anchor = (time_us * 1_000, elapsed_ns())
            if epoch == self.epoch:
                self._seq = max(self._seq, seq)
                self._acknowledged = max(self._acknowledged, own)

    def saw(self, reply: Reply, balances: Iterable[Balance]) -> None:
        """The reply had these balances."""
        seq = reply[1]
        with self._lock:
            for balance in balances:
                before = self._balances.pop(balance.account_id, None)
                newest = before if before is not None and before[0] > seq else (seq, balance)
                self._balances[balance.account_id] = newest
            while len(self._balances) > _SEEN:
                del self._balances[next(iter(self._balances))]

    def balance(self, account_id: str) -> Balance:
        """As it was seen last."""
        seen = self._balances.get(account_id)
        return Balance(account_id) if seen is None else seen[1]

    def new_owner(self) -> None:
        """This client goes by another name from now on, or was forgotten."""
        self._acknowledged = 0
        self.beat_ns = None
        self.met = False

    def join(self, reply: Reply) -> None:
        """The ledger is in another epoch: what was reached in the one before does not count any more."""
        with self._lock:
            self.joined = True
            self._seq, self._acknowledged = reply[1], 0
            self._balances = {account_id: (0, balance) for account_id, (_, balance) in self._balances.items()}
            self.epoch = reply[HEAD]  # last: args() reads it first

    def time_ns(self) -> int | None:
        """Redis' time, None where it has not been asked yet."""
        anchor = self._anchor
        return None if anchor is None else anchor[0] + elapsed_ns() - anchor[1]
