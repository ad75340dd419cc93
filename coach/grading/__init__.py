"""The grading queue, the judges, and the grader process that brings them together."""

from .desk import Desk, Done, JobView
from .grader import run_grader
from .judges import Judge
from .queue import Claim, Latencies, Mode, Queue, QueueStatistics
from .records import (
    LANES,
    CriterionGrade,
    Failure,
    Grade,
    Kind,
    Lane,
    Status,
    Submission,
    SubmissionState,
    Usage,
)
from .rubric import Assignment, Criterion, Rubric, load_rubric

__all__ = [
    "LANES",
    "Assignment",
    "Claim",
    "Criterion",
    "CriterionGrade",
    "Desk",
    "Done",
    "Failure",
    "Grade",
    "JobView",
    "Judge",
    "Kind",
    "Lane",
    "Latencies",
    "Mode",
    "Queue",
    "QueueStatistics",
    "Rubric",
    "Status",
    "Submission",
    "SubmissionState",
    "Usage",
    "load_rubric",
    "run_grader",
]
