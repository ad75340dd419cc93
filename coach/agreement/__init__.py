"""How far grades agree with people's, and how to bring them closer. No Trio, no network, no Redis.

Calculating and drawing need `coach[evaluate]` (NumPy, scikit-learn, Matplotlib); importing the room
does not.
"""

from .entered import evaluation_of
from .essays import ScoredEssay, ScoredEssays, key_of, read_essays
from .figures import (
    Evaluation,
    JudgedEssay,
    PanelFigures,
    Report,
    calibration_of,
    panels_of,
    report,
)
from .plot import draw_confusion
from .recalibrate import COVERAGE, Split, Stage, choose, fit, lines, margin, split
from .scale import ASAP, ASAP_RATERS, Scale
from .statistics import Agreement, Ceilings, agreement, ceilings, interval, qwk, raters_in

__all__ = [
    "ASAP",
    "ASAP_RATERS",
    "COVERAGE",
    "Agreement",
    "Ceilings",
    "Evaluation",
    "JudgedEssay",
    "PanelFigures",
    "Report",
    "Scale",
    "ScoredEssay",
    "ScoredEssays",
    "Split",
    "Stage",
    "agreement",
    "calibration_of",
    "ceilings",
    "choose",
    "draw_confusion",
    "evaluation_of",
    "fit",
    "interval",
    "key_of",
    "lines",
    "margin",
    "panels_of",
    "qwk",
    "raters_in",
    "read_essays",
    "report",
    "split",
]
