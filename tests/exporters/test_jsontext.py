"""JSON of a bounded size, of anything."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from runcap.exporters.otel.jsontext import LEAST_LIMIT, bounded_json, plain

from ..effort import examples

TEXTS = st.text(max_size=30) | st.text(st.sampled_from('a\n"\\é€😀\x00'), min_size=100, max_size=600)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=5_000),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(TEXTS, inner, max_size=10) | st.tuples(inner, inner),
    max_leaves=30,
)
MESSAGES = st.lists(
    st.builds(
        lambda role, texts: {"role": role, "parts": [{"type": "text", "content": text} for text in texts]},
        st.sampled_from(["user", "assistant"]),
        st.lists(TEXTS, min_size=1, max_size=4),
    ),
    max_size=60,
)


@settings(max_examples=examples(200), deadline=None)
@given(value=ANYTHING | MESSAGES, limit=st.integers(LEAST_LIMIT, 5_000))
def test_any_value_is_valid_json_within_the_limit(value: Any, limit: int) -> None:
    text = bounded_json(value, limit)
    assert len(text.encode()) <= limit
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    whole = bounded_json(value, 10_000_000)
    if len(whole.encode()) <= limit:
        assert text == whole
        assert read == plain(value)
    else:
        assert "left out]" in text


@settings(max_examples=examples(100), deadline=None)
@given(value=MESSAGES, limit=st.integers(1_024, 5_000))
def test_shortened_messages_are_still_messages(value: list[Any], limit: int) -> None:
    read = json.loads(bounded_json(value, limit))
    for message in read:
        assert set(message) == {"role", "parts"}
        for part in message["parts"]:
            assert set(part) == {"type", "content"}
    if read and value and read != plain(value):
        assert read[-1]["role"] == value[-1]["role"], "the newest are kept"


def test_how_much_was_left_out_is_marked() -> None:
    (message,) = json.loads(bounded_json([{"role": "user", "parts": [{"type": "text", "content": "ab" * 5_000}]}], 400))
    (part,) = message["parts"]
    kept, count = re.fullmatch(r"((?:ab)+a?)… \[(\d+) characters left out\]", part["content"]).groups()  # type: ignore[union-attr]
    assert len(kept) + int(count) == 10_000
    assert len(kept) > 200
    many = [{"role": "user", "parts": [{"type": "text", "content": f"message {number}"}]} for number in range(100)]
    first, *rest = json.loads(bounded_json(many, 1_024))
    assert first["parts"][0]["content"] == f"[{100 - len(rest)} messages left out]"
    assert rest[-1] == many[-1]


def test_short_texts_are_left_whole_where_one_is_long() -> None:
    value = {"long": "x " * 50_000, "short": "y" * 500, "number": 7}
    read = json.loads(bounded_json(value, 2_000))
    assert (read["short"], read["number"]) == ("y" * 500, 7)


@pytest.mark.parametrize("text", ["\ud800 alone", "\udfff", "a\ud83d"])
def test_lone_surrogates_are_no_utf8(text: str) -> None:
    assert json.loads(bounded_json({text: [text]}, 256))
    bounded_json({text: [text]}, 256).encode()


def test_what_is_no_json_becomes_some() -> None:
    class Colour(Enum):
        RED = "red"

    class Model(BaseModel):
        key: SecretStr
        count: int

    @dataclass
    class Point:
        x: int
        when: datetime

    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("secret")

    cycle: list[Any] = []
    cycle.append(cycle)
    deep: Any = "bottom"
    for _ in range(5_000):
        deep = [deep]
    value = {
        "nan": float("nan"),
        "inf": float("-inf"),
        "huge": 10**5_000,
        "colour": Colour.RED,
        "model": Model(key=SecretStr("sk-1"), count=2),
        "point": Point(1, datetime(2026, 1, 2, tzinfo=UTC)),
        "money": Decimal("1.10"),
        "bytes": b"123",
        "hostile": Hostile(),
        "function": len,
        "cycle": cycle,
    }
    assert json.loads(bounded_json(value, 4_096)) == {
        "nan": "nan",
        "inf": "-inf",
        "huge": "[integer of 16610 bits]",
        "colour": "red",
        "model": {"key": "**********", "count": 2},
        "point": {"x": 1, "when": "2026-01-02 00:00:00+00:00"},
        "money": "1.10",
        "bytes": "[3 bytes left out]",
        "hostile": "[Hostile: RuntimeError]",
        "function": "[len]",
        "cycle": ["[1 left out]"],
    }
    assert "[1 left out]" in bounded_json(deep, 4_096)


def test_what_is_vast_ends() -> None:
    wide = list(range(300_000))
    assert plain(wide)[-1].endswith("left out]")
    doubled: Any = "x"
    for _ in range(30):
        doubled = [doubled, doubled]
    assert len(bounded_json(doubled, 4_096)) <= 4_096


def test_data_in_texts_is_left_out() -> None:
    data = "iVBORw0KGgo" * 200
    assert plain(f"see ![](data:image/png;base64,{data}) there") == "see ![]([2222 characters of data left out]) there"
    assert plain({"a": f"raw {data}!"}) == {"a": "raw [2200 characters of data left out]!"}
    words = "x" * 3_000 + " " + "word" * 1_000
    assert plain(words) == words
