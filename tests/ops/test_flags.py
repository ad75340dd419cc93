"""Rollout flags: stable per user, changed while workers run, and of no harm when Redis is away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from coach import config
from coach.ops import FLAGS, Flags, read_flags, write_flag
from coach.ops.flags import KEY, place_of
from coach.store import open_embedded, open_redis
from tests.support.valkey import open_test_redis


@given(st.text(), st.integers(0, 100), st.integers(0, 100))
def test_whoever_has_a_flag_keeps_it_when_it_is_turned_up(user: str, some: int, more: int) -> None:
    few = Flags(config.Rollout(pool=min(some, more)))
    many = Flags(config.Rollout(pool=max(some, more)))
    assert many.is_on("pool", user) or not few.is_on("pool", user)


def test_a_percentage_is_that_share_of_users_and_flags_draw_apart() -> None:
    users = [f"student-{number}" for number in range(10_000)]
    flags = Flags(config.Rollout(pool=25, backpressure=25))
    pool = {user for user in users if flags.is_on("pool", user)}
    backpressure = {user for user in users if flags.is_on("backpressure", user)}
    assert 0.23 < len(pool) / len(users) < 0.27
    assert 0.05 < len(pool & backpressure) / len(users) < 0.08  # a quarter of a quarter


def test_everybody_and_nobody() -> None:
    flags = Flags(config.Rollout(pool=0))
    assert flags.off_for("ana") == ["pool"]
    assert Flags(config.Rollout()).off_for("ana") == []


def test_a_users_place_never_changes() -> None:
    assert place_of("pool", "ana") == pytest.approx(47.39, abs=0.01)


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(3):
        while not is_so():  # noqa: ASYNC110  a worker does not say when it has looked
            await trio.sleep(0.02)


@pytest.mark.real_time
async def test_workers_follow_what_is_set_within_a_second_or_so(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis, trio.open_nursery() as nursery:
        flags = Flags(config.Rollout(pool=60))
        nursery.start_soon(flags.run, redis)
        await write_flag(redis, "pool", 0)
        await until(lambda: flags.percent("pool") == 0)
        assert await read_flags(redis) == {"pool": 0}
        await redis.hset(KEY, "pool", "many")  # not by coach
        await redis.hset(KEY, "backpressure", "250")
        await until(lambda: (flags.percent("pool"), flags.percent("backpressure")) == (60, 100))
        await write_flag(redis, "backpressure", None)
        assert "backpressure" not in await read_flags(redis)
        nursery.cancel_scope.cancel()


@pytest.mark.real_time
async def test_without_redis_a_worker_goes_on_as_it_was(tmp_path: Path) -> None:
    flags = Flags(config.Rollout())
    async with open_embedded(tmp_path / "valkey") as server:
        url = server.url
        async with open_redis(url, wait_s=0.1) as redis, trio.open_nursery() as nursery:
            await write_flag(redis, "pool", 10)
            nursery.start_soon(flags.run, redis)
            await until(lambda: flags.percent("pool") == 10)
            nursery.cancel_scope.cancel()
    async with open_redis(url, wait_s=0.1) as redis, trio.open_nursery() as nursery:
        nursery.start_soon(flags.run, redis)
        await trio.sleep(0.3)
        assert flags.percent("pool") == 10
        nursery.cancel_scope.cancel()


def test_every_flag_has_a_setting() -> None:
    assert set(FLAGS) == set(config.Rollout.__struct_fields__)
