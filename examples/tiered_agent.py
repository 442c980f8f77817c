"""An agent on a ladder of three models: as its money goes it moves to cheaper ones, and so it gets done under its cap.

    python examples/tiered_agent.py                 # no key, no network: scripted models on loopback
    python examples/tiered_agent.py --no-tiers      # the same on the first model alone: halted before it is done
    python examples/tiered_agent.py --usd 0.02 --pages 60
    OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 python examples/tiered_agent.py    # and the trace to Jaeger

The agent reads a report page by page and sums it up. Real `ChatOpenAI` models talk to a local provider, which bills
each of them at its list price. A line is printed for every call, and one where the agent goes down a tier.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from runcap.exporters import OTelSink, setup_otlp
from runcap.guardrails import Budget, BudgetExceeded, CallEnded, Event, Guard, Tier, TierSwitched
from runcap.guardrails.money import to_usd
from runcap.guardrails.testing import Reply, ScriptedProvider
from runcap.integrations.langchain import BudgetMiddleware

_PRICES = {
    "gpt-4.1": ("2", "8", "0.5", "2"),
    "gpt-4.1-mini": ("0.4", "1.6", "0.1", "0.4"),
    "gpt-4.1-nano": ("0.1", "0.4", "0.025", "0.1"),
}
"""What the provider bills, in dollars per million tokens: input, output, cached input, cache write."""

_SHARES = (None, 0.6, 0.85)


@tool
def read_page(number: int) -> str:
    """Read one page of the report."""
    return f"Page {number}: sales in region {number} went from {310 + number} to {420 - number} units. " * 3


def reader(pages: int) -> Callable[[int, Mapping[str, Any]], Reply]:
    """The scripted models: a page a call, then the summary."""

    def answer(number: int, _: Mapping[str, Any]) -> Reply:
        if number < pages:
            return Reply(tool_calls=[("read_page", {"number": number + 1})], output_tokens=60)
        return Reply(text=f"Sales grew in all {pages} regions.", output_tokens=120)

    return answer


def show(event: Event) -> None:
    """A line for a call, and one for a switch."""
    if isinstance(event, TierSwitched):
        why = "nothing above fitted" if event.forced else f"{event.share:.0%} of the cap is used"
        print(f"          down from {event.before or 'the top'} to {event.tier}: {why}", flush=True)
    if isinstance(event, CallEnded) and event.balance is not None:
        caps, spent = event.balance.caps, event.balance.spent
        bar = "#" * round(20 * spent.nano / (caps.nano or 1))
        print(
            f"step {event.step:>3}  {event.model:<13} ${to_usd(event.cost_nano or 0):.5f}"
            f"   [{bar:<20}] ${to_usd(spent.nano):.5f} of ${to_usd(caps.nano or 0):.4f}",
            flush=True,
        )


def main() -> int:
    """Run it; 0 when the agent ended by itself, within its cap."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--usd", default="0.02", help="dollars the run may spend (default %(default)s)")
    parser.add_argument("--pages", type=int, default=20, help="pages of the report (default %(default)s)")
    parser.add_argument("--no-tiers", action="store_true", help="the first model alone")
    options = parser.parse_args()
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        setup_otlp(service_name=os.environ.get("OTEL_SERVICE_NAME", "tiered-agent"))
    with ScriptedProvider(reader(options.pages), _PRICES) as provider:
        url, key = provider.openai_url, SecretStr("no key needed")
        first, *lower = [ChatOpenAI(model=name, base_url=url, api_key=key, max_retries=0) for name in _PRICES]
        ladder = [Tier(model, at) for model, at in zip((first, *lower), _SHARES, strict=True)]
        guard = Guard(Budget(usd=options.usd), tiers=() if options.no_tiers else ladder, sinks=(OTelSink(), show))
        middleware = BudgetMiddleware(guard)
        agent: Any = create_agent(first, [read_page], middleware=[middleware], name="reader")
        try:
            answer = agent.invoke({"messages": [("user", "Read the report to its end and sum it up.")]})
            ended = f"FINISHED on {middleware.last_run.tier or first.model_name}: {answer['messages'][-1].text}"
        except BudgetExceeded as refused:
            ended = f"HALTED: {refused}"
        run = middleware.last_run
        print(f"\n{ended}")
        print(f"Spent ${run.spent_usd} of ${options.usd} in {run.steps} steps.")
        print(f"The provider's own bill: ${provider.cost_usd.normalize():f} for {provider.received} calls.")
        return 0 if ended.startswith("FINISHED") and provider.cost_usd == run.spent_usd else 1


if __name__ == "__main__":
    sys.exit(main())
