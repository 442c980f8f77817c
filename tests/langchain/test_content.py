"""What real agents say and are told, in the GenAI conventions' shapes; nobody sees it unless it is asked for."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import (
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.types import Command
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runcap.exporters import LogSink, OTelSink
from runcap.exporters.jsonl import JSONLSink
from runcap.guardrails import Budget, Guard
from runcap.guardrails.history import History
from runcap.guardrails.ledger.sqlite import SQLiteLedger
from runcap.guardrails.sinks import Content
from runcap.guardrails.testing import Recorder, Reply
from runcap.integrations.langchain import BudgetCallbackHandler, BudgetMiddleware, contents, guard_model

from .conftest import LOOK_UP, Caller, Serve, claude, openai, said

ONE_TOOL = [Reply(tool_calls=[("look_up", {"query": "secret question"})]), Reply(text="secret answer")]
ASKED = said([("user", "secret prompt")])
PNG = base64.b64encode(b"\x89PNG" + bytes(range(200)) * 20).decode()
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CONTENT = (
    "gen_ai.system_instructions",
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.tool.definitions",
    "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.result",
)
Way = Any


class Told:
    """A guard whose spans and log events have content, and an agent's config or middleware for it."""

    def __init__(
        self,
        content: Any = "span",
        *,
        middleware: bool = False,
        ledger: Any = None,
        guard: Any = None,
        more: Any = (),
        **sink: Any,
    ) -> None:
        self.exporter, self.recorder = InMemorySpanExporter(), Recorder()
        self.logs = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
        tracers, loggers = TracerProvider(), LoggerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs))
        self.sink = OTelSink(tracers, content=content, logger_provider=loggers, **sink)
        sinks = (self.sink, self.recorder, LogSink(), *more)
        self.guard = Guard(**{"budget": Budget(usd=1), "sinks": sinks, "ledger": ledger, **(guard or {})})
        self.middleware = [BudgetMiddleware(self.guard)] if middleware else []
        self.config: Any = {} if middleware else {"callbacks": [BudgetCallbackHandler(self.guard)]}

    def spans(self, name: str) -> list[dict[str, Any]]:
        """The attributes of the spans of this name, content read from JSON."""
        found = [span for span in self.exporter.get_finished_spans() if span.name.startswith(name)]
        return [_read(dict(span.attributes or {})) for span in sorted(found, key=lambda span: span.start_time or 0)]

    def events(self) -> list[dict[str, Any]]:
        return [_read(dict(one.log_record.attributes or {})) for one in self.logs.get_finished_logs()]

    def idle(self) -> None:
        assert self.sink.open_spans == 0
        assert len(self.sink._contents) == 0


def _read(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: json.loads(value) if name in CONTENT else value for name, value in attributes.items()}


@pytest.fixture(params=["callback", "middleware"])
def by_middleware(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "middleware")


def texts(*content: str) -> list[dict[str, Any]]:
    return [{"type": "text", "content": one} for one in content]


@pytest.mark.parametrize("make", [openai, claude])
@pytest.mark.parametrize("stream", [False, True])
def test_an_agents_content(serve: Serve, caller: Caller, make: Any, by_middleware: bool, stream: bool) -> None:
    told = Told(middleware=by_middleware)
    agent = create_agent(
        make(serve(ONE_TOOL), streaming=stream), [LOOK_UP], system_prompt="secret system", middleware=told.middleware
    )
    caller.invoke(agent, ASKED, told.config)
    first, second = told.spans("chat")
    call_id = first["gen_ai.output.messages"][0]["parts"][-1]["id"]
    call = {"type": "tool_call", "id": call_id, "name": "look_up", "arguments": {"query": "secret question"}}
    asked = {"role": "user", "parts": texts("secret prompt")}
    assert first["gen_ai.system_instructions"] == texts("secret system")
    assert first["gen_ai.input.messages"] == [asked]
    (answer,) = first["gen_ai.output.messages"]
    assert (answer["role"], answer["parts"], answer["finish_reason"]) == ("assistant", [call], "tool_call")
    (definition,) = first["gen_ai.tool.definitions"]
    assert (definition["type"], definition["name"]) == ("function", "look_up")
    assert definition["description"] == "Look something up."
    assert definition["parameters"]["properties"]["query"]["type"] == "string"
    _, again, result = second["gen_ai.input.messages"]
    assert again["parts"] == [call]
    found = "nothing found for secret question"
    assert result == {
        "role": "tool",
        "parts": [{"type": "tool_call_response", "id": call_id, "response": found}],
        "name": "look_up",
    }
    (last,) = second["gen_ai.output.messages"]
    assert (last["parts"], last["finish_reason"]) == (texts("secret answer"), "stop")
    (used,) = told.spans("execute_tool")
    assert (used["gen_ai.tool.call.arguments"], used["gen_ai.tool.call.result"]) == (
        {"query": "secret question"},
        found,
    )
    told.idle()


@pytest.mark.parametrize("env", [None, "NO_CONTENT", "false", "nonsense"])
def test_by_default_nobody_sees_content(
    serve: Serve, caller: Caller, by_middleware: bool, env: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CAPTURE, raising=False)
    if env is not None:
        monkeypatch.setenv(CAPTURE, env)
    for name in ("message_of", "tool_definitions", "parts_of", "arguments_of", "response_of", "_tell"):
        monkeypatch.setattr(contents, name, lambda *given: pytest.fail("converted though nobody asks"))
    told = Told(None, middleware=by_middleware)
    agent = create_agent(openai(serve(ONE_TOOL)), [LOOK_UP], system_prompt="secret system", middleware=told.middleware)
    caller.invoke(agent, ASKED, told.config)
    assert len(told.exporter.get_finished_spans()) == 4
    everything = repr([json.loads(span.to_json()) for span in told.exporter.get_finished_spans()])
    assert "secret" not in everything + repr(told.logs.get_finished_logs())


def test_the_variable_turns_it_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAPTURE, "SPAN_AND_EVENT")
    told = Told(None)
    openai(serve(Reply(text="hello"))).invoke("hi", told.config)
    (span,), (event,) = told.spans("chat"), told.events()
    assert span["gen_ai.output.messages"] == event["gen_ai.output.messages"]


def test_events_have_all_of_a_call_and_lie_in_its_span(serve: Serve, caller: Caller, by_middleware: bool) -> None:
    told = Told("event", middleware=by_middleware, agent_name="unused")
    agent = create_agent(openai(serve(ONE_TOOL)), [LOOK_UP], middleware=told.middleware, name="helper")
    caller.invoke(agent, ASKED, told.config)
    spans = {span.context.span_id: span for span in told.exporter.get_finished_spans() if span.context}
    logs = [one.log_record for one in told.logs.get_finished_logs()]
    assert [one.event_name for one in logs] == ["gen_ai.client.inference.operation.details"] * 2
    for log in logs:
        span = spans[log.span_id or 0]
        assert span.name == "chat gpt-4o"
        assert span.context is not None
        assert span.context.trace_id == log.trace_id
        assert log.timestamp == span.end_time
        assert set(span.attributes or ()) <= set(log.attributes or ())
        assert "gen_ai.input.messages" in (log.attributes or {})
        assert (log.attributes or {})["gen_ai.agent.name"] == "helper"
    assert not [name for span in spans.values() for name in span.attributes or () if name in CONTENT]
    told.idle()


def test_nothing_but_the_otel_sink_sees_content(
    serve: Serve,
    caller: Caller,
    by_middleware: bool,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "runcap")
    with SQLiteLedger(tmp_path / "spend.db") as ledger, JSONLSink(tmp_path / "events.jsonl") as lines:
        told = Told("both", middleware=by_middleware, ledger=ledger, more=[lines])
        agent = create_agent(
            openai(serve(ONE_TOOL)), [LOOK_UP], system_prompt="secret system", middleware=told.middleware
        )
        caller.invoke(agent, ASKED, told.config)
        assert "secret" in repr(told.spans("chat"))
        assert "secret" in repr(told.events())
    assert "secret" not in repr(told.recorder.events)
    logged = capfd.readouterr().err + repr([vars(one) for one in caplog.records if one.name.startswith("runcap")])
    assert "gpt-4o" in logged
    assert "secret" not in logged
    files = list(tmp_path.iterdir())
    assert (tmp_path / "events.jsonl").read_text().count("call_ended") == 2
    assert not [file for file in files if b"secret" in file.read_bytes()]


def test_redact_sees_every_piece_and_what_it_gives_is_recorded(serve: Serve, caller: Caller) -> None:
    kinds: list[str] = []

    def redact(content: Content) -> Any:
        kinds.append(content.kind)
        return json.loads(json.dumps(content.value).replace("secret", "***"))

    told = Told("both", redact=redact)
    caller.invoke(create_agent(openai(serve(ONE_TOOL)), [LOOK_UP], system_prompt="secret system"), ASKED, told.config)
    assert sorted(set(kinds)) == ["arguments", "input", "output", "result", "system", "tools"]
    everything = repr([told.spans(""), told.events()])
    assert "secret" not in everything
    assert "*** question" in everything


def test_where_redact_raises_the_agent_goes_on_without_content(
    serve: Serve, caller: Caller, by_middleware: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def redact(content: Content) -> Any:
        raise ValueError(content.value)

    told = Told("both", redact=redact, middleware=by_middleware)
    agent = create_agent(openai(serve(ONE_TOOL)), [LOOK_UP], middleware=told.middleware)
    assert caller.invoke(agent, ASKED, told.config)["messages"][-1].content == "secret answer"
    assert "secret" not in repr([told.spans(""), told.events(), caplog.text])
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [
        "runcap: redact failed with ValueError: that content is not recorded; said once"
    ]
    told.idle()


def test_a_conversion_that_fails_does_not_touch_the_call(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: object) -> Any:
        raise LookupError("secret")

    for name in ("message_of", "arguments_of", "response_of"):
        monkeypatch.setattr(contents, name, broken)
    monkeypatch.setattr(contents, "_said", set())
    told = Told()
    agent = create_agent(openai(serve(ONE_TOOL)), [LOOK_UP])
    assert agent.invoke(ASKED, told.config)["messages"][-1].content == "secret answer"
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [
        "runcap: content could not be told, with LookupError; said once"
    ]
    told.idle()


def test_the_limit_holds_on_every_attribute(serve: Serve) -> None:
    told = Told(content_limit=512)
    long = [HumanMessage(f"{number} " + "words " * 500) for number in range(40)]
    openai(serve(Reply(text="answer " * 400))).invoke([SystemMessage("rules " * 300), *long], told.config)
    (span,) = told.exporter.get_finished_spans()
    kept = {name: value for name, value in (span.attributes or {}).items() if name in CONTENT}
    assert set(kept) == {"gen_ai.system_instructions", "gen_ai.input.messages", "gen_ai.output.messages"}
    for value in kept.values():
        assert len(str(value).encode()) <= 512
        assert "left out]" in json.dumps(json.loads(str(value)))


def test_a_stream_that_is_dropped_has_what_came(serve: Serve) -> None:
    told = Told()
    model = guard_model(openai(serve(Reply(text="one two three four five six"))), told.guard)
    stream = model.stream("hi")
    came = [next(stream), next(stream)]
    stream.close()  # type: ignore[attr-defined]
    (chat,) = told.spans("chat")
    (answer,) = chat["gen_ai.output.messages"]
    assert answer["parts"] == texts("".join(str(chunk.content) for chunk in came))
    told.idle()


async def test_an_async_stream_has_the_whole_answer(serve: Serve) -> None:
    told = Told()
    model = guard_model(claude(serve(Reply(text="one two three four"))), told.guard)
    assert [chunk async for chunk in model.astream("hi")]
    (chat,) = told.spans("chat")
    assert chat["gen_ai.output.messages"][0]["parts"] == texts("one two three four")
    told.idle()


async def test_a_cancelled_call_has_its_prompt_alone(serve: Serve) -> None:
    told, gate, asked = Told(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def late(number: int, body: Mapping[str, Any]) -> Reply:
        loop.call_soon_threadsafe(asked.set)
        return Reply(text="late", gate=gate)

    model = guard_model(openai(serve(late)), told.guard)
    task = asyncio.create_task(model.ainvoke("secret prompt"))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    (chat,) = told.spans("chat")
    assert "gen_ai.output.messages" not in chat
    assert chat["gen_ai.input.messages"] == [{"role": "user", "parts": texts("secret prompt")}]
    told.idle()


def test_each_attempt_has_its_content(serve: Serve, caller: Caller) -> None:
    told = Told()
    provider = serve([Reply(status=500), Reply(text="fine")])
    caller.invoke(guard_model(openai(provider, max_retries=1), told.guard), "hi")
    failed, fine = told.spans("chat")
    assert failed["gen_ai.input.messages"] == fine["gen_ai.input.messages"]
    assert "gen_ai.output.messages" not in failed
    assert fine["gen_ai.output.messages"][0]["parts"] == texts("fine")
    told.idle()


def test_content_is_what_is_sent_and_not_what_was_cut_before(serve: Serve, caller: Caller) -> None:
    bodies: list[Mapping[str, Any]] = []

    def script(number: int, body: Mapping[str, Any]) -> Reply:
        bodies.append(body)
        calls = [("look_up", {"query": f"{number} " + "word " * 60})] if number < 6 else []
        return Reply(text="" if calls else "done", tool_calls=calls)

    told = Told(middleware=True, guard={"budget": Budget(steps=30), "history": History(400)}, content_limit=100_000)
    agent = create_agent(openai(serve(script)), [LOOK_UP], system_prompt="rules", middleware=told.middleware)
    state = caller.invoke(agent, ASKED, told.config)
    chats = told.spans("chat")
    assert len(chats) == len(bodies)
    for chat, body in zip(chats, bodies, strict=True):
        assert chat["gen_ai.system_instructions"] == texts("rules")
        sent = [one for one in body["messages"] if one["role"] != "system"]
        roles = [one["role"] for one in chat["gen_ai.input.messages"]]
        assert roles == [one["role"] for one in sent]
        results = [one["parts"][0]["response"] for one in chat["gen_ai.input.messages"] if one["role"] == "tool"]
        assert results == [one["content"] for one in sent if one["role"] == "tool"]
    assert len(bodies[-1]["messages"]) < len(state["messages"])


def test_a_text_model_has_content_too() -> None:
    told = Told(guard={"budget": Budget(steps=5)})
    FakeListLLM(responses=["answer"]).invoke("prompt", told.config)
    (chat,) = told.spans("chat")
    assert chat["gen_ai.input.messages"] == [{"role": "user", "parts": texts("prompt")}]
    assert chat["gen_ai.output.messages"] == [{"role": "assistant", "parts": texts("answer")}]


def test_images_are_told_by_what_they_are(serve: Serve) -> None:
    told = Told("both")
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    openai(serve(Reply(text="a cat"))).invoke([HumanMessage([{"type": "text", "text": "what?"}, image])], told.config)
    (chat,) = told.spans("chat")
    assert chat["gen_ai.input.messages"][0]["parts"] == [
        *texts("what?"),
        {"type": "blob", "mime_type": "image/png", "modality": "image", "size": 4_004},
    ]
    assert PNG[:100] not in repr([told.spans(""), told.events()])


def test_tools_that_give_commands_blocks_and_objects(serve: Serve, caller: Caller, by_middleware: bool) -> None:
    @tool
    def go(call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Go."""
        return Command(update={"messages": [ToolMessage("went", tool_call_id=call_id)], "private": 1})

    @tool
    def see() -> list[Any]:
        """See."""
        return [{"type": "text", "text": "seen"}, {"type": "image", "base64": PNG, "mime_type": "image/png"}]

    @tool
    def count(numbers: list[int]) -> dict[str, int]:
        """Count."""
        return {"sum": sum(numbers)}

    calls = [("go", {}), ("see", {}), ("count", {"numbers": [1, 2]})]
    told = Told(middleware=by_middleware)
    provider = serve([Reply(tool_calls=calls), Reply(text="done")])
    caller.invoke(create_agent(openai(provider), [go, see, count], middleware=told.middleware), ASKED, told.config)
    given = {one["gen_ai.tool.name"]: one.get("gen_ai.tool.call.arguments") for one in told.spans("execute_tool")}
    gave = {one["gen_ai.tool.name"]: one.get("gen_ai.tool.call.result") for one in told.spans("execute_tool")}
    assert given == {"go": {}, "see": {}, "count": {"numbers": [1, 2]}}
    assert gave["go"] == "went"
    assert gave["see"] == [
        *texts("seen"),
        {"type": "blob", "mime_type": "image/png", "modality": "image", "size": 4_004},
    ]
    assert gave["count"] == '{"sum": 3}'
    assert PNG[:100] not in repr(told.spans(""))
    told.idle()


def test_a_tool_that_fails_gives_no_result(serve: Serve) -> None:
    @tool
    def fail() -> str:
        """Fail."""
        raise RuntimeError("secret error")

    told = Told("both")
    with pytest.raises(RuntimeError):
        create_agent(openai(serve(Reply(tool_calls=[("fail", {})]))), [fail]).invoke(ASKED, told.config)
    (used,) = told.spans("execute_tool")
    assert "gen_ai.tool.call.result" not in used
    assert "secret error" not in repr([told.spans(""), told.events()])
