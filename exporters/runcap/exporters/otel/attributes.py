"""Events -> span attributes. Names and numbers only: no content."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from runcap.guardrails.amounts import UNITS
from runcap.guardrails.events import (
    BudgetWarned,
    CallEnded,
    CallReconciled,
    CallRefused,
    CallStarted,
    LoopWarned,
    PrefixBroken,
    RunInfo,
    RunPaused,
    TierSwitched,
)
from runcap.guardrails.history import Cut
from runcap.guardrails.ledger import Balance
from runcap.guardrails.money import NANO
from runcap.guardrails.ratecard import BILLED

from . import semconv as sc

Value = str | bool | int | float | tuple[str, ...]


def of_run(run: RunInfo, operation: str, agent_name: str, allowed: Collection[str]) -> dict[str, Value]:
    """What stands on every span: the operation, the conversation, the agent, the run and its tags, those allowed."""
    attributes: dict[str, Value] = {
        sc.OPERATION_NAME: operation,
        sc.CONVERSATION_ID: run.conversation_id,
        sc.AGENT_NAME: agent_name,
        sc.RUN_ID: run.id,
    }
    if run.parent_id is not None:
        attributes[sc.RUN_PARENT_ID] = run.parent_id
    if run.tags:
        attributes.update([(sc.TAG + name, value) for name, value in run.tags.items() if name in allowed])
    return attributes


def of_request(event: CallStarted | CallEnded) -> dict[str, Value]:
    """What was asked: samplers may look at it as the span begins."""
    attributes: dict[str, Value] = {sc.REQUEST_STREAM: event.stream}
    if event.provider is not None:
        attributes[sc.PROVIDER_NAME] = sc.PROVIDERS.get(event.provider, event.provider)
    if event.model is not None:
        attributes[sc.REQUEST_MODEL] = event.model
    if event.output_cap is not None:
        attributes[sc.REQUEST_MAX_TOKENS] = event.output_cap
    return attributes


def of_call(event: CallEnded) -> dict[str, Value]:
    """All of a call: what was asked, what it turned out to be, and the budget after it. Unknown cost is absent."""
    attributes = of_request(event)
    attributes[sc.STEP] = event.step
    attributes[sc.GUARANTEE] = event.guarantee
    attributes[sc.CALL_STATE] = event.state
    for name, told in (
        (sc.RESPONSE_MODEL, event.response_model),
        (sc.RESPONSE_ID, event.response_id),
        (sc.RESPONSE_TIME_TO_FIRST_CHUNK, event.first_chunk_s),
        (sc.ERROR_TYPE, event.error_type),
    ):
        if told is not None:
            attributes[name] = told
    if event.finish_reasons:
        attributes[sc.RESPONSE_FINISH_REASONS] = event.finish_reasons
    if event.cached or event.clamped or event.cut or event.waited_s or event.last:
        _add_oddities(attributes, event)
    if event.tier is not None:
        attributes[sc.TIER] = event.tier
    if event.history_cut is not None:
        attributes.update(_of_cut(event.history_cut))
    if event.unknown_nano:
        attributes[sc.CALL_UNKNOWN_USD] = dollars(event.unknown_nano)
    _add_usage(attributes, event)
    _add_cost(attributes, event)
    if event.balance is not None:
        _add_balance(attributes, event.balance)
    return attributes


def of_balance(balance: Balance) -> dict[str, Value]:
    """Every cap with what is used of it: `runcap.budget.usd.cap`, `.spent`, `.remaining`; `.held`, `.unknown` if so."""
    attributes: dict[str, Value] = {}
    _add_balance(attributes, balance)
    return attributes


def of_refusal(event: CallRefused | RunPaused) -> dict[str, Value]:
    """The numbers of a refusal; dollars as dollars."""
    details = event.details
    attributes: dict[str, Value] = {sc.REFUSED_SCOPE: details.scope}
    if isinstance(event, CallRefused):
        attributes[sc.REFUSED_KIND] = event.kind
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


def moments(event: CallEnded) -> Iterator[tuple[str, dict[str, Value], int]]:
    """What happened to a call on its way, as span events with their times: trimmed, made to wait, clamped, unknown."""
    if event.history_cut is not None:
        yield sc.EVENT_TRIMMED, _of_cut(event.history_cut), event.started_ns
    if event.waited_s:
        yield sc.EVENT_WAITED, {sc.CALL_WAITED_S: event.waited_s}, event.started_ns
    if event.clamped and event.output_cap is not None:
        yield sc.EVENT_CLAMPED, {sc.REQUEST_MAX_TOKENS: event.output_cap}, event.started_ns
    if event.unknown_nano:
        yield sc.EVENT_UNKNOWN, {sc.CALL_UNKNOWN_USD: dollars(event.unknown_nano)}, event.time_ns


def of_warning(event: BudgetWarned) -> dict[str, Value]:
    """A share of a cap was reached: of which, and the budget then."""
    about: dict[str, Value] = {
        sc.WARNED_UNIT: event.unit,
        sc.WARNED_SHARE: event.share,
        sc.WARNED_SCOPE: event.scope,
    }
    return about | of_balance(event.balance)


def of_late_usage(event: CallReconciled) -> dict[str, Value]:
    """What a call turned out to have used that had ended as unknown."""
    attributes: dict[str, Value] = {
        sc.USAGE_INPUT_TOKENS: event.usage.input_tokens,
        sc.USAGE_OUTPUT_TOKENS: event.usage.output_tokens,
    }
    if event.cost_nano is not None:
        attributes[sc.RECONCILED_USD] = dollars(event.cost_nano)
    return attributes


def of_loop(event: LoopWarned) -> dict[str, Value]:
    """A loop: its kind, how often, how long, and its tools by name."""
    loop = event.loop
    return {
        sc.LOOP_KIND: loop.kind,
        sc.LOOP_TIMES: loop.times,
        sc.LOOP_PERIOD: loop.period,
        sc.LOOP_TOOLS: loop.tools,
        sc.LOOP_HALTED: event.halted,
    }


def of_switch(event: TierSwitched) -> dict[str, Value]:
    """A step down the ladder."""
    attributes: dict[str, Value] = {
        sc.TIER: event.tier,
        sc.TIER_SHARE: round(event.share, 4),
        sc.TIER_FORCED: event.forced,
    }
    return attributes if event.before is None else {**attributes, sc.TIER_BEFORE: event.before}


def of_break(event: PrefixBroken) -> dict[str, Value]:
    """Where a prompt's prefix broke, and what that cost."""
    attributes: dict[str, Value] = {sc.PREFIX_WHAT: event.what, sc.PREFIX_TOKENS: event.tokens}
    return attributes if event.cost_nano is None else {**attributes, sc.PREFIX_COST: dollars(event.cost_nano)}


def dollars(nano: int) -> float:
    """Dollars as the double that attributes hold: the one nearest to the exact amount."""
    return nano / NANO


def _of_cut(cut: Cut) -> dict[str, Value]:
    attributes: dict[str, Value] = {
        sc.CUT_MESSAGES: cut.messages,
        sc.CUT_TOKENS: cut.tokens,
        sc.CUT_KEPT: cut.kept,
    }
    return {**attributes, sc.CUT_SHORTENED: cut.shortened} if cut.shortened else attributes


def _add_oddities(attributes: dict[str, Value], event: CallEnded) -> None:
    figures = {
        sc.CALL_CACHED: event.cached,
        sc.CALL_CLAMPED: event.clamped,
        sc.CALL_CUT: event.cut,
        sc.CALL_WAITED_S: event.waited_s,
        sc.LAST_ANSWER: event.last,
    }
    attributes.update({name: figure for name, figure in figures.items() if figure})


def _add_usage(attributes: dict[str, Value], event: CallEnded) -> None:
    usage = event.usage
    if usage is None:
        return
    attributes[sc.USAGE_INPUT_TOKENS] = usage.input_tokens
    attributes[sc.USAGE_OUTPUT_TOKENS] = usage.output_tokens
    if usage.cache_read_tokens:
        attributes[sc.USAGE_CACHE_READ_TOKENS] = usage.cache_read_tokens
    if usage.cache_write_tokens:
        attributes[sc.USAGE_CACHE_WRITE_TOKENS] = usage.cache_write_tokens
    if usage.reasoning_tokens:
        attributes[sc.USAGE_REASONING_TOKENS] = usage.reasoning_tokens


def _add_cost(attributes: dict[str, Value], event: CallEnded) -> None:
    if event.cost_nano is None:
        return
    attributes[sc.COST_AMOUNT] = dollars(event.cost_nano)
    attributes[sc.COST_CURRENCY] = sc.CURRENCY_USD
    attributes[sc.COST_SOURCE] = sc.SOURCE_PROVIDER if event.price_source == BILLED else sc.SOURCE_LOCAL
    if event.price_source:
        attributes[sc.PRICE_SOURCE] = event.price_source


def _add_balance(attributes: dict[str, Value], balance: Balance) -> None:
    for unit, cap in enumerate(balance.caps):
        if cap is None:
            continue
        names, spent, held, unknown = _BUDGET[unit], balance.spent[unit], balance.held[unit], balance.unknown[unit]
        left = max(0, cap - spent - held - unknown)
        shown = dollars if unit == 0 else int
        attributes[names[0]], attributes[names[1]], attributes[names[2]] = shown(cap), shown(spent), shown(left)
        if held:
            attributes[names[3]] = shown(held)
        if unknown:
            attributes[names[4]] = shown(unknown)
    if balance.stopped is not None:
        attributes[sc.STOPPED] = balance.stopped


_BUDGET = [
    [f"{sc.BUDGET}{unit}.{figure}" for figure in ("cap", "spent", "remaining", "held", "unknown")] for unit in UNITS
]
