"""Which tier an agent's call is made on: down as the money goes, where that saves, and never up again by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage

from runcap.guardrails.estimate import OUTPUT_EXPECTED
from runcap.guardrails.events import TierSwitched
from runcap.guardrails.guard import Guard
from runcap.guardrails.tiers import rung_at, share_used

from .dialogue import Dialogue
from .place import Place
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
        return wanted if self._saves(self.at(wanted, own), self.at(now, own), dialogue, messages) else now

    def at(self, index: int, own: Rung) -> Rung:
        """The model of a rung: at the top the agent's own, where it has another."""
        return self.rungs[index] if index or index_of(self.rungs, own.target) is not None else own

    def stand(self, place: Place, index: int, rung: Rung, *, forced: bool) -> None:
        """A call was made on this rung: the run goes no higher from now on."""

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

        place.run.course.descend(index, rung.name, tell)

    def _share(self, place: Place) -> float:
        return share_used([self._guard.ledger.balance(account.id) for account in place.run.accounts])

    def _may_turn(self, messages: Sequence[BaseMessage]) -> bool:
        return self._guard.switch_at == "any" or isinstance(messages[-1], HumanMessage)

    def _saves(self, new: Rung, old: Rung, dialogue: Dialogue, messages: Sequence[BaseMessage]) -> bool:
        """The call is expected to cost less than with the model before: the new one has nothing of it cached."""
        tokens = dialogue.expected_tokens(messages, old.target)
        cached = min(int(dialogue.cached * dialogue.hits), tokens)
        # Of the same length from both: what a model's answers are like that has not answered yet is not known.
        output = int(self._guard.typical_output.get(old.target.model) or OUTPUT_EXPECTED)
        cold = cost_of(new, cached=0, tokens=tokens, output=output)
        warm = cost_of(old, cached=cached, tokens=tokens, output=output)
        return cold is None or warm is None or cold < warm
