"""What a guard is made of, checked before anything is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .history import History
from .loops import LoopPolicy
from .pricing import PriceBook


def check_parts(
    *, prices: object, sinks: object, loops: object, history: object, on_warning: object, ledger: object
) -> None:
    """Check the optional arguments of a guard.

    Raises:
        TypeError: one is not what it should be; the message names it and the fix.
    """
    if prices is not None and not isinstance(prices, PriceBook):
        raise TypeError(f"Guard.prices must be a PriceBook, got {type(prices).__name__}; PriceBook({{...}}) makes one")
    if history is not None and not isinstance(history, History):
        raise TypeError(f"Guard.history must be a History, e.g. History(max_tokens=8000); got {type(history).__name__}")
    if loops is not None and not isinstance(loops, LoopPolicy):
        raise TypeError(f"Guard.loops must be a LoopPolicy, e.g. LoopPolicy(halt=5); got {type(loops).__name__}")
    if on_warning is not None and not callable(on_warning):
        raise TypeError(f"Guard.on_warning must be a function of a BudgetWarned, got {type(on_warning).__name__}")
    if ledger is not None and not callable(getattr(ledger, "reserve", None)):
        raise TypeError(f'Guard.ledger must be a ledger, e.g. SQLiteLedger("budget.db"); got {type(ledger).__name__}')
    if sinks is None:
        return
    if not isinstance(sinks, Sequence) or not all(callable(sink) for sink in sinks):
        raise TypeError(f"Guard.sinks must be a sequence of callables, e.g. (LogSink(),); got {sinks!r}")


def check_tags(tags: Mapping[str, object]) -> None:
    """Check the tags of a run.

    Raises:
        TypeError: one is no string.
        ValueError: one is named `run_id`, or holds what is no text (a lone surrogate): no store could keep it.
    """
    if "run_id" in tags:
        raise ValueError('run_id is no tag: name a run with guard.named_run(id) or metadata={"runcap": {"run_id": id}}')
    for name, value in tags.items():
        if not isinstance(value, str):
            raise TypeError(f"tag {name} must be a string, got {value!r} ({type(value).__name__})")
        if not is_text(name) or not is_text(value):
            raise ValueError(f"tag {name!a} holds a lone surrogate, which is no text")


def check_run_id(run_id: object) -> None:
    """Check the name of a run.

    Raises:
        TypeError: it is no string.
        ValueError: it holds what is no text (a lone surrogate): no store could keep it.
    """
    if not isinstance(run_id, str):
        raise TypeError(f"a run's id must be a string, got {type(run_id).__name__}")
    if not is_text(run_id):
        raise ValueError(f"a run's id must be text, and this holds a lone surrogate: {run_id!a}")


def is_text(value: str) -> bool:
    """It can be stored and sent: no half of a surrogate pair in it."""
    return value.isascii() or not any("\ud800" <= one <= "\udfff" for one in value)


def storable(text: str) -> str:
    """What a model or a person wrote, as every store can keep it: half a surrogate pair is written out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
