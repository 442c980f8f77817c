"""How a guarded model says whose it is."""

from __future__ import annotations

from typing import Any

from runcap.guardrails.guard import Guard


class Marked(dict[str, Any]):
    """How LangChain serialises a guarded model; it is handed to every handler, and so tells them whose it is."""

    def __init__(self, serialized: dict[str, Any], guard: Guard) -> None:
        super().__init__(serialized)
        inner = serialized.guards if isinstance(serialized, Marked) else ()
        self.guards: tuple[Guard, ...] = (guard, *inner)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # a copy is of the description, not of the guard
