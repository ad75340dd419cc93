"""The grading queue, the judges, and the grader process that brings them together."""

from .grader import run_grader
from .judges import Judge
from .queue import Queue
from .records import (
    LANES,
    CriterionGrade,
    Failure,
    Grade,
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
    "Criterion",
    "CriterionGrade",
    "Failure",
    "Grade",
    "Judge",
    "Lane",
    "Queue",
    "Rubric",
    "Status",
    "Submission",
    "SubmissionState",
    "Usage",
    "load_rubric",
    "run_grader",
]
