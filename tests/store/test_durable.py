"""WAITAOF tells the truth about writes that went over another connection."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from coach.store import NotSent, ResponseError, open_redis
from tests.support.cancels import cancel_at_step
from tests.support.valkey import open_test_redis

pytestmark = pytest.mark.real_time


async def test_waitaof_counts_no_disk_that_was_not_synced(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path, appendonly=True) as redis:
        await redis.config_set("appendfsync", "no")
        await redis.set("k", "v")
        assert await redis.waitaof(1, 0, 100) == [0, 0]
        await redis.config_set("appendfsync", "always")
        await redis.set("k", "w")
        assert await redis.waitaof(1, 0, 1_000) == [1, 0]


async def test_many_callers_share_a_few_requests(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path, appendonly=True) as redis:
        replies: list[object] = []

        async def submit(number: int) -> None:
            await redis.set(f"k{number}", "v")
            replies.append(await redis.waitaof(1, 0, 2_000))

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for number in range(500):
                    nursery.start_soon(submit, number)
        assert replies == [[1, 0]] * 500
        assert len(await redis.client_list()) <= 5


async def test_a_cancelled_caller_leaves_the_others_of_its_group_waiting(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path, appendonly=True) as redis:
        for n in range(1, 12):
            replies: list[object] = []

            async def submit(replies: list[object] = replies) -> None:
                replies.append(await redis.waitaof(1, 0, 2_000))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(submit)
                with cancel_at_step(n):
                    await submit()
            assert replies in ([[1, 0]], [[1, 0]] * 2)


async def test_errors_reach_every_caller(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path, appendonly=False) as redis:
        with pytest.raises(ResponseError, match="appendonly"):
            await redis.waitaof(1, 0, 100)
    with pytest.raises(NotSent, match="closed"):
        await redis.waitaof(1, 0, 100)
    async with open_redis(f"unix://{tmp_path}/none.sock", wait_s=0.2) as nowhere:
        with pytest.raises(NotSent, match=r"none\.sock"):
            await nowhere.waitaof(1, 0, 100)
