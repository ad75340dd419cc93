"""The limits on a cluster of three nodes: as exact as on one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from coach import config
from coach.budget import open_user_limits, show_limits
from coach.errors import RateLimited
from coach.store import Redis, open_redis
from tests.store.test_cluster import open_cluster

pytestmark = pytest.mark.real_time

ORGS = ("north", "south", "{east}", "west:1")
SETTINGS = config.Limits(
    user_requests_per_minute=1_000,
    org_requests_per_minute=60,
    org_tokens_per_minute=100_000,
    wait_s=60.0,  # a thousand at once on a busy machine
    lease_s=60.0,
)


async def test_of_1000_at_once_exactly_those_that_fit_get_through(tmp_path: Path) -> None:
    """60 of each org of 250; whatever their ends, each window then holds what was really used."""
    rng = random.Random(7)
    admitted: dict[str, int] = dict.fromkeys(ORGS, 0)
    used: dict[str, list[int]] = {org: [] for org in ORGS}
    async with open_cluster(tmp_path) as (url, _), open_redis(url) as redis:
        gate = trio.Event()
        decided = 0

        async def one(org: str, number: int) -> None:
            nonlocal decided
            await gate.wait()
            end = rng.choice(["done", "failed", "cancelled", "unsent"])
            with trio.CancelScope() as scope:
                try:
                    async with limits.reserve(
                        user=f"u{number % 9}", org=org, tokens=100
                    ) as reservation:
                        admitted[org] += 1
                        decided += 1
                        while decided < 1_000:  # noqa: ASYNC110  all have asked before one ends
                            await trio.sleep(0.01)
                        if end != "unsent":
                            used[org].append(rng.randrange(150))
                            reservation.settle(used[org][-1])
                        if end == "cancelled":
                            scope.cancel()
                        await trio.lowlevel.checkpoint()
                        if end == "failed":
                            raise ZeroDivisionError
                except RateLimited:
                    decided += 1
                except ZeroDivisionError:
                    pass

        async with open_user_limits(redis, SETTINGS) as limits:
            async with trio.open_nursery() as nursery:
                for number in range(250):
                    for org in ORGS:
                        nursery.start_soon(one, org, number)
                gate.set()
            assert admitted == dict.fromkeys(ORGS, 60)
            for org in ORGS:
                assert await standing(redis, org) == (len(used[org]), sum(used[org]))


async def standing(redis: Redis, org: str) -> tuple[int, int]:
    requests, tokens = await show_limits(redis, SETTINGS, org=org, user=None)
    return requests.used, tokens.used
