"""Where telemetry goes and how: arguments, then a preset, then the standard `OTEL_*` variables.

Variables: opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables and .../protocol/exporter. Timeouts
are seconds, as in the Python exporters (the specification has milliseconds); intervals and delays are milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args
from urllib.parse import SplitResult, urlsplit

from opentelemetry.sdk.resources import SERVICE_NAME, Resource

from .otlp_environment import Environment, clean_headers

Protocol = Literal["grpc", "http/protobuf"]
Preset = Literal["jaeger", "honeycomb", "honeycomb-eu"]
Signal = Literal["traces", "metrics"]
Compression = Literal["none", "gzip", "deflate"]

_KEY = "x-honeycomb-team"
_DATASET = "x-honeycomb-dataset"
_FILES = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
_DEFAULT: dict[Protocol, str] = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}


@dataclass(frozen=True, slots=True)
class _Preset:
    endpoint: str
    protocol: Protocol
    metrics: bool
    keyed: bool


_PRESETS: dict[str, _Preset] = {
    "jaeger": _Preset("http://localhost:4317", "grpc", metrics=False, keyed=False),
    "honeycomb": _Preset("https://api.honeycomb.io", "http/protobuf", metrics=True, keyed=True),
    "honeycomb-eu": _Preset("https://api.eu1.honeycomb.io", "http/protobuf", metrics=True, keyed=True),
}


@dataclass(frozen=True, slots=True)
class Destination:
    """Where one signal goes. `endpoint` is what the exporter takes, the signal's path and all; `timeout` is seconds."""

    signal: Signal
    protocol: Protocol
    endpoint: str
    headers: Mapping[str, str] = field(repr=False)  # keys stand here
    timeout: float
    compression: Compression

    @property
    def where(self) -> str:
        """`host:port`, as logs name it: never a path, a user or a password."""
        parts = urlsplit(self.endpoint)
        default = 443 if self.protocol == "grpc" or parts.scheme == "https" else 80
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{host}:{parts.port or default}"


@dataclass(frozen=True, slots=True)
class Settings:
    """All that is set up. A signal that is off is None. `delay` and `interval` are seconds."""

    resource: Resource
    traces: Destination | None = None
    metrics: Destination | None = None
    disabled: bool = False
    queue: int = 2048
    batch: int = 512
    delay: float = 5.0
    interval: float = 60.0


def settings_of(
    endpoint: str | None,
    preset: str | None,
    protocol: str | None,
    headers: Mapping[str, str] | None,
    api_key: str | None,
    service_name: str | None,
    metrics: bool | None,
) -> Settings:
    """What the arguments, the preset and the environment make together; raises ValueError for what cannot be."""
    chosen = _preset(preset, protocol, api_key, metrics)
    given = clean_headers(headers, "headers")
    if protocol is not None:
        _check(protocol, "protocol", Protocol)
    if endpoint is not None:
        _checked(endpoint, "endpoint")
    env = Environment()
    resource = Resource.create({SERVICE_NAME: service_name} if service_name else {})
    settings = Settings(resource)
    if env.flag("OTEL_SDK_DISABLED"):
        return replace(settings, disabled=True)
    if chosen is not None and chosen.keyed:
        given |= {_KEY: _key(env, str(preset), api_key, given)}
    wanted = metrics if metrics is not None else (chosen is None or chosen.metrics) and env.exports("metrics")

    def destination(signal: Signal) -> Destination:
        extra = given
        if signal == "metrics" and chosen is not None and chosen.keyed:
            extra = {_DATASET: f"{_service(resource, str(preset))}-metrics"} | env.headers(signal) | given
        return _destination(env, signal, chosen, endpoint, protocol, extra)

    if chosen is not None and chosen.keyed:
        _service(resource, str(preset))
    return _batching(
        env,
        replace(
            settings,
            traces=destination("traces") if env.exports("traces") else None,
            metrics=destination("metrics") if wanted else None,
        ),
    )


def _preset(name: str | None, protocol: str | None, api_key: str | None, metrics: bool | None) -> _Preset | None:
    chosen = None if name is None else _PRESETS.get(name)
    if name is not None and chosen is None:
        raise ValueError(f"preset must be one of {', '.join(_PRESETS)}, got {name!r}")
    if chosen is not None and protocol is not None and protocol != chosen.protocol:
        raise ValueError(
            f"preset={name!r} speaks {chosen.protocol}, but protocol={protocol!r}: leave protocol out, or give an "
            "endpoint and headers in place of the preset"
        )
    if api_key is not None and (chosen is None or not chosen.keyed):
        raise ValueError('api_key goes with preset="honeycomb" or "honeycomb-eu"; elsewhere put it into headers')
    if metrics and chosen is not None and not chosen.metrics:
        raise ValueError(f"preset={name!r} takes traces only: leave metrics=True out, or give an endpoint instead")
    return chosen


def _key(env: Environment, preset: str, api_key: str | None, given: Mapping[str, str]) -> str:
    told = api_key or given.get(_KEY) or env.text("HONEYCOMB_API_KEY") or env.headers("traces").get(_KEY)
    if not isinstance(told, str) or not told.strip():
        raise ValueError(f"preset={preset!r} needs a key: pass api_key=, or set HONEYCOMB_API_KEY")
    return clean_headers({_KEY: told.strip()}, "api_key")[_KEY]


def _service(resource: Resource, preset: str) -> str:
    name = str(resource.attributes.get(SERVICE_NAME, ""))
    if not name or name.startswith("unknown_service"):
        raise ValueError(
            f"preset={preset!r} needs a service, its dataset: pass service_name=, or set OTEL_SERVICE_NAME"
        )
    return name


def _destination(
    env: Environment,
    signal: Signal,
    preset: _Preset | None,
    endpoint: str | None,
    protocol: str | None,
    headers: Mapping[str, str],
) -> Destination:
    spoken = protocol or (preset.protocol if preset else None)
    if spoken is None:
        spoken, told_by = env.otlp(signal, "PROTOCOL") or ("grpc", "")
        _check(spoken, told_by or "protocol", Protocol)
    by_grpc = spoken == "grpc"
    packed, told_by = env.otlp(signal, "COMPRESSION") or ("none", "")
    packed = packed.lower()
    _check(packed, told_by, Literal["none", "gzip"] if by_grpc else Compression)
    for name in _FILES:
        env.file(signal, name)
    return Destination(
        signal=signal,
        protocol="grpc" if by_grpc else "http/protobuf",
        endpoint=_endpoint(env, signal, endpoint or (preset.endpoint if preset else None), by_grpc=by_grpc),
        headers=env.headers(signal) | dict(headers),
        timeout=env.otlp_number(signal, "TIMEOUT", 10.0),
        compression="gzip" if packed == "gzip" else "deflate" if packed == "deflate" else "none",
    )


def _endpoint(env: Environment, signal: Signal, given: str | None, *, by_grpc: bool) -> str:
    """What is meant for one signal is taken as it is; to any other HTTP endpoint the signal's path is added."""
    name = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
    own = env.text(name) if given is None else None
    if own is not None:
        _checked(own, name)
        return own
    base = given or env.text("OTEL_EXPORTER_OTLP_ENDPOINT") or _DEFAULT["grpc" if by_grpc else "http/protobuf"]
    _checked(base, "endpoint" if given else "OTEL_EXPORTER_OTLP_ENDPOINT")
    if by_grpc:
        return base
    bare = base.rstrip("/")
    for path in ("/v1/traces", "/v1/metrics"):
        bare = bare.removesuffix(path)
    return f"{bare}/v1/{signal}"


def _checked(endpoint: object, name: str) -> SplitResult:
    """The endpoint in parts. What is shown of a bad one is never what may be a password or a key."""
    if isinstance(endpoint, str):
        try:
            parts = urlsplit(endpoint)
            if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                return parts
        except ValueError:
            pass
    shown = repr(endpoint)
    if isinstance(endpoint, str):
        shown = "a text with '@' in it" if "@" in endpoint else repr(endpoint.partition("?")[0][:80])
    raise ValueError(f"{name} must be an http:// or https:// URL such as http://localhost:4317, got {shown}")


def _check(value: str, name: str, allowed: object) -> None:
    names = get_args(allowed)
    if value not in names:
        quoted = " or ".join(f'"{one}"' for one in names)
        raise ValueError(f"{name} must be {quoted}, got {value!r}")


def _batching(env: Environment, settings: Settings) -> Settings:
    queue = int(env.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, least=1))
    batch = int(env.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(512, queue), least=1))
    delay, interval = env.number("OTEL_BSP_SCHEDULE_DELAY", 5000), env.number("OTEL_METRIC_EXPORT_INTERVAL", 60_000)
    if batch > queue:
        raise ValueError(f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE ({batch}) must be at most OTEL_BSP_MAX_QUEUE_SIZE ({queue})")
    return replace(settings, queue=queue, batch=batch, delay=delay / 1e3, interval=interval / 1e3)
