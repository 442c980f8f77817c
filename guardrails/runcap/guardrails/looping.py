"""What a guard does about loops: who is watched, who is told, and when the run is halted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import forks
from .events import LoopWarned
from .loops import Loop, LoopPolicy, LoopWatch
from .refusals import LOOP_PREFIX, loop_halted
from .run import Run

if TYPE_CHECKING:
    from .guard import Guard

_AGENTS = 1_024
"""How many agents of one run are watched at a time; of more, those that were quiet longest start anew."""


@dataclass(slots=True)
class _Agent:
    """One agent: what it did lately, and the last loop it has not been told of."""

    watch: LoopWatch
    untold: Loop | None = None
    halted: bool = False


class _Agents:
    """The agents of one run, under this class in its notes."""

    def __init__(self, policy: LoopPolicy) -> None:
        self._policy = policy
        self._lock = forks.lock()
        self._by_id: dict[str | None, _Agent] = {}

    def get(self, agent_id: str | None) -> _Agent:
        """The agent; None is whoever calls tools outside of any."""
        with self._lock:
            agent = self._by_id.pop(agent_id, None) or _Agent(LoopWatch(self._policy))
            self._by_id[agent_id] = agent
            if len(self._by_id) > _AGENTS:
                del self._by_id[next(iter(self._by_id))]
        return agent

    def halt(self, agent: _Agent) -> bool:
        """False where it was halted already: of parallel calls one halts the run."""
        with self._lock:
            first, agent.halted = not agent.halted, True
        return first

    def forget(self, agent_id: str | None) -> None:
        """Start anew."""
        with self._lock:
            self._by_id.pop(agent_id, None)


class Looping:
    """Looks for loops in the runs of one guard; without a policy, for none.

    Agents are told apart by the id they are shown under, so that sub-agents that do the same in parallel are no loop.
    """

    def __init__(self, policy: LoopPolicy | None, guard: Guard) -> None:
        self._looks = policy is not None
        self._policy = policy if policy is not None else LoopPolicy()
        self._guard = guard

    def called(self, run: Run, name: str, arguments: int, agent_id: str | None) -> Loop | None:
        """A tool is about to be called.

        Raises:
            LoopHalted: the call completes a loop that the policy halts; the run is stopped.
        """
        if not self._looks or run.stopping:  # a call of a stopped run is refused anyway
            return None
        agent = self._agents(run).get(agent_id)
        loop = agent.watch.called(name, arguments)
        if loop is not None and self._policy.halts(loop.times):
            self._halt(run, loop, agent_id, agent)
            raise loop_halted(run.accounts[0], _reason(loop))
        return self._warn(run, loop, agent_id, agent)

    def failed(self, run: Run, name: str, error: int, agent_id: str | None = None) -> Loop | None:
        """A tool call failed. Never raises: where the policy halts, the next call is refused."""
        if not self._looks or run.stopping:
            return None
        agent = self._agents(run).get(agent_id)
        loop = agent.watch.failed(name, error)
        if loop is not None and self._policy.halts(loop.times):
            self._halt(run, loop, agent_id, agent)
            return loop
        return self._warn(run, loop, agent_id, agent)

    def succeeded(self, run: Run, name: str, agent_id: str | None = None) -> None:
        """A tool call went well."""
        if self._looks:
            self._agents(run).get(agent_id).watch.succeeded(name)

    def untold(self, run: Run, agent_id: str | None) -> Loop | None:
        """The last loop the agent was not told of, where the policy wants it told; once."""
        if not self._looks or not self._policy.nudge:
            return None
        agent = self._agents(run).get(agent_id)
        loop, agent.untold = agent.untold, None
        return loop

    def _agents(self, run: Run) -> _Agents:
        known = run.notes.get(_Agents)
        return known if isinstance(known, _Agents) else run.notes.setdefault(_Agents, _Agents(self._policy))

    def _warn(self, run: Run, loop: Loop | None, agent_id: str | None, agent: _Agent) -> Loop | None:
        if loop is not None:
            self._emit(run, loop, agent_id, halted=False)
            agent.untold = loop
        return loop

    def _halt(self, run: Run, loop: Loop, agent_id: str | None, agent: _Agent) -> None:
        agents = self._agents(run)
        if not agents.halt(agent):
            return
        self._emit(run, loop, agent_id, halted=True)
        run.stop(_reason(loop))
        agents.forget(agent_id)  # whoever lets the run go on gives the agent another chance

    def _emit(self, run: Run, loop: Loop, agent_id: str | None, *, halted: bool) -> None:
        now = self._guard.clock.time_ns()
        self._guard.emit(LoopWarned(time_ns=now, run=run.info, parent_id=agent_id, loop=loop, halted=halted))


def _reason(loop: Loop) -> str:
    return f"{LOOP_PREFIX} {loop}"
