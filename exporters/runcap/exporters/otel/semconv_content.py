"""The names under which content is recorded, where that is asked for.

They follow the OpenTelemetry GenAI semantic conventions (status Development), as opentelemetry-util-genai 1.3b0 ships
them: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ and .../gen-ai-events/.
"""

from __future__ import annotations

from typing import Final

CAPTURE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""The variable that says where content goes."""

SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
"""string, JSON: the system prompt, as parts."""
INPUT_MESSAGES: Final = "gen_ai.input.messages"
"""string, JSON: the messages that were sent."""
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
"""string, JSON: the answer."""
TOOL_DEFINITIONS: Final = "gen_ai.tool.definitions"
"""string, JSON: the tools that were offered."""
TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
"""string, JSON: what a tool was called with."""
TOOL_CALL_RESULT: Final = "gen_ai.tool.call.result"
"""string, JSON: what a tool gave back."""

EVENT_INFERENCE_DETAILS: Final = "gen_ai.client.inference.operation.details"
"""log event: the content of a call; the attributes above."""
