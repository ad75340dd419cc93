"""What the queue says of jobs and lanes: records without behaviour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
    from .records import Kind, Lane, SubmissionState

Mode = Literal["open", "paused", "draining"]
"""Of a lane. paused: nothing is handed out; draining: nothing is taken in."""


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

    kind: Kind
    parameters: dict[str, str]
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
class Announcement:
    """The end of an essay that somebody outside is to hear of."""

    member: bytes
    """What it is called in the outbox; differs between two ends of the same essay."""
    at: float
    """When it ended; seconds since the epoch, on Redis' clock."""
    state: SubmissionState
    assignment: str


@attrs.frozen(kw_only=True)
class Failed:
    """What became of a failed job."""

    dead: Receiver | None
    """Who must be told that it was given up; None where it will be tried again."""
    failures: int


@attrs.frozen(kw_only=True)
class LaneStatistics:
    """One lane, all shards together."""

    ready: int = 0
    """Jobs that wait for a grader."""
    unfinished: int = 0
    """Ready, put off, or with a grader."""
    oldest_s: float = 0.0
    """Since the oldest unfinished one was submitted; 0 where there is none."""
    mode: Mode = "open"
    """Of the first shard: all are told the same."""


@attrs.frozen(kw_only=True)
class QueueStatistics:
    """All shards together."""

    lanes: dict[Lane, LaneStatistics]
    delayed: int
    leased: int
    dead: int

    @property
    def ready(self) -> dict[Lane, int]:
        """Jobs that wait for a grader."""
        return {lane: statistics.ready for lane, statistics in self.lanes.items()}


@attrs.frozen(kw_only=True)
class Latencies:
    """A histogram that all graders have filled together since the queue exists."""

    counts: dict[int, int]
    """By upper end in milliseconds, not cumulative; all of `BOUNDS_MS`."""
    beyond: int
    """Longer than the last of them."""
    sum_s: float


@attrs.frozen(kw_only=True)
class QueueCounts:
    """What has happened since the queue exists, all shards together."""

    events: dict[tuple[str, Lane], int]
    """submitted, retried, lost (leases), dead, cancelled, replayed; only those that have."""
    pickup: dict[Lane, Latencies]
    """From submission to first claim."""
    total: dict[Lane, Latencies]
    """From submission to grade."""
