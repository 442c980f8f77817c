"""OpenTelemetry: the strings, the spans, and the OTLP set-up."""
