"""An agent that would loop for ever, halted at its cap by one callback.

    python examples/runaway_agent.py                              # offline: a scripted provider on loopback
    python examples/runaway_agent.py --usd 0.02 --steps 8
    python examples/runaway_agent.py --model openai:gpt-4o-mini   # a real provider, with its key in the environment
    OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 python examples/runaway_agent.py    # and the trace to Jaeger

Everything is real but the offline provider's answers: `create_agent`, `ChatOpenAI`, the openai client, HTTP.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from runcap.exporters import OTelSink, setup_otlp
from runcap.guardrails import Budget, BudgetExceeded, Event, Guard
from runcap.guardrails.events import CallEnded
from runcap.guardrails.money import to_usd
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetCallbackHandler

_MAX_TOKENS = 200  # with max_retries=0 it makes every call hard: its cost is bounded before it is made


@tool
def search_flights(destination: str, day: int) -> str:
    """Find flights to a destination on a day of the month."""
    return f"No flights to {destination} on day {day}. Try another day."


def another_try(number: int, _: Mapping[str, Any]) -> Reply:
    """The scripted model never gives up: it asks for the same tool again, with another day."""
    arguments = {"destination": "Lisbon", "day": number % 31 + 1}
    return Reply(tool_calls=[("search_flights", arguments)], output_tokens=120 + 7 * (number % 5))


@contextmanager
def chosen_model(name: str | None) -> Iterator[tuple[BaseChatModel, ScriptedProvider | None]]:
    """The model to run: a real one, or a real client of the scripted provider."""
    if name is not None:
        try:
            model = init_chat_model(name, max_tokens=_MAX_TOKENS, max_retries=0)
        except Exception as error:  # noqa: BLE001 - each client package has errors of its own for a missing key
            sys.exit(f"cannot use {name}: {error}")
        yield model, None
        return
    with ScriptedProvider(another_try) as provider:
        url, key = provider.openai_url, SecretStr("no key needed")
        yield (
            ChatOpenAI(model="gpt-4o", base_url=url, api_key=key, max_completion_tokens=_MAX_TOKENS, max_retries=0),
            provider,
        )


def show_step(event: Event) -> None:
    """A live line a step: what it took, and how much of the cap is gone."""
    if not isinstance(event, CallEnded) or event.usage is None or event.balance is None:
        return
    caps, spent = event.balance.caps, event.balance.spent
    share = (spent.nano / caps.nano) if caps.nano else 0.0
    bar = "#" * round(20 * share)
    tokens = f"{event.usage.input_tokens:>5} in {event.usage.output_tokens:>4} out"
    print(
        f"step {event.step:>3}  {event.model}  {tokens}  ${to_usd(event.cost_nano or 0):.5f}"
        f"   [{bar:<20}] ${to_usd(spent.nano):.4f} of ${to_usd(caps.nano or 0):.4f}",
        flush=True,
    )


def show_tree(spans: tuple[ReadableSpan, ...]) -> None:
    """The spans as they nest, with tokens and dollars."""
    children: dict[int | None, list[ReadableSpan]] = {}
    for span in sorted(spans, key=lambda one: one.start_time or 0):
        children.setdefault(span.parent.span_id if span.parent else None, []).append(span)

    def show(parent: int | None, depth: int) -> None:
        for span in children.get(parent, []):
            print(f"{'  ' * depth}{_line(span)}")
            show(span.context.span_id if span.context else None, depth + 1)

    show(None, 0)


def _line(span: ReadableSpan) -> str:
    told: dict[str, Any] = dict(span.attributes or {})
    line = span.name
    if "gen_ai.usage.cost.amount" in told:
        tokens = f"{told['gen_ai.usage.input_tokens']} in, {told['gen_ai.usage.output_tokens']} out"
        line += f"  {tokens}, ${told['gen_ai.usage.cost.amount']:.5f}"
    if "runcap.total.calls" in told:
        line += f"  {told['runcap.total.calls']} calls, ${told['runcap.total.cost_usd']:.5f}"
    return line + ("" if span.status.is_ok or not span.status.description else f"  ERROR {span.status.description}")


def collected_spans() -> InMemorySpanExporter:
    """What keeps the spans here; where an endpoint is set, they are sent there too."""
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        provider = setup_otlp(service_name=os.environ.get("OTEL_SERVICE_NAME", "runaway-agent")).tracer_provider
    else:
        trace.set_tracer_provider(provider := TracerProvider())
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def main() -> int:
    """Run it; 0 when the agent was halted within its cap."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--usd", default="0.05", help="dollars the run may spend (default %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="model calls the run may make (default %(default)s)")
    parser.add_argument("--model", help="a real model, e.g. openai:gpt-4o-mini; the default needs no key")
    options = parser.parse_args()
    exporter = collected_spans()
    handler = BudgetCallbackHandler(Guard(Budget(usd=options.usd, steps=options.steps), sinks=(OTelSink(), show_step)))
    with chosen_model(options.model) as (model, provider):
        agent = create_agent(model, [search_flights], name="travel_agent")
        question: Any = {
            "messages": [{"role": "user", "content": "Find me any flight to Lisbon. Do not stop before you have one."}]
        }
        halted: BudgetExceeded | None = None
        try:
            agent.invoke(question, config={"callbacks": [handler]})
        except BudgetExceeded as refused:
            halted = refused
        run = handler.last_run
        assert run is not None
        print("\nThe trace:")
        show_tree(exporter.get_finished_spans())
        print(f"\n{'HALTED' if halted else 'FINISHED'}: {halted or 'the agent ended by itself'}")
        print(f"Spent ${run.spent_usd} of ${options.usd} in {run.steps} steps and {run.tool_calls} tool calls.")
        if provider is not None:
            print(f"The provider's own bill: ${provider.cost_usd.normalize():f} for {provider.received} calls.")
            return 0 if halted and provider.cost_usd == run.spent_usd else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
