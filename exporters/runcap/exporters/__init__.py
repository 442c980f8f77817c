"""Where events go: spans, logs."""

from .log import LogSink
from .otel.setup import setup_otlp
from .otel.sink import OTelSink

__all__ = ["LogSink", "OTelSink", "setup_otlp"]
