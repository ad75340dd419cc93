"""Claiming jobs from a queue, as long as there is a free slot, and sleeping while there is nothing.

One task per shard claims; each claim becomes a task of its own in the caller's nursery.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, final

import structlog
import trio

from ..store import RedisError
from .jobs import Claim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .queue import Queue
    from .records import Lane

log = structlog.get_logger()

HAND_BACK_S_MAX: Final = 1.0
REDIS_PAUSE_S: Final = 0.5
"""Between claims while Redis does not answer."""
RECHECKS_PER_LEASE: Final = 4
"""Who dies between waking up and claiming delays others by a lease over this."""


@final
class Claimer:
    """Claims for one process."""

    def __init__(
        self, queue: Queue, lanes: Sequence[Lane], *, concurrency: int, lease_s: float
    ) -> None:
        """Nothing is claimed yet.

        Args:
          queue: whose shards are served.
          lanes: those to serve, most urgent first.
          concurrency: claims worked on at once, over all shards.
          lease_s: the queue's.
        """
        self._queue = queue
        self._lanes = lanes
        self._recheck_s = lease_s / RECHECKS_PER_LEASE
        self._slots = trio.Semaphore(concurrency)
        """Free places; one is held for each claim, from before it is made until it is settled."""

    async def claim_jobs(
        self, shard: int, work: Callable[[Claim], Awaitable[None]], working: trio.Nursery
    ) -> None:
        """Claim, and start `work` in `working` for each claim; ends by cancellation."""
        try:
            while True:
                await self._slots.acquire()
                claim: Claim | float | None = None
                try:
                    claim = await self._queue.claim(shard, self._lanes)
                except RedisError as error:
                    log.warning("claim_failed", shard=shard, error=str(error))
                    claim = REDIS_PAUSE_S
                finally:
                    if not isinstance(claim, Claim):
                        self._slots.release()
                if isinstance(claim, Claim):
                    working.start_soon(self._work, work, claim)  # which releases the slot
                else:
                    await self._sleep(shard, claim)
        finally:
            # A marker may have been taken for which nobody claims now: wake another.
            with trio.move_on_after(HAND_BACK_S_MAX, shield=True):
                await self._promote(shard)

    async def _work(self, work: Callable[[Claim], Awaitable[None]], claim: Claim) -> None:
        try:
            await work(claim)
        finally:
            self._slots.release()

    async def _sleep(self, shard: int, due_s: float | None) -> None:
        """Sleep until there may be work, without asking for it."""
        if due_s == 0:
            await self._promote(shard)
            return
        at_most_s = self._recheck_s if due_s is None else min(self._recheck_s, due_s)
        try:
            await self._queue.wait(shard, self._lanes, at_most_s=at_most_s)
        except RedisError as error:
            log.warning("wait_failed", shard=shard, error=str(error))
            await trio.sleep(REDIS_PAUSE_S)

    async def _promote(self, shard: int) -> None:
        try:
            due, lost = await self._queue.promote(shard)
        except RedisError as error:
            log.warning("promote_failed", shard=shard, error=str(error))
            await trio.sleep(REDIS_PAUSE_S)
            return
        if lost:
            log.warning("leases_lost", shard=shard, count=lost, due=due)


async def hand_back(queue: Queue, claim: Claim) -> None:
    """Hand a job back untried; where that fails its lease runs out."""
    try:
        await queue.release(claim)
    except RedisError as error:
        log.warning("hand_back_failed", job=claim.id, error=str(error))
