"""How far grades agree with people's, and how to bring them closer. Statistics: no I/O, no Trio."""

from .recalibrate import COVERAGE, Line, Split, Stage, choose, fit, lines, margin, split
from .scale import ASAP, ASAP_RATERS, Scale
from .statistics import Agreement, Ceilings, agreement, ceilings, interval, qwk, raters_in

__all__ = [
    "ASAP",
    "ASAP_RATERS",
    "COVERAGE",
    "Agreement",
    "Ceilings",
    "Line",
    "Scale",
    "Split",
    "Stage",
    "agreement",
    "ceilings",
    "choose",
    "fit",
    "interval",
    "lines",
    "margin",
    "qwk",
    "raters_in",
    "split",
]
