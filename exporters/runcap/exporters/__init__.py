"""Where events go: spans, logs, the terminal, files, whoever is to be told."""

from .alerts import Alert, AlertSink
from .console import ConsoleSink
from .jsonl import JSONLSink
from .log import LogSink
from .otel.setup import Telemetry, setup_otlp
from .otel.sink import OTelSink

__all__ = ["Alert", "AlertSink", "ConsoleSink", "JSONLSink", "LogSink", "OTelSink", "Telemetry", "setup_otlp"]
