"""Events -> span attributes. Names and numbers only: no content."""

from __future__ import annotations

from runcap.guardrails.amounts import UNITS
from runcap.guardrails.events import CallEnded, CallRefused, RunInfo
from runcap.guardrails.ledger import Balance
from runcap.guardrails.money import to_usd

from . import semconv as sc

Value = str | bool | int | float | tuple[str, ...]


def of_run(run: RunInfo, operation: str) -> dict[str, Value]:
    """What stands on every span: the operation, the conversation, the run and its tags."""
    attributes: dict[str, Value] = {
        sc.OPERATION_NAME: operation,
        sc.CONVERSATION_ID: run.conversation_id,
        sc.RUN_ID: run.id,
    }
    if run.parent_id is not None:
        attributes[sc.RUN_PARENT_ID] = run.parent_id
    for name, value in run.tags.items():
        attributes[sc.TAG + name] = value
    return attributes


def of_request(event: CallEnded) -> dict[str, Value]:
    """What was known when the call was made."""
    attributes = of_run(event.run, sc.OPERATION_CHAT)
    attributes[sc.REQUEST_STREAM] = event.stream
    attributes[sc.STEP] = event.step
    attributes[sc.GUARANTEE] = event.guarantee
    if event.model is not None:
        attributes[sc.REQUEST_MODEL] = event.model
    if event.provider is not None:
        attributes[sc.PROVIDER_NAME] = sc.PROVIDERS.get(event.provider, event.provider)
    if event.output_cap is not None:
        attributes[sc.REQUEST_MAX_TOKENS] = event.output_cap
    return attributes


def of_response(event: CallEnded) -> dict[str, Value]:
    """What the call turned out to be. Cost that is not known is absent, not zero."""
    attributes: dict[str, Value] = {sc.CALL_STATE: event.state}
    if event.response_model is not None:
        attributes[sc.RESPONSE_MODEL] = event.response_model
    if event.response_id is not None:
        attributes[sc.RESPONSE_ID] = event.response_id
    if event.finish_reasons:
        attributes[sc.RESPONSE_FINISH_REASONS] = event.finish_reasons
    if event.cached:
        attributes[sc.CALL_CACHED] = True
    if event.unknown_nano:
        attributes[sc.CALL_UNKNOWN_USD] = dollars(event.unknown_nano)
    if event.error_type is not None:
        attributes[sc.ERROR_TYPE] = event.error_type
    return attributes | _of_usage(event) | _of_cost(event)


def of_balance(balance: Balance) -> dict[str, Value]:
    """Every cap with what is used of it: `runcap.budget.usd.cap`, `.spent`, `.held`, `.unknown`, `.remaining`."""
    attributes: dict[str, Value] = {}
    for index, unit in enumerate(UNITS):
        cap, free = balance.caps[index], balance.free(index)
        if cap is None or free is None:
            continue
        figures = {"cap": cap, "spent": balance.spent[index], "remaining": free}
        if unit in ("usd", "tokens"):
            figures |= {"held": balance.held[index], "unknown": balance.unknown[index]}
        for name, figure in figures.items():
            attributes[f"{sc.BUDGET}{unit}.{name}"] = dollars(figure) if unit == "usd" else figure
    if balance.stopped is not None:
        attributes[sc.STOPPED] = balance.stopped
    return attributes


def of_refusal(event: CallRefused) -> dict[str, Value]:
    """The numbers of a refusal; dollars as dollars."""
    details = event.details
    attributes: dict[str, Value] = {sc.REFUSED_KIND: event.kind, sc.REFUSED_SCOPE: details.scope}
    if details.unit is None:
        return attributes
    attributes[sc.REFUSED_UNIT] = details.unit
    figures = {
        sc.REFUSED_CAP: details.cap,
        sc.REFUSED_SPENT: details.spent,
        sc.REFUSED_HELD: details.held,
        sc.REFUSED_UNKNOWN: details.unknown,
        sc.REFUSED_NEEDED: details.needed,
    }
    for name, figure in figures.items():
        attributes[name] = dollars(int(figure)) if details.unit == "usd" else figure
    return attributes


def dollars(nano: int) -> float:
    """Dollars as the double that attributes hold."""
    return float(to_usd(nano))


def _of_usage(event: CallEnded) -> dict[str, Value]:
    usage = event.usage
    if usage is None:
        return {}
    attributes: dict[str, Value] = {
        sc.USAGE_INPUT_TOKENS: usage.input_tokens,
        sc.USAGE_OUTPUT_TOKENS: usage.output_tokens,
    }
    parts = {
        sc.USAGE_CACHE_READ_TOKENS: usage.cache_read_tokens,
        sc.USAGE_CACHE_WRITE_TOKENS: usage.cache_write_tokens,
        sc.USAGE_REASONING_TOKENS: usage.reasoning_tokens,
    }
    return attributes | {name: count for name, count in parts.items() if count}


def _of_cost(event: CallEnded) -> dict[str, Value]:
    if event.cost_nano is None:
        return {}
    attributes: dict[str, Value] = {
        sc.COST_AMOUNT: dollars(event.cost_nano),
        sc.COST_CURRENCY: sc.CURRENCY_USD,
        sc.COST_SOURCE: sc.SOURCE_LOCAL,
    }
    return attributes | ({sc.PRICE_SOURCE: event.price_source} if event.price_source else {})
