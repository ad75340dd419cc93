"""A process's bookings without Redis, and a look at them."""

from __future__ import annotations

import time

from coach import config
from coach.ops import Costs, load_prices
from coach.ops.costs import MEASURES, Cell, _add, _unbooked, month_of


def new_costs(settings: config.Settings | None = None, *, worker: str = "w-test") -> Costs:
    """Costs that nobody flushes, with the prices that come with coach."""
    settings = settings or config.Settings()
    return Costs(load_prices(settings), settings.costs, worker=worker)


def booked(costs: Costs, org: str = "school") -> dict[Cell, dict[str, int]]:
    """What is booked on an org and not known to be in Redis, over all hours."""
    sums: dict[Cell, list[int]] = {}
    if org in costs._orgs:
        for _, cells in _unbooked(costs._orgs[org]):
            for cell, amounts in cells.items():
                _add(sums.setdefault(cell, [0] * len(MEASURES)), amounts)
    return {cell: dict(zip(MEASURES, amounts, strict=True)) for cell, amounts in sums.items()}


def reasons(costs: Costs, org: str = "school") -> dict[str, int]:
    """Requests booked on an org, by reason."""
    counts: dict[str, int] = {}
    for cell, amounts in booked(costs, org).items():
        counts[cell.reason] = counts.get(cell.reason, 0) + amounts["requests"]
    return counts


def exhaust(costs: Costs, org: str = "school") -> None:
    """Let a process know that an org has spent its hard budget."""
    state = costs._use(org)
    state.month = month_of(int(time.time()))
    state.spent = state.hard = 1
