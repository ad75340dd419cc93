"""The grading queue, the judges, and the grader process that brings them together."""

from .answers import Answer
from .at_once import AtOnce
from .batch import Batcher
from .bulk import Bulk, BulkJob, Chosen, Feeder
from .calibration import Bands, Calibration, Line, panel_name, panel_score
from .calibrations import (
    Calibrations,
    current_version,
    keep_calibration,
    read_calibration,
    read_history,
    use_calibration,
)
from .desk import Desk, Done, JobView
from .grader import run_grader
from .hours import Hours, work_within
from .inbox import PRESENT_S, Inbox
from .jobs import Claim, Latencies, Mode, QueueStatistics, Receiver
from .judges import LENSES, OUTPUT_TOKENS_USUAL, Bench, Judge, JudgeOut, seat_panel
from .queue import Queue
from .readings import (
    SCORE_MAX,
    HandedIn,
    JudgeView,
    PersonsScore,
    Reading,
    Readings,
    grades_heading,
    grades_row,
    scored_heading,
    scored_row,
)
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
from .reviews import Review, Reviews
from .roll import be_counted, count_graders
from .rubric import Assignment, Criterion, Rubric, load_rubric
from .webhooks import delivery_desk, run_courier

__all__ = [
    "LANES",
    "LENSES",
    "OUTPUT_TOKENS_USUAL",
    "PRESENT_S",
    "SCORE_MAX",
    "Answer",
    "Assignment",
    "AtOnce",
    "Bands",
    "Batcher",
    "Bench",
    "Bulk",
    "BulkJob",
    "Calibration",
    "Calibrations",
    "Chosen",
    "Claim",
    "Criterion",
    "CriterionGrade",
    "Desk",
    "Done",
    "Failure",
    "Feeder",
    "Grade",
    "HandedIn",
    "Hours",
    "Inbox",
    "JobView",
    "Judge",
    "JudgeOut",
    "JudgeView",
    "Kind",
    "Lane",
    "Latencies",
    "Line",
    "Mode",
    "PersonsScore",
    "Queue",
    "QueueStatistics",
    "Reading",
    "Readings",
    "Receiver",
    "Review",
    "Reviews",
    "Rubric",
    "Status",
    "Submission",
    "SubmissionState",
    "Usage",
    "be_counted",
    "count_graders",
    "current_version",
    "delivery_desk",
    "grades_heading",
    "grades_row",
    "keep_calibration",
    "load_rubric",
    "panel_name",
    "panel_score",
    "read_calibration",
    "read_history",
    "run_courier",
    "run_grader",
    "scored_heading",
    "scored_row",
    "seat_panel",
    "use_calibration",
    "work_within",
]
