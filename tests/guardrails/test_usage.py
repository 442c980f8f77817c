from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcap.guardrails import Usage

COUNTS = st.integers(0, 10**7)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    total_in, total_out = draw(COUNTS), draw(COUNTS)
    read = draw(st.integers(0, total_in))
    write = draw(st.integers(0, total_in - read))
    return Usage(total_in, total_out, read, write, draw(st.integers(0, write)), draw(st.integers(0, total_out)))


def test_adds_up_and_sums() -> None:
    one = Usage(10, 5, cache_read_tokens=4, cache_write_tokens=3, cache_write_1h_tokens=1, reasoning_tokens=2)
    assert one + one == Usage(20, 10, 8, 6, 2, 4)
    assert sum([one, one]) == one + one
    assert (one.total_tokens, one.plain_input_tokens) == (15, 3)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"input_tokens": 5, "cache_read_tokens": 4, "cache_write_tokens": 2}, "4 read \\+ 2 written \\+ 0 audio > 5"),
        ({"input_tokens": -1}, "must not be negative"),
        ({"input_tokens": 5, "cache_write_tokens": 2, "cache_write_1h_tokens": 3}, "cannot exceed"),
        ({"output_tokens": 5, "reasoning_tokens": 6}, "cannot exceed"),
    ],
)
def test_contradictions_are_refused(kwargs: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Usage(**kwargs)


def test_a_float_is_no_count() -> None:
    with pytest.raises(TypeError, match="int of tokens"):
        Usage(input_tokens=1.5)  # type: ignore[arg-type]


@given(usages(), usages(), usages())
def test_addition_is_associative_and_commutative(a: Usage, b: Usage, c: Usage) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
