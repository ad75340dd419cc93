"""The grading queue in Redis: nothing acknowledged is lost, nothing is graded twice.

Each operation is one Lua script (`coach/store/lua/queue_*.lua`; the data structures and their
invariants stand in queue_submit.lua). A grader holds a job by a lease and the attempt number of
its claim: with an older one it can neither extend, save, finish, fail nor release.

    submit ──> ready ──claim──> leased ──finish──> (the grade is in the record)
                 ^ ^              │ │ │
                 │ └───release────┘ │ └──fail, too often──> dead
                 └──promote── delayed <──fail──┘      promote also takes back leases run out
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import msgspec
import trio

from ..errors import BadMessage, Conflict, Forbidden, Overloaded
from ..store import RedisError, ResponseError, script
from .records import LANES, Failure, Grade, Status, SubmissionState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .. import config
    from ..errors import Code
    from ..store import Redis
    from .records import Lane, Submission

DISK_S_MAX: Final = 5.0
"""How long a submission may wait for the disk; `appendfsync everysec` takes up to a second."""
CLAIM_S_MAX: Final = 2.0
"""How long a claim may outlast its cancellation, so that what it took is known."""
PROMOTED_MAX: Final = 128
MAIL_LENGTH_MAX: Final = 10_000
MAIL_TTL_S: Final = 3_600
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}")
_DAY_S: Final = 86_400


@attrs.frozen(kw_only=True)
class Claim:
    """A lease on a job. What it allows ends with the lease, whoever still holds this record."""

    id: str
    shard: int
    lane: Lane
    attempt: int
    """Fencing number: counts this job's claims, from 1."""
    failures: int
    """Earlier attempts that counted as failed."""
    age_s: float
    """From submission to claim, seconds of Redis' clock."""


@attrs.frozen(kw_only=True)
class Job:
    """What a grader must know to do the work of a claim."""

    user: str
    org: str
    assignment: str
    text: str
    worker: str
    session: str
    answers: dict[str, bytes]
    """By judge: what `save` kept in earlier attempts."""


@attrs.frozen(kw_only=True)
class Receiver:
    """Who is to hear of a result; `worker` may be empty, then nobody is."""

    id: str
    worker: str
    session: str
    user: str


@attrs.frozen(kw_only=True)
class Failed:
    """What became of a failed job."""

    dead: Receiver | None
    """Who must be told that it was given up; None where it will be tried again."""
    failures: int


@attrs.frozen(kw_only=True)
class QueueStatistics:
    """All shards together, except ages, which are the oldest of any."""

    ready: dict[Lane, int]
    oldest_s: dict[Lane, float]
    """Since the submission of the next job of the lane; 0 where none waits."""
    delayed: int
    leased: int
    dead: int


class Queue:
    """A handle on the queue; holds no state of its own, so a process may have several.

    Every method is a checkpoint and raises `RedisError` where Redis does not answer. Scripts
    whose answer was lost (`ConnectionLost`) may have run; all but `claim` may be repeated.
    """

    def __init__(self, redis: Redis, settings: config.Grading) -> None:
        """Open nothing: `redis` is the caller's."""
        self._redis = redis
        self._lease_ms = round(settings.lease_s * 1000)
        self._failures_max = settings.attempts_max
        self._base_s = settings.retry_base_s
        self._delay_s_max = settings.retry_s_max
        self._depth_max = settings.depth_max
        self._ttl_s = settings.result_days * _DAY_S
        self._rng = random.Random()  # noqa: S311  spreads retries, guards nothing
        self.shards = range(settings.shards)

    # -- for whoever hands in an essay ---------------------------------------------------------

    async def submit(self, submission: Submission) -> SubmissionState:
        """Take a submission in; returns when it is on disk. Idempotent by id and text.

        "On disk" is what the server says to WAITAOF. Cancelled, or failed with anything but the
        first three errors, it may have been taken in: submit again under the same id.

        Returns:
          The state: of a new one `queued`; of a known one whatever it is by now.

        Raises:
          BadMessage: the id or the text has characters that it may not have.
          Forbidden: the id belongs to somebody else.
          Conflict: the id is known with another text.
          Overloaded: too many wait, or the server cannot say that it is on disk.
        """
        if not _ID.fullmatch(submission.id):
            raise BadMessage("a submission's id: 1 to 64 of A-Z a-z 0-9 _ . : @ -")
        try:
            text = submission.text.encode()
        except UnicodeEncodeError as error:
            raise BadMessage("the essay holds half of a character (a lone surrogate)") from error
        shard = self.shard(submission.org)
        reply = await script("queue_submit")(
            self._redis,
            [
                _record(shard, submission.id),
                _key(shard, "ready"),
                _key(shard, "jobs"),
                _key(shard, "arrivals"),
                _markers(shard, submission.lane),
            ],
            [
                submission.id,
                submission.user,
                submission.org,
                submission.assignment,
                text,
                hashlib.sha256(text).hexdigest(),
                LANES.index(submission.lane),
                submission.worker,
                submission.session,
                self._ttl_s,
                self._depth_max,
            ],
        )
        match reply[0]:
            case b"forbidden":
                raise Forbidden("this submission id belongs to somebody else")
            case b"conflict":
                raise Conflict("this submission id was used for another text")
            case b"full":
                raise Overloaded("too many essays wait to be graded", retry_after_s=10.0)
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
        try:
            local, _ = await self._redis.execute_command("WAITAOF", 1, 0, round(DISK_S_MAX * 1000))
        except ResponseError as error:
            raise Overloaded(
                f"submissions are not taken: Redis keeps no append-only file ({error})",
                retry_after_s=60.0,
            ) from error
        if local < 1:
            raise Overloaded(
                f"Redis did not reach its disk within {DISK_S_MAX:g} s: submit again",
                retry_after_s=5.0,
            )

    async def get(self, org: str, submission: str) -> SubmissionState | None:
        """The submission as it is now; None where the org has none of this id."""
        shard = self.shard(org)
        if not _ID.fullmatch(submission):
            return None
        reply = await script("queue_state")(
            self._redis, [_record(shard, submission), _key(shard, "leased")], [submission]
        )
        if not reply or reply[2].decode() != org:
            return None
        status, user, _, submitted_ms, grade, code, message, reason, failures = reply
        return SubmissionState(
            id=submission,
            user=user.decode(),
            org=org,
            status=_STATUS[status],
            submitted_at=int(submitted_ms) / 1000,
            grade=msgspec.json.decode(grade, type=Grade) if status == b"graded" else None,
            failure=(
                Failure(
                    code=code.decode(),
                    message=message.decode(),
                    reason=reason.decode(),
                    attempts=int(failures),
                )
                if status == b"failed"
                else None
            ),
        )

    # -- for graders ---------------------------------------------------------------------------

    async def claim(self, shard: int, lanes: Sequence[Lane]) -> Claim | float | None:
        """Lease the most urgent job that is ready.

        Cancellation: cancelled before it begins, it takes nothing; later it goes on for the round
        trip and returns what it took, and the caller's next checkpoint is cancelled. Should Redis
        not answer for 2 s, a job may be leased that nobody knows of: it comes back when its lease
        runs out.

        Args:
          shard: one of `shards`.
          lanes: those to serve, most urgent first.

        Returns:
          A claim; or, where nothing is ready, in how many seconds `promote` will have work,
          None for never.

        Raises:
          RedisError: no answer, also within 2 s.
        """
        keys = [_key(shard, name) for name in ("ready", "delayed", "leased", "jobs")]
        keys += [_markers(shard, lane) for lane in lanes]
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            with trio.CancelScope(shield=True), trio.fail_after(CLAIM_S_MAX):
                reply = await script("queue_claim")(
                    self._redis, keys, [self._lease_ms, *map(LANES.index, lanes)]
                )
        except trio.TooSlowError as error:
            raise RedisError(f"no answer to a claim within {CLAIM_S_MAX:g} s") from error
        if reply[0] == 0:
            return None if reply[1] < 0 else reply[1] / 1000
        _, id_, lane, attempt, failures, age_ms = reply
        return Claim(
            id=id_.decode(),
            shard=shard,
            lane=LANES[lane],
            attempt=attempt,
            failures=failures,
            age_s=age_ms / 1000,
        )

    async def wait(self, shard: int, lanes: Sequence[Lane], *, at_most_s: float) -> bool:
        """Sleep until a job may have become ready; False after `at_most_s`.

        Of the graders that sleep one wakes for each job. Who was woken and will not claim calls
        `promote`, which wakes the next.
        """
        keys = [_markers(shard, lane) for lane in lanes]
        # 0 would mean for ever
        reply = await self._redis.execute_command("BLPOP", *keys, max(0.001, round(at_most_s, 3)))
        return reply is not None

    async def promote(self, shard: int) -> tuple[int, int]:
        """Make ready what is due, and what graders have let go of without a word.

        Returns:
          How many delayed jobs were due, and how many leases had run out; at most 128 each.
        """
        keys = [_key(shard, name) for name in ("ready", "delayed", "leased", "jobs")]
        keys += [_markers(shard, lane) for lane in LANES]
        due, lost = await script("queue_promote")(self._redis, keys, [PROMOTED_MAX])
        return due, lost

    async def load(self, claim: Claim) -> Job | None:
        """Read what a claim is about; None where the record has outlived its time."""
        record: dict[bytes, bytes] = await self._redis.execute_command(
            "HGETALL", _record(claim.shard, claim.id)
        )
        if b"text" not in record:
            return None
        prefix = b"judge:"
        return Job(
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
        keys = [_key(claim.shard, "leased"), _key(claim.shard, "jobs")]
        return bool(
            await script("queue_heartbeat")(
                self._redis, keys, [claim.id, claim.attempt, self._lease_ms]
            )
        )

    async def save(self, claim: Claim, judge: str, answer: bytes) -> bool:
        """Keep a judge's answer for later attempts; False: the lease is lost, nothing changed."""
        return bool(
            await script("queue_judge")(
                self._redis, self._held(claim), [claim.id, claim.attempt, judge, answer]
            )
        )

    async def finish(self, claim: Claim, grade: Grade) -> Receiver | None:
        """Store the grade; the job is done. Repeating it is harmless.

        Returns:
          Who is to be told; None: the lease was lost, and nothing changed.
        """
        reply = await script("queue_finish")(
            self._redis,
            self._held(claim),
            [claim.id, claim.attempt, msgspec.json.encode(grade), self._ttl_s],
        )
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
        delay_s: float | None = None,
    ) -> Failed | None:
        """Put the job off, or give it up when it has failed too often. Repeating it is harmless.

        Args:
          claim: the attempt that failed.
          reason: to the operator.
          code: to the student's program, when the job is given up.
          message: to the student, then.
          counted: whether it counts; False where the work could not even be tried.
          final: give it up now: another attempt would fail alike.
          delay_s: until the next attempt; None: exponential back-off with full jitter
            (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

        Returns:
          What became of the job; None: the lease was lost, and nothing changed.
        """
        if delay_s is None:
            ceiling_s = min(self._delay_s_max, self._base_s * 2.0 ** min(claim.attempt - 1, 32))
            delay_s = self._rng.uniform(0.0, ceiling_s)
        shard = claim.shard
        reply = await script("queue_fail")(
            self._redis,
            [
                *(_key(shard, name) for name in ("leased", "delayed", "dead", "jobs")),
                _record(shard, claim.id),
                _markers(shard, claim.lane),
            ],
            [
                claim.id,
                claim.attempt,
                min(round(delay_s * 1000), _DAY_S * 1000),
                int(counted or final),
                1 if final else self._failures_max,
                code,
                message,
                reason[:500],
                self._ttl_s,
            ],
        )
        if reply[0] == b"lost":
            return None
        dead = _receiver(claim.id, reply[2:]) if reply[0] != b"delayed" else None
        return Failed(dead=dead, failures=reply[1])

    async def release(self, claim: Claim) -> bool:
        """Hand the job back untried, to its old place; False: the lease is lost."""
        shard = claim.shard
        return bool(
            await script("queue_release")(
                self._redis,
                [
                    *(_key(shard, name) for name in ("leased", "ready", "jobs")),
                    _markers(shard, claim.lane),
                ],
                [claim.id, claim.attempt],
            )
        )

    async def mail(
        self, receiver: Receiver, kind: Literal["grade", "failed"], payload: bytes
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
                ],
            )

    # -- for operators -------------------------------------------------------------------------

    async def depth(self) -> dict[Lane, int]:
        """Jobs that are ready and wait for a grader, per lane."""
        return (await self.statistics()).ready

    async def statistics(self) -> QueueStatistics:
        """How much waits, and for how long; shards are asked one after the other."""
        ready: dict[Lane, int] = dict.fromkeys(LANES, 0)
        oldest_s: dict[Lane, float] = dict.fromkeys(LANES, 0.0)
        totals = [0, 0, 0]
        for shard in self.shards:
            keys = [_key(shard, name) for name in ("ready", "delayed", "leased", "dead", "jobs")]
            reply = await script("queue_depth")(self._redis, keys, [])
            totals = [total + part for total, part in zip(totals, reply[:3], strict=True)]
            for lane, count, age_ms in zip(LANES, reply[3::2], reply[4::2], strict=True):
                ready[lane] += count
                oldest_s[lane] = max(oldest_s[lane], age_ms / 1000)
        delayed, leased, dead = totals
        return QueueStatistics(
            ready=ready, oldest_s=oldest_s, delayed=delayed, leased=leased, dead=dead
        )

    def shard(self, org: str) -> int:
        """Where an org's jobs are: the same in every process, as long as `shards` is."""
        digest = hashlib.sha256(org.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) % len(self.shards)

    def _held(self, claim: Claim) -> list[str]:
        shard = claim.shard
        return [_key(shard, "leased"), _key(shard, "jobs"), _record(shard, claim.id)]


_STATUS: Final[dict[bytes, Status]] = {
    b"queued": "queued",
    b"grading": "grading",
    b"graded": "graded",
    b"failed": "failed",
}


def _key(shard: int, name: str) -> str:
    return f"queue:{{{shard}}}:{name}"


def _markers(shard: int, lane: Lane) -> str:
    return f"queue:{{{shard}}}:markers:{lane}"


def _record(shard: int, submission: str) -> str:
    return f"submission:{{{shard}}}:{submission}"


def _receiver(submission: str, fields: Sequence[Any]) -> Receiver:
    worker, session, user = (field.decode() for field in fields)
    return Receiver(id=submission, worker=worker, session=session, user=user)
