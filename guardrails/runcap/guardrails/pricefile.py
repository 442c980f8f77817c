"""Files of prices: YAML, TOML or JSON, read as they are written, each mistake with its line."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from .overrides import Override, explain, parse_override

_YAML = (".yaml", ".yml")


def read_file(path: str | Path) -> tuple[dict[str, Override], str]:
    """The prices of a file by model, and the file's name with a hash of it.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no prices; the message names the file and the line.
    """
    file = Path(path)
    raw = file.read_bytes()
    source = f"{file.name}+{hashlib.blake2b(raw, digest_size=6).hexdigest()}"
    try:
        return _prices(file, raw.decode("utf-8-sig")), source
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise ValueError(f"{file}: nested too deeply for a file of prices") from None


def _prices(file: Path, text: str) -> dict[str, Override]:
    prices = _load(file, text)
    if not isinstance(prices, Mapping):
        raise ValueError(f"{file}:1: expected a mapping of model names to prices, got {type(prices).__name__}")  # noqa: TRY004 - of the file, not of an argument
    return {str(name): _checked(file, text, str(name), given) for name, given in prices.items()}


def _checked(file: Path, text: str, name: str, given: object) -> Override:
    try:
        return parse_override(given)
    except ValidationError as error:
        paths = [(name, *map(str, one["loc"])) for one in error.errors()]
        line = max(_line(file, text, path) for path in paths)
        raise ValueError(f"{file}:{line}: the price of {name!r} is wrong: {explain(error)}") from None


def _load(file: Path, text: str) -> Any:
    try:
        match file.suffix.lower():
            case ".json":
                return json.loads(text, parse_float=Decimal, parse_int=Decimal, object_pairs_hook=_once)
            case ".toml":
                return tomllib.loads(text, parse_float=Decimal)
            case ".yaml" | ".yml":
                return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno}: no JSON: {error.msg}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: no TOML: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise ValueError(f"{file}:{line}: no YAML: {getattr(error, 'problem', None) or error}") from None
    except UnicodeDecodeError:
        raise
    except (ValueError, ArithmeticError, AttributeError, KeyError) as error:  # as the readers raise them of odd scalars
        raise ValueError(f"{file}: no prices: {error}") from None
    raise ValueError(
        f"{file}: prices come in a .yaml, .yml, .toml or .json file, not {file.suffix or 'without suffix'}"
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} stands there twice")
    return dict(pairs)


class _Loader(yaml.SafeLoader):
    """Reads every scalar as the text it is: 2.50 is no binary fraction, 010 not eight, and no model is called True."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", yaml.SafeLoader.yaml_implicit_resolvers["<"][0][1])]}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT002 - the loader's own
        """A mapping whose keys are there once."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add(str(key.value))
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def _line(file: Path, text: str, path: tuple[str, ...]) -> int:
    """The line of the innermost key of `path` that the file has."""
    if file.suffix.lower() == ".toml":
        return _toml_line(text, path)
    # JSON is YAML but for its tabs.
    try:
        node = yaml.compose(text if file.suffix.lower() in _YAML else text.replace("\t", " "), Loader=_Loader)
    except yaml.YAMLError:
        return 1  # JSON that is no YAML after all
    line = 1
    for wanted in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        found = next(((key, value) for key, value in pairs if str(key.value) == wanted), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _toml_line(text: str, path: tuple[str, ...]) -> int:
    table: tuple[str, ...] = ()
    best, line = 0, 1
    for number, content in enumerate(text.splitlines(), start=1):
        keys = _toml_keys(content)
        if content.lstrip().startswith("["):
            table = keys
            here = table
        else:
            here = table + keys
        # A table may be spoken of before it is opened, and its parts after it.
        if keys and here == path[: len(here)] and len(here) > best:
            best, line = len(here), number
    return line


def _toml_keys(line: str) -> tuple[str, ...]:
    """The keys a line names: `[a."b.c"]`, or `a.b = 1`."""
    head = line.strip()
    try:
        read = tomllib.loads(head if head.startswith("[") else head.partition("=")[0] + "= 0")
    except tomllib.TOMLDecodeError:
        return ()
    keys: list[str] = []
    while isinstance(read, dict) and read:
        key, read = next(iter(read.items()))
        keys.append(key)
    return tuple(keys)
