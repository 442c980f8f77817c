from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcap.guardrails.history import (
    SHORTEST,
    CacheRates,
    Cut,
    History,
    HistoryTooLong,
    Part,
    Role,
    Rolling,
    _level,
)

EVEN = CacheRates()
CHEAP_READS = CacheRates(read=0.1, write=1.0)


def system(tokens: int = 10) -> Part:
    return Part(tokens, "system")


def user(tokens: int = 10) -> Part:
    return Part(tokens, "user")


def assistant(tokens: int = 10, thinking: int = 0) -> Part:
    return Part(tokens, "assistant", thinking=thinking)


def tool(tokens: int = 10) -> Part:
    return Part(tokens, "tool", shortens=True)


def exchange(tokens: int) -> list[Part]:
    """A call and its result."""
    return [assistant(tokens // 2), tool(tokens - tokens // 2)]


def grown(policy: History, parts: Sequence[Part], rates: CacheRates = EVEN) -> Rolling:
    """Every call decided on when it is made."""
    rolling = Rolling(policy)
    for turn in turns_of(parts):
        rolling.extend(turn, rates)
        decided(rolling, rates)
    return rolling


def decided(rolling: Rolling, rates: CacheRates) -> Cut | None:
    return asked(rolling, rates)[0]


def asked(rolling: Rolling, rates: CacheRates) -> tuple[Cut | None, HistoryTooLong | None]:
    try:
        return rolling.decide(rates), None
    except HistoryTooLong as error:
        return None, error


def turns_of(parts: Sequence[Part]) -> list[list[Part]]:
    """What comes between two calls: each turn but the first begins with an assistant's message."""
    turns: list[list[Part]] = [[]]
    for part in parts:
        if part.role == "assistant" and turns[-1]:
            turns.append([])
        turns[-1].append(part)
    return turns


def sent(rolling: Rolling) -> list[tuple[int, int | None, bool]]:
    """Which messages are sent, and how: the tokens it is shortened to, and whether its thinking is left out."""
    indices = [*rolling.pinned(), *range(rolling.start, len(rolling))]
    return [(index, rolling.limits.get(index), index < rolling.stripped) for index in indices]


def size_of(rolling: Rolling, parts: Sequence[Part]) -> int:
    sizes = [
        limit if limit is not None else parts[i].tokens - parts[i].thinking * bare for i, limit, bare in sent(rolling)
    ]
    return rolling.fixed + sum(sizes)


# Any conversation an agent has

_SIZES = st.integers(1, 60) | st.integers(60, 600)


@st.composite
def conversations(draw: Any) -> list[Part]:
    parts = [system(draw(_SIZES)) for _ in range(draw(st.integers(0, 2)))]
    for _ in range(draw(st.integers(1, 6))):
        parts.append(user(draw(_SIZES)))
        for _ in range(draw(st.integers(0, 4))):
            tokens = draw(_SIZES)
            parts.append(assistant(tokens, draw(st.integers(0, tokens))))
            parts += [Part(draw(_SIZES), "tool", draw(st.booleans())) for _ in range(draw(st.integers(0, 3)))]
        if draw(st.integers(0, 9)) == 0:
            parts.append(system(draw(_SIZES)))
    return parts


POLICIES = st.builds(
    History,
    max_tokens=st.integers(SHORTEST, 2_000),
    keep=st.floats(0.05, 0.95),
    tool_results=st.sampled_from(["shorten", "error"]),
)
RATES = st.builds(
    CacheRates, read=st.sampled_from([0.0, 0.1, 0.5, 1.0]), write=st.sampled_from([1.0, 1.25]), hits=st.floats(0, 1)
)


class Plain:
    """The same decisions, spelled out: every place to cut at is tried, and every size is added up anew."""

    def __init__(self, policy: History, fixed: int) -> None:
        self.policy, self.fixed = policy, fixed
        self.parts: list[Part] = []
        self.start = 0
        self.stripped = 0
        self.held: set[int] = set()
        self.limits: dict[int, int] = {}

    def users(self) -> set[int]:
        users = [index for index, part in enumerate(self.parts) if part.role == "user"]
        return {*users[:1], *users[-1:]}

    def sized(self, start: int, held: set[int], stripped: int) -> int:
        total = self.fixed
        for index, part in enumerate(self.parts):
            if index >= start or part.role == "system" or index in held:
                whole = part.tokens - (part.thinking if index < stripped else 0)
                total += self.limits.get(index, whole) if index >= start else whole
        return total

    def size(self) -> int:
        return self.sized(self.start, self.held, self.stripped)

    def left(self, start: int) -> int:
        return self.sized(start, self.users(), len(self.parts))

    def target(self) -> int:
        last = max((i for i, part in enumerate(self.parts) if part.role != "tool"), default=0)
        later = [i for i in range(self.start + 1, last + 1) if self.parts[i].role != "tool"]
        best = max([self.start, *(i for i in later if self.left(i) >= self.policy.low)])
        if self.left(best) <= self.policy.max_tokens:
            return best
        fits = [i for i in later if i > best and self.left(i) <= self.policy.max_tokens]
        return min(fits, default=max([best, *later]))

    def pays(self, left: int, rates: CacheRates) -> bool:
        turns = max(sum(part.role == "assistant" for part in self.parts), 1)
        first = [part.tokens for part in self.parts if part.role == "user"][:1]
        stays = self.fixed + sum(part.tokens for part in self.parts if part.role == "system") + sum(first)
        if self.size() > 2 * self.policy.max_tokens:
            return True
        read = rates.read * rates.hits + rates.write * (1 - rates.hits)
        return turns / 2 * read * (self.size() - left) >= (rates.write - read) * max(left - stays, 0)

    def cuts_at(self, rates: CacheRates) -> int | None:
        """Where it begins after the next decision, results not yet shortened."""
        if self.size() <= self.policy.max_tokens:
            return None
        start = self.target()
        fits = self.left(start) <= self.policy.max_tokens
        return None if fits and not self.pays(self.left(start), rates) else start

    def follow(self, rolling: Rolling) -> None:
        self.start, self.stripped, self.held = rolling.start, len(self.parts), self.users()
        self.limits = dict(rolling.limits)


@given(conversations(), POLICIES, RATES, st.integers(0, 300))
def test_it_decides_as_if_every_place_to_cut_had_been_tried(
    parts: list[Part], policy: History, rates: CacheRates, fixed: int
) -> None:
    rolling, plain = Rolling(policy, fixed=fixed), Plain(policy, fixed)
    for turn in turns_of(parts):
        rolling.extend(turn, rates)
        plain.parts += turn
        assert rolling.size == plain.size() == size_of(rolling, parts)
        start = plain.cuts_at(rates)
        before = rolling.size, sent(rolling), dict(rolling.limits)
        needed = None if start is None else plain.left(start)
        cut, refused = asked(rolling, rates)
        if refused is not None:
            assert refused.details.needed == needed
            assert refused.details.needed > policy.max_tokens
            assert (rolling.size, sent(rolling), rolling.limits) == before
            continue
        assert (cut is None) == (start is None)
        if cut is not None:
            assert rolling.start == start
            gone = {index for index, *_ in before[1]} - {index for index, *_ in sent(rolling)}
            assert cut[:3] == (len(gone), before[0] - rolling.size, rolling.size)
            plain.follow(rolling)


@given(conversations(), POLICIES, RATES)
def test_what_is_sent_is_always_a_history(parts: list[Part], policy: History, rates: CacheRates) -> None:
    rolling = Rolling(policy)
    for turn in turns_of(parts):
        rolling.extend(turn, rates)
        decided(rolling, rates)
        known = parts[: len(rolling)]
        kept = [index for index, *_ in sent(rolling)]
        users = [index for index, part in enumerate(known) if part.role == "user"]
        must = {*users[:1], *users[-1:], len(known) - 1, *(i for i, part in enumerate(known) if part.role == "system")}
        assert kept == sorted({*kept})
        assert must <= {*kept}
        groups = [index for index, part in enumerate(known) if part.role != "tool"]
        for asked, following in zip(groups, [*groups[1:], len(known)], strict=True):
            assert len({*range(asked, following)} & {*kept}) in (0, following - asked)


@given(conversations(), POLICIES, RATES)
def test_a_cut_leaves_at_least_the_low_mark_and_at_most_the_high_one(
    parts: list[Part], policy: History, rates: CacheRates
) -> None:
    rolling = Rolling(policy)
    for turn in turns_of(parts):
        rolling.extend(turn, rates)
        before, started = sent(rolling), rolling.start
        cut = decided(rolling, rates)
        if cut is None:
            continue
        assert rolling.size == cut.kept <= policy.max_tokens
        gone = {index for index, *_ in before} - {index for index, *_ in sent(rolling)}
        # From where it is, thinking goes as a whole, and with it what an older cut had spared.
        if rolling.size >= policy.low or rolling.start == started:
            continue
        # Less is left only where one exchange more would not have fitted.
        answers = [index for index in gone if parts[index].role != "tool"]
        one_more = [parts[i] for i in range(max(answers), rolling.start) if i in gone]
        bare = sum(part.tokens - part.thinking for part in one_more)
        whole = sum(parts[i].tokens - parts[i].thinking for i, *_ in sent(rolling))
        assert whole + bare > policy.max_tokens


@given(conversations(), POLICIES, RATES)
def test_between_cuts_what_is_sent_only_grows_at_its_end(parts: list[Part], policy: History, rates: CacheRates) -> None:
    rolling = Rolling(policy)
    before: list[tuple[int, int | None, bool]] = []
    for turn in turns_of(parts):
        rolling.extend(turn, rates)
        if decided(rolling, rates) is None:
            assert sent(rolling)[: len(before)] == before
        before = sent(rolling)


@given(conversations(), POLICIES, RATES)
def test_a_history_that_comes_whole_is_cut_as_if_it_had_grown(
    parts: list[Part], policy: History, rates: CacheRates
) -> None:
    whole = Rolling(policy)
    whole.extend(parts, rates)
    decided(whole, rates)
    assert whole == grown(policy, parts, rates)


@given(conversations(), POLICIES, RATES)
def test_a_cut_that_is_asked_for_leaves_less_or_nothing_is_done(
    parts: list[Part], policy: History, rates: CacheRates
) -> None:
    rolling = grown(policy, parts, rates)
    before = rolling.size, sent(rolling)
    try:
        cut = rolling.cut()
    except HistoryTooLong:
        cut = None
    if cut is None:
        assert (rolling.size, sent(rolling)) == before
    else:
        assert rolling.size == cut.kept < before[0]
        assert rolling.size >= policy.low or before[0] > policy.max_tokens


# By hand


def test_it_is_cut_in_one_large_step_and_then_left_alone() -> None:
    rolling = Rolling(History(1_000))
    rolling.extend([system(100), user(100)], EVEN)
    cuts: list[Cut | None] = []
    for _ in range(30):
        assert rolling.size <= 1_000 or not cuts
        rolling.extend(exchange(100), EVEN)
        cuts.append(rolling.decide(EVEN))
    made = [(at, cut) for at, cut in enumerate(cuts) if cut]
    assert [at for at, _ in made] == [8, 14, 20, 26]
    assert made[0][1] == Cut(messages=12, tokens=600, kept=500)


def test_the_users_message_that_a_cut_spared_stays_until_the_next() -> None:
    rolling = Rolling(History(180))
    rolling.extend([user(), *exchange(50), user(), *exchange(60), *exchange(70)], EVEN)
    assert rolling.decide(EVEN) == Cut(messages=4, tokens=110, kept=90)
    assert rolling.pinned() == [0, 3]
    rolling.extend([user(20)], EVEN)
    assert rolling.pinned() == [0, 3]
    rolling.extend(exchange(100), EVEN)
    rolling.decide(EVEN)
    assert rolling.pinned() == [0, 8]


@pytest.mark.parametrize(
    ("turns", "rates", "cuts"),
    [
        (1, EVEN, True),
        (1, CHEAP_READS, False),
        (7, CHEAP_READS, False),
        (12, CHEAP_READS, False),
        (20, CHEAP_READS, True),
        (7, CacheRates(read=0.1, write=1.0, hits=0.0), True),
        (1, CacheRates(read=0.9, write=1.0), True),
        (12, CacheRates(read=0.0, write=1.0), False),
        (12, CacheRates(read=0.0, write=0.0), True),
    ],
)
def test_a_cut_that_costs_more_than_it_saves_waits(turns: int, rates: CacheRates, *, cuts: bool) -> None:
    rolling = Rolling(History(1_000))
    # 1,010 tokens, in as many turns; a cut leaves 510 of them, all of which must be written anew, but for the first.
    pieces = [1_000 // turns // 2 * 2] * turns
    pieces[0] += 1_000 - sum(pieces)
    for part in [user(10), *(part for tokens in pieces for part in (assistant(1), tool(tokens - 1)))]:
        rolling._add(part)
    rolling.turns = turns
    rolling.extend([], rates)
    assert rolling.size == 1_010
    if turns == 1:  # there is something to leave
        rolling._add(assistant(500))
    assert (rolling.decide(rates) is not None) is cuts


def test_what_is_too_large_by_itself_is_shortened_to_one_size() -> None:
    rolling = Rolling(History(1_000))
    rolling.extend([user(100), *exchange(100), assistant(50), tool(2_000), tool(3_000), tool(60)], EVEN)
    assert rolling.decide(EVEN) == Cut(messages=2, tokens=4_808, kept=502, shortened=2)  # rounded up
    assert rolling.limits == {4: 146, 5: 146}
    rolling.extend(exchange(20), EVEN)
    assert rolling.decide(EVEN) is None
    assert rolling.size == 522


def test_shortened_results_are_let_go_with_their_exchange() -> None:
    rolling = Rolling(History(400))
    rolling.extend([user(), assistant(), tool(1_000)], EVEN)
    rolling.decide(EVEN)
    assert rolling.size == 201
    for _ in range(3):
        rolling.extend(exchange(100), EVEN)
        rolling.decide(EVEN)
    assert (rolling.size, rolling.limits) == (310, {})


def test_more_than_half_is_left_where_only_that_lets_results_say_something() -> None:
    rolling = Rolling(History(1_000))
    rolling.extend([user(480), assistant(10), tool(5_000)], EVEN)
    assert rolling.decide(EVEN) == Cut(messages=0, tokens=4_490, kept=1_000, shortened=1)


@pytest.mark.parametrize(
    ("parts", "options", "way_out"),
    [
        ([system(600), user(600)], {}, "use a larger History(max_tokens=...)"),
        ([user(990), assistant(10), tool(10)], {}, "use a larger"),
        ([user(10), assistant(10), tool(2_000)], {"tool_results": "error"}, 'or History(tool_results="shorten")'),
        ([user(10), assistant(10), Part(2_000, "tool")], {}, "use a larger"),
    ],
)
def test_what_can_neither_be_cut_nor_shortened_is_refused_with_its_numbers(
    parts: list[Part], options: dict[str, Any], way_out: str
) -> None:
    rolling = Rolling(History(1_000, **options))
    rolling.extend(parts, EVEN)
    with pytest.raises(HistoryTooLong) as refused:
        rolling.decide(EVEN)
    needed = sum(part.tokens for part in parts)
    assert (refused.value.details.cap, refused.value.details.needed) == (1_000, needed)
    assert refused.value.unit == "tokens"
    assert f"this call needs {needed:,}" in str(refused.value)
    assert way_out in str(refused.value)


def test_what_was_too_long_once_is_no_obstacle_later() -> None:
    rolling = Rolling(History(1_000, tool_results="error"))
    rolling.extend([user(), *exchange(2_000), *exchange(100)], EVEN)
    assert rolling.decide(EVEN) == Cut(messages=2, tokens=2_000, kept=110)


def test_thinking_goes_with_a_cut_and_is_no_longer_counted() -> None:
    rolling = Rolling(History(1_000))
    rolling.extend([user(100), *(assistant(200, thinking=100) for _ in range(5))], EVEN)
    assert rolling.decide(EVEN) == Cut(messages=1, tokens=600, kept=500)
    rolling.extend([assistant(200, thinking=100)], EVEN)
    assert rolling.size == 700


def test_where_thinking_alone_is_enough_no_message_goes() -> None:
    rolling = Rolling(History(1_000))
    rolling.extend([user(100), assistant(950, thinking=600), user(10)], EVEN)
    assert rolling.decide(EVEN) == Cut(messages=0, tokens=600, kept=460)


@pytest.mark.parametrize("roles", [("system", "user"), ("user",)])
def test_there_may_be_nothing_to_cut(roles: tuple[Role, ...]) -> None:
    rolling = Rolling(History(1_000))
    rolling.extend([Part(300, role) for role in roles], EVEN)
    assert rolling.cut() is None
    assert rolling.decide(EVEN) is None
    assert Rolling(History(1_000)).cut() is None


def test_the_work_grows_with_the_messages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, added_up = Rolling._size, 0

    def counted(self: Rolling, *args: Any) -> int:
        nonlocal added_up
        added_up += 1
        return sizes(self, *args)

    monkeypatch.setattr(Rolling, "_size", counted)
    rolling = Rolling(History(1_000))
    rolling.extend([system(), user()], CHEAP_READS)
    for _ in range(2_500):
        rolling.extend(exchange(20), CHEAP_READS)
        rolling.decide(CHEAP_READS)
    assert len(rolling) == 5_002
    assert added_up < 3 * len(rolling)


# What the user sets


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"max_tokens": "8000"}, TypeError, "History.max_tokens must be a whole number of tokens, got '8000'"),
        ({"max_tokens": 8e3}, TypeError, "History.max_tokens must be a whole number of tokens, got 8000.0"),
        ({"max_tokens": True}, TypeError, "History.max_tokens must be a whole number of tokens, got True"),
        ({"max_tokens": 47}, ValueError, "History.max_tokens must be at least 48, got 47"),
        ({"max_tokens": -1}, ValueError, "History.max_tokens must be at least 48, got -1"),
        ({"keep": "half"}, TypeError, "History.keep must be a share of max_tokens such as 0.5, got 'half'"),
        ({"keep": True}, TypeError, "History.keep must be a share of max_tokens such as 0.5, got True"),
        ({"keep": 0}, ValueError, "History.keep must be a share of max_tokens between 0 and 1, got 0"),
        ({"keep": 1.0}, ValueError, "History.keep must be a share of max_tokens between 0 and 1, got 1.0"),
        ({"keep": 50}, ValueError, "History.keep must be a share of max_tokens between 0 and 1, got 50"),
        ({"keep": float("nan")}, ValueError, "History.keep must be a share of max_tokens between 0 and 1, got nan"),
        ({"summarize": False}, TypeError, "History.summarize must be a model, its name, True for the last tier, or "),
        ({"tool_results": "cut"}, ValueError, 'History.tool_results must be "shorten" or "error", got \'cut\''),
        ({"counter": 4}, TypeError, "History.counter must be a function of a message, got 4"),
    ],
)
def test_a_bad_argument_is_one_clear_message(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as raised:
        History(**{"max_tokens": 8_000, **options})
    assert str(raised.value).startswith(says)


def test_marks() -> None:
    assert History(8_000).low == 4_000
    assert History(999, keep=0.25).low == 249


@given(st.lists(st.integers(0, 500), min_size=1, max_size=8), st.integers(-100, 2_000))
def test_the_level_is_the_highest_that_fits(sizes: list[int], room: int) -> None:
    ordered = sorted(sizes, reverse=True)
    level = _level(ordered, room)
    fits = [one for one in range(ordered[0] + 1) if sum(min(size, one) for size in sizes) <= room]
    assert level == max(fits, default=0)


def test_nothing_has_no_level() -> None:
    assert _level([], 100) == 0


@given(conversations(), POLICIES, RATES)
def test_what_can_be_cut_is_what_a_cut_takes_out(parts: list[Part], policy: History, rates: CacheRates) -> None:
    """Or a call that does not fit would be tried once more as it is."""
    rolling = Rolling(policy)
    for turn in turns_of(parts):
        rolling.extend(turn, rates)
        asked(rolling, rates)
        can = rolling.can_be_cut()
        try:
            assert can == (rolling.cut() is not None)
        except HistoryTooLong:
            assert can
