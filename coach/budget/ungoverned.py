"""An endpoint without a budget: requests go when they come, and meet the provider's 429.

For the flag `backpressure`: servers that know no budget do so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import final

import trio

from .quota import Ask, Lane
from .scripts import Patience


@final
class FreeAdmission:
    """Like `Admission`, and nothing follows from what it is told."""

    def settle(self, spent: Ask) -> None:
        """Nobody counts."""

    def observe(self, headers: Mapping[str, str]) -> None:
        """Nobody listens."""

    def close_gate(self, retry_after_s: float) -> None:
        """There is none."""


@final
class Ungoverned:
    """Like `EndpointBudget`; holds nothing, so that all may share one."""

    @asynccontextmanager
    async def admit(
        self,
        ask: Ask,
        *,
        lane: Lane,
        org: str,
        on_position: Callable[[int, float], None] | None = None,
        patience: Patience | None = None,
    ) -> AsyncIterator[FreeAdmission]:
        """At once."""
        await trio.lowlevel.checkpoint()
        yield FreeAdmission()
