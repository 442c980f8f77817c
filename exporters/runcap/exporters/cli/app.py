"""The command line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from runcap.guardrails.ledger import LedgerError
from runcap.guardrails.pricing import PriceBook

from . import as_data, as_table, as_tree
from .asked import DEFAULT, Asked, tags_of, time_ns_of
from .reporting import report_of
from .screen import Screen
from .sources import Source, open_source
from .text import clean
from .tracing import UnknownRun, trace_of

T = TypeVar("T")

UNREADABLE, USAGE = 1, 2
"""Exit codes, beside 0."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Reads a ledger of runcap, and changes nothing in it. "
    "Exit codes: 0 done, 1 the ledger cannot be read, 2 wrong arguments or an unknown run.",
)


class ReportFormat(StrEnum):
    """How a report is written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class TraceFormat(StrEnum):
    """How a trace is written."""

    TREE = "tree"
    JSON = "json"


Ledger = Annotated[
    str,
    typer.Argument(
        metavar="LEDGER",
        help="The file of a SQLiteLedger, a redis:// or rediss:// URL, or a JSONL export of records.",
        show_default=False,
    ),
]
Namespace = Annotated[str, typer.Option(metavar="NS", help="Of a ledger in Redis, which one.")]
_BY = (
    "task, feature, user, team, prompt_version or any other tag; model, provider, tier or day. May be repeated. "
    f"[default: {', '.join(DEFAULT)}]"
)


def run() -> int:
    """Run the command; its exit code."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a name the terminal's encoding lacks is shown escaped
            reconfigure(errors="backslashreplace")
    app(prog_name="runcap")
    return 0


@app.callback(invoke_without_command=True)
def top(
    *, version_asked: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False
) -> None:
    """Show the version, if that is all there is to do."""
    if version_asked:
        typer.echo(f"runcap {version('runcap')}")
        raise typer.Exit


@app.command()
def report(
    ledger: Ledger,
    by: Annotated[list[str], typer.Option(metavar="DIMENSION", help=_BY, default_factory=list, show_default=False)],
    tag: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=VALUE",
            help="Only what has this tag. May be repeated.",
            default_factory=list,
            show_default=False,
        ),
    ],
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Calls begun since: 90m, 24h, 7d, 2w, or 2026-11-01 (UTC).")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Calls begun before; as --since.")] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Only this task; short for --tag task=TASK.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many lines of each table, and how many runs.")] = 10,
    format: Annotated[ReportFormat, typer.Option(help="CSV has the --by tables only.")] = ReportFormat.TABLE,
    namespace: Namespace = "runcap",
    prices: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your prices (YAML, TOML, JSON), for what caches saved.")
    ] = None,
) -> None:
    """What was spent, on what, and what a successful task costs."""
    now = time.time_ns()
    asked = _checked(lambda: _asked(by, since, until, task, tag, top, now))
    book = _checked(lambda: PriceBook() if prices is None else PriceBook.from_file(prices))
    with _opened(ledger, namespace) as source:
        try:
            made = report_of(source, asked, book, now)
        except LedgerError as error:
            raise _failed(error) from None
    if format is ReportFormat.TABLE:
        screen = Screen(sys.stdout)
        as_table.show(made, screen)
        screen.flush()
    else:
        sys.stdout.write(as_data.to_json(made) if format is ReportFormat.JSON else as_data.to_csv(made))


@app.command()
def trace(
    ledger: Ledger,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The id of a run, or its beginning.", show_default=False)],
    format: Annotated[TraceFormat, typer.Option()] = TraceFormat.TREE,
    namespace: Namespace = "runcap",
) -> None:
    """One run as a tree: its sub-runs, its calls, what was refused."""
    with _opened(ledger, namespace) as source:
        try:
            node = trace_of(source, run)
        except LedgerError as error:
            raise _failed(error) from None
        except UnknownRun as error:
            raise _failed(error, USAGE) from None
    if format is TraceFormat.JSON:
        sys.stdout.write(as_tree.to_json(node, source.name))
        return
    screen = Screen(sys.stdout)
    as_tree.show(node, screen)
    screen.flush()


def _asked(
    by: list[str],
    since: str | None,
    until: str | None,
    task: str | None,
    tag: list[str],
    top: int,
    now_ns: int,
) -> Asked:
    begin = None if since is None else time_ns_of(since, now_ns, "--since")
    end = None if until is None else time_ns_of(until, now_ns, "--until")
    if begin is not None and end is not None and begin >= end:
        raise ValueError("--since must lie before --until")
    names = tuple(dict.fromkeys(by or DEFAULT))
    if not all(names):
        raise ValueError("--by takes the name of a dimension, got ''")
    return Asked(names, begin, end, tags_of(task, tag), top)


def _checked(make: Callable[[], T]) -> T:
    try:
        return make()
    except (OSError, ValueError) as error:
        raise _failed(error, USAGE) from None


def _opened(ledger: str, namespace: str) -> Source:
    try:
        source = open_source(ledger, namespace)
    except ValueError as error:
        raise _failed(error, USAGE) from None
    except (LedgerError, ImportError) as error:
        raise _failed(error) from None
    for warning in source.warnings:
        typer.echo(f"runcap: {clean(warning)}", err=True)
    return source


def _failed(error: Exception, code: int = UNREADABLE) -> typer.Exit:
    typer.echo(f"runcap: {clean(error)}", err=True)
    return typer.Exit(code)
