"""Grades a person should look at: where judges disagree, a random sample, and audits (bulk.py).

A list for each org in Redis, which holds ids; essay and grade are in the submission's record. An
essay on which the judges disagree is also read by a fresh panel, in the background: its grade is a
second opinion beside the first, which stays what the student was told.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Literal, cast

import attrs

from ..store import script
from .records import Submission

if TYPE_CHECKING:
    from .. import config
    from ..store import Redis
    from .jobs import Job
    from .queue import Queue
    from .records import Grade

Reason = Literal["disagreement", "sample", "audit"]
REASONS: Final[tuple[Reason, ...]] = ("disagreement", "sample", "audit")

LENGTH_MAX: Final = 10_000
"""Reviews an org may have open; beyond it the oldest leave the list."""
SHOWN_MAX: Final = 200
_DAY_S: Final = 86_400


@attrs.frozen(kw_only=True)
class Review:
    """A graded submission that a person should look at."""

    submission: str
    reason: Reason
    at: float
    """Seconds since the epoch, on Redis' clock."""
    grade: Grade | None
    """As the student was told; None where its record has outlived its time."""
    second: Grade | None
    """A fresh panel's, the newest; None while there is none."""


class Reviews:
    """A handle on the orgs' lists; holds no state of its own.

    Every method is a checkpoint and raises `RedisError` where Redis does not answer.
    """

    def __init__(self, redis: Redis, queue: Queue, settings: config.Grading) -> None:
        """Open nothing: both are the caller's."""
        self._redis = redis
        self._queue = queue
        self._ttl_s = settings.result_days * _DAY_S

    async def add(self, org: str, submission: str, reason: Reason) -> None:
        """Put a submission onto its org's list. Repeating it is harmless."""
        await script("review_add")(
            self._redis, [self._key(org)], [f"{reason} {submission}", self._ttl_s, LENGTH_MAX]
        )

    async def done(self, org: str, submission: str) -> bool:
        """Take a submission off the list; False: it was not there."""
        members = [f"{reason} {submission}" for reason in REASONS]
        return bool(await self._redis.execute_command("ZREM", self._key(org), *members))

    async def newest(self, org: str, count_max: int = SHOWN_MAX) -> list[Review]:
        """The org's list, newest first; two round trips for each."""
        entries = await self._redis.execute_command(
            "ZREVRANGE", self._key(org), 0, count_max - 1, "WITHSCORES"
        )
        pairs = entries if entries and isinstance(entries[0], (list, tuple)) else _pairs(entries)
        found = []
        for member, at_ms in pairs:
            reason, _, submission = member.decode().partition(" ")
            found.append(await self._review(org, submission, reason, at_ms))
        return found

    async def find(self, org: str, submission: str) -> Review | None:
        """One of the org's list; None: it is not there."""
        for reason in REASONS:
            at_ms = await self._redis.execute_command(
                "ZSCORE", self._key(org), f"{reason} {submission}"
            )
            if at_ms is not None:
                return await self._review(org, submission, reason, at_ms)
        return None

    async def _review(self, org: str, submission: str, reason: str, at_ms: bytes | float) -> Review:
        state = await self._queue.get(org, submission)
        history = await self._queue.history(org, submission)
        return Review(
            submission=submission,
            reason=cast("Reason", reason),
            at=float(at_ms) / 1000,
            grade=None if state is None else state.grade,
            second=history[-1].grade if history else None,
        )

    async def ask_again(self, job: Job, submission: str) -> None:
        """Have a fresh panel read an essay in the background. Repeating it is harmless.

        Raises:
          Overloaded: the background lane takes nothing in just now.
        """
        second = second_id(submission)
        await self._queue.note_again(job.org, submission, second, "regrade")
        await self._queue.submit(
            Submission(
                id=second,
                user=job.user,
                org=job.org,
                assignment=job.assignment,
                text=job.text,
                lane="background",
                kind="regrade",
                parameters={"of": submission},
            )
        )

    def _key(self, org: str) -> str:
        return f"reviews:{{{self._queue.shard(org)}}}:{org}"


def second_id(submission: str) -> str:
    """Under which id the second opinion on a submission is kept: the same in every process."""
    return f"second.{hashlib.sha256(submission.encode()).hexdigest()[:40]}"


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
