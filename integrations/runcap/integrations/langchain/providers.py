"""What the providers' packages tell of a call beside its `usage_metadata`, or leave out of it.

Each was read in the package's own conversion code; tests/langchain/providers feeds that code the documented answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Literal, NamedTuple

from langchain_core.messages import AIMessage

from runcap.guardrails.money import MAX_NANO, NANO
from runcap.guardrails.pricing import PriceContext
from runcap.guardrails.usage import Usage

Details = Mapping[str, Any]

NOTHING: Details = {}

_SERVED: Mapping[str, PriceContext | Literal["standard"]] = {
    "batch": "batch",
    "default": "standard",
    "fast": "fast",
    "flex": "flex",
    "on_demand": "standard",  # Groq
    "priority": "priority",
    "reserved": "standard",  # Bedrock: beyond what was reserved
    "standard": "standard",
}
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)  # whatever the caller's own
_TICKS = Decimal(10) ** 10  # xAI's, to the dollar
_MOST = Decimal(MAX_NANO // NANO)
_MOST_TICKS = int(_MOST * _TICKS)
_KINDS_OF_IMAGE = frozenset({"image", "image_url"})


def count(values: Details, name: str) -> int:
    """A number of tokens; 0 where there is none."""
    value = values.get(name)
    if type(value) is int:
        return max(0, value)
    return int(value) if isinstance(value, float) and 0 < value < float("inf") else 0


def mapping(value: object) -> Details:
    """The value, where it is a mapping; else an empty one."""
    # A dict is one, and asking for its type is five times as fast as asking an abstract class.
    return value if type(value) is dict or isinstance(value, Mapping) else NOTHING


def once(text: str) -> str:
    """`gpt-4ogpt-4o` -> `gpt-4o`: LangChain joins the words that every choice of a stream ends with."""
    return text[: (text + text).find(text, 1)]


class Answer(NamedTuple):
    """A message, its `usage_metadata`, and the usage in the provider's own words where a package keeps them."""

    message: AIMessage
    raw: Details
    told: Details


def completed(usage: Usage, answer: Answer) -> Usage:
    """The usage with what the provider's package keeps elsewhere in the answer, or nowhere."""
    complete = _COMPLETE.get(answer.message.response_metadata.get("model_provider", ""))
    return usage if complete is None else complete(usage, answer)


def served(metadata: Details, output: Details) -> PriceContext | Literal["standard"] | None:
    """How the call was processed; None where the answer does not say."""
    named = metadata.get("service_tier") or output.get("service_tier")
    if named is None:
        named = mapping(metadata.get("serviceTier")).get("type")  # Bedrock Converse
    if isinstance(named, str) and named:
        return _SERVED.get(named) or _SERVED.get(once(named))
    return _served_by_claude(mapping(metadata.get("usage")))


def _served_by_claude(native: Details) -> PriceContext | Literal["standard"] | None:
    speed, tier = native.get("speed"), native.get("service_tier")
    if speed == "fast":
        return "fast"
    if tier in ("priority", "batch"):
        return _SERVED[tier]
    # The tier alone says nothing of the speed, which was perhaps asked for: then the request stands.
    return "standard" if tier == speed == "standard" else None


def billed_nano(metadata: Details, output: Details) -> int | None:
    """What the provider says it charges for the call, in nano-dollars; None where it does not say.

    With a key of one's own at OpenRouter (BYOK), `cost` is OpenRouter's fee alone, and the key's owner pays the
    provider's invoice too: it is the sum of both then, which is on no single invoice but is what the call costs.
    """
    if metadata.get("cost") is not None:
        return _billed(metadata)
    told = mapping(metadata.get("token_usage") or output.get("token_usage"))
    ticks = told.get("cost_in_usd_ticks")
    if type(ticks) is int and 0 <= ticks <= _MOST_TICKS:
        return _nano(_EXACT.divide(Decimal(ticks), _TICKS))
    return None if told.get("cost") is None else _billed(told)


def _billed(told: Details) -> int | None:
    cost = told["cost"]
    dollars = _dollars(cost.get("total_cost") if isinstance(cost, Mapping) else cost)  # Perplexity has a mapping
    if dollars is None:
        return None
    upstream = _dollars(mapping(told.get("cost_details")).get("upstream_inference_cost")) or Decimal(0)
    # langchain-openrouter drops `is_byok`. Without BYOK the two figures are the same; with it `cost` is a fee of 5 %.
    byok = told.get("is_byok")
    own_key = upstream > _EXACT.multiply(dollars, Decimal(2)) if byok is None else bool(byok)
    return _nano(_EXACT.add(dollars, upstream) if own_key else dollars)


def _dollars(value: object) -> Decimal | None:
    if type(value) is not int and type(value) is not float:
        return None
    dollars = Decimal(str(value))
    return dollars if dollars.is_finite() and 0 <= dollars <= _MOST else None


def _nano(dollars: Decimal) -> int:
    return int(_EXACT.to_integral_value(_EXACT.multiply(dollars, Decimal(NANO))))


def _of_claude(usage: Usage, answer: Answer) -> Usage:
    native = mapping(answer.message.response_metadata.get("usage"))
    tools = native.get("server_tool_use")
    searches = (
        count(tools, "web_search_requests") if isinstance(tools, Mapping) else _searched(answer.message, _is_result)
    )
    for step in native.get("iterations") or ():
        if mapping(step).get("type") == "compaction":
            usage += _compaction(step)
    return replace(usage, web_searches=searches) if searches else usage


def _compaction(step: Details) -> Usage:
    # Billed, and in no total: Anthropic's own sums are of the other iterations.
    read, written = count(step, "cache_read_input_tokens"), count(step, "cache_creation_input_tokens")
    hour = count(mapping(step.get("cache_creation")), "ephemeral_1h_input_tokens")
    return Usage(
        input_tokens=count(step, "input_tokens") + read + written,
        output_tokens=count(step, "output_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=min(hour, written),
    )


def _of_openai(usage: Usage, answer: Answer) -> Usage:
    # xAI's and Gemini's OpenAI-shaped answers leave reasoning out of `completion_tokens`; their total has it.
    hidden = count(answer.raw, "total_tokens") - usage.input_tokens - usage.output_tokens
    if hidden > 0:
        usage = replace(usage, output_tokens=usage.output_tokens + hidden)
    return _of_responses(usage, answer)


def _of_responses(usage: Usage, answer: Answer) -> Usage:
    searches = _searched(answer.message, _is_search)
    return replace(usage, web_searches=searches) if searches else usage


def _of_mistral(usage: Usage, answer: Answer) -> Usage:
    # Streams keep no usage of Mistral's own: there, cached tokens are priced as ordinary ones.
    cached = count(mapping(answer.told.get("prompt_tokens_details")), "cached_tokens")
    return replace(usage, cache_read_tokens=min(cached, usage.plain_input_tokens)) if cached else usage


def _of_gemini(usage: Usage, answer: Answer) -> Usage:
    # LangChain drops Google's split of tokens by modality, and no field of the message has it. An answer with images
    # counts as nothing else, the dearer reading; sound needs none, for models that speak have its price as their own.
    if not _KINDS_OF_IMAGE.isdisjoint(_kinds(answer.message)):
        usage = replace(usage, output_image_tokens=usage.plain_output_tokens)
    searches = _google_searches(answer.message.response_metadata)
    return replace(usage, web_searches=searches) if searches else usage


def _google_searches(metadata: Details) -> int:
    grounding = mapping(metadata.get("grounding_metadata"))
    queries = {query for query in grounding.get("web_search_queries") or () if query}
    model = str(metadata.get("model_name") or "").removeprefix("models/")
    # Gemini 3 is billed by the distinct query, models before it by the grounded prompt.
    return min(len(queries), 1) if model.startswith(("gemini-1", "gemini-2")) else len(queries)


def _kinds(message: AIMessage) -> list[object]:
    content = message.content
    return [] if isinstance(content, str) else [block.get("type") for block in content if isinstance(block, dict)]


def _searched(message: AIMessage, is_search: Callable[[Details], bool]) -> int:
    content = message.content
    # ChatOpenAI(output_version="v0") keeps them apart.
    apart = message.additional_kwargs.get("tool_outputs")
    if isinstance(content, str) and not apart:
        return 0
    return sum(isinstance(block, dict) and is_search(block) for block in (*content, *(apart or ())))


def _is_result(block: Details) -> bool:
    """A search Claude made; one that failed is not billed."""
    kind = block.get("type")
    if kind == "web_search_tool_result":
        return isinstance(block.get("content"), list)
    told = kind == "server_tool_result" and mapping(block.get("extras")).get("block_type") == "web_search_tool_result"
    return told and block.get("status") != "error"


def _is_search(block: Details) -> bool:
    """A search of the Responses API; opening a found page or looking through it costs nothing."""
    kind = block.get("type")
    if kind == "web_search_call":
        action = mapping(block.get("action"))
    elif kind == "server_tool_call" and block.get("name") == "web_search":
        action = mapping(block.get("args"))
    else:
        return False
    return bool(action.get("type", "search") == "search")


_COMPLETE: Mapping[str, Callable[[Usage, Answer], Usage]] = {
    "anthropic": _of_claude,
    "google_genai": _of_gemini,
    "mistralai": _of_mistral,
    "openai": _of_openai,
    "xai": _of_responses,
}
