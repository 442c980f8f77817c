"""What a rolling history costs: the input of recorded runs, and the time of one turn of a long one.

    python benchmarks/history.py [--quick] [--recorded DIRECTORY]

First part, in tokens at full price: each recorded run is gone through turn by turn, and its prompts are priced. The
longest prefix of messages that a prompt shares with the run's prompt before it is read from the provider's cache, the
rest is written. Compared are

- full: everything, each turn;
- sliding: each turn the newest messages that fit, by LangChain's `trim_messages` with the same counter. System prompt,
  first and last user message are pinned and no tool result stands without its call, as with runcap. Results that are
  too large for the window by themselves are shortened as runcap does it, and stay so;
- forgetful: the same, but such a result is shortened to the whole window, and so it is gone a turn later;
- runcap: `History(window, keep=0.5)`.

A row is a data set, a window and a price, cached reads and writes as multiples of the full price. Costs are shares of
what sliding costs; `best` is runcap beside the better of full and sliding. Forgetful is not held against runcap: it
keeps less of a history than `keep` asks for. It differs where results are larger than the window, in about one run in
a hundred; that is where it can be cheaper, at the price of the answer just looked up.

Runs whose pinned messages alone are larger than the window are left out of a row, for all; `left out` says how many.
mini-SWE records each prompt as one text that grows by what a command gave; it is split there, and the answers that are
recorded beside it, which that text leaves out, are put in between. After each cut at least `keep` of the window must be
left, unless one exchange more would not have fitted; that is asserted.

Second part, no data needed: milliseconds of one turn at 5,000 messages. Two new messages are taken in, then it is
decided and the view is made; beside it `trim_messages(strategy="last")` with the same counter, on the same messages.

Ends with 1 where a goal is missed: retail at 4,000 and 0.1x at least 15 % below sliding; nowhere more than 2 % above
the better of full and sliding; one turn at least 20 times below `trim_messages`. `--quick` takes one run in ten.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages

from runcap.guardrails.history import CacheRates, Cut, History, HistoryTooLong
from runcap.integrations.langchain.parts import measure
from runcap.integrations.langchain.trimming import Conversation

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from recordings import Recording, read  # noqa: E402

SETS = {
    "retail": "agentrx_tau_retail/tau_dataset_full.json",
    "sql gpt-3.5": "intercode_sql/ic_sql_multiturn_gpt-3.5_10_turns.json",
    "sql gpt-4": "intercode_sql/ic_sql_multiturn_gpt-4_10_turns.json",
    "mini-SWE": "lmcache_agent_trace/miniswe",
}
WINDOWS = (2_000, 4_000, 8_000)
PRICES = ((0.1, 1.0), (0.1, 1.25), (0.25, 1.0), (0.5, 1.0), (1.0, 1.0))
KEEP, LONG, TURNS = 0.5, 5_000, 40
SAVED, ABOVE, FASTER = 0.15, 0.02, 20

Run = tuple[BaseMessage, ...]
View = list[BaseMessage]


class Sent(NamedTuple):
    """Tokens of one run's prompts: found in the cache, and not."""

    read: int
    written: int

    def cost(self, price: tuple[float, float]) -> float:
        """In tokens at full price."""
        return self.read * price[0] + self.written * price[1]


class Counter:
    """Tokens of a message, by its size; each is measured once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[BaseMessage, int]] = {}

    def __call__(self, message: BaseMessage) -> int:
        """Tokens of one message."""
        known = self._known.get(id(message))
        if known is None:
            known = self._known[id(message)] = (message, measured(message))
        return known[1]

    def all(self, messages: Iterable[BaseMessage]) -> int:
        """Of several."""
        return sum(map(self, messages))


def measured(message: BaseMessage) -> int:
    """Tokens of a message, as the provider likely counts them."""
    return measure(message).prompt.expected("openai")


def runs_of(recordings: Iterable[Recording]) -> list[Run]:
    """Each recorded conversation as messages."""
    return [one.messages or steps_of(one) for one in recordings]


def steps_of(recording: Recording) -> Run:
    """A prompt that grows at its end, as the messages it grew by."""
    messages: list[BaseMessage] = []
    before = ""
    for prompt, answer in recording.calls:
        text = str(prompt[0].content)
        assert text.startswith(before)
        messages += [HumanMessage(text[len(before) :] or "-"), AIMessage(answer.content or "-")]
        before = text
    return tuple(messages)


def prompts_of(run: Run) -> Iterator[View]:
    """What the agent had before each answer."""
    return ([*run[:at]] for at, message in enumerate(run) if isinstance(message, AIMessage) and at)


def sent(views: Iterable[View], tokens: Counter) -> Sent:
    """How much of the views is the prefix of the one before."""
    cached, total = 0, 0
    before: View = []
    for view in views:
        for one, other in zip(before, view, strict=False):
            if one is not other and one != other:
                break
            cached += tokens(other)
        total += tokens.all(view)
        before = view
    return Sent(cached, total - cached)


def sliding(prompt: View, window: int, tokens: Counter) -> View:
    """The newest messages that fit, after the pinned ones."""
    users = {index for index, message in enumerate(prompt) if isinstance(message, HumanMessage)}
    held = {index for index, message in enumerate(prompt) if isinstance(message, SystemMessage)} | {min(users)}
    kept = held | _newest(prompt, held, window, tokens)
    if max(users) not in kept:
        held |= {max(users)}
        kept = held | _newest(prompt, held, window, tokens)
    if len(prompt) - 1 in kept:
        return [prompt[index] for index in sorted(kept)]
    return _last_exchange(prompt, window, tokens)


def _newest(prompt: View, held: set[int], window: int, tokens: Counter) -> set[int]:
    others = [message for index, message in enumerate(prompt) if index not in held]
    room = window - tokens.all(prompt[index] for index in held)
    newest = trim_messages(
        others, max_tokens=room, token_counter=tokens.all, strategy="last", start_on=("system", "human", "ai")
    )
    wanted = {*map(id, newest)}
    return {index for index, message in enumerate(prompt) if id(message) in wanted}


def shortening(run: Run, window: int, tokens: Counter) -> Run:
    """The run, with the results shortened that do not fit by themselves."""
    messages = [*run]
    for at in [index for index, message in enumerate(run) if isinstance(message, AIMessage) and index]:
        prompt = messages[:at]
        if not {*map(id, sliding(prompt, window, tokens))} <= {*map(id, prompt)}:
            sent_last = _last_exchange(prompt, window, tokens, keep=KEEP)
            results = [message for message in sent_last if isinstance(message, ToolMessage)]
            messages[at - len(results) : at] = results
    return tuple(messages)


def _last_exchange(prompt: View, window: int, tokens: Counter, keep: float = 0.99) -> View:
    """It is too large by itself: its results are shortened until it fits."""
    conversation = Conversation(History(window, keep=keep, counter=tokens), "openai")
    conversation.take(prompt, CacheRates())
    conversation.decide(CacheRates())
    return conversation.view()


def rolling(run: Run, window: int, price: tuple[float, float], tokens: Counter) -> Iterator[View]:
    """What runcap sends."""
    conversation, rates = Conversation(History(window, keep=KEEP, counter=tokens), "openai"), CacheRates(*price)
    for prompt in prompts_of(run):
        conversation.take(prompt, rates)
        cut = conversation.decide(rates)
        view = conversation.view()
        if cut is not None:
            check_kept(cut, prompt, view, window, tokens)
        yield view


def check_kept(cut: Cut, prompt: View, view: View, window: int, tokens: Counter) -> None:
    """At least `keep` is left of the window, unless one exchange more would not have fitted."""
    size = tokens.all(view)
    assert size <= cut.kept <= window
    if size >= int(window * KEEP):
        return
    sent_now = {*map(id, view)}
    gone = [message for message in prompt if id(message) not in sent_now]
    starts = [index for index, message in enumerate(gone) if not isinstance(message, ToolMessage)]
    assert starts, "results were shortened to less than was asked"
    assert size + tokens.all(gone[starts[-1] :]) > window, f"{size:,} left of {window:,}"


class Row(NamedTuple):
    """What the runs of a data set cost, at one window and one price."""

    full: float
    sliding: float
    forgetful: float
    runcap: float
    runs: int
    left_out: int

    @property
    def saved(self) -> float:
        """The share that runcap saves of what the cheaper way of sliding costs."""
        return 1 - self.runcap / min(self.sliding, self.forgetful)

    @property
    def above(self) -> float:
        """How much dearer runcap is than the better of the others."""
        return self.runcap / min(self.full, self.sliding) - 1


Peers = tuple[Sent, Sent, Sent]


def peers_of(run: Run, window: int, tokens: Counter) -> Peers | None:
    """Full, sliding and forgetful; None where what is pinned does not fit."""
    try:
        slides = (sliding(prompt, window, tokens) for prompt in prompts_of(shortening(run, window, tokens)))
        forgets = (sliding(prompt, window, tokens) for prompt in prompts_of(run))
        return sent(prompts_of(run), tokens), sent(slides, tokens), sent(forgets, tokens)
    except HistoryTooLong:
        return None


def row(runs: Sequence[Run], window: int, tokens: Counter) -> Iterator[tuple[tuple[float, float], Row]]:
    """The rows of a data set and a window, by price."""
    peers = [peers_of(run, window, tokens) for run in runs]
    for price in PRICES:
        costs = [_costs(run, both, window, price, tokens) for run, both in zip(runs, peers, strict=True)]
        known = [cost for cost in costs if cost is not None]
        if known:
            yield price, Row(*map(sum, zip(*known, strict=True)), len(known), len(runs) - len(known))


def _costs(
    run: Run, peers: Peers | None, window: int, price: tuple[float, float], tokens: Counter
) -> tuple[float, ...] | None:
    if peers is None:
        return None
    try:
        ours = sent(rolling(run, window, price, tokens), tokens)
    except HistoryTooLong:
        return None
    return tuple(one.cost(price) for one in (*peers, ours))


def costs(recorded: Path, step: int) -> list[bool]:
    """Print the first part; whether its goals are met."""
    shares_of = f"{'full':>8}{'forgetful':>11}{'runcap':>8}{'best':>8}"
    print(f"{'data set':<13}{'window':>7}{'read':>6}{'write':>6}{shares_of}  left out")
    rows: dict[tuple[str, int, tuple[float, float]], Row] = {}
    for name, path in SETS.items():
        runs = runs_of(read(recorded / path)[::step])
        for window in WINDOWS:
            for price, figures in row(runs, window, Counter()):
                rows[name, window, price] = figures
                full, forgetful, ours = (one / figures.sliding for one in (figures.full, *figures[2:4]))
                shares = f"{full:>8.3f}{forgetful:>11.3f}{ours:>8.3f}{1 + figures.above:>8.3f}"
                left = f"{figures.left_out:>4} of {figures.runs + figures.left_out:,}"
                print(f"{name:<13}{window:>7,}{price[0]:>6}{price[1]:>6}{shares}{left}", flush=True)
    dearer = max(rows.items(), key=lambda item: item[1].runcap / item[1].forgetful)
    print(f"note   beside forgetful at worst {dearer[1].runcap / dearer[1].forgetful - 1:+.1%} {dearer[0]}; no goal")
    saved = rows["retail", 4_000, (0.1, 1.0)].saved
    (name, window, price), worst = max(rows.items(), key=lambda item: item[1].above)
    where = f"{name}, {window:,}, {price[0]}x read, {price[1]}x write"
    return [
        said(saved >= SAVED, f"retail, 4,000, 0.1x: {saved:.1%} below sliding; goal {SAVED:.0%}"),
        said(
            worst.above <= ABOVE,
            f"at worst {worst.above:+.1%} of the better of full and sliding ({where}); goal {ABOVE:+.0%}",
        ),
    ]


def said(met: bool, text: str) -> bool:
    """Print a goal and whether it is met."""
    print(f"{'ok' if met else 'MISSED':<7}{text}", flush=True)
    return met


def exchange(number: int) -> list[BaseMessage]:
    """A tool call and its result."""
    call = {"name": "look_up", "args": {"query": f"item {number}"}, "id": f"call_{number}"}
    return [AIMessage("", tool_calls=[call]), ToolMessage("nothing found " * 10, tool_call_id=f"call_{number}")]


def every(messages: Iterable[BaseMessage]) -> int:
    """Tokens of several messages."""
    return sum(map(measured, messages))


def turns() -> bool:
    """Print the second part; whether its goal is met."""
    rates = CacheRates(0.1, 1.0)
    messages: View = [SystemMessage("Find it."), HumanMessage("Where is it?")]
    for number in range(LONG // 2 - 1):
        messages += exchange(number)
    conversation = Conversation(History(WINDOWS[-1], counter=measured), "openai")
    conversation.take(messages, rates)
    conversation.decide(rates)
    times: dict[str, list[float]] = {"runcap": [], "trim_messages": []}
    for number in range(TURNS):
        messages = [*messages, *exchange(LONG + number)]
        began = time.perf_counter()
        conversation.take(messages, rates)
        conversation.decide(rates)
        conversation.view()
        middle = time.perf_counter()
        trim_messages(messages, max_tokens=WINDOWS[-1], token_counter=every, strategy="last")
        times["runcap"].append((middle - began) * 1e3)
        times["trim_messages"].append((time.perf_counter() - middle) * 1e3)
    mine, theirs = map(statistics.median, times.values())
    figures = f"{mine:.3f} ms (max {max(times['runcap']):.3f}), trim_messages {theirs:.1f} ms"
    print(f"\none turn at {LONG:,} messages: {figures}")
    return said(theirs >= FASTER * mine, f"one turn is {theirs / mine:.0f} times below trim_messages; goal {FASTER}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run in ten")
    default = Path(os.environ.get("RUNCAP_RECORDED", ROOT.parent / "shared" / "data"))
    parser.add_argument("--recorded", type=Path, default=default, help="where the recorded runs are")
    options = parser.parse_args()
    there = all((options.recorded / path).exists() for path in SETS.values())
    if not there:
        print(f"no recorded runs in {options.recorded}: their costs are left out")
    met = costs(options.recorded, 10 if options.quick else 1) if there else []
    if not all([*met, turns()]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
