"""What the grading room takes in and gives out. Plain records: no clock, no Redis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from ..budget import LANES, Lane

__all__ = [
    "LANES",
    "CriterionGrade",
    "Failure",
    "Grade",
    "Kind",
    "Lane",
    "Status",
    "Submission",
    "SubmissionState",
    "Usage",
]

Status = Literal["queued", "grading", "graded", "failed"]
Kind = Literal["grade", "regrade", "audit", "webhook"]
"""What is to be done with an essay, or with the news of one. A grader that does not know a kind
makes it a dead letter."""


@attrs.frozen
class Usage:
    """Tokens of one or more requests; `input` is uncached and excludes `cache_write`."""

    input: int = 0
    cache_write: int = 0
    cache_read: int = 0
    output: int = 0


@attrs.frozen(kw_only=True)
class Submission:
    """An essay that is handed in."""

    id: str
    """Made by the client; 1..64 characters of `A-Za-z0-9_.:@-`, first one a letter or digit."""
    user: str
    org: str
    assignment: str
    """Id of the task; one that the rubric does not know counts as a free choice."""
    text: str
    lane: Lane = "submission"
    worker: str = ""
    """Whose mailbox gets the result; empty: nobody is told, the result is read with `get`."""
    session: str = ""
    """Where in that worker the student is."""
    kind: Kind = "grade"
    parameters: Mapping[str, str] = attrs.field(factory=dict)
    """Of the kind; they belong to what makes two submissions the same."""


@attrs.frozen(kw_only=True)
class CriterionGrade:
    """One criterion's band (0 is lowest) with the words of the essay that show it."""

    name: str
    label: str
    band: int
    band_max: int
    evidence: str
    reason: str


@attrs.frozen(kw_only=True)
class Grade:
    """The panel's result."""

    score: int
    """0..100."""
    criteria: tuple[CriterionGrade, ...]
    judges: int
    """How many judges' answers are in it."""
    degraded: bool
    """Fewer judges answered than were asked, or with less variety among them."""
    degraded_reason: str = ""
    """Why, in words for anybody."""
    bands_apart: int | None = None
    """Of the lowest and the highest judge, in the criterion in which they differ most; None: one
    judge alone, or a grade of before this was kept."""
    review: bool = False
    """A person should look: the judges lie far apart, or it is one of the sample."""
    feedback: str
    """What to improve first, to the student."""
    usage: Usage = Usage()
    """Tokens of all judges, repairs included."""
    seconds: float = 0.0
    """From submission to grade, on Redis' clock."""
    calibration: int = 0
    """Version of the calibration that the score is by; 0: it is as judged."""
    interval: tuple[int, int] | None = None
    """Where a person's score of this essay lies in `coverage` of all cases; of 0..100."""
    coverage: float | None = None
    """Present exactly when `interval` is; above 0, below 1."""


@attrs.frozen(kw_only=True)
class Failure:
    """Why a submission was given up."""

    code: str
    """The wire code the student sees."""
    message: str
    """To the student."""
    reason: str
    """To the operator."""
    attempts: int
    """Failed attempts that counted."""
    can_retry: bool = True
    """Whether the same essay may fare better another time."""


@attrs.frozen(kw_only=True)
class SubmissionState:
    """A submission as the queue knows it now."""

    id: str
    user: str
    org: str
    status: Status
    kind: str = "grade"
    submitted_at: float = 0.0
    """Seconds since the epoch, on Redis' clock."""
    ended_at: float | None = None
    """When it was graded or given up; likewise."""
    place: int | None = None
    """1 is the next; None: it does not wait for a grader now."""
    retry_at: float | None = None
    """When it will be tried again after a failure; seconds since the epoch."""
    grade: Grade | None = None
    """Present exactly when `status` is `graded`."""
    failure: Failure | None = None
    """Present exactly when `status` is `failed`."""
