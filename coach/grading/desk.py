"""The operators' side of the queue: look into it, repeat or drop jobs, stop and start lanes.

Everything here may be done while graders and students are at work, by any number of operators at
once: each change is one script (`coach/store/lua/queue_*.lua`). Listings are read piece by piece
and may be a moment behind.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import attrs
import msgspec
import structlog

from ..store import NotSent, RedisError
from .jobs import Receiver
from .queue import Queue
from .records import LANES
from .scripts import ESSAYS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from .. import config
    from ..store import Redis
    from .jobs import Mode
    from .records import Lane
    from .scripts import Keys

log = structlog.get_logger()

JobState = Literal["ready", "delayed", "leased", "dead"]
PAGE: Final = 256
"""Jobs read in one round trip."""
DROPPED: Final = "this submission was taken out of the queue: please hand in again"
_DAY_S: Final = 86_400


@attrs.frozen(kw_only=True)
class JobView:
    """A job as an operator sees it. Times are seconds since the epoch, on Redis' clock."""

    id: str
    shard: int
    state: JobState
    lane: Lane
    kind: str
    org: str
    user: str
    attempts: int
    failures: int
    """Attempts that counted as failed."""
    reason: str
    """Of the last failure."""
    submitted_at: float
    at: float | None
    """delayed: when it is due; leased: when the lease ends; dead: since when; ready: None."""


@attrs.frozen(kw_only=True)
class Done:
    """What became of one job that an operator named."""

    id: str
    shard: int
    was: str
    """Where it was; `gone`: its record had outlived its time, and the job ends with it."""


class Desk:
    """A handle; holds no state of its own.

    Every method is a checkpoint and raises `RedisError` where Redis does not answer; what was done
    until then stays done, and doing it again is harmless.
    """

    def __init__(self, redis: Redis, settings: config.Grading, *, keys: Keys = ESSAYS) -> None:
        """Open nothing: `redis` is the caller's; `keys` says which queue it is."""
        self.queue = Queue(redis, settings, keys=keys)
        self._redis = redis
        self._keys = keys
        self._ttl_s = settings.result_days * _DAY_S

    async def jobs(
        self,
        state: JobState,
        *,
        lane: Lane | None = None,
        count_max: int | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[JobView]:
        """The jobs in a state, shard by shard: ready in their order, the others by time.

        Args:
          state: of the four.
          lane: only of this one.
          count_max: stop after so many.
          newest_first: the other way round.
        """
        left = count_max
        command = "ZREVRANGE" if newest_first else "ZRANGE"
        for shard in self.queue.shards:
            offset = 0
            while entries := await self._redis.execute_command(
                command,
                self._keys.structure(shard, state),
                offset,
                offset + PAGE - 1,
                "WITHSCORES",
            ):
                offset += len(entries)
                for job in await self._views(shard, state, entries):
                    if left == 0:
                        return
                    if lane is None or job.lane == lane:
                        left = None if left is None else left - 1
                        yield job

    async def replay(self, id_: str) -> list[Done]:
        """Make a dead or delayed job ready now; a dead one with no failures.

        Returns:
          For each shard that knows the id: "dead" or "delayed", and it is ready now; "ready" or
          "leased", and nothing changed; or "gone". Empty: nobody knows it.
        """
        found = []
        for shard in self.queue.shards:
            org = await self._redis.execute_command("HGET", self._keys.record(shard, id_), "org")
            weight = self.queue.weight((org or b"").decode())
            was = await self._keys.run(
                self._redis, "queue_replay", shard, id_, weight, self._ttl_s, record=id_
            )
            if was != b"unknown":
                found.append(Done(id=id_, shard=shard, was=was.decode()))
        return found

    async def cancel(self, id_: str, *, reason: str) -> list[Done]:
        """Take a job out of the queue, whatever it is doing; tell its student.

        A grader that has it loses its lease: it stops at its next heartbeat and writes nothing.

        Returns:
          For each shard that knew the id, where it was there. Empty: nobody knows it.
        """
        found = []
        for shard in self.queue.shards:
            was, *to = await self._keys.run(
                self._redis,
                "queue_cancel",
                shard,
                id_,
                "cancelled",
                DROPPED,
                reason[:500],
                self._ttl_s,
                record=id_,
            )
            if was == b"unknown":
                continue
            found.append(Done(id=id_, shard=shard, was=was.decode()))
            if to:
                worker, session, user = (field.decode() for field in to)
                await self._tell(Receiver(id=id_, worker=worker, session=session, user=user))
        return found

    async def set_mode(self, lanes: Sequence[Lane], mode: Mode) -> int:
        """Open, pause or drain lanes, in all shards; sleeping graders wake for what is ready.

        Returns:
          How many unfinished jobs these lanes have.
        """
        return sum(
            [
                await self._keys.run(self._redis, "queue_mode", shard, LANES.index(lane), mode)
                for shard in self.queue.shards
                for lane in lanes
            ]
        )

    async def _views(
        self, shard: int, state: JobState, entries: Sequence[tuple[bytes, float]]
    ) -> list[JobView]:
        ids = [member.decode() for member, _ in entries]
        if state == "ready":
            ids = [member.partition(" ")[2] for member in ids]
        jobs = await self._redis.execute_command("HMGET", self._keys.structure(shard, "jobs"), *ids)
        pipe = self._redis.pipeline(transaction=False)
        for id_ in ids:
            fields = ("org", "user", "kind", "reason")
            pipe.execute_command("HMGET", self._keys.record(shard, id_), *fields)
        views = []
        for id_, (_, at), job, record in zip(ids, entries, jobs, await pipe.execute(), strict=True):
            if job is None:
                continue  # it has left meanwhile
            lane, _, _, submitted_ms, attempts, failures = map(int, job.split())
            org, user, kind, reason = ((field or b"").decode() for field in record)
            views.append(
                JobView(
                    id=id_,
                    shard=shard,
                    state=state,
                    lane=LANES[lane],
                    kind=kind,
                    org=org,
                    user=user,
                    attempts=attempts,
                    failures=failures,
                    reason=reason,
                    submitted_at=submitted_ms / 1000,
                    at=None if state == "ready" else float(at) / 1000,
                )
            )
        return views

    async def _tell(self, receiver: Receiver) -> None:
        """Mail once: who misses it finds it in the record."""
        payload = {"submission": receiver.id, "code": "cancelled", "message": DROPPED}
        mail = partial(self.queue.mail, receiver, "failed", msgspec.json.encode(payload))
        for _ in range(2):
            try:
                await mail()
            except NotSent:
                continue
            except RedisError as error:
                log.warning("not_mailed", submission=receiver.id, error=str(error))
            return
