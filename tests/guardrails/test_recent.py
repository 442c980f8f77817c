from __future__ import annotations

import sys
import threading

import pytest

from runcap.guardrails.recent import Recent


def test_the_oldest_go_first() -> None:
    recent: Recent[int, int] = Recent(3)
    for number in range(5):
        recent.put(number, number)
    recent.put(2, 20)
    assert [recent.get(number) for number in range(5)] == [None, None, 20, 3, 4]
    assert (len(recent), 4 in recent, 0 in recent) == (3, True, False)


def test_what_is_put_again_goes_last() -> None:
    recent: Recent[int, int] = Recent(2)
    recent.put(1, 1)
    recent.put(2, 2)
    recent.put(1, 10)
    recent.put(3, 3)
    assert [recent.get(number) for number in (1, 2, 3)] == [10, None, 3]


def test_who_reads_while_it_is_put_again_does_not_miss_it() -> None:
    recent: Recent[Key, int] = Recent(2)
    seen: list[int | None] = []

    class Key(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            """As a finalizer or another thread does, at a moment it can."""
            seen.append(recent._entries.get(recent_key))
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    recent_key = Key("a")
    recent.put(recent_key, 1)
    recent.put(Key("a"), 2)
    assert seen
    assert None not in seen


def test_many_threads_may_put_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recent: Recent[int, int] = Recent(50)
    wrong: list[BaseException] = []
    interval = sys.getswitchinterval()

    def put(start: int) -> None:
        try:
            for number in range(start, start + 3_000):
                recent.put(number, number)
        except RuntimeError as error:
            wrong.append(error)

    threads = [threading.Thread(target=put, args=(number * 10_000,)) for number in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert (wrong, len(recent)) == ([], 50)
