"""What operators look at: metrics, log, flags, vitals, and the bill."""

from __future__ import annotations

from . import health, log, metrics, traces
from .bill import Bill, Question, ask_for_bill, erase_user, read_bill
from .costs import BudgetExhausted, Costs, Reason, open_costs
from .flags import FLAGS, Flag, Flags, read_flags, write_flag
from .prices import Prices, TokenPrice, TokenUsage, load_prices
from .scrape import serve_metrics
from .today import note_writing, read_today
from .vitals import Reading, Today, Vitals, read, vitals, writing_s

__all__ = [
    "FLAGS",
    "Bill",
    "BudgetExhausted",
    "Costs",
    "Flag",
    "Flags",
    "Prices",
    "Question",
    "Reading",
    "Reason",
    "Today",
    "TokenPrice",
    "TokenUsage",
    "Vitals",
    "ask_for_bill",
    "erase_user",
    "health",
    "load_prices",
    "log",
    "metrics",
    "note_writing",
    "open_costs",
    "read",
    "read_bill",
    "read_flags",
    "read_today",
    "serve_metrics",
    "traces",
    "vitals",
    "write_flag",
    "writing_s",
]
