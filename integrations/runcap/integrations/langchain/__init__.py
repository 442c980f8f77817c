"""runcap for LangChain and LangGraph."""

from .handler import BudgetCallbackHandler

__all__ = ["BudgetCallbackHandler"]
