"""runcap for LangChain and LangGraph."""

from typing import TYPE_CHECKING, Any

from .attach import auto_attach
from .handler import BudgetCallbackHandler
from .model import guard_model

if TYPE_CHECKING:
    from .middleware import BudgetMiddleware

__all__ = ["BudgetCallbackHandler", "BudgetMiddleware", "auto_attach", "guard_model"]


def __getattr__(name: str) -> Any:
    # The middleware needs langchain, which is an extra: imported when it is asked for.
    if name == "BudgetMiddleware":
        from .middleware import BudgetMiddleware  # noqa: PLC0415

        return BudgetMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
