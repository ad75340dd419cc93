"""The grading queue in Redis: nothing acknowledged is lost, nothing is graded twice.

Each operation is one Lua script (`coach/store/lua/queue_*.lua`; the data structures, their order
and invariants stand in queue_jobs.lua). A grader holds a job by a lease and the attempt number of
its claim: with an older one it can neither extend, save, finish, fail nor release.

    submit ──> ready ──claim──> leased ──finish──> (the grade is in the record)
                 ^ ^              │ │ │
                 │ └───release────┘ │ └──fail, too often──> dead
                 └──claim, promote── delayed <──fail       these take back leases run out as well

What operators do with it stands in desk.py.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import attrs
import msgspec
import trio

from ..errors import BadMessage, Conflict, Forbidden, Overloaded
from ..store import RedisError, ResponseError, script
from .inbox import Inbox
from .jobs import (
    Announcement,
    Claim,
    Failed,
    Job,
    LaneStatistics,
    Latencies,
    QueueCounts,
    QueueStatistics,
    Receiver,
)
from .records import LANES, Failure, Grade, Status, SubmissionState
from .scripts import BOUNDS_MS, ESSAYS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .. import config
    from ..errors import Code
    from ..store import Redis
    from .records import Kind, Lane, Submission
    from .scripts import Keys

DISK_S_MAX: Final = 5.0
"""How long a submission may wait for the disk; `appendfsync everysec` takes up to a second."""
CLAIM_S_MAX: Final = 2.0
"""How long a claim may outlast its cancellation, so that what it took is known."""
PROMOTED_MAX: Final = 128
RETRY_AFTER_S: Final = 10.0
"""What a client that is refused for the queue's depth is told."""
MAIL_LENGTH_MAX: Final = 10_000
MAIL_TTL_S: Final = 3_600
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}")
_DAY_S: Final = 86_400


def _to_nobody(org: str) -> bool:
    """Webhooks that nobody has."""
    del org
    return False


class Queue:
    """A handle on the queue; holds no state of its own, so a process may have several.

    Every method is a checkpoint and raises `RedisError` where Redis does not answer. Scripts
    whose answer was lost (`ConnectionLost`) may have run; all but `claim` may be repeated.
    """

    def __init__(
        self,
        redis: Redis,
        settings: config.Grading,
        *,
        keys: Keys = ESSAYS,
        announces: Callable[[str], bool] = _to_nobody,
    ) -> None:
        """Open nothing.

        Args:
          redis: the caller's.
          settings: leases, retries, depths, lifetimes.
          keys: which queue it is.
          announces: by org, whether somebody outside is to hear how essays end (webhooks.py).
        """
        self._redis = redis
        self.keys = keys
        self._announces = announces
        self._lease_ms = round(settings.lease_s * 1000)
        self._failures_max = settings.attempts_max
        self._base_s = settings.retry_base_s
        self._delay_s_max = settings.retry_s_max
        self._retries = (settings.retry_per_s, settings.retry_burst)
        self._depth_max = settings.depth_max
        self._background_depth_max = _share(settings.depth_max, settings.background_depth_percent)
        self._org_depth_max = _share(settings.depth_max, settings.org_depth_percent)
        self._weights = settings.weights
        self._ttl_s = settings.result_days * _DAY_S
        self._rng = random.Random()  # noqa: S311  spreads retries, guards nothing
        self.shards = range(settings.shards)
        self.inbox = Inbox(redis, keep_s=self._ttl_s)
        """What authors have not heard yet."""

    # -- for whoever hands in an essay ---------------------------------------------------------

    async def submit(
        self, submission: Submission, *, answers: Mapping[str, bytes] | None = None
    ) -> SubmissionState:
        """Take a submission in; returns when it is on disk. Idempotent by id, text and kind.

        "On disk" is what the server says to WAITAOF; one that does not know it is believed where it
        is set to sync every write. Cancelled, or failed with anything but the first three errors,
        it may have been taken in: submit again under the same id.

        Args:
          submission: what is to be done.
          answers: by judge, as `save` keeps them: these need not be asked.

        Returns:
          The state: of a new one `queued`; of a known one whatever it is by now.

        Raises:
          BadMessage: the id or the text has characters that it may not have.
          Forbidden: the id belongs to somebody else.
          Conflict: the id is known with another text.
          Overloaded: too many wait, in all or of this org; the lane is being drained; or the
            server cannot say that it is on disk.
        """
        text, parameters, digest = written(submission)
        background = submission.lane == "background"
        reply = await self.keys.run(
            self._redis,
            "queue_submit",
            self.shard(submission.org),
            submission.id,
            submission.user,
            submission.org,
            submission.assignment,
            text,
            digest,
            LANES.index(submission.lane),
            submission.worker,
            submission.session,
            self._ttl_s,
            self._background_depth_max if background else self._depth_max,
            self._org_depth_max,
            self.weight(submission.org),
            submission.kind,
            parameters,
            self._announced(submission),
            *(part for pair in (answers or {}).items() for part in pair),
            record=submission.id,
            index=self._index(submission),
        )
        match reply[0]:
            case b"forbidden":
                raise Forbidden("this submission id belongs to somebody else")
            case b"conflict":
                raise Conflict("this submission id was used for another text")
            case b"full":
                raise Overloaded("too many essays wait to be graded", retry_after_s=RETRY_AFTER_S)
            case b"org_full":
                raise Overloaded(
                    "too many essays of your organisation wait to be graded",
                    retry_after_s=RETRY_AFTER_S,
                )
            case b"draining":
                raise Overloaded("no essays are taken in now", retry_after_s=3 * RETRY_AFTER_S)
        await self._reach_disk()
        if reply[0] == b"present":
            state = await self.get(submission.org, submission.id)
            if state is not None:
                return state
        return SubmissionState(
            id=submission.id,
            user=submission.user,
            org=submission.org,
            status="queued",
            submitted_at=int(reply[1]) / 1000 if len(reply) > 1 else 0.0,
        )

    async def _reach_disk(self) -> None:
        refused: ResponseError | None = None
        local = 0
        try:
            local, _ = await self._redis.execute_command("WAITAOF", 1, 0, round(DISK_S_MAX * 1000))
        except ResponseError as error:
            refused = error
        if refused is not None:
            if await self._syncs_always():
                return  # its answer to the script came after the sync
            raise Overloaded(
                f"submissions are not taken: Redis cannot say that they are on disk ({refused}): "
                "set appendonly yes, and before version 7.2 also appendfsync always",
                retry_after_s=60.0,
            ) from refused
        if local < 1:
            raise Overloaded(
                f"Redis did not reach its disk within {DISK_S_MAX:g} s: submit again",
                retry_after_s=5.0,
            )

    async def _syncs_always(self) -> bool:
        try:
            found = await self._redis.config_get("append*")
        except ResponseError:  # services that keep CONFIG to themselves
            return False
        return (found.get("appendonly"), found.get("appendfsync")) == ("yes", "always")

    async def keep(self, submission: Submission, grade: Grade) -> bool:
        """Keep an essay that was graded without the queue, with its grade.

        Returns:
          False: there is a submission of this id, and nothing changed.

        Raises:
          BadMessage: the id or the text has characters that it may not have.
        """
        text, parameters, digest = written(submission)
        reply = await self.keys.run(
            self._redis,
            "queue_keep",
            self.shard(submission.org),
            submission.id,
            submission.user,
            submission.org,
            submission.assignment,
            text,
            digest,
            LANES.index(submission.lane),
            submission.kind,
            parameters,
            msgspec.json.encode(grade),
            round(grade.seconds * 1000),
            self._ttl_s,
            self._announced(submission),
            record=submission.id,
            index=self._index(submission),
        )
        return bool(reply[0] == b"kept")

    async def get(self, org: str, submission: str) -> SubmissionState | None:
        """The submission as it is now; None where the org has none of this id."""
        shard = self.shard(org)
        if not _ID.fullmatch(submission):
            return None
        reply = await self.keys.run(
            self._redis, "queue_state", shard, submission, record=submission
        )
        if not reply or reply[2].decode() != org:
            return None
        status, user, _, submitted_ms, grade, code, message, reason, failures, *rest = reply
        kind, hopeless, ended_ms, place, due_ms = rest
        return SubmissionState(
            id=submission,
            user=user.decode(),
            org=org,
            status=_STATUS[status],
            kind=kind.decode(),
            submitted_at=int(submitted_ms) / 1000,
            ended_at=int(ended_ms) / 1000 if ended_ms and status in _ENDED else None,
            place=place or None,
            retry_at=due_ms / 1000 if due_ms else None,
            grade=msgspec.json.decode(grade, type=Grade) if status == b"graded" else None,
            failure=(
                Failure(
                    code=code.decode(),
                    message=message.decode(),
                    reason=reason.decode(),
                    attempts=int(failures),
                    can_retry=hopeless != b"1",
                )
                if status == b"failed"
                else None
            ),
        )

    async def erase(self, org: str, user: str) -> list[str]:
        """Leave nothing of what a user has handed in; returns the ids.

        Looks at every record that is kept of the org's shard: one round trip for each.

        Raises:
          RedisError: some may be left; do it again.
        """
        shard, erased = self.shard(org), []
        async for key in self._redis.scan_keys(self.keys.record(shard, "*")):
            id_ = key.decode().removeprefix(self.keys.record(shard, ""))
            (said,) = await self.keys.run(
                self._redis, "queue_erase", shard, id_, user, org, record=id_
            )
            if said == b"erased":
                erased.append(id_)
        if erased:
            await self._unlist(shard, org, set(erased))
        return erased

    async def _unlist(self, shard: int, org: str, ids: set[str]) -> None:
        """Take essays out of the outbox and out of their assignments' indexes."""
        outbox = self.keys.structure(shard, "outbox")
        for member in await self._redis.execute_command("ZRANGE", outbox, 0, -1):
            if member.decode().split(" ", 2)[2] in ids:
                await self._redis.execute_command("ZREM", outbox, member)
        async for key in self._redis.scan_keys(self.keys.index(shard, org, "*")):
            await self._redis.execute_command("ZREM", key, *ids)

    async def note_again(self, org: str, submission: str, second: str, kind: Kind) -> None:
        """Note that an essay is graded again, under the id `second`. Repeating it is harmless."""
        record = self.keys.record(self.shard(org), submission)
        await script("queue_again")(self._redis, [record], [second, kind])

    async def history(self, org: str, submission: str) -> list[SubmissionState]:
        """The further grades that an essay has been given, the oldest first; not the first one."""
        prefix = b"again:"
        names = await self._redis.execute_command(
            "HKEYS", self.keys.record(self.shard(org), submission)
        )
        seconds = [
            await self.get(org, name.removeprefix(prefix).decode())
            for name in names
            if name.startswith(prefix)
        ]
        graded = [state for state in seconds if state is not None and state.grade is not None]
        return sorted(graded, key=lambda state: state.ended_at or 0.0)

    # -- for graders ---------------------------------------------------------------------------

    async def claim(self, shard: int, lanes: Sequence[Lane]) -> Claim | float | None:
        """Lease the most urgent job that is ready: see `claim_many`.

        Returns:
          A claim; or, where nothing is ready, in how many seconds something may be, None for never.
        """
        claims, due_s = await self.claim_many(shard, lanes, 1)
        return claims[0] if claims else due_s

    async def claim_many(
        self, shard: int, lanes: Sequence[Lane], count_max: int
    ) -> tuple[list[Claim], float | None]:
        """Lease the most urgent jobs that are ready, in one round trip.

        Retries that are due and leases that have run out (16 of each) become ready first.

        Cancellation: cancelled before it begins, it takes nothing; later it goes on for the round
        trip and returns what it took, and the caller's next checkpoint is cancelled. Should Redis
        not answer for 2 s, jobs may be leased that nobody knows of: they come back when their lease
        runs out.

        Args:
          shard: one of `shards`.
          lanes: those to serve, most urgent first.
          count_max: 1 to 64.

        Returns:
          Claims, most urgent first; and in how many seconds the next retry or lost lease may be
          claimed, None for never.

        Raises:
          RedisError: no answer, also within 2 s.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            with trio.CancelScope(shield=True), trio.fail_after(CLAIM_S_MAX):
                reply = await self.keys.run(
                    self._redis,
                    "queue_claim",
                    shard,
                    self._lease_ms,
                    count_max,
                    *self._retries,
                    *map(LANES.index, lanes),
                )
        except trio.TooSlowError as error:
            raise RedisError(f"no answer to a claim within {CLAIM_S_MAX:g} s") from error
        claims = [
            Claim(
                id=id_.decode(),
                shard=shard,
                lane=LANES[lane],
                attempt=attempt,
                failures=failures,
                age_s=age_ms / 1000,
            )
            for id_, lane, attempt, failures, age_ms in zip(*[iter(reply[1:])] * 5, strict=True)
        ]
        return claims, None if reply[0] < 0 else reply[0] / 1000

    async def wait(self, shard: int, lanes: Sequence[Lane], *, at_most_s: float) -> bool:
        """Sleep until a job may have become ready; False after `at_most_s`.

        Of the graders that sleep one wakes for each job. Who was woken and will not claim calls
        `promote`, which wakes the next.
        """
        keys = [self.keys.markers(shard, lane) for lane in lanes]
        # 0 would mean for ever
        reply = await self._redis.execute_command("BLPOP", *keys, max(0.001, round(at_most_s, 3)))
        return reply is not None

    async def promote(self, shard: int) -> tuple[int, int]:
        """Make ready what is due, and what graders have let go of without a word.

        Returns:
          How many retries were due, as far as the retry budget went, and how many leases had run
          out; at most 128 each.
        """
        due, lost = await self.keys.run(
            self._redis, "queue_promote", shard, PROMOTED_MAX, *self._retries
        )
        return due, lost

    async def load(self, claim: Claim) -> Job | None:
        """Read what a claim is about; None where the record has outlived its time."""
        record: dict[bytes, bytes] = await self._redis.execute_command(
            "HGETALL", self.keys.record(claim.shard, claim.id)
        )
        if b"text" not in record:
            return None
        prefix = b"judge:"
        return Job(
            kind=cast("Kind", record[b"kind"].decode()),
            parameters=msgspec.json.decode(record[b"parameters"], type=dict[str, str]),
            user=record[b"user"].decode(),
            org=record[b"org"].decode(),
            assignment=record[b"assignment"].decode(),
            text=record[b"text"].decode(),
            worker=record[b"worker"].decode(),
            session=record[b"session"].decode(),
            answers={
                name.removeprefix(prefix).decode(): answer
                for name, answer in record.items()
                if name.startswith(prefix)
            },
        )

    async def heartbeat(self, claim: Claim) -> bool:
        """Extend the lease to its full length from now; False: it is lost, stop working."""
        return bool(await self._held("queue_heartbeat", claim, self._lease_ms))

    async def save(self, claim: Claim, judge: str, answer: bytes) -> bool:
        """Keep a judge's answer for later attempts; False: the lease is lost, nothing changed."""
        return bool(await self._held("queue_judge", claim, judge, answer))

    async def finish(self, claim: Claim, grade: Grade) -> Receiver | None:
        """Store the grade; the job is done. Repeating it is harmless.

        Returns:
          Who is to be told; None: the lease was lost, and nothing changed.
        """
        return await self.end(claim, msgspec.json.encode(grade))

    async def end(self, claim: Claim, result: bytes) -> Receiver | None:
        """As `finish`, with the result as the record keeps it, for jobs that are no essays."""
        reply = await self._held("queue_finish", claim, result, self._ttl_s)
        return None if reply[0] == b"lost" else _receiver(claim.id, reply[1:])

    async def fail(
        self,
        claim: Claim,
        *,
        reason: str,
        code: Code = "provider_unavailable",
        message: str = "the essay could not be graded",
        counted: bool = True,
        final: bool = False,
        hopeless: bool = False,
        delay_s: float | None = None,
    ) -> Failed | None:
        """Put the job off, or give it up when it has failed too often. Repeating it is harmless.

        When it is due it also needs a token of the retry budget, so that an outage which fails
        thousands does not bring thousands back.

        Args:
          claim: the attempt that failed.
          reason: to the operator.
          code: to the student's program, when the job is given up.
          message: to the student, then.
          counted: whether it counts; False where the work could not even be tried.
          final: give it up now: another attempt would fail alike.
          hopeless: and so would any later one of the same essay; it is given up now.
          delay_s: until the next attempt; None: exponential back-off with full jitter
            (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

        Returns:
          What became of the job; None: the lease was lost, and nothing changed.
        """
        if delay_s is None:
            ceiling_s = min(self._delay_s_max, self._base_s * 2.0 ** min(claim.attempt - 1, 32))
            delay_s = self._rng.uniform(0.0, ceiling_s)
        reply = await self._held(
            "queue_fail",
            claim,
            min(round(delay_s * 1000), _DAY_S * 1000),
            int(counted or final or hopeless),
            1 if final or hopeless else self._failures_max,
            code,
            message,
            reason[:500],
            self._ttl_s,
            int(hopeless),
        )
        if reply[0] == b"lost":
            return None
        dead = _receiver(claim.id, reply[2:]) if reply[0] != b"delayed" else None
        return Failed(dead=dead, failures=reply[1])

    async def release(self, claim: Claim) -> bool:
        """Hand the job back untried, to its old place; False: the lease is lost."""
        return bool(await self._held("queue_release", claim))

    async def mail_all(self, receiver: Receiver, org: str, payload: bytes) -> None:
        """Tell a grade to every worker at which its author is: each tells all of their sessions.

        One round trip to find them, and one for each. May be repeated: sessions tell it once.
        """
        workers = await self.inbox.workers(org, receiver.user)
        if receiver.worker:
            workers.add(receiver.worker)
        for worker in sorted(workers):
            await self.mail(attrs.evolve(receiver, worker=worker), "grade", payload, org=org)

    async def mail(
        self,
        receiver: Receiver,
        kind: Literal["grading", "grade", "failed"],
        payload: bytes,
        *,
        org: str = "",
    ) -> None:
        """Tell the worker at which the student is, if there is one.

        Not to be repeated when its answer is lost: the student would be told twice. Who misses
        the mail finds the result with `get`.
        """
        if receiver.worker:
            await script("queue_mail")(
                self._redis,
                [f"mail:{receiver.worker}"],
                [
                    MAIL_LENGTH_MAX,
                    MAIL_TTL_S,
                    kind,
                    receiver.session,
                    receiver.user,
                    receiver.id,
                    payload,
                    org,
                ],
            )

    # -- for metrics ---------------------------------------------------------------------------

    async def statistics(self) -> QueueStatistics:
        """How much waits, and for how long; shards are asked one after the other."""
        lanes = {lane: LaneStatistics() for lane in LANES}
        totals = [0, 0, 0]
        for shard in self.shards:
            reply = await self.keys.run(self._redis, "queue_depth", shard)
            totals = [total + part for total, part in zip(totals, reply[:3], strict=True)]
            for lane, (ready, unfinished, age_ms, mode) in zip(
                LANES, zip(*[iter(reply[3:])] * 4, strict=True), strict=True
            ):
                known = lanes[lane]
                lanes[lane] = LaneStatistics(
                    ready=known.ready + ready,
                    unfinished=known.unfinished + unfinished,
                    oldest_s=max(known.oldest_s, age_ms / 1000),
                    mode=mode.decode() if shard == self.shards[0] else known.mode,
                )
        delayed, leased, dead = totals
        return QueueStatistics(lanes=lanes, delayed=delayed, leased=leased, dead=dead)

    async def counts(self) -> QueueCounts:
        """What has happened since the queue exists; shards are asked one after the other."""
        found: Counter[str] = Counter()
        for shard in self.shards:
            counts = await self._redis.execute_command(
                "HGETALL", self.keys.structure(shard, "counts")
            )
            found.update({name.decode(): int(count) for name, count in counts.items()})
        events = {}
        for name, count in found.items():
            event, lane, *rest = name.split(":")
            if not rest:
                events[event, LANES[int(lane)]] = count
        return QueueCounts(
            events=events,
            pickup={lane: _latencies(found, f"pickup:{n}") for n, lane in enumerate(LANES)},
            total={lane: _latencies(found, f"total:{n}") for n, lane in enumerate(LANES)},
        )

    # -- for webhooks --------------------------------------------------------------------------

    async def announced(self, shard: int, count_max: int) -> list[Announcement]:
        """Ends of essays that are still to be passed on, the oldest first.

        Those that cannot be passed on any more are forgotten: the record has outlived its time, or
        a dead letter was taken up again.
        """
        entries = await self._redis.execute_command(
            "ZRANGE", self.keys.structure(shard, "outbox"), 0, count_max - 1, "WITHSCORES"
        )
        found = []
        for member, at_ms in entries:
            status, _, id_ = member.decode().split(" ", 2)
            fields = ("org", "assignment")
            org, assignment = await self._redis.execute_command(
                "HMGET", self.keys.record(shard, id_), *fields
            )
            state = None if org is None else await self.get(org.decode(), id_)
            if state is None or state.status != status:
                await self.passed_on(shard, member)
                continue
            found.append(
                Announcement(
                    member=member, at=at_ms / 1000, state=state, assignment=assignment.decode()
                )
            )
        return found

    async def passed_on(self, shard: int, member: bytes) -> None:
        """Take an announcement out of the outbox."""
        await self._redis.execute_command("ZREM", self.keys.structure(shard, "outbox"), member)

    async def outbox(self) -> int:
        """How many announcements are still to be passed on."""
        keys = [self.keys.structure(shard, "outbox") for shard in self.shards]
        return sum([await self._redis.execute_command("ZCARD", key) for key in keys])

    def _index(self, submission: Submission) -> str:
        return self.keys.index(self.shard(submission.org), submission.org, submission.assignment)

    def _announced(self, submission: Submission) -> int:
        return int(submission.kind == "grade" and self._announces(submission.org))

    def shard(self, org: str) -> int:
        """Where an org's jobs are: the same in every process, as long as `shards` is."""
        digest = hashlib.sha256(org.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) % len(self.shards)

    def record(self, org: str, submission: str) -> str:
        """The key of a submission's record."""
        return self.keys.record(self.shard(org), submission)

    def weight(self, org: str) -> int:
        """An org's share of the graders' time, relative to others' that wait."""
        return self._weights.get(org, 1)

    async def _held(self, name: str, claim: Claim, *args: str | bytes | int) -> Any:
        """Run a script that only the holder of a claim may."""
        return await self.keys.run(
            self._redis, name, claim.shard, claim.id, claim.attempt, *args, record=claim.id
        )


_ENDED: Final = (b"graded", b"failed")
_STATUS: Final[dict[bytes, Status]] = {
    b"queued": "queued",
    b"grading": "grading",
    b"graded": "graded",
    b"failed": "failed",
}


def _share(depth_max: int, percent: int) -> int:
    return max(1, depth_max * percent // 100)


def written(submission: Submission) -> tuple[bytes, bytes, str]:
    """Text and parameters as a record holds them, and the digest of what is to be done.

    Two submissions are the same if their digest is.

    Raises:
      BadMessage: the id or the text has characters that it may not have.
    """
    if not _ID.fullmatch(submission.id):
        raise BadMessage("a submission's id: 1 to 64 of A-Z a-z 0-9 _ . : @ -")
    try:
        text = submission.text.encode()
    except UnicodeEncodeError as error:
        raise BadMessage("the essay holds half of a character (a lone surrogate)") from error
    parameters = msgspec.json.encode(submission.parameters, order="sorted")
    parts = (submission.kind.encode(), parameters, text)
    return text, parameters, hashlib.sha256(b"\0".join(parts)).hexdigest()


def _latencies(found: Counter[str], prefix: str) -> Latencies:
    return Latencies(
        counts={bound: found[f"{prefix}:{bound}"] for bound in BOUNDS_MS},
        beyond=found[f"{prefix}:inf"],
        sum_s=found[f"{prefix}:sum"] / 1000,
    )


def _receiver(submission: str, fields: Sequence[Any]) -> Receiver:
    worker, session, user = (field.decode() for field in fields)
    return Receiver(id=submission, worker=worker, session=session, user=user)
