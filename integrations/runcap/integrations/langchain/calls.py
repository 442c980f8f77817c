"""The model calls that callbacks report: admitted before they are made, settled when they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult

from runcap.guardrails.errors import Refused
from runcap.guardrails.guard import Guard
from runcap.guardrails.inflight import release_everywhere
from runcap.guardrails.permit import Permit

from .contents import tell_answered, tell_asked
from .errors import bubbling
from .messages import Walks
from .nodes import Nodes
from .quiet import close_pending
from .settling import Note, end, fail, meter
from .sketch import Sketches
from .tree import Node


class Calls:
    """Takes LangChain's model calls through the guard."""

    def __init__(self, guard: Guard, nodes: Nodes) -> None:
        self._guard = guard
        self._nodes = nodes
        self._sketches = Sketches()

    def begin(
        self,
        run_id: UUID,
        parent: Node | None,
        messages: Sequence[BaseMessage],
        serialized: Mapping[str, Any],
        metadata: Mapping[str, Any],
        params: Mapping[str, Any],
    ) -> None:
        """Admit a call.

        Raises:
            Refused: it does not fit; nothing may be sent.
        """
        key = run_id.hex
        if not self._guard.calls.claim(key, self):
            return
        try:
            sketch = self._sketches.get(serialized, params, metadata)
            run = self._guard.scope(self._nodes.run_of(parent, metadata), sketch.model)
            self._nodes.last_run = run
            walks: Walks = run.notes.get(Walks) or run.notes.setdefault(Walks, Walks())
            walk = walks.walk(sketch.base, messages, self._guard.measured)
            shown = parent.shown() if parent is not None else None
            permit = self._guard.admit(sketch.request(walk, call_id=key, parent_id=shown), run)
        except Refused as refused:
            self._guard.calls.unclaim(key)
            release_everywhere(key)
            close_pending()
            raise bubbling(refused) from None
        except BaseException:
            self._guard.calls.unclaim(key)
            raise
        permit.note = note = Note.of(walk)
        note.watch = self._nodes.watch(run_id, key)
        if parent is not None:
            parent.calls.add(key)
        tell_asked(self._guard.sinks, key, messages, sketch.call)
        self._guard.calls.reap_with_task(permit)

    def stream(self, run_id: UUID, size: int, counted: BaseMessage | None = None) -> None:
        """Meter `size` bytes of a stream. `counted` carries usage."""
        permit = self._guard.calls.get(run_id.hex)
        if permit is not None:
            meter(permit, size, counted)

    def end(self, run_id: UUID, parent: Node | None, result: LLMResult) -> None:
        """A call ended well."""
        permit = self._take(run_id, parent)
        if permit is not None:
            end(self._guard, permit, result)

    def fail(self, run_id: UUID, parent: Node | None, error: BaseException, result: LLMResult | None) -> None:
        """A call failed."""
        permit = self._take(run_id, parent)
        if permit is not None:
            tell_answered(self._guard.sinks, permit, result)
            fail(permit, error, result)

    def _take(self, run_id: UUID, parent: Node | None) -> Permit | None:
        if parent is not None:
            parent.calls.discard(run_id.hex)
        return self._guard.calls.get_ended(run_id.hex)
