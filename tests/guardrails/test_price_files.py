"""Prices of one's own from a file: read exactly, and refused with the offending line named."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest

from runcap.guardrails import NoPrice, PriceBook, Usage

FILES = {
    "prices.yaml": """\
# Dollars per million tokens.
my-model: {input: 2.50, output: "10", cache_read: 0.1}
azure:my-deployment:
  like: openai:gpt-4o
"arn:aws:bedrock:us-east-1:123:application-inference-profile/abc":
  like: aws:global.anthropic.claude-sonnet-4-5-20250929-v1:0
  times: 0.9
batched:
  input: 2
  output: 8
  contexts:
    batch: {input: 1, output: 4}
""",
    "prices.toml": """\
# Dollars per million tokens.
my-model = { input = 2.50, output = "10", cache_read = 0.1 }
["azure:my-deployment"]
like = "openai:gpt-4o"
["arn:aws:bedrock:us-east-1:123:application-inference-profile/abc"]
like = "aws:global.anthropic.claude-sonnet-4-5-20250929-v1:0"
times = 0.9
[batched]
input = 2
output = 8
[batched.contexts.batch]
input = 1
output = 4
""",
    "prices.json": """\
{
  "my-model": {"input": 2.50, "output": "10", "cache_read": 0.1},
  "azure:my-deployment": {"like": "openai:gpt-4o"},
  "arn:aws:bedrock:us-east-1:123:application-inference-profile/abc":
    {"like": "aws:global.anthropic.claude-sonnet-4-5-20250929-v1:0", "times": 0.9},
  "batched": {"input": 2, "output": 8, "contexts": {"batch": {"input": 1, "output": 4}}}
}
""",
}
MILLION = Usage(1_000_000, 0)


@pytest.fixture(params=FILES)
def book(request: pytest.FixtureRequest, tmp_path: Path) -> PriceBook:
    path = tmp_path / request.param
    path.write_text(FILES[request.param])
    return PriceBook.from_file(path)


def test_every_format_says_the_same(book: PriceBook) -> None:
    assert book.cost("my-model", Usage(1_000_000, 0, cache_read_tokens=1_000_000)) == Decimal("0.1")
    assert book.cost("my-deployment", MILLION, provider="azure") == Decimal("2.5")
    arn = "arn:aws:bedrock:us-east-1:123:application-inference-profile/abc"
    assert book.cost(arn, MILLION, provider="amazon_bedrock") == Decimal("2.7")
    assert book.cost("batched", MILLION, context="batch") == 1
    with pytest.raises(NoPrice, match="'priority'"):
        book.cost("batched", MILLION, context="priority")
    with pytest.raises(NoPrice):
        book.cost("my-deployment", MILLION, provider="openai")


def test_the_source_names_the_file_and_its_hash(book: PriceBook) -> None:
    assert re.fullmatch(r"prices\.(yaml|toml|json)\+[0-9a-f]{12}", book.card("my-model").source)
    assert " of genai-prices/" in book.card("my-deployment", provider="azure").source


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "p.yaml",
            "a:\n  input: 1\n  output: 2\nb:\n  input: 1\n  outptu: 2\n",
            r"p\.yaml:6: .*'b'.*output: Field req.*outptu: Extra",
        ),
        ("p.yaml", "a:\n  input: 1\n  output: 2\n  caceh: 3\n", r"p\.yaml:4: .*'a'.*caceh: Extra"),
        ("p.yaml", "a: {input: 1, output: -2}\n", r"p\.yaml:1: .*output: .*greater than or equal to 0"),
        ("p.yaml", "a: [1\n", r"p\.yaml:2: no YAML"),
        ("p.yaml", "- a\n", r"p\.yaml:1: expected a mapping"),
        ("p.yaml", "a:\n  like: openai:gpt-4o\n  time: 3\n", r"p\.yaml:3: .*time: Extra"),
        ("p.json", '{"a": {"input": 1,\n "output": "x"}}', r"p\.json:2: .*output: .*decimal"),
        ("p.json", '{"a":\n {"input": 1,,}}', r"p\.json:2: no JSON"),
        (
            "p.toml",
            '["a.b"]\ninput = 1\noutput = 2\n["c"]\ninput = nan\noutput = 1',
            r"p\.toml:5: .*'c'.*input: .*finite",
        ),
        ("p.toml", "a = = 1", r"p\.toml: no TOML.*line 1"),
        ("p.ini", "a = 1", r"\.yaml, \.yml, \.toml or \.json"),
        ("p.yaml", "a:\n  input: 1\nb:\n  input: 1\n  output: 2\n", r"p\.yaml:1: .*'a'.*output: Field req"),
        ("p.json", '{\n"a":{"input":1},\n"b":{"input":1,\n"output":2}}', r"p\.json:2: .*'a'"),
        ("p.toml", "[a]\ninput=1\n[b]\ninput=1\noutput=2\n", r"p\.toml:1: .*'a'"),
        (
            "p.yaml",
            "x: {input: 1, output: 2, contexts: {batch: {input: 1, output: 2}}}\nbatch:\n  input: bad\n",
            r":3: ",
        ),
        ("p.toml", '[b.contexts.batch]\ninput=1\noutput=1\n[b]\ninput="bad"\noutput=1\n', r"p\.toml:5: .*'b'"),
        ("p.json", '{"m":\t{\n"output": 1,\t"input": "x"}}', r"p\.json:2: .*input"),
        ("p.yaml", "m: {input: 1, output: 1}\nm: {input: 0, output: 0}\n", r"p\.yaml:2: .*'m' stands there twice"),
        ("p.json", '{"m": {"input": 1, "output": 1}, "m": {"input": 0, "output": 0}}', r"'m' stands there twice"),
        ("p.yaml", "m: {input: 010, output: 1:30}\n", r"p\.yaml:1: .*output: .*decimal"),
        ("p.yaml", "m: {input: true, output: 1}\n", r"p\.yaml:1: .*input: .*decimal"),
        ("p.json", '{"m": {"input": 1e999999, "output": 1}}', r"p\.json:1: .*less than or equal"),
        ("p.json", '{"m": {"input": ' + "9" * 5_000 + ', "output": 1}}', r"p\.json:1: .*less than or equal"),
        ("p.toml", "[m]\ninput = " + "9" * 5_000, r"p\.toml: "),
        ("p.json", '{"m":' * 200_000 + "1" + "}" * 200_000, "nested too deeply"),
        ("p.yaml", "[" * 20_000, "nested too deeply"),
        ("p.json", '{"m": {"input": 1e999999999999999999999, "output": 1}}', r"p\.json: no prices"),
        ("p.json", '{"m": {"input": "x", "output": 1}, "\\u007f\u007f": 1}', r"p\.json:1: .*input"),
        ("p.yaml", "m: {input: !!timestamp abc, output: 1}", r"p\.yaml: no prices"),
        ("p.yaml", "m: {input: !!bool abc, output: 1}", r"p\.yaml: no prices"),
        ("p.yaml", "M: {input: 1, output: 1}\nm: {input: 0, output: 0}\n", r"p\.yaml: the price of 'm' is there twice"),
        ("p.yaml", "'': {input: 1, output: 1}", "has no model"),
        ("p.yaml", "", "expected a mapping"),
        ("p.yaml", "a:\n  like: nobody:nothing", r"p\.yaml:2: .*like: .*no bundled price for 'nobody:nothing'"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        PriceBook.from_file(tmp_path / name)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        PriceBook.from_file(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("name", FILES)
def test_a_byte_order_mark_is_no_matter_and_another_encoding_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\ufeff" + FILES[name])
    assert PriceBook.from_file(tmp_path / name).cost("my-model", MILLION) == Decimal("2.5")
    (tmp_path / name).write_bytes(FILES[name].encode() + b"# \xe9")
    with pytest.raises(ValueError, match=r"prices\..*: not UTF-8 text"):
        PriceBook.from_file(tmp_path / name)


def test_yaml_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "yes: {input: 010, output: 1}\n5.1: &x {input: 1_000.5, output: 1}\n2024-01-01: {<<: *x, output: 2}\n"
    )
    book = PriceBook.from_file(path)
    assert [book.cost(model, MILLION) for model in ("yes", "5.1", "2024-01-01")] == [
        10,
        Decimal("1000.5"),
        Decimal("1000.5"),
    ]
