"""The budget of a provider's endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import attrs

from .. import config
from ..store import Redis
from .quota import Ask, Lane


@attrs.frozen(kw_only=True)
class BudgetStatistics:
    """An endpoint's budget at this moment."""

    endpoint: str
    used: dict[str, float]
    """Share of the quota that is spent or reserved, per limited dimension; 1.0 is all of it."""
    line: dict[Lane, int]
    """Requests that wait, of all workers."""
    gate_s: float
    """Seconds until the gate opens; 0.0: it is open."""
    admitted_count: int
    """Requests admitted to this worker since its start."""
    queued_count: int
    """Those of this worker's requests that had to wait."""


class Admission:
    """Leave to send one request; lent out by `EndpointBudget.admit`."""

    def settle(self, spent: Ask) -> None:
        """Say what was really used; without it everything is given back. Not a checkpoint."""

    def observe(self, headers: Mapping[str, str]) -> None:
        """Correct the window by the provider's rate-limit headers. Not a checkpoint."""

    def close_gate(self, retry_after_s: float) -> None:
        """Let no worker send to this endpoint for so long. Not a checkpoint."""


class EndpointBudget:
    """Who may send to one endpoint, and when."""

    @asynccontextmanager
    async def admit(
        self,
        ask: Ask,
        *,
        lane: Lane,
        org: str,
        on_position: Callable[[int, float], None] | None = None,
    ) -> AsyncIterator[Admission]:
        """Wait until the request may be sent."""
        raise NotImplementedError
        yield Admission()

    async def statistics(self) -> BudgetStatistics:
        """A snapshot, in one round trip."""
        raise NotImplementedError


@asynccontextmanager
async def open_endpoint_budget(
    redis: Redis,
    *,
    endpoint: str,
    quota: config.Quota,
    settings: config.Budget,
    worker: str,
) -> AsyncIterator[EndpointBudget]:
    """Open the budget."""
    raise NotImplementedError
    yield EndpointBudget()
