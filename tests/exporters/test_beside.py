"""Beside another GenAI instrumentation nothing is counted twice: the real packages, which patch LangChain for good."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from langchain_openai import ChatOpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span, SpanKind

from runcap.exporters.otel.beside import Beside, Setting
from runcap.exporters.otel.joint import Joint
from runcap.exporters.otel.others import at_work
from runcap.exporters.otel.sink import OTelSink
from runcap.guardrails import Budget, Guard
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import guard_model

from .conftest import ROOT

Plan = dict[str, Any]
COST, TOKENS = "gen_ai.usage.cost.amount", "gen_ai.usage.input_tokens"
OPERATION = "gen_ai.operation.name"

AGENTS: list[Plan] = [
    {"who": "official", "order": order, "attach": attach, "how": how}
    for order, attach, how in [
        ("first", "config", "invoke"),
        ("last", "config", "ainvoke"),
        ("first", "config", "astream"),
        ("first", "auto", "invoke"),
        ("last", "auto", "ainvoke"),
        ("first", "auto", "stream"),
        ("first", "middleware", "invoke"),
        ("last", "middleware", "ainvoke"),
        ("last", "middleware", "stream"),
        ("first", "middleware", "astream"),
        ("first", "constructor", "invoke"),
        ("last", "constructor", "ainvoke"),
        ("first", "model", "invoke"),
        ("last", "model", "astream"),
    ]
]
CALL: Plan = {"who": "official", "order": "first", "attach": "model", "direct": True}
MIDDLEWARE: Plan = {"who": "official", "order": "first", "attach": "middleware", "how": "invoke"}
OTHERWISE: dict[str, Plan] = {
    "own": MIDDLEWARE | {"beside": "own"},
    "stand back": MIDDLEWARE | {"beside": "stand back"},
    "elsewhere": MIDDLEWARE | {"elsewhere": True},
    "nobody": {"order": "first", "attach": "middleware", "how": "invoke"},
    "refused": {"who": "official", "order": "first", "attach": "auto", "how": "invoke", "usd": "0.0005"},
    "tried again": MIDDLEWARE | {"flaky": True},
    "v3": CALL | {"how": "v3"},
    "closed": CALL | {"how": "aclose"},
    "closed, in a callback": CALL | {"how": "aclose", "attach": "config"},
    "given up": CALL | {"how": "aabandon"},
    "given up, in a callback": CALL | {"how": "aabandon", "attach": "config"},
}


def play(plans: list[Plan]) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "tests" / "exporters" / "beside_agent.py"), json.dumps(plans)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def played() -> dict[str, dict[str, Any]]:
    """All plans with the official instrumentation, one after the other in one process: it goes on and off."""
    plans = [*AGENTS, *OTHERWISE.values()]
    return dict(zip([name(plan) for plan in AGENTS] + list(OTHERWISE), play(plans), strict=True))


def name(plan: Plan) -> str:
    return " ".join(plan[key] for key in ("who", "order", "attach", "how"))


def of_user(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The spans that tools made of their own; two tools run at once, in either order."""
    return [span for span in told["spans"] if span["scope"] == "user"]


def of(told: Mapping[str, Any], operation: str, of_whom: str = "spans") -> list[dict[str, Any]]:
    return [span for span in told[of_whom] if span["attributes"].get(OPERATION) == operation]


def total(told: Mapping[str, Any], attribute: str) -> Decimal:
    return sum((Decimal(str(span["attributes"].get(attribute, 0))) for span in told["spans"]), Decimal(0))


def counted_once(told: Mapping[str, Any]) -> None:
    bill = told["bill"]
    assert total(told, TOKENS) == bill["input"]
    assert total(told, "gen_ai.usage.output_tokens") == bill["output"]
    assert total(told, COST) == Decimal(bill["usd"])
    assert len(of(told, "chat")) == bill["calls"] == 2
    assert all(span["ended"] for span in told["spans"])
    assert told["open"] == 0
    assert len({span["trace"] for span in told["spans"]}) == 1
    assert [line for line in told["logged"] if line[0] != "INFO"] == []


@pytest.mark.parametrize("plan", AGENTS, ids=name)
def test_beside_the_official_one_everything_is_there_once(played: dict[str, Any], plan: Plan) -> None:
    told = played[name(plan)]
    counted_once(told)
    (agent,), tools = of(told, "invoke_agent"), of(told, "execute_tool")
    assert len(tools) == 2
    assert {span["parent"] for span in tools} == {span["parent"] for span in of(told, "chat")} == {agent["id"]}
    assert sorted(span["parent"] for span in of_user(told)) == sorted(span["id"] for span in tools)
    assert {span["scope"] for span in [agent, *tools, *of(told, "chat")]} == {
        "opentelemetry.instrumentation.genai.langchain"
    }
    ours = [span for span in told["spans"] if span["scope"] == "runcap"]
    chats = {span["id"] for span in of(told, "chat")}
    assert all(span["name"] == "settle gpt-4o" and span["parent"] in chats for span in ours)
    # Only where it hears of everything first, and so ends its spans before we can say what they cost.
    assert bool(ours) == (plan["how"] in ("invoke", "stream") and plan["attach"] in ("auto", "constructor"))
    assert [line[1].split()[1] for line in told["logged"]] == ["opentelemetry.instrumentation.genai.langchain"]
    if plan["attach"] in ("config", "auto", "middleware"):
        assert Decimal(str(agent["attributes"]["runcap.total.cost_usd"])) == Decimal(told["bill"]["usd"])
        assert all("runcap.run.id" in span["attributes"] for span in tools)
    assert not told["standard_metrics"]


def test_own_spans_are_made_whatever_else_is_there_and_that_is_said_once(played: dict[str, Any]) -> None:
    told = played["own"]
    assert len(of(told, "chat")) == 4
    assert total(told, TOKENS) == 2 * told["bill"]["input"]
    assert total(told, COST) == Decimal(told["bill"]["usd"])
    assert len(told["logged"]) == 1
    assert told["logged"][0][0] == "INFO"
    assert "twice" in told["logged"][0][1]
    assert told["standard_metrics"]


def test_stood_back_nothing_of_ours_is_there(played: dict[str, Any]) -> None:
    told = played["stand back"]
    assert "runcap" not in str(told["spans"])
    assert COST not in str(told["spans"])
    assert total(told, TOKENS) == told["bill"]["input"]
    assert sorted(span["parent"] for span in of_user(told)) == sorted(span["id"] for span in of(told, "execute_tool"))
    assert not told["standard_metrics"]


def test_one_that_traces_to_somewhere_else_is_none_of_our_business(played: dict[str, Any]) -> None:
    told = played["elsewhere"]
    assert {span["scope"] for span in of(told, "chat")} == {"runcap"}
    assert total(told, TOKENS) == told["bill"]["input"]
    assert total(told, COST) == Decimal(told["bill"]["usd"])
    assert len(of(told, "chat", "elsewhere")) == 2
    assert "runcap" not in str(told["elsewhere"])
    assert told["logged"] == []


def test_beside_nobody_nothing_changes(played: dict[str, Any]) -> None:
    told = played["nobody"]
    counted_once(told)
    assert {span["scope"] for span in told["spans"]} == {"runcap", "user"}
    assert len(of(told, "execute_tool")) == 2
    assert told["logged"] == []
    assert told["standard_metrics"]


def test_a_refusal_leaves_no_span_of_the_other_open(played: dict[str, Any]) -> None:
    told = played["refused"]
    assert told["refused"] == "BudgetExceeded"
    assert told["bill"]["calls"] == 0
    (agent,), (chat,) = of(told, "invoke_agent"), of(told, "chat")
    assert "runcap.refused" in agent["events"]
    assert chat["ended"]
    assert chat["attributes"]["error.type"].endswith("BudgetExceeded")


def test_a_call_that_is_made_again_adds_up_on_the_others_span(played: dict[str, Any]) -> None:
    told = played["tried again"]
    counted_once(told)
    assert all("error.type" not in span["attributes"] for span in of(told, "chat"))


def test_a_call_whose_span_cannot_be_had_is_settled_beside_it(played: dict[str, Any]) -> None:
    told = played["v3"]
    (chat,) = of(told, "chat")
    (settled,) = [span for span in told["spans"] if span["scope"] == "runcap"]
    assert settled["name"] == "settle gpt-4o"
    assert not {TOKENS, "gen_ai.usage.output_tokens", OPERATION} & set(settled["attributes"])
    assert COST not in chat["attributes"]
    assert total(told, COST) == Decimal(told["bill"]["usd"])
    assert total(told, TOKENS) == told["bill"]["input"]


@pytest.mark.parametrize("what", ["closed", "given up", "closed, in a callback", "given up, in a callback"])
def test_a_stream_that_is_left_is_there_once_whichever_span_ended_first(played: dict[str, Any], what: str) -> None:
    told = played[what]
    (chat,) = of(told, "chat")
    (costs,) = [span for span in told["spans"] if COST in span["attributes"]]
    assert costs is chat or (costs["name"] == "settle gpt-4o" and TOKENS not in costs["attributes"])
    assert costs["attributes"][COST] > 0
    assert all(span["ended"] for span in told["spans"])
    assert told["open"] == 0


@pytest.mark.parametrize(
    ("who", "module"),
    [
        ("openinference", "openinference.instrumentation.langchain"),
        ("traceloop", "opentelemetry.instrumentation.langchain"),
        ("client", "opentelemetry.instrumentation.genai.openai"),
    ],
)
def test_beside_others_too(who: str, module: str) -> None:
    if not _is_there(module):
        pytest.skip(f"{module} is not installed, and is no dependency of ours")
    plans: list[Plan] = [
        {"who": who, "order": order, "attach": attach, "how": how}
        for order, attach, how in [
            ("first", "config", "invoke"),
            ("last", "auto", "ainvoke"),
            ("first", "middleware", "invoke"),
            ("last", "middleware", "astream"),
        ]
    ]
    for plan in plans:  # each in a process of its own, for not all of them can be switched on again
        (told,) = play([plan])
        bill = told["bill"]
        assert total(told, COST) == Decimal(bill["usd"])
        assert total(told, TOKENS) in ((0, bill["input"]) if who == "openinference" else (bill["input"],))
        models = of(told, "chat") or [
            span for span in told["spans"] if span["attributes"].get("openinference.span.kind") == "LLM"
        ]
        assert len(models) == bill["calls"] == 2
        assert {span["scope"] for span in models} == {module}
        assert len([line for line in told["logged"] if line[0] == "INFO"]) == 1
        assert told["open"] == 0


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_a_chat_span_made_by_hand_is_enriched_where_that_is_asked_for() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    by_hand = provider.get_tracer("by hand")
    with ScriptedProvider(Reply(text="ok")) as served:
        settings: Any = {"max_tokens": 9, "api_key": "k", "base_url": served.openai_url}
        both: tuple[Setting, ...] = ("auto", "enrich")
        for beside in both:
            guard = Guard(Budget(usd=1), sinks=[OTelSink(provider, beside=beside)])
            model = guard_model(ChatOpenAI(model="gpt-4o", **settings), guard)
            with by_hand.start_as_current_span("mine", attributes={OPERATION: "chat", TOKENS: 7}):
                model.invoke("hi")
    ours, mine, enriched = exporter.get_finished_spans()
    assert [ours.name, mine.name, enriched.name] == ["chat gpt-4o", "mine", "mine"]
    assert ours.attributes is not None
    assert mine.attributes == {OPERATION: "chat", TOKENS: 7}
    assert enriched.attributes is not None
    assert enriched.attributes[TOKENS] == 7, "what it says itself stands"
    assert enriched.attributes[COST] == ours.attributes[COST]
    assert "runcap.step" in enriched.attributes


@pytest.mark.parametrize("found", ["at its start", "later", "never"])
def test_a_link_told_late_stands_on_whichever_span_it_turns_out_to_be(found: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    theirs, before = tracer.start_span("theirs"), tracer.start_span("before").get_span_context()
    known: list[Span] = [theirs] if found == "at its start" else []
    joint = Joint({OPERATION: "invoke_agent"}, "whole", None, writes=True, lock=threading.RLock())
    joint.look_with([lambda _: known[0] if known else None], [uuid4()], lambda _: True)
    joint.start(tracer, "ours", context=None, kind=SpanKind.INTERNAL, start_time=1, links=[])
    joint.add_link(before, {"what": "resumed"})
    if found == "later":
        known.append(theirs)
    elif found == "at its start":
        theirs.end()  # it hears of everything first
    joint.end(2)
    if found != "at its start":
        theirs.end()
    linked = [span for span in exporter.get_finished_spans() if span.links]
    assert [(span.name, span.links[0].context) for span in linked] == [
        ("ours" if found == "never" else "theirs", before)
    ]


def test_nobody_is_found_where_nobody_is() -> None:
    assert at_work() == ()
    assert Beside().others() == ()


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match='must be one of "auto", "enrich", "stand back", "own"; got \'off\''):
        OTelSink(beside="off")  # type: ignore[arg-type]
