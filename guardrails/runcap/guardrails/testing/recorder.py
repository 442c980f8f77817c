"""A sink that keeps the events."""

from __future__ import annotations

from typing import TypeVar

from ..events import Event

E = TypeVar("E", bound=Event)


class Recorder:
    """Keeps every event in `events`, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Keep one event."""
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]
