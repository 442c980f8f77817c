"""Recorded conversations, run again as real LangChain agents under a budget: what a cap would have done to them.

    python examples/replay.py tau_dataset.json              # tau: OpenAI chat messages
    python examples/replay.py ic_sql.json --cap 0.01        # InterCode: actions and observations
    python examples/replay.py miniswe/ --cap 1 --limit 5    # mini-SWE: JSON lines of whole prompts; a file or directory
    OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 python examples/replay.py tau_dataset.json    # traces to Jaeger

No key, no network. The model is a script that answers what was recorded and refuses to be shown anything else; the
rest is real: `create_agent`, its tool nodes, the callback. A run ends where its recording ends. In an InterCode episode
that is the answer to the last action: there the environment stopped, so the model is not called (or billed) once more.
mini-SWE recorded prompts as one text each, without a history to loop over, so each is sent as it was.

Every run has its own books twice: runcap's, and the provider's, which counts a quarter token a byte and prices that
with genai-prices. The exit code is 1 if they differ anywhere, if a run passed its cap, or if one ended too early.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from genai_prices import Usage, calc_price
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, hook_config
from langchain.tools import ToolRuntime
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from rich.console import Console
from rich.progress import Progress

from runcap.exporters import OTelSink, setup_otlp
from runcap.guardrails import Budget, BudgetExceeded, Guard, Refused, Run
from runcap.integrations.langchain import BudgetCallbackHandler

if TYPE_CHECKING:  # a type checker sees the checkout's root, a script its own folder
    from examples.recordings import Diverged, Recording, RecordingError, ScriptedModel, longest_answer, read, usage_of
else:
    from recordings import Diverged, Recording, RecordingError, ScriptedModel, longest_answer, read, usage_of


class Books(NamedTuple):
    """What a run took, by one way of counting."""

    steps: int
    input_tokens: int
    output_tokens: int
    usd: Decimal


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a replayed run ended. `foresight` is what could have been spent knowing every call's cost beforehand."""

    id: str
    halted: bool
    recorded_steps: int
    books: Books
    bill: Books
    foresight: Decimal
    has_verdict: bool
    succeeded: bool


def price(model: str, usage: tuple[int, int]) -> Decimal:
    """Dollars for a call, without runcap.

    Raises:
        LookupError: no such OpenAI model.
    """
    counted = Usage(input_tokens=usage[0], output_tokens=usage[1])
    return calc_price(counted, model_ref=model, provider_id="openai").total_price


def bill_of(model: ScriptedModel) -> Books:
    """What the provider served, summed and priced by itself."""
    inputs, outputs = (sum(usage[side] for usage in model.served) for side in (0, 1))
    usd = sum((price(model.model, usage) for usage in model.served), Decimal(0))
    return Books(len(model.served), inputs, outputs, usd)


class EndOfRecording(AgentMiddleware):
    """Ends the loop where the recording ends, before the model would be called once more."""

    def __init__(self, model: ScriptedModel) -> None:
        super().__init__()
        self._model = model

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Go to the end if nothing more was recorded."""
        return {"jump_to": "end"} if self._model.over else None


def recorded_tools(recording: Recording) -> list[BaseTool]:
    """Tools that answer what was recorded, by the id of the call; one for each name that was called."""
    answers: defaultdict[str, deque[str]] = defaultdict(deque)
    for message in recording.messages:
        if isinstance(message, ToolMessage):
            answers[message.tool_call_id].append(message.text)
    arguments: dict[str, dict[str, Any]] = {}
    for call in (call for _, said in recording.calls for call in said.tool_calls):
        arguments.setdefault(call["name"], {}).update({name: {} for name in call["args"]})

    def answer(runtime: ToolRuntime[Any, Any], **_: Any) -> str:
        return answers[runtime.tool_call_id or ""].popleft()

    return [_tool(name, answer, given) for name, given in arguments.items()]


def _tool(name: str, answer: Any, arguments: dict[str, Any]) -> BaseTool:
    schema = {"type": "object", "properties": arguments}
    description = "Answers what was recorded."
    return StructuredTool.from_function(
        answer, name=name, description=description, args_schema=schema, infer_schema=False
    )


def play(recording: Recording, model: ScriptedModel, tools: Sequence[BaseTool], config: RunnableConfig) -> None:
    """Run it: an agent invoked for every turn of the user's, or the prompts as they are.

    Raises:
        BudgetExceeded: the run is at its cap.
        Diverged: the loop did not go as recorded.
    """
    if not recording.messages:
        for call in recording.calls:
            model.invoke(call.prompt[0].text, config)
        return
    first = recording.messages[0]
    system = first if isinstance(first, SystemMessage) else None
    agent: Any = create_agent(model, tools, system_prompt=system, middleware=[EndOfRecording(model)])
    history: list[BaseMessage] = []
    for turn in recording.messages:
        if isinstance(turn, HumanMessage):
            history = agent.invoke({"messages": [*history, turn]}, config)["messages"]


def replay(recording: Recording, handler: BudgetCallbackHandler, cap: Decimal, model: ScriptedModel) -> Outcome:
    """One recording as one run."""
    tools = recorded_tools(recording)
    halted = False
    with handler.guard.run(task=recording.id) as run:
        try:
            play(recording, model, tools, {"callbacks": [handler]})
        except BudgetExceeded:
            halted = True
        _judge(run, recording, halted=halted)
    assert run.spent_usd is not None
    return Outcome(
        id=recording.id,
        halted=halted,
        recorded_steps=len(recording.calls),
        books=Books(run.steps, run.usage.input_tokens, run.usage.output_tokens, run.spent_usd),
        bill=bill_of(model),
        foresight=foresight(recording, tools, model.model, cap) if halted else run.spent_usd,
        has_verdict=recording.solved is not None,
        succeeded=run.verdict == "succeeded",
    )


def _judge(run: Run, recording: Recording, *, halted: bool) -> None:
    if halted:
        run.fail("halted")
    elif recording.solved is not None:
        run.succeed() if recording.solved else run.fail("not solved")


def foresight(recording: Recording, tools: Sequence[BaseTool], model: str, cap: Decimal) -> Decimal:
    """Dollars of the recorded calls that fit under the cap, one after another, were every cost known beforehand."""
    schemas, spent = [convert_to_openai_tool(tool) for tool in tools], Decimal(0)
    for prompt, answer in recording.calls:
        cost = price(model, usage_of(prompt, schemas, answer))
        if spent + cost > cap:
            break
        spent += cost
    return spent


# What is shown


def _usd(amount: Decimal) -> str:
    return f"${amount.normalize():f}"


def table(outcomes: Sequence[Outcome], cap: Decimal) -> Iterable[str]:
    """A line a run."""
    width = max(3, *(len(outcome.id) for outcome in outcomes))
    yield f"{'run':<{width}}  ended     steps   of     input  output        cost  of cap"
    for one in outcomes:
        steps, inputs, outputs, usd = one.books
        ended = "halted" if one.halted else "finished"
        counts = f"{steps:>5} {one.recorded_steps:>4}  {inputs:>8}  {outputs:>6}"
        yield f"{one.id:<{width}}  {ended:<8}  {counts}  ${usd:>9.6f}  {usd / cap:>6.1%}"


def totals(outcomes: Sequence[Outcome], cap: Decimal, model: str) -> Iterable[str]:
    """What all runs took, by both ways of counting."""
    halted = [one for one in outcomes if one.halted]
    steps, inputs, outputs, usd = _sum(one.books for one in outcomes)
    billed = _sum(one.bill for one in outcomes)
    recorded = sum(one.recorded_steps for one in outcomes)
    equal = "equal" if (steps, inputs, outputs, usd) == billed else "NOT equal"
    yield f"runs      {len(outcomes)} at {model} prices: {len(outcomes) - len(halted)} finished, {len(halted)} halted"
    yield f"steps     {steps} of {recorded} recorded"
    yield f"tokens    {inputs} in, {outputs} out"
    yield f"runcap    {_usd(usd)}"
    yield f"bill      {_usd(billed.usd)} for {billed.steps} calls, summed by the provider itself: {equal}"
    highest = max(one.books.usd for one in outcomes)
    yield f"highest   {_usd(highest)} of {_usd(cap)}, {highest / cap:.1%}"
    if halted:
        yield f"halted    {_shares([one.books.usd for one in halted], cap)}"
        yield f"foresight {_shares([one.foresight for one in halted], cap)}, had every cost been known beforehand"
    yield from _per_success([one for one in outcomes if one.has_verdict])


def _sum(books: Iterable[Books]) -> Books:
    steps, inputs, outputs, usd = zip(*books, strict=True)
    return Books(sum(steps), sum(inputs), sum(outputs), sum(usd, Decimal(0)))


def _shares(spent: Sequence[Decimal], cap: Decimal) -> str:
    mean = sum(spent, Decimal(0)) / (cap * len(spent))
    return f"{mean:.1%} of their caps used, the lowest {min(spent) / cap:.1%}"


def _per_success(judged: Sequence[Outcome]) -> Iterable[str]:
    if not judged:
        return
    done = sum(one.succeeded for one in judged)
    spent = sum((one.books.usd for one in judged), Decimal(0))
    cost = f"${spent / done:.6f} each, failures included" if done else "no cost per success"
    yield f"succeeded {done} of {len(judged)}: {cost}"


def problems(outcomes: Iterable[Outcome], cap: Decimal) -> Iterable[str]:
    """What must not be; nothing of it should ever be said."""
    for one in outcomes:
        if one.books != one.bill:
            yield f"run {one.id}: runcap counted {one.books}, the provider billed {one.bill}"
        if max(one.books.usd, one.bill.usd) > cap:
            yield f"run {one.id}: spent {_usd(max(one.books.usd, one.bill.usd))}, past its cap of {_usd(cap)}"
        if not one.halted and one.bill.steps != one.recorded_steps:
            yield f"run {one.id}: ended after {one.bill.steps} of {one.recorded_steps} calls without being halted"


# What is asked


def _cap(text: str) -> Decimal:
    try:
        usd = Budget(usd=text).usd
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).replace("Budget.usd", "it")) from None
    assert usd is not None
    return usd


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"it must be a whole number above zero, got {text!r}")
    return int(text)


def _model(text: str) -> str:
    try:
        priced = all(price(text, usage) for usage in ((1_000_000, 0), (0, 1_000_000)))
    except LookupError:
        priced = False
    if not priced:
        raise argparse.ArgumentTypeError(f"no price is known for an OpenAI chat model {text!r}")
    return text


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path, metavar="PATH", help="a file of recordings, or a directory of *.jsonl")
    parser.add_argument("--cap", type=_cap, default="0.05", help="dollars a run may spend (default %(default)s)")
    parser.add_argument("--model", type=_model, default="gpt-4o", help="whose prices (default %(default)s)")
    parser.add_argument("--max-tokens", type=_count, help="output cap (default: each recording's longest answer)")
    parser.add_argument("--limit", type=_count, help="replay only so many of them")
    parser.add_argument("--quiet", action="store_true", help="totals only")
    return parser.parse_args(argv)


def _load(options: argparse.Namespace) -> list[tuple[Recording, ScriptedModel]]:
    """The recordings, each with the model that answers it.

    Raises:
        RecordingError: they cannot be read, or an answer is longer than `--max-tokens`.
    """
    runs = []
    for recording in read(options.path)[: options.limit]:
        needed = longest_answer(recording)
        most = options.max_tokens or needed
        if most < needed:
            told = f"run {recording.id} has an answer of {needed} tokens, more than --max-tokens {most}"
            raise RecordingError(f"{options.path}: {told}")
        runs.append((recording, ScriptedModel(model=options.model, max_tokens=most, recording=recording)))
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """Replay; 0 when the books agree and every cap held, 1 when not, 2 when there was nothing to replay."""
    options = _options(argv)
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        setup_otlp(service_name=os.environ.get("OTEL_SERVICE_NAME", "replay"))
    cap: Decimal = options.cap
    # Strict: a call whose cost is not bounded beforehand would be refused, so the replay proves that all are.
    handler = BudgetCallbackHandler(Guard(Budget(usd=cap, strict=True), sinks=(OTelSink(),)))
    bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    try:
        with bar:
            runs = bar.track(_load(options), description="replaying")
            outcomes = [replay(recording, handler, cap, model) for recording, model in runs]
    except (RecordingError, Diverged, Refused) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2 if isinstance(error, RecordingError) else 1
    if not options.quiet:
        print(*table(outcomes, cap), "", sep="\n")
    print(*totals(outcomes, cap, options.model), sep="\n")
    wrong = list(problems(outcomes, cap))
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
