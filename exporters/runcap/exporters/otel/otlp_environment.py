"""The standard `OTEL_*` variables, read once and checked; an empty one counts as unset (the specification says so)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")


def clean_headers(headers: Mapping[str, str] | None, told_by: str) -> dict[str, str]:
    """Headers by lower-case name. ValueError names a bad one, never its value, which may be a key."""
    clean: dict[str, str] = {}
    for name, value in dict(headers or {}).items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{told_by}: a header's name must be letters, digits and dashes")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ValueError(f"{told_by}: the value of {name!r} must be one line of ASCII text")
        clean[name.lower()] = value
    return clean


class Environment:
    """A reading of `os.environ`; errors name the variable and what it should be."""

    def __init__(self) -> None:
        self._env = {name: value.strip() for name, value in os.environ.items() if value.strip()}

    def text(self, name: str) -> str | None:
        """The variable, or None where it is unset or empty."""
        return self._env.get(name)

    def flag(self, name: str) -> bool:
        """Whether it is "true"; anything else is false, as the specification says."""
        return self._env.get(name, "").lower() == "true"

    def number(self, name: str, default: float, *, least: float = 0.0) -> float:
        """A number above zero, and at least `least`."""
        told = self._env.get(name)
        if told is None:
            return default
        try:
            value = float(told)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0 and value >= least):
            raise ValueError(f"{name} must be a number above 0, got {told!r}")
        return value

    def exports(self, signal: str) -> bool:
        """Whether `OTEL_{SIGNAL}_EXPORTER` is other than "none"."""
        return self._env.get(f"OTEL_{signal.upper()}_EXPORTER", "").lower() != "none"

    def otlp(self, signal: str, what: str) -> tuple[str, str] | None:
        """An exporter's setting and the variable it is in; the signal's own goes before the general one."""
        for name in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{what}", f"OTEL_EXPORTER_OTLP_{what}"):
            if name in self._env:
                return self._env[name], name
        return None

    def otlp_number(self, signal: str, what: str, default: float) -> float:
        """An exporter's setting that is a number above zero."""
        told = self.otlp(signal, what)
        return default if told is None else self.number(told[1], default)

    def file(self, signal: str, what: str) -> None:
        """Check that the file an exporter's setting names can be found."""
        told = self.otlp(signal, what)
        if told is not None and not Path(told[0]).is_file():
            raise ValueError(f"{told[1]} names no file: {told[0]!r}")

    def headers(self, signal: str) -> dict[str, str]:
        """`name=value,...`, URL-encoded. ValueError says which entry is none, never what stands there."""
        told = self.otlp(signal, "HEADERS")
        if told is None:
            return {}
        text, variable = told
        found: dict[str, str] = {}
        for number, entry in enumerate(text.split(","), start=1):
            name, is_pair, value = entry.partition("=")
            if not entry.strip():
                continue
            if not is_pair or not _NAME.fullmatch(unquote(name).strip()):
                raise ValueError(f"{variable}: entry {number} is not name=value")
            found[unquote(name).strip()] = unquote(value).strip()
        return clean_headers(found, variable)
