"""What a ladder of models does for recorded runs: the same runs, the same cap, without and with tiers.

    python benchmarks/tiers.py [--quick] [--recorded DIRECTORY]

Real `create_agent` loops with `BudgetMiddleware`; the models answer what was recorded, whichever of the ladder they
are, so that a run differs by its prices alone. A run reaches its end when every recorded call was made, and answered
in whole: an answer cut by an output cap ends it. Where mini-SWE recorded prompts as one text, that is split into the
messages it grew by, as in benchmarks/history.py.

The provider counts a quarter token a byte and keeps a cache for each model: the messages that a prompt has in common
with the one before it to that model are read from it, with OpenAI from 1,024 tokens on. For the rest OpenAI takes the
plain price and Anthropic that of a write. The bill is priced by genai-prices, not by runcap.

ends      runs that reach their end, without and with the ladder; `lost`: only without
highest   the largest share of its cap that a run cost
switches  by share of the cap, and forced: the call fitted on no tier above under its bound
dearer    of these, by share and forced: the call cost more than it would have cost on the tier it left, with that
          one's cache warm. A forced switch replaces no call that could have been made; without it the run is over
saved     dollars that the first calls after switches by share cost less, in all

Ends with 1 where a goal is missed: a run above its cap; a run that reaches its end only without the ladder; a ladder
with which no more runs reach their end, in all; a switch by share into a dearer call. `--quick` takes one run in ten.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from genai_prices import Usage as Counted
from genai_prices import calc_price
from history import steps_of
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import InstanceOf

from runcap.guardrails import Budget, BudgetExceeded, CallRefused, CallStarted, Guard, Tier, TierSwitched
from runcap.guardrails.errors import RefusalDetails
from runcap.guardrails.testing import Recorder
from runcap.integrations.langchain import BudgetMiddleware

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from recordings import TOKENS_PER_MESSAGE, Call, Recording, ScriptedModel, longest_answer, read, tokens  # noqa: E402
from recordings import _dumped as dumped  # noqa: E402
from recordings import _said as said_by  # noqa: E402
from replay import EndOfRecording, recorded_tools  # noqa: E402

SETS = {
    "retail": ("agentrx_tau_retail/tau_dataset_full.json", ("0.02", "0.05", "0.10")),
    "sql": ("intercode_sql/ic_sql_multiturn_gpt-4_10_turns.json", ("0.005", "0.01", "0.02")),
    "mini-SWE": ("lmcache_agent_trace/miniswe", ("0.05", "0.10", "0.20")),
}
STEPS = {"retail": 1, "sql": 10, "mini-SWE": 1}
"""Of the SQL episodes one in ten is taken: there are a thousand, and all are alike."""
SHORTEST = 1_024
LADDERS = {
    "gpt-4o": ("openai", ("gpt-4o", None), ("gpt-4o-mini", 0.6)),
    "sonnet": ("anthropic", ("claude-sonnet-4-5", None), ("claude-haiku-4-5", 0.6)),
    "opus": ("anthropic", ("claude-opus-4-8", None), ("claude-sonnet-4-5", 0.6), ("claude-haiku-4-5", 0.85)),
    "gpt-5": ("openai", ("gpt-5", None), ("gpt-5-mini", 0.6)),
}


class CutShort(Exception):
    """The answer did not fit under its output cap: from here on the run is not the recorded one."""


class Sold(NamedTuple):
    """One call: to which model, its tokens, and dollars; `instead`, what it would have cost on the tier before."""

    model: str
    usd: Decimal
    instead: Decimal | None


@dataclass
class Seller:
    """The provider of one run: what is answered, its caches, and its bill."""

    recording: Recording
    provider: str
    sold: list[Sold] = field(default_factory=list)
    _caches: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Nothing more was recorded."""
        return len(self.sold) == len(self.recording.calls)

    @property
    def usd(self) -> Decimal:
        """The bill."""
        return sum((call.usd for call in self.sold), Decimal(0))

    def next(self) -> Call:
        """The recorded call that comes now."""
        return self.recording.calls[len(self.sold)]

    def sell(self, model: str, prompt: list[tuple[str, int]], output: int) -> UsageMetadata:
        """Bill a call."""
        total, read_ = sum(size for _, size in prompt), self._cached(model, prompt)
        before = self.sold[-1].model if self.sold else model
        instead = None if before == model else self._price(before, total, self._cached(before, prompt), output)
        self.sold.append(Sold(model, self._price(model, total, read_, output), instead))
        self._caches[model] = prompt
        details = InputTokenDetails(cache_read=read_, cache_creation=total - read_ if self._writes else 0)
        return UsageMetadata(
            input_tokens=total, output_tokens=output, total_tokens=total + output, input_token_details=details
        )

    @property
    def _writes(self) -> bool:
        return self.provider == "anthropic"

    def _cached(self, model: str, prompt: list[tuple[str, int]]) -> int:
        cached = 0
        for one, other in zip(self._caches.get(model, ()), prompt, strict=False):
            if one != other:
                break
            cached += other[1]
        # What OpenAI documents; Anthropic's shortest differs by model.
        return 0 if self.provider == "openai" and cached < SHORTEST else cached

    def _price(self, model: str, total: int, cached: int, output: int) -> Decimal:
        written = total - cached if self._writes else 0
        usage = Counted(input_tokens=total, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=output)
        return calc_price(usage, model_ref=model, provider_id=self.provider).total_price


class Recorded(ScriptedModel):
    """One model of a ladder; all of them answer the same."""

    seller: InstanceOf[Seller]

    @property
    def over(self) -> bool:
        """Nothing more was recorded."""
        return self.seller.over

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        call = self.seller.next()
        assert [one.text for one in messages] == [one.text for one in call.prompt]
        prompt = [(text, tokens(text)) for text in map(dumped, kwargs.get("tools") or ())]
        prompt += [(one.type + said_by(one), TOKENS_PER_MESSAGE + tokens(said_by(one))) for one in messages]
        answer = call.answer
        output = tokens(said_by(answer))
        usage = self.seller.sell(self.model, prompt, min(output, self.max_tokens))
        if output > self.max_tokens:
            raise CutShort
        told = {"model_name": self.model, "model_provider": self.seller.provider}
        spoken = AIMessage(answer.content, tool_calls=answer.tool_calls, usage_metadata=usage, response_metadata=told)
        return ChatResult(generations=[ChatGeneration(message=spoken)])

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {**super()._get_ls_params(stop, **kwargs), "ls_provider": self.seller.provider}

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # What makes Anthropic write its cache, and runcap hold the price of that.
        caching = {"cache_control": {"type": "ephemeral"}} if self.seller.provider == "anthropic" else {}
        return {**super()._identifying_params, **caching}


class Run(NamedTuple):
    """How a run went. `switches` are its calls on a tier below that of the call before, and whether that was forced."""

    ended: bool
    usd: Decimal
    switches: tuple[tuple[Sold, bool], ...]


def play(recording: Recording, ladder: str, cap: Decimal, *, tiers: bool) -> Run:
    """One recording as one run."""
    provider, *rungs = LADDERS[ladder]
    seller, recorder = Seller(recording, provider), Recorder()
    models = [
        Recorded(model=name, max_tokens=longest_answer(recording), recording=recording, seller=seller)
        for name, _ in rungs
    ]
    given = [Tier(model, at) for model, (_, at) in zip(models, rungs, strict=True)] if tiers else []
    guard = Guard(Budget(usd=cap), tiers=given, sinks=(recorder,))
    with guard.run(), suppress(BudgetExceeded, CutShort):
        converse(recording, models[0], BudgetMiddleware(guard))
    assert all(event.guarantee == "hard" for event in recorder.of(CallStarted))
    told = recorder.of(TierSwitched)
    left = [call for call in seller.sold if call.instead is not None]
    if told and told[0].before is None:
        left.insert(0, seller.sold[0])  # not even the first call fitted at the top
    # The switch of a call that was cut short is not told: that call failed.
    assert len(left) - len(told) in (0, 1)
    forced = [*(event.forced for event in told), True]
    check_forced(recorder)
    return Run(ended=seller.over, usd=seller.usd, switches=tuple(zip(left, forced, strict=False)))


def check_forced(recorder: Recorder) -> None:
    """A call forced down was refused above: its bound was more than what was left."""
    refused: list[RefusalDetails] = []
    above: list[RefusalDetails] = []
    for event in recorder.events:
        if isinstance(event, CallRefused):
            refused.append(event.details)
        elif isinstance(event, CallStarted):
            refused, above = [], refused
        elif isinstance(event, TierSwitched) and event.forced:
            assert above
            assert all(one.needed > one.cap - one.spent for one in above)


def converse(recording: Recording, model: Recorded, budget: BudgetMiddleware) -> None:
    """An agent, invoked for every turn of the user's."""
    first = recording.messages[0]
    system = first if isinstance(first, SystemMessage) else None
    middleware = [EndOfRecording(model), budget]
    agent: Any = create_agent(model, recorded_tools(recording), system_prompt=system, middleware=middleware)
    history: list[BaseMessage] = []
    for turn in recording.messages:
        if isinstance(turn, HumanMessage):
            history = agent.invoke({"messages": [*history, turn]})["messages"]


def as_messages(recording: Recording) -> Recording:
    """A recording of whole prompts, as the conversation it was."""
    if recording.messages:
        return recording
    messages = steps_of(recording)
    calls = [Call(messages[:at], one) for at, one in enumerate(messages) if isinstance(one, AIMessage)]
    return Recording(recording.id, tuple(calls), messages, recording.solved)


class Row(NamedTuple):
    """The runs of a data set, on a ladder, under a cap."""

    runs: int
    without: int
    with_: int
    lost: int
    highest: Decimal
    by_share: list[Sold]
    forced: list[Sold]

    @property
    def faults(self) -> Iterator[str]:
        """What must not be."""
        if self.highest > 1:
            yield f"a run cost {self.highest:.1%} of its cap"
        if self.lost:
            yield f"{self.lost} runs reach their end only without the ladder"
        if dearer(self.by_share):
            yield f"{dearer(self.by_share)} switches by share into a dearer call"

    def __str__(self) -> str:
        saved = sum(((one.instead or one.usd) - one.usd for one in self.by_share), Decimal(0))
        ends = f"{self.runs:>6}{self.without:>9}{self.with_:>7}{self.lost:>6}"
        switches = f"{len(self.by_share):>9}{len(self.forced):>8}{dearer(self.by_share):>8}{dearer(self.forced):>8}"
        return f"{ends}{self.highest:>9.1%}{switches}{saved:>10.4f}"


def dearer(switches: Iterable[Sold]) -> int:
    """How many of them cost more than on the tier they left."""
    return sum(one.instead is not None and one.usd > one.instead for one in switches)


def row(runs: Sequence[Recording], ladder: str, cap: Decimal) -> Row:
    """Run them all, without and with tiers."""
    without = [play(one, ladder, cap, tiers=False) for one in runs]
    with_ = [play(one, ladder, cap, tiers=True) for one in runs]
    pairs = zip(without, with_, strict=True)
    return Row(
        runs=len(runs),
        without=sum(one.ended for one in without),
        with_=sum(one.ended for one in with_),
        lost=sum(one.ended and not other.ended for one, other in pairs),
        highest=max(one.usd for one in (*without, *with_)) / cap,
        by_share=[call for one in with_ for call, forced in one.switches if not forced],
        forced=[call for one in with_ for call, forced in one.switches if forced],
    )


def rows_of(name: str, ladder: str, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of a data set and a ladder, printed as they come."""
    path, caps = SETS[name]
    runs = [as_messages(one) for one in read(options.recorded / path)[:: STEPS[name] * (10 if options.quick else 1)]]
    for cap in map(Decimal, caps):
        got = row(runs, ladder, cap)
        print(f"{name:<11}{ladder:<8}{'$' + str(cap):>7}{got}", flush=True)
        yield got


def sums(rows: Sequence[Row]) -> str:
    """What a ladder did, over all data sets and caps."""
    without, with_, runs = (sum(one[place] for one in rows) for place in (1, 2, 0))
    by_share = [call for one in rows for call in one.by_share]
    forced = [call for one in rows for call in one.forced]
    return (
        f"{with_} of {runs} runs reach their end with it, {without} without; highest {max(r.highest for r in rows):.1%}"
        f" of a cap; dearer switches {dearer(by_share)} of {len(by_share)} by share, {dearer(forced)} of {len(forced)}"
        " forced"
    )


def said(met: bool, text: str) -> bool:
    """Print a goal and whether it is met."""
    print(f"{'ok' if met else 'MISSED':<7}{text}", flush=True)
    return met


def main() -> int:
    """Measure and print; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run in ten")
    default = Path(os.environ.get("RUNCAP_RECORDED", ROOT.parent / "shared" / "data"))
    parser.add_argument("--recorded", type=Path, default=default, help="where the recorded runs are")
    options = parser.parse_args()
    ends = f"{'runs':>6}{'without':>9}{'with':>7}{'lost':>6}{'highest':>9}"
    switches = f"{'by share':>9}{'forced':>8}{'dearer':>8}{'forced':>8}{'saved $':>10}"
    print(f"{'data set':<11}{'ladder':<8}{'cap':>7}{ends}{switches}")
    met = True
    for ladder in LADDERS:
        rows = [got for name in SETS for got in rows_of(name, ladder, options)]
        met &= said(sum(one.with_ for one in rows) > sum(one.without for one in rows), f"{ladder}: {sums(rows)}")
        for fault in [fault for one in rows for fault in one.faults]:
            met = said(met=False, text=f"{ladder}: {fault}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
