"""A mapping that keeps only its most recent entries."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `size` entries, the oldest dropped first. Safe across threads, and in finalizers."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[K, V] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        """The value, None where it is not kept (any more)."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep a value; a new key counts as the most recent."""
        with self._lock:
            self._entries[key] = value
            while len(self._entries) > self._size:
                del self._entries[next(iter(self._entries))]

    def keep(self, key: K, value: V) -> V:
        """`put`, and give the value back."""
        self.put(key, value)
        return value

    def renew(self, key: K, value: V) -> None:
        """Keep a value, as the most recent also where the key is known; who reads meanwhile may miss it."""
        with self._lock:
            self._entries.pop(key, None)
            self.put(key, value)
