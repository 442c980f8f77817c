"""langchain-aws, fed with the answers AWS documents; botocore's stubber holds them to the service's own model.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html, .../API_runtime_ConverseStream.html,
.../API_runtime_TokenUsage.html, .../API_runtime_InvokeModel.html (usage in the headers; streams end with
amazon-bedrock-invocationMetrics), .../API_runtime_ServiceTier.html.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import boto3  # type: ignore[import-untyped]
import pytest
from botocore.response import StreamingBody  # type: ignore[import-untyped]
from botocore.stub import Stubber  # type: ignore[import-untyped]
from langchain_aws import ChatBedrock, ChatBedrockConverse
from langchain_aws.chat_models.anthropic import ChatAnthropicBedrock
from langchain_core.messages import HumanMessage
from pydantic import SecretStr

from runcap.guardrails import Usage

from .test_anthropic import delta, stream, totals
from .wire import JSON, Wire, ainvoked, invoked, streamed

MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
USAGE: JSON = {
    "inputTokens": 30,
    "outputTokens": 628,
    "totalTokens": 658,  # leaves the cached tokens out, as AWS documents it; never looked at
    "cacheReadInputTokens": 2000,
    "cacheWriteInputTokens": 500,
}
COUNTED = Usage(2530, 628, cache_read_tokens=2000, cache_write_tokens=500)
SPLIT: JSON = {"cacheDetails": [{"ttl": "1h", "inputTokens": 300}, {"ttl": "5m", "inputTokens": 200}]}


@pytest.fixture(scope="module")
def runtime() -> Any:
    return boto3.client(
        "bedrock-runtime", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none"
    )


@pytest.fixture
def stubber(runtime: Any) -> Iterator[Stubber]:
    with Stubber(runtime) as active:
        yield active


class Streams:
    """The client of a stream, whose binary events botocore has read."""

    class meta:  # noqa: N801 - botocore's name
        region_name = "us-east-1"

    def __init__(self, *events: JSON) -> None:
        self.events = events

    def converse_stream(self, **_: Any) -> JSON:
        return {"stream": iter(self.events), "ResponseMetadata": {"RequestId": "r1", "HTTPStatusCode": 200}}

    def invoke_model_with_response_stream(self, **_: Any) -> JSON:
        return {"body": iter({"chunk": {"bytes": json.dumps(event).encode()}} for event in self.events)}


def converse(client: Any, **more: Any) -> ChatBedrockConverse:
    return ChatBedrockConverse(client=client, bedrock_client=client, **({"model": MODEL} | more))


def converse_answer(usage: JSON, tier: str | None = None) -> JSON:
    told: JSON = {
        "output": {"message": {"role": "assistant", "content": [{"text": "Here is a pop song."}]}},
        "stopReason": "end_turn",
        "usage": usage,
        "metrics": {"latencyMs": 1275},
    }
    return told | ({"serviceTier": {"type": tier}} if tier else {})


def converse_events(usage: JSON, tier: str | None = None) -> list[JSON]:
    metadata: JSON = {"usage": usage, "metrics": {"latencyMs": 1275}}
    return [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockDelta": {"delta": {"text": "Here is a pop song."}, "contentBlockIndex": 0}},
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"messageStop": {"stopReason": "end_turn"}},
        {"metadata": metadata | ({"serviceTier": {"type": tier}} if tier else {})},
    ]


@pytest.mark.parametrize(
    ("tier", "context"),
    [(None, None), ("default", "standard"), ("priority", "priority"), ("flex", "flex"), ("reserved", "standard")],
)
def test_converse(stubber: Stubber, runtime: Any, tier: str | None, context: str | None) -> None:
    stubber.add_response("converse", converse_answer(USAGE, tier))
    heard = invoked(converse(runtime))
    assert heard.usage == COUNTED
    assert heard.response.model == MODEL
    assert heard.response.context == context
    assert heard.response.finish_reasons == ("end_turn",)


@pytest.mark.parametrize(("tier", "context"), [(None, None), ("priority", "priority"), ("flex", "flex")])
def test_converse_stream(tier: str | None, context: str | None) -> None:
    heard = streamed(converse(Streams(*converse_events(USAGE, tier))))
    assert heard.usage == COUNTED
    assert heard.response.model == MODEL
    assert heard.response.context == context
    assert heard.response.finish_reasons == ("end_turn",)


async def test_converse_in_async_code(stubber: Stubber, runtime: Any) -> None:
    stubber.add_response("converse", converse_answer(USAGE))
    assert (await ainvoked(converse(runtime))).usage == COUNTED


def test_converse_splits_writes_by_how_long_they_last(stubber: Stubber, runtime: Any) -> None:
    counted = Usage(2530, 628, cache_read_tokens=2000, cache_write_tokens=500, cache_write_1h_tokens=300)
    stubber.add_response("converse", converse_answer(USAGE | SPLIT))
    assert invoked(converse(runtime)).usage == counted
    assert streamed(converse(Streams(*converse_events(USAGE | SPLIT)))).usage == counted


def test_the_model_behind_an_inference_profile(stubber: Stubber, runtime: Any) -> None:
    """An ARN names no model, so LangChain answers with `base_model_id`."""
    arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123"
    stubber.add_response("converse", converse_answer(USAGE))
    heard = invoked(converse(runtime, model=arn, base_model_id=MODEL.removeprefix("us."), provider="anthropic"))
    assert heard.response.model == "anthropic.claude-sonnet-4-5-20250929-v1:0"
    assert heard.request is not None
    assert heard.request.model == heard.response.model


def bedrock(client: Any) -> ChatBedrock:
    return ChatBedrock(model=MODEL, client=client, bedrock_client=client, beta_use_converse_api=False)


MESSAGE: JSON = {
    "id": "msg_bdrk_01",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5-20250929",
    "content": [{"type": "text", "text": "Hello"}],
    "stop_reason": "end_turn",
    "usage": {
        "input_tokens": 30,
        "cache_read_input_tokens": 2000,
        "cache_creation_input_tokens": 500,
        "output_tokens": 628,
    },
}
HEADERS = {
    "x-amzn-bedrock-input-token-count": "30",
    "x-amzn-bedrock-output-token-count": "628",
    "x-amzn-bedrock-cache-read-input-token-count": "2000",
    "x-amzn-bedrock-cache-write-input-token-count": "500",
}


def test_invoke_model_has_its_usage_in_the_headers(stubber: Stubber, runtime: Any) -> None:
    body = json.dumps(MESSAGE).encode()
    answer = {
        "body": StreamingBody(io.BytesIO(body), len(body)),
        "contentType": "application/json",
        "ResponseMetadata": {"HTTPHeaders": HEADERS, "HTTPStatusCode": 200},
    }
    stubber.add_response("invoke_model", answer)
    heard = invoked(bedrock(runtime))
    assert heard.usage == COUNTED
    assert heard.response.model == MODEL
    assert heard.response.context is None


def test_invoke_model_of_a_stream_counts_the_last_event_alone() -> None:
    """Claude's own events carry usage too; LangChain leaves it out, or the cached tokens would count twice."""
    metrics = {
        "inputTokenCount": 30,
        "outputTokenCount": 628,
        "cacheReadInputTokenCount": 2000,
        "cacheWriteInputTokenCount": 500,
        "invocationLatency": 1275,
        "firstByteLatency": 300,
    }
    events = stream(delta("end_turn", **totals(628, 2000, 500)), cached=2000)
    events[-1] |= {"amazon-bedrock-invocationMetrics": metrics}
    heard = streamed(bedrock(Streams(*events)))
    assert heard.usage == COUNTED
    assert heard.response.finish_reasons == ("end_turn",)


@pytest.fixture
def claude(wire: Wire) -> ChatAnthropicBedrock:
    none = SecretStr("none")
    made: dict[str, Any] = {"model": MODEL, "max_tokens": 1000, "region_name": "us-east-1"}
    model = ChatAnthropicBedrock(aws_access_key_id=none, aws_secret_access_key=none, **made)
    # Anthropic's plain client in place of its Bedrock one: the same events, without AWS' signatures and binary framing.
    vars(model)["_client"] = anthropic.Anthropic(base_url=wire.url, api_key="none", max_retries=0)
    return model


@pytest.mark.parametrize("deltas", [1, 2])
@pytest.mark.parametrize("output_alone", [False, True])
def test_claudes_own_api_at_bedrock(wire: Wire, claude: ChatAnthropicBedrock, deltas: int, output_alone: bool) -> None:
    """The input is taken from message_start and never from a delta, so nothing is counted twice."""
    last = delta("end_turn", **({"output_tokens": 89} if output_alone else totals(89, cached=2000)))
    more = [delta(None, **totals(40, cached=2000))] if deltas == 2 else []
    wire.events(*stream(*more, last, cached=2000), done=False)
    assert streamed(claude).usage == Usage(2472, 89, cache_read_tokens=2000)


def test_how_long_writes_last_at_bedrock_is_known_from_the_request(wire: Wire, claude: ChatAnthropicBedrock) -> None:
    events = stream(delta("end_turn", output_tokens=89))
    events[0]["message"]["usage"] |= {
        "cache_creation_input_tokens": 700,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 700},
    }
    wire.events(*events, done=False)
    block = {"type": "text", "text": "long", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    told = streamed(claude, [HumanMessage([block])]).usage
    assert told == Usage(1172, 89, cache_write_tokens=700, cache_write_1h_tokens=700)
