"""The queues' scripts, with the keys of a shard as queue_jobs.lua wants them."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import attrs

from ..store import Redis, script
from .records import LANES, Lane

UNIT: Final = 27_720
"""What a job of an org of weight 1 moves its clock by (queue_jobs.lua)."""
BOUNDS_MS: Final = (5, 10, 20, 50, 100, 250, 500, 1000, 2000, 4000, 8000, 15000, 60000, 600000)
"""Upper ends of the latency counts (queue_jobs.lua)."""


@attrs.frozen
class Keys:
    """How the keys of one queue are called. Several queues may share a Redis and the scripts."""

    structures: str
    records: str

    async def run(
        self,
        redis: Redis,
        name: str,
        shard: int,
        *args: str | bytes | int,
        record: str | None = None,
        index: str | None = None,
    ) -> Any:
        """Run a script on a shard.

        Args:
          redis: where.
          name: without `.lua`.
          shard: whose keys it gets.
          args: its ARGV.
          record: the id of the job it is about, where it touches its record.
          index: the key of its assignment, where an essay comes in.

        Raises:
          RedisError: see `Script`.
        """
        keys = _of_shard(self, shard)
        if record is not None:
            keys = (*keys, self.record(shard, record), self.structure(shard, "outbox"))
        if index is not None:
            keys = (*keys, index)
        return await script(name)(redis, keys, args)

    def structure(self, shard: int, name: str) -> str:
        """One of a shard's structures."""
        return f"{self.structures}:{{{shard}}}:{name}"

    def markers(self, shard: int, lane: Lane) -> str:
        """The list that wakes a lane's graders."""
        return self.structure(shard, f"markers:{lane}")

    def index(self, shard: int, org: str, assignment: str) -> str:
        """The essays of an assignment; no org has a colon in its name."""
        return f"{self.records}s:{{{shard}}}:{org}:{assignment}"

    def record(self, shard: int, id_: str) -> str:
        """The record of one job."""
        return f"{self.records}:{{{shard}}}:{id_}"


ESSAYS: Final = Keys("queue", "submission")
DELIVERIES: Final = Keys("webhooks", "webhook")


@cache
def _of_shard(keys: Keys, shard: int) -> tuple[str, ...]:
    """KEYS[1…12] of queue_jobs.lua."""
    names = ("ready", "delayed", "leased", "dead", "jobs", "open", "share", "control", "counts")
    return (
        *(keys.structure(shard, name) for name in names),
        *(keys.markers(shard, lane) for lane in LANES),
    )
