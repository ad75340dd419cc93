"""How near a worker is to its limits: a late loop, an away Redis, files that are open."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import trio
from prometheus_client import REGISTRY

from coach.ops import health
from coach.store import RedisError


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.real_time
async def test_a_call_that_blocks_the_loop_is_seen_as_lag() -> None:
    on_time = value("coach_loop_lag_seconds_bucket", le="0.1")
    seen = value("coach_loop_lag_seconds_count")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(health.watch_loop)
        await trio.sleep(0.02)
        time.sleep(0.2)  # noqa: ASYNC251  the fault
        await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert value("coach_loop_lag_seconds_count") == seen + 1
    assert value("coach_loop_lag_seconds_bucket", le="0.1") == on_time


async def test_a_ping_is_timed_and_one_that_fails_is_not() -> None:
    answers = iter((0.2, None, 0.2))

    async def ping() -> None:
        takes_s = next(answers)
        if takes_s is None:
            raise RedisError("away")
        await trio.sleep(takes_s)

    seen, total = (value(f"coach_redis_latency_seconds_{part}") for part in ("count", "sum"))
    with trio.move_on_after(3.6):
        await health.watch_process(ping)
    assert value("coach_redis_latency_seconds_count") == seen + 2
    assert value("coach_redis_latency_seconds_sum") == pytest.approx(total + 0.4)


def test_each_open_file_counts(tmp_path: Path) -> None:
    before = health.open_files_share()
    fds = [os.open(tmp_path, os.O_RDONLY) for _ in range(50)]
    try:
        assert 0 < before < health.open_files_share() < 1
    finally:
        for fd in fds:
            os.close(fd)
