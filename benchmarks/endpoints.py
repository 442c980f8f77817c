"""What an endpoint that fails costs a call: time added by telemetry, by what the endpoint does.

    python benchmarks/endpoints.py [--rounds N] [--quick] [--check]

A process for each kind of endpoint, over HTTP and gRPC: healthy, down (nobody listens), slow (takes connections and
answers nothing), refusing (resets each), 400; and `off`, without telemetry. Each makes calls (admit, settle, a `chat`
span, metrics) in batches, in turn, all the while sending; the endpoints are one more process. Printed are the
microseconds a call that a quarter and half of all batches are below, and what telemetry adds as a ratio to what it adds
with the healthy endpoint, both at the median. `--check` exits with 1 where that is above 1.25.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, Literal

from runcap.exporters import OTelSink, setup_otlp
from runcap.guardrails import Budget, Guard, Usage
from runcap.guardrails.estimate import Prompt
from runcap.guardrails.request import Request

Protocol = Literal["grpc", "http/protobuf"]
KINDS = ("healthy", "down", "slow", "refusing", "400")
PROTOCOLS: tuple[Protocol, ...] = ("http/protobuf", "grpc")
CALLS, GOAL = 50, 1.25
_ids = count()


def answering(status: int) -> int:
    """The port of an HTTP endpoint that answers with a status."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def answering_rpc(*, taking: bool) -> int:
    """The port of a gRPC endpoint that takes all, or finds all invalid."""
    import grpc  # type: ignore[import-untyped]  # noqa: PLC0415 - in the process of the endpoints only

    def export(_: bytes, context: Any) -> bytes:
        if not taking:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "")
        return b""

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, _: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(export)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = int(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    _kept.append(server)
    return port


_kept: list[Any] = []


def silent(*, backlog: int | None) -> int:
    """The port of a socket that never answers, or (without a backlog) does not even listen."""
    one = socket.socket()
    one.bind(("127.0.0.1", 0))
    if backlog is not None:
        one.listen(backlog)
    _kept.append(one)
    return int(one.getsockname()[1])


def resetting() -> int:
    """The port of a socket that resets each connection."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return int(server.getsockname()[1])


def serve() -> None:
    """Be the endpoints until the standard input ends; their ports are printed in the order of PROTOCOLS and KINDS."""
    for protocol in PROTOCOLS:
        rpc = protocol == "grpc"
        print(answering_rpc(taking=True) if rpc else answering(200))
        print(silent(backlog=None))
        print(silent(backlog=1024))
        print(resetting())
        print(answering_rpc(taking=False) if rpc else answering(400), flush=True)
    sys.stdin.read()


def be_agent(protocol: str, port: str) -> None:
    """Run a batch for each line of standard input, and print the seconds a call; without a protocol, no telemetry."""
    sinks: tuple[OTelSink, ...] = ()
    if protocol:
        spoken: Protocol = "grpc" if protocol == "grpc" else "http/protobuf"
        telemetry = setup_otlp(f"http://127.0.0.1:{port}", protocol=spoken)
        sinks = (OTelSink(telemetry.tracer_provider, telemetry.meter_provider),)
    guard = Guard(Budget(usd=10_000), sinks=sinks)
    gc.disable()
    gc.freeze()
    for _ in sys.stdin:
        gc.collect()
        began = time.perf_counter()
        for _ in range(CALLS):
            request = Request(
                call_id=f"c{next(_ids)}", model="gpt-4o", provider="openai", prompt=Prompt(measured=0), output_cap=1_000
            )
            guard.admit(request).settle(Usage(100, 20))
        print((time.perf_counter() - began) / CALLS, flush=True)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """This file in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=null) as process:  # noqa: S603 - this file
        try:
            yield process
        finally:
            process.terminate()


def told(process: subprocess.Popen[str]) -> float:
    """The next number it prints."""
    assert process.stdout is not None
    return float(process.stdout.readline())


def measure(rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds a call, by protocol and kind; ("", "off") is without telemetry."""
    with contextlib.ExitStack() as stack:
        endpoints = stack.enter_context(started("--serve"))
        keys = [("", "off"), *((protocol, kind) for protocol in PROTOCOLS for kind in KINDS)]
        ports = {key: str(int(told(endpoints))) for key in keys[1:]}
        agents = {key: stack.enter_context(started("--agent", key[0], ports.get(key, ""))) for key in keys}
        figures: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
        for number in range(rounds + 1):
            turn = number % len(keys)
            for key in keys[turn:] + keys[:turn]:
                print("go", file=agents[key].stdin, flush=True)
                took = told(agents[key])
                if number:  # the first is for warming up
                    figures[key].append(took)
    return figures


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=300, help="batches of each (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="30 batches of each")
    parser.add_argument("--check", action="store_true", help=f"fail where a ratio is above {GOAL}")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--agent", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
    elif options.agent:
        be_agent(*options.agent)
    else:
        return show(measure(30 if options.quick else options.rounds), check=options.check)
    return 0


def show(figures: dict[tuple[str, str], list[float]], *, check: bool) -> int:
    """Print; 1 where a ratio is too high and `check` is asked for."""
    usual = {key: statistics.quantiles(times, n=4) for key, times in figures.items()}
    off = usual["", "off"][1]
    worst = 0.0
    print(f"{'':<24}{'quarter':>9}{'median':>9}   added, to healthy")
    for (protocol, kind), (quarter, median, _) in usual.items():
        line = f"{protocol:<14}{kind:<10}{quarter * 1e6:>7.1f}us{median * 1e6:>7.1f}us"
        if protocol:
            ratio = (median - off) / (usual[protocol, "healthy"][1] - off)
            worst = max(worst, ratio)
            line += f"   {ratio:.2f}x"
        print(line)
    return int(check and worst > GOAL)


if __name__ == "__main__":
    sys.exit(main())
