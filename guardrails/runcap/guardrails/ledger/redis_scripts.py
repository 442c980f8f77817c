"""The Lua scripts of a `RedisLedger`: each is one atomic step, and is called by its hash."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

SCHEMA = 1
"""The version of what is stored in Redis; common.lua and contact.lua know it too."""

_PARTS = ("common", "holding")

_FOLDER = Path(__file__).with_name("lua")
_ALONE = ("contact",)
"""Scripts that do not begin with common.lua: who calls them knows no ledger yet."""

_HOLDING = ("settle", "bury")
"""Scripts that go on with holding.lua: they end holds."""


class Script(NamedTuple):
    """A script, and the hash Redis knows it by once it was loaded."""

    name: str
    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """A script by its name; read from its file once."""
    before = () if name in _ALONE else ("common", "holding") if name in _HOLDING else ("common",)
    text = "".join((_FOLDER / f"{part}.lua").read_text(encoding="utf-8") for part in (*before, name))
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@cache
def all_scripts() -> tuple[Script, ...]:
    """Every script there is; read from their files the first time."""
    names = sorted(path.stem for path in _FOLDER.glob("*.lua") if path.stem not in _PARTS)
    return tuple(script(name) for name in names)
