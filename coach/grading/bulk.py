"""Bulk work: essays graded again in the background, by the one, the list, or the assignment.

A job is a list of essays in Redis. Graders that serve the background lane feed it into the queue, a
window of essays at a time: so it can be paused, goes on whoever dies, and does not fill the queue.
A second grade is made under an id that follows from the job and the essay: fed twice, an essay is
graded once. Second grades stand beside the first, which stays what the student was told.

    todo ──take──> fed ──submit──> background lane ──> graded, failed ──settle──> counted
      (gone: the essay has outlived its time)

Essays of an audit are also put on the list of what a person should look at, with both grades.

Memory: in Redis some 100 bytes an essay of a job, and the essay itself once more while its second
grade is kept; in a feeder `bulk_window` essays, one after the other.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Any, Final, Literal, cast, final

import attrs
import msgspec
import structlog
import trio

from ..errors import BadMessage, CoachError, Conflict
from ..store import RedisError, hold_lease, script
from .batch import erase_answers
from .queue import Queue
from .records import Grade, Submission

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from .. import config
    from ..store import Redis
    from .batch import Batcher
    from .reviews import Reviews

log = structlog.get_logger()

BulkKind = Literal["regrade", "audit"]
BulkWay = Literal["live", "batch"]
"""batch: by the providers' batch APIs, at half the price and within a day (batch.py)."""
BulkMode = Literal["running", "paused", "stopped", "done"]

FEED_S: Final = 2.0
"""Between two looks at the jobs of a shard."""
FEED_LEASE_MS: Final = 10_000
"""One feeder at a time serves a shard; two would do each other's work again."""
JOBS_MAX: Final = 1_000
"""Jobs that a shard remembers."""
PAGE: Final = 256
"""Essays looked at in one round trip."""
SHARE_STEPS: Final = 10_000
"""An audit's percentage is exact to a hundredth."""
_DAY_S: Final = 86_400


@attrs.frozen(kw_only=True)
class Chosen:
    """An essay that may be graded again."""

    id: str
    bytes: int
    """Of its text."""
    grade: Grade | None
    """Its first one."""


@attrs.frozen(kw_only=True)
class BulkJob:
    """A bulk job as it stands. Times are seconds since the epoch, on Redis' clock."""

    id: str
    org: str
    kind: BulkKind
    by: str
    """Who wants it."""
    way: BulkWay
    mode: BulkMode
    total: int
    waiting: int
    """Not yet fed into the queue."""
    running: int
    """In the queue, or with a grader."""
    graded: int
    failed: int
    gone: int
    """Outlived their time, or the job was stopped, before their turn."""
    opened_at: float
    ended_at: float | None


class Bulk:
    """A handle on the bulk jobs; holds no state of its own.

    Every method is a checkpoint and raises `RedisError` where Redis does not answer.
    """

    def __init__(self, redis: Redis, queue: Queue, settings: config.Grading) -> None:
        """Open nothing: both are the caller's."""
        self._redis = redis
        self._queue = queue
        self._essays_max = settings.bulk_max
        self._ttl_s = settings.result_days * _DAY_S

    # -- what is to be graded again ------------------------------------------------------------

    async def choose(
        self,
        org: str,
        *,
        ids: Sequence[str] = (),
        assignment: str | None = None,
        percent: float | None = None,
    ) -> list[Chosen]:
        """The essays that a job would be about: ended ones of the org, each once.

        Args:
          org: whose.
          ids: these; those that the org does not have are left out.
          assignment: all of this assignment, beside `ids`.
          percent: of them only a sample, above 0 up to 100: the same essays each time it is asked.

        Raises:
          BadMessage: more than `grading.bulk_max`.
        """
        shard = self._queue.shard(org)
        found = list(dict.fromkeys(ids))
        if assignment is not None:
            key = self._queue.keys.index(shard, org, assignment)
            indexed = await self._redis.execute_command("ZRANGE", key, 0, -1)
            found = list(dict.fromkeys([*found, *(id_.decode() for id_ in indexed)]))
        if percent is not None:
            found = [id_ for id_ in found if _share(id_) < percent / 100 * SHARE_STEPS]
        if len(found) > self._essays_max:
            raise BadMessage(
                f"{len(found):,} essays: one job takes {self._essays_max:,} (grading.bulk_max)"
            )
        chosen = []
        for start in range(0, len(found), PAGE):
            chosen += await self._look_at(shard, org, found[start : start + PAGE])
        return chosen

    async def _look_at(self, shard: int, org: str, ids: Sequence[str]) -> list[Chosen]:
        pipe = self._redis.pipeline(transaction=False)
        for id_ in ids:
            record = self._queue.keys.record(shard, id_)
            pipe.execute_command("HMGET", record, "org", "kind", "status", "grade")
            pipe.execute_command("HSTRLEN", record, "text")
        replies: list[Any] = await pipe.execute()
        chosen = []
        for id_, (owner, kind, status, grade), size in zip(
            ids, replies[::2], replies[1::2], strict=True
        ):
            if (owner, kind) != (org.encode(), b"grade") or status == b"open":
                continue
            first = msgspec.json.decode(grade, type=Grade) if status == b"graded" else None
            chosen.append(Chosen(id=id_, bytes=size, grade=first))
        return chosen

    # -- jobs ----------------------------------------------------------------------------------

    async def open(
        self,
        org: str,
        kind: BulkKind,
        ids: Sequence[str],
        *,
        by: str,
        way: BulkWay = "live",
        job: str | None = None,
    ) -> str:
        """Begin a job; graders take it up within seconds.

        Args:
          org: whose essays.
          kind: `audit` puts them on the list for educators as well.
          ids: one or more, as `choose` has found them.
          by: who wants it.
          way: how judges are asked.
          job: its id; a job that was opened under it before is left as it is. None: a new one.

        Returns:
          The job's id.
        """
        job = job or f"bulk-{secrets.token_hex(6)}"
        shard = self._queue.shard(org)
        keys = [
            self._jobs(shard),
            self._job(shard, job),
            self._todo(shard, job),
            self._open(shard),
        ]
        args: list[str | int] = [job, org, kind, by, self._ttl_s, JOBS_MAX, way, *ids]
        await script("bulk_open")(self._redis, keys, args)
        return job

    async def jobs(self) -> list[BulkJob]:
        """All jobs that are remembered, the newest first."""
        found = []
        for shard in self._queue.shards:
            for id_ in await self._redis.execute_command("ZRANGE", self._jobs(shard), 0, -1):
                job = await self._read(shard, id_.decode())
                if job is not None:
                    found.append(job)
        return sorted(found, key=lambda job: job.opened_at, reverse=True)

    async def find(self, job: str) -> BulkJob | None:
        """One job; None: nobody knows it."""
        for shard in self._queue.shards:
            found = await self._read(shard, job)
            if found is not None:
                return found
        return None

    async def set_mode(
        self, job: BulkJob, mode: Literal["running", "paused", "stopped"]
    ) -> BulkJob:
        """Pause a job, go on with it, or stop it for good; what is being graded is finished."""
        shard = self._queue.shard(job.org)
        keys = [self._job(shard, job.id), self._todo(shard, job.id)]
        await script("bulk_mode")(self._redis, keys, [mode])
        return await self._read(shard, job.id) or job

    async def erase(self, org: str, user: str, essays: Collection[str]) -> None:
        """Leave nothing of a user's essays, nor of the user, in the jobs of an org.

        Raises:
          RedisError: some may be left; do it again.
        """
        shard = self._queue.shard(org)
        for id_ in await self._redis.execute_command("ZRANGE", self._jobs(shard), 0, -1):
            job = await self._read(shard, id_.decode())
            if job is None or job.org != org:
                continue
            if job.by == user:
                await self._redis.execute_command("HSET", self._job(shard, job.id), "by", "")
            if essays:
                for key in (self._todo(shard, job.id), self._fed(shard, job.id)):
                    await self._redis.execute_command("ZREM", key, *essays)
                await erase_answers(self._redis, shard, job.id, essays)

    async def _read(self, shard: int, job: str) -> BulkJob | None:
        pipe = self._redis.pipeline(transaction=False)
        pipe.execute_command("HGETALL", self._job(shard, job))
        pipe.execute_command("ZCARD", self._todo(shard, job))
        pipe.execute_command("ZCARD", self._fed(shard, job))
        record, waiting, running = await pipe.execute()
        if not record:
            return None
        text = {name.decode(): value.decode() for name, value in record.items()}
        ended_ms = text.get("ended_ms")
        return BulkJob(
            id=job,
            org=text["org"],
            kind=cast("BulkKind", text["kind"]),
            by=text["by"],
            way=cast("BulkWay", text["way"]),
            mode=cast("BulkMode", text["mode"]),
            total=int(text["total"]),
            waiting=waiting,
            running=running,
            graded=int(text["graded"]),
            failed=int(text["failed"]),
            gone=int(text["gone"]),
            opened_at=int(text["opened_ms"]) / 1000,
            ended_at=None if ended_ms is None else int(ended_ms) / 1000,
        )

    def _jobs(self, shard: int) -> str:
        return f"bulk:{{{shard}}}:jobs"

    def _open(self, shard: int) -> str:
        return f"bulk:{{{shard}}}:open"

    def _job(self, shard: int, job: str) -> str:
        return f"bulk:{{{shard}}}:job:{job}"

    def _todo(self, shard: int, job: str) -> str:
        return f"bulk:{{{shard}}}:todo:{job}"

    def _fed(self, shard: int, job: str) -> str:
        return f"bulk:{{{shard}}}:fed:{job}"


@final
class Feeder(Bulk):
    """Feeds jobs into the queue's background lane, and counts what came of them."""

    def __init__(
        self,
        redis: Redis,
        queue: Queue,
        reviews: Reviews,
        settings: config.Grading,
        *,
        worker: str,
        batcher: Batcher | None = None,
    ) -> None:
        """Open nothing.

        Args:
          redis: the caller's.
          queue: likewise.
          reviews: where audited essays go.
          settings: `bulk_window` and lifetimes.
          worker: unique to this process.
          batcher: asks judges in batches; None: everything is asked live.
        """
        super().__init__(redis, queue, settings)
        self._reviews = reviews
        self._windows = {"live": settings.bulk_window, "batch": settings.bulk_batch_window}
        self._batcher = batcher
        self._worker = worker

    async def run(self) -> None:
        """Feed until cancelled; what was taken is found by whoever feeds next."""
        while True:
            for shard in self._queue.shards:
                try:
                    await self.feed(shard)
                except (RedisError, CoachError) as error:
                    log.warning("bulk_waits", shard=shard, error=str(error))
            await trio.sleep(FEED_S)

    async def feed(self, shard: int) -> None:
        """Look at every job of a shard that has not ended, unless another process does so already.

        Raises:
          RedisError, CoachError: Redis is away, or the lane takes nothing in just now.
        """
        jobs = await self._redis.execute_command("ZRANGE", self._open(shard), 0, -1)
        if not jobs or not await hold_lease(
            self._redis, f"bulk:{{{shard}}}:feeder", self._worker, FEED_LEASE_MS
        ):
            return
        for id_ in jobs:
            job = await self._read(shard, id_.decode())
            if job is None:  # it has outlived its time
                await self._redis.execute_command("ZREM", self._open(shard), id_)
            else:
                await self._feed_job(shard, job)

    async def _feed_job(self, shard: int, job: BulkJob) -> None:
        keys = [self._job(shard, job.id), self._todo(shard, job.id), self._fed(shard, job.id)]
        window = self._windows[job.way]
        mode, *fed = await script("bulk_take")(self._redis, keys, [window, self._ttl_s])
        settled, waiting = await self._sorted(shard, job, [each.decode() for each in fed])
        refusal: CoachError | None = None
        if mode == b"stopped":
            settled["gone"] += waiting
        else:
            answers = await self._answers(shard, job, waiting, may_ask=mode == b"running")
            refusal = await self._submit_all(shard, job, answers, settled["gone"])
        if job.kind == "audit":
            for id_ in settled["graded"]:
                await self._reviews.add(job.org, id_, "audit")
        for outcome, ids in settled.items():
            await script("bulk_settle")(
                self._redis, [*keys, self._open(shard)], [job.id, outcome, *ids]
            )
        counts = {outcome: len(ids) for outcome, ids in settled.items()}
        if any(counts.values()):
            log.info("bulk_goes_on", job=job.id, **counts)
        if refusal is not None:
            raise refusal

    async def _sorted(
        self, shard: int, job: BulkJob, ids: Sequence[str]
    ) -> tuple[dict[str, list[str]], list[str]]:
        """Essays by how their second grade has ended, and those that have none under way."""
        pipe = self._redis.pipeline(transaction=False)
        for id_ in ids:
            second = self._queue.keys.record(shard, again_id(job.id, id_))
            pipe.execute_command("HGET", second, "status")
        states = await pipe.execute() if ids else []
        settled: dict[str, list[str]] = {"graded": [], "failed": [], "gone": []}
        waiting = []
        for id_, state in zip(ids, states, strict=True):
            if state is None:
                waiting.append(id_)
            elif state.decode() in settled:
                settled[state.decode()].append(id_)
        return settled, waiting

    async def _answers(
        self, shard: int, job: BulkJob, ids: Sequence[str], *, may_ask: bool
    ) -> dict[str, dict[str, bytes]]:
        """What judges have answered beforehand, of the essays that may go into the queue now."""
        if job.way == "live" or self._batcher is None or not ids:
            return {id_: {} for id_ in ids}
        return await self._batcher.answers(shard, job, ids, may_ask=may_ask)

    async def _submit_all(
        self,
        shard: int,
        job: BulkJob,
        answers: Mapping[str, Mapping[str, bytes]],
        gone: list[str],
    ) -> CoachError | None:
        """Submit until the lane takes nothing in; what has outlived its time is added to `gone`."""
        for id_, of_essay in answers.items():
            try:
                if not await self._submit(shard, job, id_, of_essay):
                    gone.append(id_)
            except CoachError as error:
                return error  # others of the job may have ended all the same
        return None

    async def _submit(
        self, shard: int, job: BulkJob, id_: str, answers: Mapping[str, bytes]
    ) -> bool:
        """Have an essay graded again, by who has not answered; False: it has outlived its time."""
        fields = ("user", "assignment", "text")
        user, assignment, text = await self._redis.execute_command(
            "HMGET", self._queue.keys.record(shard, id_), *fields
        )
        if text is None:
            return False
        second = again_id(job.id, id_)
        await self._queue.note_again(job.org, id_, second, job.kind)
        try:
            await self._queue.submit(
                Submission(
                    id=second,
                    user=user.decode(),
                    org=job.org,
                    assignment=assignment.decode(),
                    text=text.decode(),
                    lane="background",
                    kind=job.kind,
                    parameters={"of": id_, "bulk": job.id},
                ),
                answers=answers,
            )
        except Conflict:
            log.warning("bulk_made_before", job=job.id, submission=id_)
        return True


def again_id(job: str, submission: str) -> str:
    """Under which id an essay is graded again for a job: the same in every process."""
    return f"again.{hashlib.sha256(f'{job} {submission}'.encode()).hexdigest()[:40]}"


def _share(id_: str) -> int:
    """Where an essay lies among all, 0 to SHARE_STEPS: a sample is who lies lowest."""
    digest = hashlib.sha256(b"audit " + id_.encode()).digest()
    return int.from_bytes(digest[:8]) % SHARE_STEPS
