"""A model provider on loopback: speaks OpenAI chat completions and Anthropic messages, answers by a script, and keeps
its own bill. Real client packages talk to it unchanged; nothing leaves the machine and no key is needed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

from . import anthropic_wire, openai_wire
from .ledger import Bill, Served
from .wire import Answer, Wire

_TOKENS_PER_BYTE = 0.25
_TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One scripted answer.

    Args:
        text: the answer's text. With `output_tokens` and no text, words are made up to that length.
        tool_calls: `(name, arguments)` pairs the model asks for.
        output_tokens: billed output; by default a quarter token a byte. The request's cap cuts it.
        input_tokens: billed input; by default a quarter token a byte of the request plus 4 a message.
        cached_tokens, cache_write_tokens: parts of the input read from and written to the cache.
        model: the name the answer gives for the model; providers answer with a dated one. By default the one asked for.
        status: an HTTP status other than 200 answers with an error and bills nothing.
        usage: False leaves the usage out of the answer.
        latency: seconds before the answer begins.
        gate: waited for before the answer begins.
        hang_up: close the connection `"before"` the answer (billed in full: the work was done) or in the `"middle"`
            of a stream (billed for what was sent).
        chunk_gate: waited for after the first streamed chunk.
    """

    text: str = ""
    tool_calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    output_tokens: int | None = None
    input_tokens: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    model: str | None = None
    status: int = 200
    usage: bool = True
    latency: float = 0.0
    gate: threading.Event | None = None
    hang_up: Literal["before", "middle"] | None = None
    chunk_gate: threading.Event | None = field(default=None)


Script = Reply | Sequence[Reply] | Callable[[int, Mapping[str, Any]], Reply]
"""One reply for all; a sequence, whose last repeats; or a function of the request's number and its JSON body."""


class ScriptedProvider:
    """Serves while the `with` lasts.

    Args:
        script: what to answer.
        prices: dollars per million tokens by model, as (input, output, cached, cache write), added to list prices.
        keep_alive: connections stay open; clients that outlive their event loop leave theirs open for good.
    """

    def __init__(
        self,
        script: Script = Reply(text="ok"),
        prices: Mapping[str, tuple[str, str, str, str]] | None = None,
        *,
        keep_alive: bool = True,
    ) -> None:
        self.keep_alive = keep_alive
        self._script = script
        self._bill = Bill(prices)
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        server = _Server(("127.0.0.1", 0), _handler(self))
        self._server = server
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    @property
    def root_url(self) -> str:
        """Base URL for Anthropic clients.

        Raises:
            RuntimeError: the provider is not running.
        """
        if self._server is None:
            raise RuntimeError("the provider serves inside `with ScriptedProvider(...) as provider:` only")
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def openai_url(self) -> str:
        """Base URL for OpenAI clients."""
        return f"{self.root_url}/v1"

    @property
    def served(self) -> list[Served]:
        """Every billed answer, in order."""
        return self._bill.served

    @property
    def received(self) -> int:
        """Requests that came in, billed or not."""
        return self._bill.received

    @property
    def cost_usd(self) -> Decimal:
        """The true bill, in dollars."""
        return sum((one.cost_usd for one in self.served), Decimal(0))

    def answer(self, wire: Wire, body: Mapping[str, Any], out: BaseHTTPRequestHandler) -> None:
        """Serve one request."""
        number = self._bill.receive()
        reply = self._reply(number, body)
        if reply.gate is not None:
            reply.gate.wait(timeout=60)
        if reply.latency:
            time.sleep(reply.latency)
        if reply.status != HTTPStatus.OK:
            _send_json(out, reply.status, wire.error(reply.status))
            return
        answer = _answer(number, reply, body, wire)
        if body.get("stream"):
            self._stream(wire, reply, answer, body, out)
            return
        self._book(answer, answer.output_tokens, complete=reply.hang_up is None)
        if reply.hang_up is None:
            _send_json(out, 200, wire.whole(answer, usage=reply.usage))
        else:
            out.close_connection = True

    def _reply(self, number: int, body: Mapping[str, Any]) -> Reply:
        script = self._script
        if isinstance(script, Reply):
            return script
        return script(number, body) if callable(script) else script[min(number, len(script) - 1)]

    def _stream(
        self, wire: Wire, reply: Reply, answer: Answer, body: Mapping[str, Any], out: BaseHTTPRequestHandler
    ) -> None:
        out.close_connection = True
        sent, booked = 0, False
        pieces = list(wire.pieces(answer, usage=reply.usage and wire.wants_usage(body)))
        try:
            _begin_stream(out)
            for index, (piece, tokens) in enumerate(pieces):
                if reply.hang_up == "middle" and index > len(pieces) // 2:
                    break
                if index == len(pieces) - 1:
                    # Before it is out: whoever has read the whole stream finds it on the bill.
                    self._book(answer, min(sent + tokens, answer.output_tokens), complete=True)
                    booked = True
                out.wfile.write(piece)
                out.wfile.flush()
                sent += tokens
                if index == 1 and reply.chunk_gate is not None:
                    reply.chunk_gate.wait(timeout=60)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client went away: billed for what was sent
        if not booked:
            self._book(answer, min(sent, answer.output_tokens), complete=sent >= answer.output_tokens)

    def _book(self, answer: Answer, outputs: int, *, complete: bool) -> None:
        self._bill.book(
            answer.model,
            answer.input_tokens,
            outputs,
            answer.cached_tokens,
            answer.cache_write_tokens,
            complete=complete,
        )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def _handler(provider: ScriptedProvider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            wire = _WIRES.get(self.path.partition("?")[0])
            if wire is None:
                _send_json(self, 404, {"error": {"message": f"no such path: {self.path}", "type": "not_found"}})
                return
            try:
                provider.answer(wire, json.loads(raw), self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def end_headers(self) -> None:
            if not provider.keep_alive:
                self.send_header("Connection", "close")
            super().end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler


_WIRES: Mapping[str, Wire] = {
    "/v1/chat/completions": openai_wire.WIRE,
    "/v1/messages": anthropic_wire.WIRE,
}


def _answer(number: int, reply: Reply, body: Mapping[str, Any], wire: Wire) -> Answer:
    calls = tuple(
        (f"call_{number:06d}{index:03d}", name, dict(args)) for index, (name, args) in enumerate(reply.tool_calls)
    )
    said = len(reply.text.encode()) + sum(len(name) + len(json.dumps(args)) for _, name, args in calls)
    wanted = reply.output_tokens if reply.output_tokens is not None else max(1, round(said * _TOKENS_PER_BYTE))
    cap = wire.output_cap(body)
    billed = wanted if cap is None else min(wanted, cap)
    text = reply.text or ("" if calls else " ".join(["word"] * billed))
    if billed < wanted and reply.text:
        text = text[: billed * 4]
    return Answer(
        id=f"reply-{number}",
        model=str(body.get("model", "")),
        told_model=reply.model or str(body.get("model", "")),
        text=text,
        calls=calls,
        finish="length" if billed < wanted else "tool_calls" if calls else "stop",
        input_tokens=reply.input_tokens if reply.input_tokens is not None else _count(body),
        output_tokens=billed,
        cached_tokens=reply.cached_tokens,
        cache_write_tokens=reply.cache_write_tokens,
    )


def _count(body: Mapping[str, Any]) -> int:
    parts = [*body.get("messages", ()), *body.get("tools", ()), *([body["system"]] if body.get("system") else [])]
    return sum(
        _TOKENS_PER_MESSAGE + round(len(json.dumps(part, ensure_ascii=False).encode()) * _TOKENS_PER_BYTE)
        for part in parts
    )


def _begin_stream(out: BaseHTTPRequestHandler) -> None:
    out.send_response(200)
    out.send_header("Content-Type", "text/event-stream")
    out.send_header("Connection", "close")
    out.end_headers()


def _send_json(out: BaseHTTPRequestHandler, status: int, body: Mapping[str, Any]) -> None:
    raw = json.dumps(body).encode()
    out.send_response(status)
    out.send_header("Content-Type", "application/json")
    out.send_header("Content-Length", str(len(raw)))
    out.end_headers()
    out.wfile.write(raw)
