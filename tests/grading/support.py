"""What the grading tests share: a queue on a private Valkey, submissions, a made-up grade."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import msgspec
import trio

from coach import config
from coach.grading.jobs import Claim
from coach.grading.queue import Queue
from coach.grading.records import LANES, Grade, Lane, Submission
from coach.store import Redis
from tests.support.valkey import open_test_redis

GRADE = Grade(score=71, criteria=(), judges=1, degraded=False, feedback="Shorten it.")
SETTINGS = config.Grading(
    lease_s=1.0, heartbeat_s=0.2, retry_base_s=0.05, retry_s_max=0.1, review_percent=0
)


@asynccontextmanager
async def open_test_queue(
    tmp_path: Path, settings: config.Grading = SETTINGS, **changes: Any
) -> AsyncIterator[tuple[Queue, Redis]]:
    """A queue on a server of its own, which syncs every write: so submissions take no time."""
    async with open_test_redis(tmp_path, appendonly=True) as redis:
        await redis.execute_command("CONFIG SET", "appendfsync", "always")
        yield Queue(redis, msgspec.structs.replace(settings, **changes)), redis


def essay(id_: str = "s1", **changes: Any) -> Submission:
    """A submission that is like all others but for `changes`."""
    base = Submission(
        id=id_,
        user="ann",
        org="school",
        assignment="free",
        text="I like to read by the sea.",
        worker="w0-1",
        session="sid",
    )
    return attrs.evolve(base, **changes)


async def take(queue: Queue, lanes: tuple[Lane, ...] = LANES) -> Claim:
    """Claim the next job of shard 0, which must be there."""
    claim = await queue.claim(0, lanes)
    assert isinstance(claim, Claim)
    return claim


async def mailed(redis: Redis, worker: str = "w0-1") -> list[dict[str, str]]:
    """Everything in a worker's mailbox."""
    entries = await redis.execute_command("XRANGE", f"mail:{worker}", "-", "+")
    return [
        {name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries
    ]


async def broken_invariants(redis: Redis, shard: int = 0) -> list[str]:
    """What of I1 and I2 (queue_jobs.lua) does not hold while no grader is about to claim."""
    found = []
    key = f"queue:{{{shard}}}:"
    jobs = set(await redis.execute_command("HKEYS", key + "jobs"))
    unfinished = set(await redis.execute_command("ZRANGE", key + "open", 0, -1))
    seen: set[bytes] = set()
    for name in ("ready", "delayed", "leased", "dead"):
        ids = set(await redis.execute_command("ZRANGE", key + name, 0, -1))
        if name == "ready":
            ids = {member.partition(b" ")[2] for member in ids}
        if name == "dead" and seen != unfinished:
            found.append(f"open differs: {seen ^ unfinished!r}")
        found += [f"{id_!r} twice" for id_ in ids & seen]
        seen |= ids
    if seen != jobs:
        found.append(f"jobs differ: {seen ^ jobs!r}")
    for rank, lane in enumerate(LANES):
        low, high = rank * 2**51, f"({(rank + 1) * 2**51}"
        waiting = await redis.execute_command("ZCOUNT", key + "ready", low, high)
        if await redis.execute_command("HGET", key + "control", f"mode:{rank}") == b"paused":
            waiting = 0
        markers = await redis.execute_command("LLEN", f"{key}markers:{lane}")
        if (waiting and not markers) or markers > 64:
            found.append(f"{lane}: {waiting} wait, {markers} markers")
        clock = float(await redis.execute_command("HGET", key + "control", f"clock:{rank}") or 0)
        if await redis.execute_command("ZCOUNT", key + "share", low, low + clock):
            found.append(f"{lane}: clocks that have been passed")
    return found


async def let_leases_run_out(redis: Redis, queue: Queue) -> tuple[int, int]:
    """Make every lease end now, and promote."""
    key = "queue:{0}:leased"
    for id_ in await redis.execute_command("ZRANGE", key, 0, -1):
        await redis.execute_command("ZADD", key, 1, id_)
    return await queue.promote(0)


async def due_now(redis: Redis, queue: Queue) -> tuple[int, int]:
    """Make every delayed job due, and promote."""
    key = "queue:{0}:delayed"
    for id_ in await redis.execute_command("ZRANGE", key, 0, -1):
        await redis.execute_command("ZADD", key, 1, id_)
    return await queue.promote(0)


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Wait until something holds that has no event of its own."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.002)
