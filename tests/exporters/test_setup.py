from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from runcap.exporters import setup_otlp
from runcap.exporters.otel.otlp_settings import Settings, settings_of
from runcap.exporters.otel.setup import Telemetry

from .endpoints import Endpoint, down, over_grpc, over_http

KEY = "S3CRETkey"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [one for one in os.environ if one.startswith(("OTEL_", "HONEYCOMB_"))]:
        monkeypatch.delenv(name)


def settings(**kwargs: Any) -> Settings:
    every = ("endpoint", "preset", "protocol", "headers", "api_key", "service_name", "metrics")
    return settings_of(*(kwargs.get(name) for name in every))


def send(telemetry: Telemetry) -> None:
    """One of each signal, taken."""
    telemetry.tracer_provider.get_tracer("test").start_span("one").end()
    if telemetry.meter_provider is not None:
        telemetry.meter_provider.get_meter("test").create_counter("one").add(1)
    assert telemetry.flush(60)
    telemetry.shutdown(60)


BAD: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({"protocol": "thrift"}, {}, 'protocol must be "grpc" or "http/protobuf", got \'thrift\''),
    ({"endpoint": "localhost:4317"}, {}, "endpoint must be an http:// or https:// URL"),
    ({"endpoint": "http://"}, {}, "endpoint must be"),
    ({"endpoint": "http://host:port"}, {}, "endpoint must be"),
    ({"endpoint": 4317}, {}, "got 4317"),
    ({"endpoint": f"ftp://me:{KEY}@host"}, {}, "'@' in it"),
    ({"endpoint": f"host?key={KEY}"}, {}, "got 'host'"),
    ({"preset": "zipkin"}, {}, "preset must be one of jaeger, honeycomb, honeycomb-eu, got 'zipkin'"),
    ({"preset": "jaeger", "protocol": "http/protobuf"}, {}, "preset='jaeger' speaks grpc"),
    ({"preset": "jaeger", "metrics": True}, {}, "preset='jaeger' takes traces only"),
    ({"preset": "jaeger", "api_key": KEY}, {}, "api_key goes with"),
    ({"api_key": KEY}, {}, "api_key goes with"),
    ({"preset": "honeycomb", "service_name": "shop"}, {}, "preset='honeycomb' needs a key: pass api_key="),
    ({"preset": "honeycomb-eu", "api_key": KEY}, {}, "needs a service, its dataset: pass service_name="),
    (
        {"preset": "honeycomb", "api_key": f"{KEY}\n{KEY}", "service_name": "s"},
        {},
        "x-honeycomb-team' must be one line",
    ),
    ({"headers": {"x-key": f"{KEY}\r\nx: y"}}, {}, "the value of 'x-key' must be one line"),
    ({"headers": {f"x key {KEY}": "v"}}, {}, "a header's name"),
    ({"headers": {"x-key": None}}, {}, "the value of 'x-key'"),
    ({}, {"OTEL_EXPORTER_OTLP_HEADERS": f"a=b,{KEY}"}, "OTEL_EXPORTER_OTLP_HEADERS: entry 2 is not name=value"),
    ({}, {"OTEL_EXPORTER_OTLP_TRACES_HEADERS": f"a=%0a{KEY}x%0ay"}, "the value of 'a' must be one line"),
    ({}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL must be"),
    ({}, {"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "x"}, "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL must be"),
    ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT must be"),
    ({}, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "host"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT must be"),
    ({}, {"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"}, "OTEL_EXPORTER_OTLP_TIMEOUT must be a number above 0, got '10s'"),
    ({}, {"OTEL_EXPORTER_OTLP_COMPRESSION": "deflate"}, 'must be "none" or "gzip", got \'deflate\''),
    ({}, {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such.pem"}, "OTEL_EXPORTER_OTLP_CERTIFICATE names no file"),
    ({}, {"OTEL_METRIC_EXPORT_INTERVAL": "0"}, "OTEL_METRIC_EXPORT_INTERVAL must be"),
    ({}, {"OTEL_BSP_MAX_QUEUE_SIZE": "0.5"}, "OTEL_BSP_MAX_QUEUE_SIZE must be"),
    ({}, {"OTEL_BSP_MAX_QUEUE_SIZE": "5", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "6"}, "must be at most"),
]


@pytest.mark.parametrize(("kwargs", "env", "says"), BAD)
def test_what_cannot_be_is_named(
    kwargs: dict[str, Any], env: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"must|needs|speaks|takes|goes|is not|names no") as caught:
        setup_otlp(**kwargs)
    assert says in str(caught.value)
    assert KEY not in str(caught.value)


def test_presets() -> None:
    jaeger = settings(preset="jaeger")
    assert jaeger.traces is not None
    assert (jaeger.traces.endpoint, jaeger.traces.protocol) == ("http://localhost:4317", "grpc")
    assert jaeger.metrics is None
    for name, host in (("honeycomb", "api.honeycomb.io"), ("honeycomb-eu", "api.eu1.honeycomb.io")):
        there = settings(preset=name, api_key=f" {KEY}\n", service_name="shop")
        assert there.traces is not None
        assert there.metrics is not None
        assert (there.traces.endpoint, there.traces.protocol) == (f"https://{host}/v1/traces", "http/protobuf")
        assert there.traces.headers == {"x-honeycomb-team": KEY}
        assert there.metrics.headers == {"x-honeycomb-team": KEY, "x-honeycomb-dataset": "shop-metrics"}
        assert there.traces.where == f"{host}:443"
        assert KEY not in repr(there)


@pytest.mark.parametrize(
    ("kwargs", "env", "key"),
    [
        ({}, {"HONEYCOMB_API_KEY": "a"}, "a"),
        ({}, {"OTEL_EXPORTER_OTLP_HEADERS": "x-honeycomb-team=b"}, "b"),
        ({"headers": {"X-Honeycomb-Team": "c"}}, {"HONEYCOMB_API_KEY": "a"}, "c"),
        ({"api_key": "d"}, {"HONEYCOMB_API_KEY": "a", "OTEL_EXPORTER_OTLP_HEADERS": "x-honeycomb-team=b"}, "d"),
    ],
)
def test_where_the_key_comes_from(
    kwargs: dict[str, Any], env: dict[str, str], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    there = settings(preset="honeycomb", **kwargs)
    assert there.traces is not None
    assert there.traces.headers["x-honeycomb-team"] == key


def test_a_dataset_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "x-honeycomb-dataset=all")
    there = settings(preset="honeycomb", api_key=KEY, service_name="shop")
    assert there.metrics is not None
    assert there.metrics.headers == {"x-honeycomb-team": KEY, "x-honeycomb-dataset": "all"}


def test_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector/base/",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://[::1]:9/as/it/is",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "4",
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "0.5",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION": "none",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=1,B=two%20words",
        "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "",
        "OTEL_METRIC_EXPORT_INTERVAL": "1500",
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_BSP_SCHEDULE_DELAY": "250",
    }.items():
        monkeypatch.setenv(name, value)
    told = settings(headers={"A": "3"})
    assert told.traces is not None
    assert told.metrics is not None
    assert (told.traces.endpoint, told.metrics.endpoint) == (
        "https://collector/base/v1/traces",
        "http://[::1]:9/as/it/is",
    )
    assert (told.traces.where, told.metrics.where) == ("collector:443", "[::1]:9")
    assert (told.traces.timeout, told.metrics.timeout) == (4.0, 0.5)
    assert (told.traces.compression, told.metrics.compression) == ("gzip", "none")
    assert told.traces.headers == told.metrics.headers == {"a": "3", "b": "two words"}
    assert (told.interval, told.queue, told.batch, told.delay) == (1.5, 100, 100, 0.25)
    over = settings(endpoint="http://me:pw@host:1/v1/traces", protocol="grpc")
    assert over.traces is not None
    assert (over.traces.protocol, over.traces.where) == ("grpc", "host:1")
    plain = settings(endpoint="http://host:1/v1/traces")
    assert plain.metrics is not None
    assert plain.metrics.endpoint == "http://host:1/v1/metrics"


@pytest.mark.parametrize(
    ("kwargs", "env", "on"),
    [
        ({}, {}, (True, True)),
        ({"metrics": False}, {}, (True, False)),
        ({}, {"OTEL_METRICS_EXPORTER": "none"}, (True, False)),
        ({"metrics": True}, {"OTEL_METRICS_EXPORTER": "none"}, (True, True)),
        ({}, {"OTEL_TRACES_EXPORTER": "none"}, (False, True)),
        ({"metrics": True}, {"OTEL_SDK_DISABLED": "TRUE"}, (False, False)),
        ({}, {"OTEL_SDK_DISABLED": "no"}, (True, True)),
    ],
)
def test_what_is_on(
    kwargs: dict[str, Any], env: dict[str, str], on: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with down() as endpoint, setup_otlp(endpoint.url, set_global=False, **kwargs) as telemetry:
        told = repr(telemetry)
        assert (f"traces to {endpoint.where}" in told, f"metrics to {endpoint.where}" in told) == on
        assert (telemetry.meter_provider is not None) == on[1]
        telemetry.tracer_provider.get_tracer("test")


@pytest.mark.parametrize(("protocol", "make"), [("grpc", over_grpc), ("http/protobuf", over_http)])
@pytest.mark.parametrize("packed", ["none", "gzip"])
def test_what_arrives(protocol: Any, make: Any, packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", packed)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=env,x-more=1")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "env")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=blue")
    endpoint: Endpoint
    with make() as endpoint:
        send(setup_otlp(endpoint.url, protocol=protocol, headers={"X-Key": KEY}, service_name="shop", set_global=False))
        for signal in ("traces", "metrics"):
            headers = endpoint.of(signal).headers
            assert (headers["x-key"], headers["x-more"]) == (KEY, "1")
        assert endpoint.spans() == [["one"]]
        assert endpoint.resource()["service.name"] == "shop"
        assert endpoint.resource()["team"] == "blue"


def test_the_endpoint_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with over_http() as endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        send(setup_otlp(set_global=False))
        assert endpoint.spans() == [["one"]]


def test_after_the_end_nothing_is_sent_and_nothing_raised() -> None:
    with over_http() as endpoint:
        telemetry = setup_otlp(endpoint.url, protocol="http/protobuf", set_global=False)
        tracer = telemetry.tracer_provider.get_tracer("test")
        telemetry.shutdown(60)
        telemetry.shutdown()
        tracer.start_span("late").end()
        telemetry.flush(0.1)
        assert endpoint.taken == []


def test_a_provider_shut_down_by_its_user_has_sent_all() -> None:
    with over_http() as endpoint:
        telemetry = setup_otlp(endpoint.url, protocol="http/protobuf", set_global=False)
        telemetry.tracer_provider.get_tracer("test").start_span("one").end()
        telemetry.tracer_provider.shutdown()
        assert telemetry.meter_provider is not None
        telemetry.meter_provider.shutdown()
        assert endpoint.spans() == [["one"]]
        telemetry.shutdown()


def in_a_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize("which", ["tracer", "meter"])
def test_a_global_provider_is_never_replaced(which: str) -> None:
    code = f"""
import threading
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from runcap.exporters import setup_otlp
which = {which!r}
theirs = TracerProvider() if which == "tracer" else MeterProvider()
(trace.set_tracer_provider if which == "tracer" else metrics.set_meter_provider)(theirs)
threads = threading.active_count()
try:
    setup_otlp("http://127.0.0.1:9")
except RuntimeError as error:
    assert f"a global {{which}} provider is set already" in str(error), error
    assert "set_global=False" in str(error), error
    assert threading.active_count() == threads
    other = metrics.get_meter_provider() if which == "tracer" else trace.get_tracer_provider()
    assert "Proxy" in type(other).__name__, other
    setup_otlp("http://127.0.0.1:9", set_global=False).shutdown()
    assert "Proxy" in type(metrics.get_meter_provider() if which == "tracer" else trace.get_tracer_provider()).__name__
    if which == "meter":
        with setup_otlp("http://127.0.0.1:9", metrics=False) as telemetry:
            assert trace.get_tracer_provider() is telemetry.tracer_provider
    print("refused")
"""
    assert in_a_process(code) == "refused"


def test_what_is_set_up_is_global_and_named() -> None:
    code = """
from opentelemetry import metrics, trace
from runcap.exporters import setup_otlp
telemetry = setup_otlp("http://127.0.0.1:9", protocol="http/protobuf", service_name="shop", headers={"k": "v"})
assert trace.get_tracer_provider() is telemetry.tracer_provider
assert metrics.get_meter_provider() is telemetry.meter_provider
try:
    setup_otlp("http://127.0.0.1:9")
except RuntimeError:
    print(telemetry.tracer_provider.resource.attributes["service.name"], repr(telemetry))
"""
    assert in_a_process(code) == "shop <Telemetry traces to 127.0.0.1:9, metrics to 127.0.0.1:9>"


def test_an_exporter_that_cannot_be_made_leaves_nothing() -> None:
    code = """
import threading
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http import metric_exporter
from runcap.exporters import setup_otlp

def no_exporter(**options):
    raise OSError("no certificate")

metric_exporter.OTLPMetricExporter = no_exporter
try:
    setup_otlp("http://127.0.0.1:9", protocol="http/protobuf")
except OSError:
    assert "Proxy" in type(trace.get_tracer_provider()).__name__
    assert "Proxy" in type(metrics.get_meter_provider()).__name__
    print(threading.active_count())
"""
    assert in_a_process(code) == "1"
