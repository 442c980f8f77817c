"""What all attach points of one guard share: the tree of runs, and the calls under way."""

from __future__ import annotations

from runcap.exporters import OTelSink
from runcap.guardrails.budget import Budget
from runcap.guardrails.guard import Guard

from .barrier import BARRIER
from .calls import Calls
from .nodes import Nodes
from .quiet import hush_refusals


class Attachment:
    """A guard, attached to LangChain. However many handlers and models it has, they follow one tree and count once."""

    def __init__(self, guard: Guard) -> None:
        guard.add_default_sinks((OTelSink(),))
        hush_refusals()
        if guard.ledger.blocking:
            BARRIER.raise_up()
        self.nodes = Nodes(guard)
        self.calls = Calls(guard, self.nodes)

    @classmethod
    def of(cls, guard: Guard) -> Attachment:
        """The one of this guard."""
        known = guard.notes.get(cls)
        return known if isinstance(known, cls) else guard.notes.setdefault(cls, cls(guard))


def check_guard(guard: Guard | Budget, who: str) -> Guard:
    """A guard, made of a bare budget if need be.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(guard, Budget):
        return Guard(guard)
    if not isinstance(guard, Guard):
        raise TypeError(f'{who} needs a Budget or a Guard, e.g. {who}(Budget(usd="0.50")); got {type(guard).__name__}')
    return guard
