from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from runcap.exporters import setup_otlp


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"protocol": "thrift"}, "http/protobuf"),
        ({"endpoint": "localhost:4317"}, "http:// or https://"),
        ({"endpoint": "http://"}, "http:// or https://"),
        ({"endpoint": 4317}, "4317"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        setup_otlp(**kwargs)


def test_a_global_provider_is_never_replaced_silently() -> None:
    code = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from runcap.exporters import setup_otlp
trace.set_tracer_provider(TracerProvider())
try:
    setup_otlp("http://127.0.0.1:9")
except RuntimeError as error:
    assert "not replaced" in str(error), error
    setup_otlp("http://127.0.0.1:9", set_global=False).shutdown()
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "refused", done.stderr


def test_the_set_up_provider_is_global_and_named() -> None:
    code = """
from opentelemetry import trace
from runcap.exporters import setup_otlp
provider = setup_otlp("http://127.0.0.1:9", protocol="http/protobuf", service_name="shop", headers={"k": "v"})
assert trace.get_tracer_provider() is provider
print(provider.resource.attributes["service.name"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "shop", done.stderr
