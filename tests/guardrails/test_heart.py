"""The thread that says that its process lives: it outlives what goes wrong, there is one of it, and it begins again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from runcap.guardrails.ledger.base import LedgerError
from runcap.guardrails.ledger.heart import Heart


class Owner:
    """What a heart beats for."""

    def __init__(self) -> None:
        self.beats = 0
        self.at_once = 0
        self.most_at_once = 0
        self.beaten = threading.Event()
        self.then: Callable[[], None] = lambda: None
        self.heart = Heart(0.001, self.beat)

    def beat(self) -> None:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        self.beats += 1
        self.beaten.set()
        try:
            self.then()
        finally:
            self.at_once -= 1

    def wait(self) -> None:
        """Until it beats once more."""
        self.beaten.clear()
        assert self.beaten.wait(5)


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    monkeypatch.setattr("runcap.guardrails.ledger.heart._HURRY", 0.001)
    monkeypatch.setattr("runcap.guardrails.ledger.heart._JOIN", 0.02)
    made = Owner()
    yield made
    made.heart.stop()


@pytest.mark.parametrize("error", [LedgerError, UnicodeError, ValueError, TypeError])
def test_goes_on_whatever_a_beat_raises_and_says_it_once(
    owner: Owner, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error("secret")

    owner.then = fail
    owner.heart.start()
    for _ in range(3):
        owner.wait()
    assert caplog.text.count("cannot be reached, and will be tried again") == 1
    assert error is LedgerError or ("secret" not in caplog.text and error.__name__ in caplog.text)


def test_one_that_was_stopped_begins_again(owner: Owner) -> None:
    for _ in range(3):
        owner.heart.start()
        owner.wait()
        owner.heart.stop()
    beats = owner.beats
    assert not owner.beaten.wait(0) or owner.beats == beats


def test_one_that_died_begins_again(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)

    def exits() -> None:
        raise SystemExit

    owner.then = exits
    owner.heart.start()
    owner.wait()
    thread = owner.heart._thread
    if thread is not None:
        thread.join(5)
    owner.then = lambda: None
    owner.heart.start()
    owner.wait()


def test_there_is_one_however_slow_it_was_when_it_was_stopped(owner: Owner) -> None:
    gate, hearts = threading.Event(), set[threading.Thread]()

    def slow() -> None:
        hearts.add(threading.current_thread())
        gate.wait(5)

    owner.then = slow
    owner.heart.start()
    owner.wait()
    owner.heart.stop()
    owner.heart.start()
    gate.set()
    for _ in range(3):
        owner.wait()
    assert (len(hearts), owner.most_at_once) == (1, 1)
