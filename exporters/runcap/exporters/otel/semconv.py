"""Every attribute and event name, once.

`gen_ai.*` follow the OpenTelemetry GenAI semantic conventions (all of status Development; the constants of
opentelemetry-semantic-conventions 0.66b2 are marked as moved to a separate repository that ships no package yet).
`gen_ai.usage.cost.*` follow the open proposal semantic-conventions-genai#443. `runcap.*` are our own: neither budgets
nor roll-ups are standard.
"""

from __future__ import annotations

from typing import Final

# https://opentelemetry.io/docs/specs/semconv/gen-ai/
OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
AGENT_NAME: Final = "gen_ai.agent.name"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
TOOL_TYPE: Final = "gen_ai.tool.type"
TOOL_DESCRIPTION: Final = "gen_ai.tool.description"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
USAGE_REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
USAGE_CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
USAGE_CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
USAGE_CACHE_CREATION_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
"""What `USAGE_CACHE_WRITE_TOKENS` was called before; Arize Phoenix reads only this one."""
ERROR_TYPE: Final = "error.type"

UNKNOWN: Final = "unknown"
"""In place of a model's name that nobody told."""

OPERATION_CHAT: Final = "chat"
OPERATION_TOOL: Final = "execute_tool"
OPERATION_AGENT: Final = "invoke_agent"

# https://github.com/open-telemetry/semantic-conventions-genai/pull/443 (inference spans only, so nothing counts twice)
COST_AMOUNT: Final = "gen_ai.usage.cost.amount"
COST_CURRENCY: Final = "gen_ai.usage.cost.currency"
COST_SOURCE: Final = "gen_ai.usage.cost.source"
CURRENCY_USD: Final = "USD"
SOURCE_LOCAL: Final = "local"
SOURCE_PROVIDER: Final = "provider"

# Our own.
RUN_ID: Final = "runcap.run.id"
RUN_PARENT_ID: Final = "runcap.run.parent_id"
TAG: Final = "runcap.tag."
STEP: Final = "runcap.step"
GUARANTEE: Final = "runcap.guarantee"
CALL_STATE: Final = "runcap.call.state"
CALL_UNKNOWN_USD: Final = "runcap.call.unknown_usd"
CALL_CACHED: Final = "runcap.call.cached"
CALL_CLAMPED: Final = "runcap.call.clamped"
CALL_CUT: Final = "runcap.call.cut"
CALL_WAITED_S: Final = "runcap.call.waited_s"
PRICE_SOURCE: Final = "runcap.price.source"
OUTCOME: Final = "runcap.outcome"
STOPPED: Final = "runcap.run.stopped"
BUDGET: Final = "runcap.budget."
TOTAL_CALLS: Final = "runcap.total.calls"
TOTAL_INPUT_TOKENS: Final = "runcap.total.input_tokens"
TOTAL_OUTPUT_TOKENS: Final = "runcap.total.output_tokens"
TOTAL_CACHE_READ_TOKENS: Final = "runcap.total.cache_read_tokens"
TOTAL_REASONING_TOKENS: Final = "runcap.total.reasoning_tokens"
TOTAL_COST_USD: Final = "runcap.total.cost_usd"
TOTAL_UNPRICED_CALLS: Final = "runcap.total.unpriced_calls"
TOTAL_BY_MODEL: Final = "runcap.total.by_model"

EVENT_REFUSED: Final = "runcap.refused"
EVENT_WARNED: Final = "runcap.budget.warned"
EVENT_STOPPED: Final = "runcap.run.stopped"
EVENT_LOOP: Final = "runcap.loop"
EVENT_TIER: Final = "runcap.tier.switched"
EVENT_PREFIX: Final = "runcap.prefix.broken"
EVENT_PAUSED: Final = "runcap.run.paused"
EVENT_TOPPED_UP: Final = "runcap.run.topped_up"
EVENT_TRIMMED: Final = "runcap.history.trimmed"
EVENT_CLAMPED: Final = "runcap.call.clamped"
EVENT_WAITED: Final = "runcap.call.waited"
EVENT_UNKNOWN: Final = "runcap.call.unknown"
EVENT_RECONCILED: Final = "runcap.call.reconciled"
RECONCILED_USD: Final = "runcap.call.cost_usd"
LINK: Final = "runcap.link"
LINK_RESUMED: Final = "resumed from"
TIER: Final = "runcap.tier"
TIER_BEFORE: Final = "runcap.tier.before"
TIER_SHARE: Final = "runcap.tier.share"
TIER_FORCED: Final = "runcap.tier.forced"
LAST_ANSWER: Final = "runcap.call.last"
CUT_MESSAGES: Final = "runcap.history.cut_messages"
CUT_TOKENS: Final = "runcap.history.cut_tokens"
CUT_KEPT: Final = "runcap.history.kept_tokens"
CUT_SHORTENED: Final = "runcap.history.shortened_results"
PREFIX_WHAT: Final = "runcap.prefix.changed"
PREFIX_TOKENS: Final = "runcap.prefix.tokens"
PREFIX_COST: Final = "runcap.prefix.cost_usd"
REFUSED_KIND: Final = "runcap.refused.kind"
REFUSED_UNIT: Final = "runcap.refused.unit"
REFUSED_SCOPE: Final = "runcap.refused.scope"
REFUSED_CAP: Final = "runcap.refused.cap"
REFUSED_SPENT: Final = "runcap.refused.spent"
REFUSED_HELD: Final = "runcap.refused.held"
REFUSED_UNKNOWN: Final = "runcap.refused.unknown"
REFUSED_NEEDED: Final = "runcap.refused.needed"
WARNED_UNIT: Final = "runcap.budget.unit"
WARNED_SHARE: Final = "runcap.budget.share"
WARNED_SCOPE: Final = "runcap.budget.scope"
LOOP_KIND: Final = "runcap.loop.kind"
LOOP_TIMES: Final = "runcap.loop.times"
LOOP_PERIOD: Final = "runcap.loop.period"
LOOP_TOOLS: Final = "runcap.loop.tools"
LOOP_HALTED: Final = "runcap.loop.halted"

PROVIDERS: Final = {
    "aws": "aws.bedrock",
    "azure": "azure.ai.openai",
    "google": "gcp.gemini",
    "mistral": "mistral_ai",
    "x-ai": "x_ai",
}
"""The conventions' names of providers where they differ from the price data's."""

IN_PROCESS: Final = frozenset({"gpt4all", "huggingface_pipeline", "llamacpp", "mlx", "mlxpipeline"})
"""Providers, as LangChain names them, whose models run in this process: their calls are no calls of a client."""

TAGS: Final = ("task", "feature", "user", "team", "prompt_version")
"""The tags of a run that go onto spans unless others are asked for."""
