"""What operators look at: metrics, log, flags, and the bill."""

from __future__ import annotations

from . import health, log, metrics
from .costs import BudgetExhausted, Costs, Reason, open_costs
from .flags import FLAGS, Flag, Flags, read_flags, write_flag
from .prices import Prices, TokenPrice, TokenUsage, load_prices

__all__ = [
    "FLAGS",
    "BudgetExhausted",
    "Costs",
    "Flag",
    "Flags",
    "Prices",
    "Reason",
    "TokenPrice",
    "TokenUsage",
    "health",
    "load_prices",
    "log",
    "metrics",
    "open_costs",
    "read_flags",
    "write_flag",
]
