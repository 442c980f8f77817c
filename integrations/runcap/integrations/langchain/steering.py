"""How an agent's call is made: on which tier, with how much of its history, in which ways where that does not fit.

One generator, carried out by threads and by tasks alike.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import uuid4

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from langchain.agents.middleware import ModelRequest
from runcap.guardrails.amounts import HELD_UNITS, UNITS
from runcap.guardrails.course import Purpose
from runcap.guardrails.errors import BudgetExceeded, LoopHalted, Refused
from runcap.guardrails.guard import Guard
from runcap.guardrails.history import Cut
from runcap.guardrails.recent import Recent
from runcap.guardrails.run import Run

from .asking import STATE
from .breach import Breach
from .dialogue import Dialogue
from .histories import Histories
from .ladder import Ladder
from .lastword import ending, message_in
from .place import Place
from .rewriting import Target
from .rungs import Rung, put_on, rung_of, thinking_if_taken
from .steps import Attempt, Steps

_KEPT = 256


class Way(NamedTuple):
    """One way to make a call: a rung of the ladder, with the history as it is or cut further, and a whole answer."""

    rung: int
    trims: bool = False
    whole: bool = True


class Steering:
    """Steers the calls of the agents that have one middleware."""

    def __init__(self, guard: Guard, guarded: Callable[[Any], Any]) -> None:
        self._guard = guard
        self._ladder = Ladder(guard, guarded)
        self._histories = Histories(guard, guarded, self._ladder.rungs)
        self._breach = Breach(guard)
        self._dialogues: Recent[object, Dialogue] = Recent(_KEPT)
        self._adding = threading.Lock()
        self._known: Recent[int, tuple[object, Rung]] = Recent(_KEPT)

    @property
    def keeper(self) -> str:
        """Names the guard in the records of its runs."""
        return str(self._guard.notes.setdefault(STATE, uuid4().hex))

    def has_nothing_to_do(self, place: Place) -> bool:
        """The call is made as it comes."""
        guard, run = self._guard, place.run
        nudges = guard.loops is not None and guard.loops.nudge
        return not (self._ladder or guard.history or nudges or run.on_breach != "raise" or run.tells_agent)

    def steer(self, request: ModelRequest[Any], place: Place) -> Steps:
        """Make a call, as far as the run's budget goes; then end as `Budget.on_breach` says.

        Raises:
            Refused: there is no way left to make it.
        """
        own, asked = self._rung_of(request.model), 0
        dialogue = self._dialogue(place, own)
        while True:
            try:
                return (yield from self._call(request, place, own, dialogue))
            except (BudgetExceeded, LoopHalted) as refused:
                how = self._breach.how(place.run, refused)
                if how == "raise":
                    raise self._breach.hinting(place.run, refused) from refused.__cause__
                if how == "finish":
                    return (yield from self._finish(request, place, own, dialogue, refused))
                asked = yield from self._breach.ask(place, refused, asked, self.keeper)

    def _call(self, request: ModelRequest[Any], place: Place, own: Rung, dialogue: Dialogue) -> Steps:
        index = self._ladder.choose(place, own, dialogue, request.messages) if self._ladder else 0
        with dialogue.lock:
            cut = self._histories.trim(dialogue, request, self._at(index, own))
            for text in self._breach.warnings(place):
                dialogue.tell(request.messages, text)
        yield from self._histories.summarize(dialogue)
        ways = self._ways(index, dialogue)
        while True:
            way = ways.pop(0)
            if way.trims and dialogue.conversation is not None:
                with dialogue.lock:
                    self._histories.take(dialogue, request, self._at(way.rung, own))
                    further = dialogue.conversation.cut()
                if further is not None:
                    cut = further
                    dialogue.cools()
            rung = self._at(way.rung, own)
            purpose = Purpose(self._tier(rung), cut, stops=not ways, whole=way.whole, root=place.root)
            try:
                answer = yield Attempt(self._made(request, place, own.target, dialogue, rung, cut), purpose)
            except BudgetExceeded as refused:
                if not ways or not _is_for_money(refused, place.run):
                    raise
                continue
            if self._ladder:
                self._ladder.stand(place, way.rung, rung, forced=way.rung > index)
            dialogue.answered(message_in(answer))
            return answer

    def _ways(self, index: int, dialogue: Dialogue) -> list[Way]:
        """As decided; with the history cut, whatever that does to the cache; on each lower tier; as short as may be."""
        ways = [Way(index)]
        if dialogue.conversation is not None and dialogue.conversation.can_be_cut():
            ways.append(Way(index, trims=True))
        ways += [Way(lower) for lower in range(index + 1, len(self._ladder.rungs))]
        ways[-1] = ways[-1]._replace(whole=False)
        if ways[-1].rung != index:
            # What is lower is cheaper, but its bound may be larger: nothing of this prompt was counted for it yet.
            ways.append(Way(index, whole=False))
        return ways

    def _made(
        self,
        request: ModelRequest[Any],
        place: Place,
        before: Target,
        dialogue: Dialogue,
        rung: Rung,
        cut: Cut | None,
    ) -> ModelRequest[Any]:
        with dialogue.lock:
            made = self._put_on(request, before, dialogue, rung)
            if dialogue.conversation is not None:
                broken = dialogue.sends(made.messages, made.system_message, made.tools, rung.target, cut)
                if broken is not None:
                    self._histories.tell_broken(broken, rung, place)
        changed = self._ladder or (dialogue.conversation is not None and dialogue.conversation.was_cut)
        return thinking_if_taken(made, made.messages) if changed else made

    def _put_on(self, request: ModelRequest[Any], before: Target, dialogue: Dialogue, rung: Rung) -> ModelRequest[Any]:
        self._histories.take(dialogue, request, rung)  # once more: another call of the thread may have come between
        messages, system = self._sent(request, dialogue, rung.target), request.system_message
        if system is not None and self._ladder:
            [system] = dialogue.rewritten_system(system, rung.target)
        return put_on(request, rung, before, messages=messages, system_message=system)

    def _finish(
        self, request: ModelRequest[Any], place: Place, own: Rung, dialogue: Dialogue, refused: Refused
    ) -> Steps:
        rung = self._at(place.run.course.rung, own)
        with dialogue.lock:
            made = self._put_on(request, own.target, dialogue, rung)
        last = yield from self._breach.finish(made, place, rung.target, refused, self._tier(rung))
        return ending(last, request)

    def _sent(self, request: ModelRequest[Any], dialogue: Dialogue, target: Target) -> list[BaseMessage]:
        conversation = dialogue.conversation
        messages = dialogue.told(request.messages if conversation is None else conversation.view())
        return dialogue.rewritten(messages, target) if self._ladder else messages

    def _at(self, index: int, own: Rung) -> Rung:
        return self._ladder.at(index, own) if self._ladder else own

    def _tier(self, rung: Rung) -> str | None:
        return rung.name if self._ladder else None

    def _rung_of(self, model: BaseChatModel) -> Rung:
        known = self._known.get(id(model))
        if known is None or known[0] is not model:
            known = (model, rung_of(model, self._guard))
            self._known.put(id(model), known)
        return known[1]

    def _dialogue(self, place: Place, own: Rung) -> Dialogue:
        with self._adding:
            mine = self._dialogues if place.outlives_run else place.run.notes.setdefault(self, Recent(_KEPT))
            kept: Recent[object, Dialogue] = mine
            known = kept.get(place.conversation) or Dialogue(self._guard.history, own.target)
            kept.put(place.conversation, known)
            return known


def _is_for_money(refused: Refused, run: Run) -> bool:
    """There may be another way: it is this run that lacks money, or a limit on it, and it was not stopped for that."""
    ours = any(outer.id == refused.run_id for outer in run.outward()) or run.is_limited_by(refused)
    return ours and refused.unit in UNITS[:HELD_UNITS] and not any(outer.halted for outer in run.outward())
