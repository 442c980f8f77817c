from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from runcap.guardrails import Budget, Event, Guard
from runcap.guardrails.events import CallStarted
from runcap.integrations.langchain import BudgetCallbackHandler

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("RUNCAP_RECORDED", ROOT.parent / "shared" / "data"))
RETAIL = DATA / "agentrx_tau_retail" / "tau_dataset_full.json"

Play = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        yield importlib.import_module("replay")


@pytest.fixture
def play(example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Play:
    """Replay a recording given as text (or the path of one): exit code, stdout, stderr."""

    def play(recorded: str | Path, *options: str) -> tuple[int, str, str]:
        path = recorded if isinstance(recorded, Path) else tmp_path / "recorded"
        if isinstance(recorded, str):
            path.write_text(recorded, encoding="utf-8")
        try:
            code = example.main([str(path), *options])
        except SystemExit as left:
            code = left.code
        out, err = capsys.readouterr()
        return code, out, err

    return play


# Recordings, made up here; and what they should cost, by the documented rule and gpt-4o's list price.


def asks(name: str, call_id: str, **arguments: object) -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def twice(name: str, call_id: str) -> dict[str, Any]:
    asked = asks(name, call_id)
    return {**asked, "tool_calls": asked["tool_calls"] * 2}


def tool(call_id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def episode(actions: list[str], observations: list[str], *rewards: float) -> str:
    history = {"actions": actions, "observations": observations, "rewards": rewards}
    return json.dumps({"0": {"query": "How many?", "turn_history": history}})


# A call's id comes twice, as with providers that number the calls of each answer.
CHAT = [
    said("system", "Be brief."),
    said("user", "Where is my order?"),
    asks("find", "call_0", order="7"),
    tool("call_0", "In Köln."),
    asks("find", "call_0", order="8"),
    tool("call_0", ""),
    said("assistant", "One is in Köln."),
    said("user", "A human, please."),
    asks("hand_over", "call_0"),
    tool("call_0", "done"),
]
# Time, not the order of the lines, is the order of the calls.
LINES = [
    {"input": "Fix it.\nls", "output": "cat a", "session_id": "s", "timestamp": 30},
    {"input": "Fix it.", "output": "ls", "session_id": "s", "timestamp": 20},
]

TAU = json.dumps([{"task_id": 3, "reward": 1.0, "traj": CHAT}])
INTERCODE = episode(["SHOW TABLES", "SELECT 1"], ["[('t',)]", "[(1,)]"], 0, 1.0)
MINI_SWE = "\n".join(map(json.dumps, LINES)) + "\n"


def schema(name: str, **arguments: object) -> str:
    parameters = {"type": "object", "properties": arguments}
    function = {"name": name, "description": "Answers what was recorded.", "parameters": parameters}
    return json.dumps({"type": "function", "function": function})


def call(name: str, **arguments: object) -> str:
    return json.dumps({"name": name, "arguments": arguments})


TAU_TEXTS = [
    *("Be brief.", "Where is my order?", call("find", order="7"), "In Köln.", call("find", order="8"), ""),
    *("One is in Köln.", "A human, please.", call("hand_over")),
]
SQL_TEXTS = ["How many?", call("execute_sql", query="SHOW TABLES"), "[('t',)]", call("execute_sql", query="SELECT 1")]


def count(text: str) -> int:
    return ceil(len(text.encode()) / 4)


def bill(calls: Sequence[tuple[Sequence[str], str]], tools: Sequence[str] = ()) -> tuple[int, int, Decimal]:
    inputs = sum(sum(4 + count(text) for text in prompt) + sum(map(count, tools)) for prompt, _ in calls)
    outputs = sum(count(answer) for _, answer in calls)
    return inputs, outputs, (inputs * Decimal("2.5") + outputs * 10) / 1_000_000


def conversation(texts: Sequence[str], answers: Sequence[int]) -> list[tuple[Sequence[str], str]]:
    return [(texts[:at], texts[at]) for at in answers]


FORMATS = {
    "tau": (TAU, 4, bill(conversation(TAU_TEXTS, [2, 4, 6, 8]), [schema("find", order={}), schema("hand_over")])),
    "InterCode": (INTERCODE, 2, bill(conversation(SQL_TEXTS, [1, 3]), [schema("execute_sql", query={})])),
    "mini-SWE": (MINI_SWE, 2, bill([(["Fix it."], "ls"), (["Fix it.\nls"], "cat a")])),
}


@pytest.mark.parametrize("format", FORMATS)
def test_under_a_large_cap_all_is_played_and_costs_what_it_should(play: Play, format: str) -> None:
    recorded, steps, (inputs, outputs, usd) = FORMATS[format]
    code, out, err = play(recorded, "--cap", "1")
    assert (code, err) == (0, "")
    assert "1 at gpt-4o prices: 1 finished, 0 halted" in out
    assert f"steps     {steps} of {steps} recorded" in out
    assert f"tokens    {inputs} in, {outputs} out" in out
    assert f"runcap    ${usd.normalize():f}\n" in out
    assert f"bill      ${usd.normalize():f} for {steps} calls, summed by the provider itself: equal" in out
    assert ("succeeded 1 of 1" in out) == (format != "mini-SWE")


def long_chat() -> str:
    turns = [[asks("find", f"c{at}", order=str(at)), tool(f"c{at}", "Lisbon, again. " * 40)] for at in range(40)]
    return json.dumps([{"task_id": 1, "reward": 1, "traj": sum(turns, [said("user", "Go.")])}])


def long_session() -> str:
    lines = [{"input": "word " * (at * 100), "output": "ls", "session_id": "s", "timestamp": at} for at in range(1, 41)]
    return "\n".join(map(json.dumps, lines))


@pytest.mark.parametrize(
    "recorded", [long_chat(), episode(["SELECT 1"] * 40, ["(1,) " * 100] * 40), long_session()], ids=FORMATS
)
def test_under_a_small_cap_a_run_is_halted_within_it(play: Play, recorded: str) -> None:
    code, out, err = play(recorded, "--cap", "0.01")
    assert (code, err) == (0, "")
    assert re.search(r"^\w +halted +\d+ +40 ", out, flags=re.MULTILINE)
    spent = Decimal(re.search(r"^runcap +\$([\d.]+)$", out, flags=re.MULTILINE)[1])  # type: ignore[index]
    assert 0 < spent <= Decimal("0.01")
    assert f"bill      ${spent} for" in out
    used, known = (Decimal(share) for share in re.findall(r"^(?:halted|foresight) +([\d.]+)%", out, flags=re.MULTILINE))
    assert abs(used - spent * 10_000) <= Decimal("0.05")
    assert used <= known <= 100
    assert "succeeded 1" not in out


def test_a_session_is_a_run_and_a_directory_all_of_its_files(play: Play, tmp_path: Path) -> None:
    other = {"input": "Hi.", "output": "ls", "session_id": "t", "timestamp": 1}
    (tmp_path / "b.jsonl").write_text(MINI_SWE + json.dumps(other))
    (tmp_path / "a.jsonl").write_text(json.dumps(other | {"session_id": "u"}))
    (tmp_path / "notes.txt").write_text("not read")
    code, out, _ = play(tmp_path)
    assert code == 0
    assert re.findall(r"^(\w) +finished +(\d+) ", out, flags=re.MULTILINE) == [("u", "1"), ("s", "2"), ("t", "1")]
    (session, _) = importlib.import_module("recordings").read(tmp_path / "b.jsonl")
    assert [answer.content for _, answer in session.calls] == ["ls", "cat a"]


def test_tools_called_side_by_side_get_their_own_answers(play: Play) -> None:
    both = asks("find", "a", order="7")
    both["tool_calls"] += asks("find", "b", order="7")["tool_calls"]
    chat = [said("user", "Both?"), both, tool("a", "here"), tool("b", "there"), said("assistant", "Yes.")]
    code, out, err = play(json.dumps([{"task_id": "x", "traj": chat}]))
    assert (code, err) == (0, "")
    assert "steps     2 of 2 recorded" in out
    assert "succeeded" not in out  # nothing was recorded of that


def test_the_cost_of_a_success_counts_the_failures(play: Play) -> None:
    failed = [{"task_id": at, "reward": reward, "traj": CHAT} for at, reward in enumerate((1.0, 0.0, 1.0))]
    usd = FORMATS["tau"][2][2]
    _, out, _ = play(json.dumps(failed), "--quiet")
    assert f"succeeded 2 of 3: ${usd * 3 / 2:.6f} each" in out
    _, out, _ = play(json.dumps(failed), "--cap", "0.000001")
    assert "succeeded 0 of 3: no cost per success" in out
    assert "steps     0 of 12" in out


def test_quiet_limit_and_the_same_again(play: Play) -> None:
    many = json.dumps([{"task_id": at, "traj": CHAT} for at in range(5)])
    first = play(many, "--limit", "2")
    assert first == play(many, "--limit", "2")
    quiet = play(many, "--limit", "2", "--quiet")
    assert quiet[1].startswith("runs      2 at gpt-4o prices")
    assert first[1].endswith("\n\n" + quiet[1])


def test_other_prices(play: Play) -> None:
    inputs, outputs, _ = FORMATS["tau"][2]
    usd = (inputs * Decimal("0.15") + outputs * Decimal("0.6")) / 1_000_000
    code, out, _ = play(TAU, "--model", "gpt-4o-mini")
    assert (code, f"runcap    ${usd.normalize():f}\n" in out) == (0, True)


# Nothing is invented, and nothing that is wrong goes unsaid


def scripted(example: Any) -> Any:
    recordings = importlib.import_module("recordings")
    call = recordings.Call((HumanMessage("Hello"),), AIMessage("Hello yourself"))
    recording = recordings.Recording("r", (call,), (), None)
    return example.ScriptedModel(model="gpt-4o", max_tokens=10, recording=recording)


async def test_the_model_answers_what_was_recorded_and_nothing_else(example: Any) -> None:
    model = scripted(example)
    with pytest.raises(example.Diverged, match="call 1 was shown what was not recorded"):
        model.invoke("Hullo")
    answer = await model.ainvoke("Hello")
    assert (answer.content, answer.response_metadata["model_name"]) == ("Hello yourself", "gpt-4o")
    assert answer.usage_metadata == {"input_tokens": 4 + 2, "output_tokens": 4, "total_tokens": 10}
    with pytest.raises(example.Diverged, match="one model call more than was recorded"):
        model.invoke("Hello")


def test_its_calls_are_hard(example: Any) -> None:
    seen: list[Event] = []
    handler = BudgetCallbackHandler(Guard(Budget(usd=1), sinks=(seen.append,)))
    scripted(example).invoke("Hello", {"callbacks": [handler]})
    started = next(event for event in seen if isinstance(event, CallStarted))
    assert (started.guarantee, started.output_cap, started.provider) == ("hard", 10, "openai")


def test_a_loop_that_strays_is_told_and_is_no_success(
    example: Any, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool_of = example._tool
    monkeypatch.setattr(example, "_tool", lambda name, _, given: tool_of(name, lambda **_: "else", given))
    assert play(TAU) == (1, "", "replay: run 3: call 2 was shown what was not recorded\n")


def test_books_that_differ_are_told(example: Any, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "price", lambda model, usage: Decimal("0.02"))
    code, out, err = play(TAU)
    assert code == 1
    assert "summed by the provider itself: NOT equal" in out
    assert "run 3: runcap counted" in err
    assert "run 3: spent $0.08, past its cap of $0.05" in err


def test_a_run_that_ends_early_is_told(example: Any, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hasty(example.EndOfRecording):  # type: ignore[misc]
        def before_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
            return {"jump_to": "end"} if self._model.served else None

        before_model.__can_jump_to__ = ["end"]  # type: ignore[attr-defined]

    monkeypatch.setattr(example, "EndOfRecording", Hasty)
    code, _, err = play(INTERCODE)
    assert (code, err) == (1, "run 0: ended after 1 of 2 calls without being halted\n")


# What cannot be read or asked


def tau(*messages: dict[str, Any]) -> str:
    return json.dumps([{"task_id": 5, "traj": messages}])


HELLO = said("user", "Hello")
BAD = {
    "empty": (" \n", "empty; expected"),
    "no JSON": ("hello", "not valid JSON: Expecting value"),
    "cut off": (TAU[:-9], "not valid JSON"),
    "a line cut off": (MINI_SWE + '{"input": "x', "not valid JSON: line 3: Unterminated string"),
    "nested": ("[" * 100_000, "not valid JSON: nested too deeply"),
    "another thing": ('"hello"', "no recording; expected"),
    "nothing": ("[]", "no recording; expected"),
    "no conversations": ("[1]", "no tau recording: at 0: "),
    "no traj": ('[{"task_id": 1}]', "no tau recording: at 0.traj: Field required"),
    "a role": (tau(said("narrator", "x")), "no tau recording: at 0.traj.0.role: "),
    "arguments": (
        TAU.replace('\\"7\\"}', "}"),
        "no tau recording: at 0.traj.2.tool_calls.0.function.arguments: Invalid",
    ),
    "an argument no tool has": (tau(HELLO, asks("f", "a", **{"$ref": 1})), "a tool with an argument '$ref'"),
    "one id twice": (tau(HELLO, twice("f", "a")), "two tool calls of message 1 share an id"),
    "no answer": (tau(HELLO), "conversation 5 is no agent's: no model answer in it"),
    "no user": (tau(said("assistant", "x")), "conversation 5 is no agent's: message 0 (ai) cannot follow start"),
    "no tool answer": (tau(HELLO, asks("f", "a"), HELLO), "message 2 (human) cannot follow ai with tool calls"),
    "a late tool answer": (tau(HELLO, asks("f", "a")), "it ends before the tool calls are answered"),
    "another's answer": (tau(HELLO, asks("f", "a"), tool("b", "x")), "message 2 (tool) cannot follow"),
    "no history": ('{"0": {"query": "x"}}', "no InterCode recording: at 0.turn_history: Field required"),
    "no action": (episode([], []), "no InterCode recording: at 0.turn_history.actions: "),
    "no observation": (episode(["a"], []), "episode 0 has 1 actions and 0 observations; expected as many"),
    "no output": ('{"input": "x"}', "no mini-SWE recording: at 0.output: Field required"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_clear_error(play: Play, tmp_path: Path, case: str) -> None:
    recorded, says = BAD[case]
    code, out, err = play(recorded)
    assert (code, out) == (2, "")
    assert err.startswith(f"replay: {tmp_path / 'recorded'}: ")
    assert says in err
    assert err.count("\n") == 1


def test_paths_that_lead_to_no_text(play: Play, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    said = {name: play(tmp_path / name) for name in ("missing", "dangling", "loop", "folder", "bytes")}
    assert {code for code, _, _ in said.values()} == {2}
    for name in ("missing", "dangling"):
        assert said[name][2] == f"replay: {tmp_path / name}: cannot be read: No such file or directory\n"
    assert "cannot be read: Too many levels of symbolic links" in said["loop"][2]
    assert said["folder"][2] == f"replay: {tmp_path / 'folder'}: a directory without any *.jsonl file\n"
    assert "not UTF-8 text; expected" in said["bytes"][2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--cap", "lots"), "argument --cap: it must be a number of dollars"),
        (("--cap", "0"), "argument --cap: it must be above zero"),
        (("--cap", "nan"), "argument --cap: it must be finite"),
        (("--limit", "0"), "argument --limit: it must be a whole number above zero, got '0'"),
        (("--max-tokens", "1.5"), "argument --max-tokens: it must be a whole number above zero, got '1.5'"),
        (("--model", "claude-sonnet-5"), "argument --model: no price is known for an OpenAI chat model"),
        (("--model", "text-embedding-3-small"), "argument --model: no price is known for an OpenAI chat model"),
        (("--max-tokens", "11"), "run 3 has an answer of 12 tokens, more than --max-tokens 11"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_error(play: Play, options: tuple[str, ...], says: str) -> None:
    code, out, err = play(TAU, *options)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_an_output_cap_that_just_suffices(play: Play) -> None:
    assert max(count(text) for text in TAU_TEXTS if text.startswith(('{"name"', "One"))) == 12
    assert play(TAU, "--max-tokens", "12", "--quiet") == play(TAU, "--quiet")


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    (tmp_path / "tau.json").write_text(TAU)
    command = [sys.executable, str(ROOT / "examples" / "replay.py"), str(tmp_path / "tau.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 finished, 0 halted" in done.stdout


@pytest.mark.skipif(not RETAIL.exists(), reason="needs the recorded retail conversations beside the repository")
def test_recorded_retail_conversations(play: Play) -> None:
    code, out, err = play(RETAIL, "--cap", "0.05", "--limit", "20")
    assert (code, err) == (0, "")
    rows = re.findall(r"^\d+ +(halted|finished) +(\d+) +(\d+) .*\$ *([\d.]+)  ", out, flags=re.MULTILINE)
    assert len(rows) == 20
    assert all(ended == "halted" or steps == recorded for ended, steps, recorded, _ in rows)
    halted = [Decimal(usd) for ended, _, _, usd in rows if ended == "halted"]
    assert len(halted) > 10
    assert max(halted) <= Decimal("0.05")
    assert sum(halted) / len(halted) >= Decimal("0.05") * Decimal("0.85")
    code, out, err = play(RETAIL, "--cap", "1", "--limit", "20")
    assert (code, err) == (0, "")
    assert "20 finished, 0 halted" in out
    assert ": equal\n" in out
