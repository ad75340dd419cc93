"""The client against a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from coach.store import ResponseError, open_redis
from tests.support.valkey import open_test_redis

pytestmark = pytest.mark.real_time


async def test_commands_and_their_replies(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        assert await redis.set("k", "ü") is True
        assert await redis.get("k") == "ü".encode()
        await redis.zadd("z", {"a": 1.5})
        assert await redis.zscore("z", "a") == 1.5
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await redis.incr("z")


async def test_a_pipeline_runs_as_one_transaction(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        pipe = redis.pipeline()
        pipe.set("a", 1)
        pipe.incr("a")
        assert await pipe.execute() == [True, 2]


async def test_a_blocking_pop_leaves_the_others_alone(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis, trio.open_nursery() as nursery:
        popped: list[object] = []

        async def pop() -> None:
            popped.append(await redis.blpop(["list"], 0))

        nursery.start_soon(pop)
        assert await redis.ping()
        await redis.rpush("list", "x")
        with trio.fail_after(1):
            while not popped:
                await trio.sleep(0.01)
        assert popped == [[b"list", b"x"]]


async def test_an_error_of_the_body_leaves_unwrapped(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with open_redis(f"unix://{tmp_path}/nothing.sock"):
            raise KeyError
