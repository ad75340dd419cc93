"""The queue's scripts, with the keys of a shard as queue_jobs.lua wants them."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from ..store import Redis, script
from .records import LANES, Lane

UNIT: Final = 27_720
"""What a job of an org of weight 1 moves its clock by (queue_jobs.lua)."""
BOUNDS_MS: Final = (5, 10, 20, 50, 100, 250, 500, 1000, 2000, 4000, 8000, 15000, 60000, 600000)
"""Upper ends of the latency counts (queue_jobs.lua)."""


async def run(
    redis: Redis, name: str, shard: int, *args: str | bytes | int, record: str | None = None
) -> Any:
    """Run a script on a shard.

    Args:
      redis: where.
      name: without `.lua`.
      shard: whose keys it gets.
      args: its ARGV.
      record: the id of the job it is about, where it touches its record.

    Raises:
      RedisError: see `Script`.
    """
    keys = shard_keys(shard)
    if record is not None:
        keys = (*keys, record_key(shard, record))
    return await script(name)(redis, keys, args)


@cache
def shard_keys(shard: int) -> tuple[str, ...]:
    """KEYS[1…12] of queue_jobs.lua."""
    names = ("ready", "delayed", "leased", "dead", "jobs", "open", "share", "control", "counts")
    return (
        *(key(shard, name) for name in names),
        *(markers_key(shard, lane) for lane in LANES),
    )


def key(shard: int, name: str) -> str:
    """One of a shard's structures."""
    return f"queue:{{{shard}}}:{name}"


def markers_key(shard: int, lane: Lane) -> str:
    """The list that wakes a lane's graders."""
    return key(shard, f"markers:{lane}")


def record_key(shard: int, submission: str) -> str:
    """The record of one submission."""
    return f"submission:{{{shard}}}:{submission}"
