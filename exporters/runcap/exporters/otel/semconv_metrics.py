"""Every metric, once: its name, unit, buckets and attributes.

`gen_ai.*` follow the OpenTelemetry GenAI conventions (status Development), as opentelemetry-util-genai 1.3b0 has them;
`gen_ai.client.operation.cost` follows the open proposal semantic-conventions-genai#443, which gives no buckets.
`runcap.*` are our own. Money is in US dollars. No metric carries the id of a run, a conversation or a call.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from . import semconv as sc

# https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-metrics.md
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - no password
INPUT: Final = "input"
OUTPUT: Final = "output"

OTHER: Final = "_other"
"""Stands for every further value of an attribute that has had its number of distinct ones."""

NO_VERDICT: Final = "none"
VERDICT: Final = "runcap.run.verdict"

TOKEN_BUCKETS: Final = tuple(4**power for power in range(14))
SECOND_BUCKETS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
AGENT_BUCKETS: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6)
# Our own: a hundred-thousandth of a dollar to ten, by the root of ten; and shares, finest where a cap is near.
COST_BUCKETS: Final = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SHARE_BUCKETS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metric(NamedTuple):
    """One metric: how its instrument is made, and the attributes it may have beside the tags that are allowed."""

    name: str
    kind: Literal["histogram", "counter", "updowncounter"]
    unit: str
    about: str
    attributes: tuple[str, ...] = ()
    buckets: tuple[float, ...] | None = None


_MODEL = (sc.OPERATION_NAME, sc.PROVIDER_NAME, sc.REQUEST_MODEL, sc.AGENT_NAME)
_CALL = (*_MODEL, sc.RESPONSE_MODEL, sc.ERROR_TYPE)

TOKEN_USAGE: Final = Metric(
    "gen_ai.client.token.usage",
    "histogram",
    "{token}",
    "Number of input and output tokens used by GenAI clients, as the provider reported them",
    (*_CALL, TOKEN_TYPE),
    TOKEN_BUCKETS,
)
CALL_DURATION: Final = Metric(
    "gen_ai.client.operation.duration",
    "histogram",
    "s",
    "Duration of GenAI client operation",
    _CALL,
    SECOND_BUCKETS,
)
FIRST_CHUNK: Final = Metric(
    "gen_ai.client.operation.time_to_first_chunk",
    "histogram",
    "s",
    "Time to receive the first chunk, measured from when the client issues the generation request",
    _CALL,
    SECOND_BUCKETS,
)
CALL_COST: Final = Metric(
    "gen_ai.client.operation.cost",
    "histogram",
    "USD",
    "Cost of a GenAI client operation, as it was charged when it ended; calls without a price are left out",
    _CALL,
    COST_BUCKETS,
)
AGENT_DURATION: Final = Metric(
    "gen_ai.invoke_agent.duration",
    "histogram",
    "s",
    "Duration of an in-process agent invocation",
    (sc.OPERATION_NAME, sc.AGENT_NAME, sc.OUTCOME, sc.ERROR_TYPE),
    AGENT_BUCKETS,
)
TOOL_DURATION: Final = Metric(
    "gen_ai.execute_tool.duration",
    "histogram",
    "s",
    "Duration of a tool execution",
    (sc.OPERATION_NAME, sc.TOOL_NAME, sc.AGENT_NAME, sc.OUTCOME, sc.ERROR_TYPE),
    SECOND_BUCKETS,
)

UTILIZATION: Final = Metric(
    "runcap.budget.utilization",
    "histogram",
    "1",
    "Share of a run's cap that was used when the run ended: spent, held and unknown together",
    (sc.WARNED_UNIT,),
    SHARE_BUCKETS,
)
WARNINGS: Final = Metric(
    "runcap.budget.warnings",
    "counter",
    "{warning}",
    "Warnings that a share of a cap is used; the scope is run, or the tag of the limit",
    (sc.WARNED_UNIT, sc.WARNED_SCOPE, sc.WARNED_SHARE),
)
RUNS: Final = Metric(
    "runcap.runs", "counter", "{run}", "Runs that ended: succeeded, failed, or without a verdict", (VERDICT,)
)
STOPS: Final = Metric(
    "runcap.run.stops", "counter", "{run}", "Runs that were stopped: by a cap, a loop or by hand", (sc.STOPPED,)
)
PAUSES: Final = Metric(
    "runcap.run.pauses",
    "counter",
    "{pause}",
    "Times a run at its cap asked for more",
    (sc.REFUSED_UNIT, sc.REFUSED_SCOPE),
)
REFUSALS: Final = Metric(
    "runcap.refusals",
    "counter",
    "{refusal}",
    "Model and tool calls refused before they were made",
    (sc.REFUSED_KIND, sc.REFUSED_UNIT, sc.REFUSED_SCOPE),
)
SWITCHES: Final = Metric(
    "runcap.tier.switches", "counter", "{switch}", "Steps of a run down its ladder of models", (sc.TIER, sc.TIER_FORCED)
)
LOOPS: Final = Metric(
    "runcap.loops", "counter", "{loop}", "Times an agent was found to repeat itself", (sc.LOOP_KIND, sc.LOOP_HALTED)
)
PREFIX_BREAKS: Final = Metric(
    "runcap.prefix.breaks",
    "counter",
    "{break}",
    "Prompts that began unlike the one before: in the system prompt, the tools or a message",
    (sc.PREFIX_WHAT,),
)
PREFIX_COST: Final = Metric(
    "runcap.prefix.cost",
    "counter",
    "USD",
    "What reading broken prefixes again cost; it is part of the cost of the calls",
    (sc.PREFIX_WHAT,),
)
TRIMS: Final = Metric("runcap.history.trims", "counter", "{call}", "Calls whose history was cut before", _MODEL)
TRIMMED: Final = Metric(
    "runcap.history.trimmed_tokens", "counter", "{token}", "Tokens that were cut from histories", _MODEL
)
WAITS: Final = Metric(
    "runcap.call.wait",
    "histogram",
    "s",
    "How long a call waited for calls in flight; those that did not wait are left out",
    _MODEL,
    SECOND_BUCKETS,
)
CLAMPED: Final = Metric(
    "runcap.calls.clamped", "counter", "{call}", "Calls whose output cap was less than what was asked for", _MODEL
)
CACHED: Final = Metric(
    "runcap.calls.cached", "counter", "{call}", "Answers from LangChain's cache: nothing sent, nothing charged", _MODEL
)
UNPRICED: Final = Metric(
    "runcap.calls.unpriced",
    "counter",
    "{call}",
    "Calls of unknown cost, which the sums of costs leave out",
    _MODEL,
)
UNKNOWN: Final = Metric(
    "runcap.calls.unknown", "counter", "{call}", "Calls that ended without their full usage", (*_MODEL, sc.ERROR_TYPE)
)
UNKNOWN_COST: Final = Metric(
    "runcap.calls.unknown.cost",
    "counter",
    "USD",
    "What such calls may have cost beyond what was charged for them",
    (*_MODEL, sc.ERROR_TYPE),
)
RECONCILED: Final = Metric(
    "runcap.calls.reconciled", "counter", "{call}", "Unknown calls whose usage arrived after all", _CALL
)
CORRECTION: Final = Metric(
    "runcap.calls.reconciled.cost",
    "updowncounter",
    "USD",
    "Cost of reconciled calls less what was charged for them before; costs and corrections add up to what was spent",
    _CALL,
)
METRICS: Final = tuple(one for one in tuple(globals().values()) if isinstance(one, Metric))
"""All of them."""
