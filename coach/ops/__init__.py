"""What operators look at: metrics, log, flags, and the bill."""

from __future__ import annotations

from . import health, log, metrics
from .bill import Bill, Question, ask_for_bill, read_bill
from .costs import BudgetExhausted, Costs, Reason, open_costs
from .flags import FLAGS, Flag, Flags, read_flags, write_flag
from .prices import Prices, TokenPrice, TokenUsage, load_prices

__all__ = [
    "FLAGS",
    "Bill",
    "BudgetExhausted",
    "Costs",
    "Flag",
    "Flags",
    "Prices",
    "Question",
    "Reason",
    "TokenPrice",
    "TokenUsage",
    "ask_for_bill",
    "health",
    "load_prices",
    "log",
    "metrics",
    "open_costs",
    "read_bill",
    "read_flags",
    "write_flag",
]
