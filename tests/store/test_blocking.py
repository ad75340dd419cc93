"""Blocking commands against a real server: no element is lost, nobody else is held up."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from coach.store import NotSent, Redis, open_redis
from tests.support.cancels import cancel_at_step
from tests.support.valkey import open_test_redis

pytestmark = pytest.mark.real_time


async def test_a_pop_that_waits_leaves_the_others_alone(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis, trio.open_nursery() as nursery:
        popped = trio.Event()

        async def pop() -> None:
            assert await redis.blpop(["list"], 0) == [b"list", b"x"]
            popped.set()

        nursery.start_soon(pop)
        await until_blocked(redis, 1)
        with trio.fail_after(1):
            assert await redis.ping()
            await redis.rpush("list", "x")
            await popped.wait()
        assert redis.statistics().idle_count == 1


async def test_a_pop_in_lower_case_does_not_block_the_shared_connection(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis, trio.open_nursery() as nursery:
        nursery.start_soon(redis.execute_command, "blpop", "list", 0)
        await until_blocked(redis, 1)
        with trio.fail_after(1):
            assert await redis.ping()
        nursery.cancel_scope.cancel()


async def test_a_pop_cancelled_at_any_step_loses_no_element(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        late_count = cancelled_count = 0
        for n in range(1, 40):
            got: object = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(push_after, redis, random.Random(n).choice([0.0, 0.002]))
                with cancel_at_step(n) as scope:
                    got = await redis.blpop(["list"], 0)
            left = await redis.lpop("list")
            assert (got is None) != (left is None), n
            cancelled_count += got is None
            late_count += got is not None and scope.cancel_called
            assert redis.statistics().blocking_count == 0
        assert cancelled_count > 3
        await nothing_is_blocked(redis)


async def test_400_pops_cancelled_as_the_element_arrives_lose_none(tmp_path: Path) -> None:
    chance = random.Random(7)
    async with open_test_redis(tmp_path) as redis:
        popped: list[object] = []
        cancelled_count = 0

        async def pop(number: int) -> None:
            nonlocal cancelled_count
            with trio.move_on_after(chance.uniform(0.0, 0.06)) as scope:
                popped.append(await redis.blpop([f"list{number % 20}"], 0))
            cancelled_count += scope.cancelled_caught

        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(pop, number)
                for number in range(40):
                    await trio.sleep(0.001)
                    await redis.rpush(f"list{number % 20}", number)
        left = [await redis.llen(f"list{number}") for number in range(20)]
        assert len(popped) + sum(left) == 400
        assert 10 < cancelled_count < 390
        await nothing_is_blocked(redis)


async def test_a_cancelled_wait_ends_promptly_and_keeps_its_connection(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        for _ in range(20):
            with trio.move_on_after(0.01):
                await redis.xread({"stream": "$"}, block=0)
            began = trio.current_time()
            with trio.CancelScope() as scope:
                scope.cancel()
                await redis.blpop(["list"], 0)
            assert trio.current_time() - began < 0.5
        clients = await redis.client_list()
        assert len(clients) == 2  # the shared connection, and one that served all of them


async def test_an_idle_connection_that_the_server_closed_is_not_used(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        await redis.rpush("list", "a", "b")
        assert await redis.blpop(["list"], 0) == [b"list", b"a"]
        await redis.client_kill_filter(skipme=True)
        assert redis.statistics().idle_count == 1
        assert await redis.blpop(["list"], 0) == [b"list", b"b"]


async def test_without_a_server_a_pop_waits_and_was_not_sent(tmp_path: Path) -> None:
    async with open_redis(f"unix://{tmp_path}/none.sock", wait_s=0.3) as redis:
        began = trio.current_time()
        with pytest.raises(NotSent, match=r"none\.sock: No such file"):
            await redis.blpop(["list"], 0)
        assert 0.05 < trio.current_time() - began <= 0.31


async def until_blocked(redis: Redis, count: int) -> None:
    with trio.fail_after(2):
        while (await redis.info("clients"))["blocked_clients"] != count:  # noqa: ASYNC110  no event for it
            await trio.sleep(0.005)


async def nothing_is_blocked(redis: Redis) -> None:
    assert (await redis.info("clients"))["blocked_clients"] == 0


async def push_after(redis: Redis, pause_s: float) -> None:
    await trio.sleep(pause_s)
    await redis.rpush("list", "x")
