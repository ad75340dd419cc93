"""A worker's limits in a process of their own, for a test that kills it.

`python -m tests.budget.limits_worker <redis url> <seed>` lets turns end in every way, writes a line
`used <tokens>` for each that was settled, then holds five more, writes `holding`, and stands still.
"""

from __future__ import annotations

import random
import sys

import trio

from coach import config
from coach.budget import UserLimits, open_user_limits
from coach.store import open_redis

SETTINGS = config.Limits(user_requests_per_minute=1_000, lease_s=1.0)
TURNS, HELD, HELD_TOKENS = 40, 5, 700


async def main(url: str, seed: int) -> None:
    """Until it is killed."""
    rng = random.Random(seed)
    async with open_redis(url) as redis, open_user_limits(redis, SETTINGS) as limits:
        async with trio.open_nursery() as turns:
            for _ in range(TURNS):
                end = rng.choice(["done", "failed", "cancelled", "unsent"])
                turns.start_soon(turn, limits, end, rng.randrange(600))
        async with trio.open_nursery() as held:
            for _ in range(HELD):
                await held.start(hold, limits)
            print("holding", flush=True)  # noqa: T201  the test reads it


async def turn(limits: UserLimits, end: str, use: int) -> None:
    """One that reserves 300 tokens and uses `use`."""
    with trio.CancelScope() as scope:
        try:
            async with limits.reserve(user="ana", org="school", tokens=300) as reservation:
                await trio.sleep(0.01)
                if end != "unsent":
                    reservation.settle(use)
                if end == "cancelled":
                    scope.cancel()
                await trio.lowlevel.checkpoint()
                if end == "failed":
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    if end != "unsent":
        print("used", use, flush=True)  # noqa: T201  likewise


async def hold(
    limits: UserLimits, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """One that does not end, and is renewed."""
    async with limits.reserve(user="ana", org="school", tokens=HELD_TOKENS):
        task_status.started()
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
