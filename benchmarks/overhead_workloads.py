"""What `overhead.py` times: a model that answers at once, under each of the variants."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import count
from typing import Any

from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import tool
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind
from pydantic import PrivateAttr

from runcap.exporters import OTelSink
from runcap.guardrails import Budget, Guard
from runcap.guardrails.estimate import Measured
from runcap.integrations.langchain import BudgetCallbackHandler, guard_model
from runcap.integrations.langchain.messages import Walks
from runcap.integrations.langchain.parts import base_size

VARIANTS = ("none", "no-op inline", "a span alone", "runcap", "guarded model", "official")
WITH_METRICS = ("runcap + metrics", "official + metrics")
METERED = ("chat call, sync", "chat call, async", "agent step, sync", "agent step, async")
COLLECTED = ", collected"
"""The same with what its metrics cost when a reader collects them."""
HISTORY_VARIANTS = ("none", "a span alone", "runcap")
HISTORIES = (10, 100, 1_000, 5_000)
CALLS, STEPS, CHUNKS = 100, 20, 50
USAGE = {"input_tokens": 120, "output_tokens": 20, "total_tokens": 140}
TOLD = {"model_name": "gpt-4o-2024-08-06", "finish_reason": "stop", "id": "chatcmpl-1", "service_tier": "default"}
QUESTION = "What is the weather like in Paris, and what should I wear? " * 4
ASK: dict[str, Any] = {"messages": [("user", "What is the weather like in Paris?")]}


class Instant(BaseChatModel):
    """gpt-4o, as LangChain sees it; `calls` tool calls, then a plain answer."""

    model_name: str = "gpt-4o"
    max_tokens: int = 100
    max_retries: int = 0
    calls: int = 0
    _asked: int = PrivateAttr(default=0)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """As ChatOpenAI is."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """As ChatOpenAI's."""
        return ["langchain", "chat_models", "openai"]

    @property
    def _llm_type(self) -> str:
        return "openai-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model_name, "model_name": self.model_name, "max_tokens": self.max_tokens}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        told = {"ls_provider": "openai", "ls_model_name": self.model_name, "ls_model_type": "chat"}
        return {**told, "ls_max_tokens": self.max_tokens, "ls_temperature": 0.0}

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer the tools as OpenAI is offered them."""
        schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        function = {"name": "weather", "description": "The weather in a city.", "parameters": schema}
        return self.bind(tools=[{"type": "function", "function": function}], **kwargs)

    def _answer(self) -> AIMessage:
        self._asked += 1
        wanted = [{"name": "weather", "args": {"city": "Paris"}, "id": f"call_{self._asked}"}]
        calls: list[Any] = wanted if self.calls and self._asked % (self.calls + 1) else []
        return AIMessage("Take a coat.", usage_metadata=dict(USAGE), response_metadata=TOLD, tool_calls=calls)  # type: ignore[arg-type]

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer())])

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer())])

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for number in range(CHUNKS):
            chunk = ChatGenerationChunk(message=_chunk(number))
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for number in range(CHUNKS):
            chunk = ChatGenerationChunk(message=_chunk(number))
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


def _chunk(number: int) -> AIMessageChunk:
    last = number == CHUNKS - 1
    told: dict[str, Any] = {"usage_metadata": dict(USAGE), "response_metadata": TOLD} if last else {}
    return AIMessageChunk("word ", **told)


class NoOp(BaseCallbackHandler):
    """Every hook does nothing, on the caller's own thread."""

    run_inline = True

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        """Nothing; without it LangChain would make one string of all messages for `on_llm_start`."""


class SpanAlone(NoOp):
    """The least a tracer can do: one span of the SDK a call, with what stands on any chat span, made at its end."""

    def __init__(self) -> None:
        self._tracer = tracer_provider().get_tracer("benchmark")
        self._started: dict[Any, tuple[int, dict[str, Any]]] = {}

    def on_chat_model_start(self, *args: Any, run_id: Any, invocation_params: dict[str, Any], **kwargs: Any) -> None:
        """Note the time."""
        self._started[run_id] = (time.time_ns(), invocation_params)

    def on_llm_end(self, response: Any, *, run_id: Any, **kwargs: Any) -> None:
        """Make the span."""
        started, asked = self._started.pop(run_id)
        message = response.generations[0][0].message
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": asked["model"],
            "gen_ai.request.max_tokens": asked["max_tokens"],
            "gen_ai.response.model": message.response_metadata.get("model_name", ""),
            "gen_ai.response.id": message.response_metadata.get("id", ""),
            "gen_ai.usage.input_tokens": message.usage_metadata["input_tokens"],
            "gen_ai.usage.output_tokens": message.usage_metadata["output_tokens"],
        }
        name, kind = f"chat {asked['model']}", SpanKind.CLIENT
        self._tracer.start_span(name, kind=kind, attributes=attributes, start_time=started).end()


class NullExporter(SpanExporter):
    """Takes spans and forgets them."""

    def export(self, spans: Any) -> SpanExportResult:
        """Done."""
        return SpanExportResult.SUCCESS


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    del city
    return "Rain, 12 degrees, wind from the west."


_numbers = count()


def _prompt() -> list[BaseMessage]:
    """A new message each time: nothing is known of it yet."""
    return [HumanMessage(f"{next(_numbers)} {QUESTION}")]


def tracer_provider() -> TracerProvider:
    """Spans into a null exporter, at once."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(NullExporter()))
    return provider


_readers: list[InMemoryMetricReader] = []


def meter_provider() -> MeterProvider:
    """Metrics, collected by `_readers` between batches."""
    _readers.append(InMemoryMetricReader())
    return MeterProvider([_readers[-1]], shutdown_on_exit=False)


def handlers_of(variant: str) -> list[BaseCallbackHandler]:
    """What is passed as callbacks; the official tracer attaches itself."""
    if variant == "no-op inline":
        return [NoOp()]
    if variant == "a span alone":
        return [SpanAlone()]
    if variant in ("runcap", "runcap + metrics"):
        sink = OTelSink(tracer_provider(), meter_provider() if variant == "runcap + metrics" else None)
        return [BudgetCallbackHandler(Guard(Budget(usd=1_000_000, steps=10**9), sinks=(sink,)))]
    if variant == "guarded model":
        _guards.append(Guard(Budget(usd=1_000_000, steps=10**9), sinks=(OTelSink(tracer_provider()),)))
    if variant in ("official", "official + metrics"):
        from opentelemetry.instrumentation.genai.langchain import LangChainInstrumentor  # noqa: PLC0415 - patches

        meters = {"meter_provider": meter_provider()} if variant == "official + metrics" else {}
        LangChainInstrumentor().instrument(tracer_provider=tracer_provider(), skip_dep_check=True, **meters)
    return []


_guards: list[Guard] = []


def _instant(calls: int = 0) -> BaseChatModel:
    """The model, guarded in the variant that is about that."""
    model = Instant(calls=calls)
    return guard_model(model, _guards[0]) if _guards else model


def chat_sync(config: RunnableConfig) -> Callable[[], int]:
    """Invocations of a chat model."""
    model = _instant()

    def batch() -> int:
        for _ in range(CALLS):
            model.invoke(_prompt(), config)
        return CALLS

    return batch


def chat_async(config: RunnableConfig) -> Callable[[], int]:
    """Async invocations of a chat model."""
    model = _instant()

    async def calls() -> int:
        for _ in range(CALLS):
            await model.ainvoke(_prompt(), config)
        return CALLS

    return _on_one_loop(calls)


def step_sync(config: RunnableConfig) -> Callable[[], int]:
    """Steps of an agent: a model call, a tool call, and LangGraph around them."""
    agent = create_agent(_instant(STEPS - 1), tools=[weather])

    def batch() -> int:
        agent.invoke(ASK, config)
        return STEPS

    return batch


def step_async(config: RunnableConfig) -> Callable[[], int]:
    """Async steps of an agent."""
    agent = create_agent(_instant(STEPS - 1), tools=[weather])

    async def steps() -> int:
        await agent.ainvoke(ASK, config)
        return STEPS

    return _on_one_loop(steps)


def chunk_sync(config: RunnableConfig) -> Callable[[], int]:
    """Chunks of a stream, its call included."""
    model = _instant()

    def batch() -> int:
        return sum(1 for _ in range(4) for _ in model.stream(_prompt(), config))

    return batch


def chunk_async(config: RunnableConfig) -> Callable[[], int]:
    """Async chunks of a stream."""
    model = _instant()

    async def chunks() -> int:
        return sum([1 for _ in range(4) async for _ in model.astream(_prompt(), config)])

    return _on_one_loop(chunks)


def _on_one_loop(work: Callable[[], Any]) -> Callable[[], int]:
    loop = asyncio.new_event_loop()
    return lambda: loop.run_until_complete(work())


WORKLOADS: dict[str, Callable[[RunnableConfig], Callable[[], int]]] = {
    "chat call, sync": chat_sync,
    "chat call, async": chat_async,
    "agent step, sync": step_sync,
    "agent step, async": step_async,
    "stream chunk, sync": chunk_sync,
    "stream chunk, async": chunk_async,
}


def measure(variant: str, workload: str, batches: int) -> dict[str, list[float]]:
    """Microseconds an operation, of each batch, after two to warm up; where there are metrics, also with collecting."""
    batch = WORKLOADS[workload]({"callbacks": list(_attached(variant))})
    times, collected = zip(*[_timed(batch) for _ in range(batches + 2)][2:], strict=True)
    return {workload: list(times)} | ({workload + COLLECTED: list(collected)} if _readers else {})


def workloads_of(variant: str) -> tuple[str, ...]:
    """What is timed of it."""
    return METERED if variant in WITH_METRICS else tuple(WORKLOADS)


_made: dict[str, list[BaseCallbackHandler]] = {}


def _attached(variant: str) -> list[BaseCallbackHandler]:
    if variant not in _made:
        _made[variant] = handlers_of(variant)
    return _made[variant]


def _timed(batch: Callable[[], int]) -> tuple[float, float]:
    gc.collect()
    start = time.perf_counter()
    count = batch()
    done = time.perf_counter()
    for reader in _readers:
        reader.get_metrics_data()
    return (done - start) / count * 1e6, (time.perf_counter() - start) / count * 1e6


def measure_histories(batches: int) -> Iterator[tuple[int, dict[str, float], float]]:
    """Length, microseconds of a call by variant, and microseconds of runcap's walk of the history alone.

    An agent's loop: two messages more each call. The first call is left out, for it measures the history. The variants
    alternate, for a long history itself costs LangChain far more than any of them.
    """
    for length in HISTORIES:
        configs: dict[str, RunnableConfig] = {name: {"callbacks": handlers_of(name)} for name in HISTORY_VARIANTS}
        model = _instant()
        messages: list[BaseMessage] = [HumanMessage(f"Message {number} of a conversation.") for number in range(length)]
        walk = _walking(messages)
        times: dict[str, list[float]] = {name: [] for name in (*configs, "walk")}
        for call in range(batches * 8 + 1):
            for name, config in configs.items():
                start = time.perf_counter()
                answer = model.invoke(messages, config)
                times[name].append((time.perf_counter() - start) * 1e6)
            start = time.perf_counter()
            walk(messages)
            times["walk"].append((time.perf_counter() - start) * 1e6)
            messages = [*messages, answer, HumanMessage(f"More, number {call}.")]
        medians = {name: statistics.median(figures[1:]) for name, figures in times.items()}
        yield length, medians, medians.pop("walk")


def _walking(messages: list[BaseMessage]) -> Callable[[list[BaseMessage]], object]:
    walks, measured, base = Walks(), Measured(), base_size("gpt-4o", "openai", {})
    walks.walk(base, messages, measured)
    return lambda longer: walks.walk(base, longer, measured)
