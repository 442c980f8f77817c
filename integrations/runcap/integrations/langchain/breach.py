"""What becomes of an agent at its cap: it ends with an error, with a last answer, or asks a person for more."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from langgraph.errors import GraphBubbleUp
from langgraph.types import interrupt

from langchain.agents.middleware import ModelRequest
from runcap.guardrails.budget import OnBreach
from runcap.guardrails.course import Purpose
from runcap.guardrails.errors import BudgetExceeded, LoopHalted, Refused
from runcap.guardrails.events import RunPaused
from runcap.guardrails.guard import Guard
from runcap.guardrails.loops import Loop
from runcap.guardrails.run import Run

from . import asking, lastword
from .errors import bubbling
from .place import Place
from .rewriting import Target
from .steps import Attempt, Step, Steps, TopUp

_LOOP = (
    "{tools} was called {times} times in the same way, with nothing gained: try something else, or answer with what "
    "you have."
)
_NO_CHECKPOINTS = (
    'on_breach="ask" interrupts the graph, which takes a checkpointer: create_agent(..., checkpointer=InMemorySaver())'
)
_ENDS = 3
"""How often one agent may be ended: a graph that leads back to the model each time would never stop."""


class Breach:
    """Ends agents, as `Budget.on_breach` of the run says."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def how(self, run: Run, refused: Refused) -> OnBreach:
        """What to do about a refusal: only a cap of this run, a limit on it, or a loop in it is a breach."""
        capped = run if run.is_limited_by(refused) else _capped(run, refused)
        if capped is None or (refused.unit is None and not isinstance(refused, LoopHalted)):
            return "raise"
        if capped.on_breach == "ask" and not self._may_ask(run, refused):
            return "raise"
        return capped.on_breach

    def _may_ask(self, run: Run, refused: Refused) -> bool:
        own = refused.scope == "run"  # to add to the run's caps would not help against a limit
        return own and refused.unit != "seconds" and not run.course.declined and asking.can_interrupt()

    def hinting(self, run: Run, refused: Refused) -> Refused:
        """The refusal, with what kept it from being a question."""
        asks = run.on_breach == "ask" and refused.unit != "seconds" and refused.scope == "run"
        return refused.hinting(_NO_CHECKPOINTS) if asks and not asking.can_interrupt() else refused

    def finish(
        self, request: ModelRequest[Any], place: Place, target: Target, refused: Refused, tier: str | None
    ) -> Steps:
        """The last answer: of the root agent, and there is one; every other agent ends without a call.

        Raises:
            Refused: the agent was ended before, and does not stop.
        """
        self._count(place, refused)
        unit, course = lastword.unit_of(refused), place.run.course
        if not place.root or unit == "seconds" or not course.claim_last():
            return lastword.unsaid(unit)
        purpose = Purpose(tier=tier, last=True)
        for made in lastword.requests(request, target, unit):
            for way in _ways(made, purpose):
                try:
                    result = yield way
                except (BudgetExceeded, LoopHalted):
                    continue  # it does not fit: with less of the conversation it may
                except GraphBubbleUp:
                    raise
                except Exception as error:  # noqa: BLE001 - the run is over, and ends well in any case
                    self._guard.say_once(f"a last answer failed with {type(error).__name__}: the run ends without it")
                    return lastword.unsaid(unit)
                return lastword.spoken(result, unit)
        return lastword.unsaid(unit)

    def ask(self, place: Place, refused: Refused, number: int, keeper: str) -> Steps:
        """Interrupt the graph, and add to the caps what the answer says. The number of the next question.

        An answer that is none is asked for once more: LangGraph keeps it, and would give it again for ever.

        Raises:
            Refused: the answer is no.
            GraphInterrupt: there is no answer yet.
        """
        capped = _capped(place.run, refused) or place.run
        wrong: str | None = None
        while True:
            record = asking.record_of(capped, keeper, self._guard.sinks.trace_of(capped.id))
            answer = self._interrupt(place, capped, refused, asking.question(refused, record, wrong))
            number += 1
            try:
                extra = asking.read_answer(answer)
                break
            except (ValueError, TypeError) as error:
                wrong = str(error)
        if not extra:
            capped.course.declined = True
            raise bubbling(refused)
        key = extra.pop("key", None) or asking.key_of(capped, number)
        yield TopUp(capped, extra, str(key))
        return number

    def _interrupt(self, place: Place, capped: Run, refused: Refused, question: dict[str, Any]) -> Any:
        try:
            return interrupt(question)
        except BaseException:
            for run in place.run.outward():
                run.pause()
                if run is capped:
                    break
            self._tell_paused(place, refused)
            raise

    def warnings(self, place: Place) -> Iterator[str]:
        """What the agent is to be told with its next prompt."""
        unsaid = place.run.course.unsaid
        while place.root and unsaid:
            yield unsaid.pop(0)
        loop = self._guard.looping.untold(place.run, place.agent_id)
        if loop is not None:
            yield _LOOP.format(tools=_names(loop), times=loop.times)

    def _count(self, place: Place, refused: Refused) -> None:
        ends = place.run.notes.setdefault((Breach, place.agent_id), count(1))
        if place.agent_id is not None and next(ends) > _ENDS:
            raise bubbling(refused)

    def _tell_paused(self, place: Place, refused: Refused) -> None:
        self._guard.emit(
            RunPaused(
                time_ns=self._guard.clock.time_ns(),
                run=place.run.info,
                parent_id=place.agent_id,
                details=refused.details,
            )
        )


def _ways(request: ModelRequest[Any], purpose: Purpose) -> Iterator[Step]:
    """As every call is made; and past whatever else is around the agent's calls."""
    yield Attempt(request, purpose)
    yield lastword.directly(request, purpose)


def _capped(run: Run, refused: Refused) -> Run | None:
    """Which of the runs it is in is at its cap; None for another guard's."""
    return next((outer for outer in run.outward() if outer.id == refused.run_id), None)


def _names(loop: Loop) -> str:
    return " and ".join(loop.tools)
