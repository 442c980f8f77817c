"""A provider's documented answers, given to the package's own client by a server on this machine."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self
from uuid import UUID

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import LLMResult

from runcap.guardrails import Budget, Guard, Usage
from runcap.guardrails.events import CallEnded
from runcap.guardrails.request import Request, Response
from runcap.guardrails.testing import Recorder
from runcap.integrations.langchain import BudgetCallbackHandler
from runcap.integrations.langchain.usage import message_of, read_response

JSON = dict[str, Any]


class Wire:
    """Answers every request with the canned answer, whatever was asked."""

    def __init__(self) -> None:
        self.kind, self.body = "application/json", b"{}"
        wire = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                self.send_response(200)
                self.send_header("content-type", wire.kind)
                self.send_header("content-length", str(len(wire.body)))
                self.end_headers()
                self.wfile.write(wire.body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def json(self, body: JSON) -> None:
        self.kind, self.body = "application/json", json.dumps(body).encode()

    def events(self, *events: JSON, done: bool = True) -> None:
        """Server-sent events; those with a `type` name it."""
        lines = [
            (f"event: {event['type']}\n" if "type" in event else "") + f"data: {json.dumps(event)}\n\n"
            for event in events
        ]
        self.kind = "text/event-stream"
        self.body = "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


class Heard(BudgetCallbackHandler):
    """runcap's own handler, with a budget that refuses nothing, which keeps what it was told."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        super().__init__(Guard(Budget(steps=100), sinks=(self.recorder,)))
        self.request: Request | None = None
        self.result: LLMResult | None = None

    def on_chat_model_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        super().on_chat_model_start(*args, run_id=run_id, **kwargs)
        permit = self.guard.calls.get(run_id.hex)
        self.request = None if permit is None else permit.request

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        super().on_llm_end(response, run_id=run_id, **kwargs)
        self.result = response

    @property
    def usage(self) -> Usage | None:
        """What was settled; None where the usage that came was none."""
        (ended,) = self.recorder.of(CallEnded)
        return ended.usage if ended.state == "settled" else None

    @property
    def response(self) -> Response:
        return read_response(self.result, message_of(self.result))


class _NotSent(Exception):
    pass


class _Asked(Heard):
    def on_chat_model_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        super().on_chat_model_start(*args, run_id=run_id, **kwargs)
        raise _NotSent


def asked(model: BaseChatModel, **kwargs: Any) -> Request:
    """How runcap describes a call; it is not made."""
    heard = _Asked()
    with pytest.raises(_NotSent):
        model.invoke("hi", {"callbacks": [heard]}, **kwargs)
    assert heard.request is not None
    return heard.request


def invoked(model: BaseChatModel, prompt: Any = "hi", **kwargs: Any) -> Heard:
    """What is heard of a call that is no stream."""
    heard = Heard()
    model.invoke(prompt, {"callbacks": [heard]}, **kwargs)
    return heard


def streamed(model: BaseChatModel, prompt: Any = "hi", **kwargs: Any) -> Heard:
    """What is heard of a stream."""
    heard = Heard()
    for _ in model.stream(prompt, {"callbacks": [heard]}, **kwargs):
        pass
    return heard


def evented(model: BaseChatModel, prompt: Any = "hi", **kwargs: Any) -> Heard:
    """What is heard of a stream of events, LangChain's third way to stream."""
    heard = Heard()
    for _ in model.stream_events(prompt, {"callbacks": [heard]}, version="v3", **kwargs):
        pass
    return heard


async def astreamed(model: BaseChatModel, prompt: Any = "hi", **kwargs: Any) -> Heard:
    """What is heard of a stream in async code."""
    heard = Heard()
    async for _ in model.astream(prompt, {"callbacks": [heard]}, **kwargs):
        pass
    return heard


async def ainvoked(model: BaseChatModel, prompt: Any = "hi", **kwargs: Any) -> Heard:
    """What is heard of a call in async code that is no stream."""
    heard = Heard()
    await model.ainvoke(prompt, {"callbacks": [heard]}, **kwargs)
    return heard
