"""A mapping that keeps only its most recent entries."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from . import forks

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `size` entries, those put longest ago dropped first. Safe across threads, and in finalizers."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._lock = forks.rlock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        """The value, None where it is not kept (any more)."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep a value, as the most recent. Whoever reads meanwhile finds the one before, or this one."""
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)

    def keep(self, key: K, value: V) -> V:
        """`put`, and give the value back."""
        self.put(key, value)
        return value
