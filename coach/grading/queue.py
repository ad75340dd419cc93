"""The grading queue in Redis: nothing acknowledged is lost, nothing is graded twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .. import config
    from ..store import Redis
    from .records import Lane, Submission, SubmissionState


class Queue:
    """The grading queue."""

    def __init__(self, redis: Redis, settings: config.Grading) -> None:
        """Open nothing: `redis` is the caller's."""
        self._redis = redis
        self._settings = settings

    async def submit(self, submission: Submission) -> SubmissionState:
        """Take a submission in; returns when it is on disk. Idempotent by id and text."""
        raise NotImplementedError

    async def get(self, org: str, submission: str) -> SubmissionState | None:
        """The submission as it is now; None where the org has none of this id."""
        raise NotImplementedError

    async def depth(self) -> dict[Lane, int]:
        """Jobs that are ready and wait for a grader, per lane."""
        raise NotImplementedError
