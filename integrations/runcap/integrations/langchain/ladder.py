"""Which tier an agent's call is made on: down as the money goes, where that saves, and never up again by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage

from runcap.guardrails.estimate import EXPECTED_PER_BYTE, EXPECTED_PER_BYTE_OTHERWISE
from runcap.guardrails.events import TierSwitched
from runcap.guardrails.guard import Guard
from runcap.guardrails.tiers import rung_at, share_used

from .dialogue import Dialogue
from .place import Place
from .rewriting import Target
from .rungs import Rung, cost_of, index_of, made_rungs


class Ladder:
    """The tiers of a guard. An agent whose own model is one of them begins there; any other begins above them."""

    def __init__(self, guard: Guard, guarded: Callable[[Any], Any]) -> None:
        self._guard = guard
        self.rungs = made_rungs(guard, guarded)

    def __bool__(self) -> bool:
        return bool(self.rungs)

    def choose(self, place: Place, own: Rung, dialogue: Dialogue, messages: Sequence[BaseMessage]) -> int:
        """The rung to make this call on."""
        now = max(place.run.course.rung, index_of(self.rungs, own.target) or 0)
        wanted = rung_at(self._guard.tiers, self._share(place))
        if wanted <= now or not self._may_turn(messages):
            return now
        below, old = range(wanted, now, -1), self.at(now, own)
        return next((one for one in below if self._saves(self.rungs[one], old, dialogue, messages)), now)

    def at(self, index: int, own: Rung) -> Rung:
        """The model of a rung: the agent's own down to where that stands."""
        return own if index <= (index_of(self.rungs, own.target) or 0) else self.rungs[index]

    def stand(self, place: Place, index: int, rung: Rung, *, forced: bool) -> None:
        """A call was made on this rung: the run goes no higher from now on.

        An agent that was given a lower tier for its own model stays there alone.
        """

        def tell(before: str | None) -> None:
            self._guard.emit(
                TierSwitched(
                    time_ns=self._guard.clock.time_ns(),
                    run=place.run.info,
                    parent_id=place.agent_id,
                    before=before,
                    tier=rung.name,
                    share=self._share(place),
                    forced=forced,
                )
            )

        place.run.course.descend(index if rung is self.rungs[index] else 0, rung.name, tell)

    def _share(self, place: Place) -> float:
        return share_used([self._guard.ledger.peek(account.id) for account in place.run.accounts])

    def _may_turn(self, messages: Sequence[BaseMessage]) -> bool:
        return self._guard.switch_at == "any" or isinstance(messages[-1] if messages else None, HumanMessage)

    def _saves(self, new: Rung, old: Rung, dialogue: Dialogue, messages: Sequence[BaseMessage]) -> bool:
        """The call costs less than with the model before: the new one has nothing of it cached.

        Weighed at its smallest, for what is not cached yet, and the answer, is where the cheaper model saves.
        """
        least = dialogue.expects(messages, old.target)
        more = _tokens_as(new.target, old.target)
        tokens, output = ceil(least.tokens * more), ceil(least.output * more)
        cached = least.cached if least.is_cached_with(old.target, unless=new.target) else 0
        warm = cost_of(old, cached=cached, tokens=least.tokens, output=least.output, writes=least.writes)
        cold = cost_of(new, cached=least.cached - cached, tokens=tokens, output=output, writes=True)
        return cold is None or warm is None or cold < warm


def _tokens_as(new: Target, old: Target) -> float:
    """Tokens a text is to the new model, for each that it is to the old one; at least one."""
    one, other = (EXPECTED_PER_BYTE.get(at.provider or "", EXPECTED_PER_BYTE_OTHERWISE) for at in (new, old))
    return max(one / other, 1.0)
