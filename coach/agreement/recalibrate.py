"""Recalibration: from human scores to each judge's offset and scale, and the interval of a grade.

Pure. Every score here is 0..100. Essays are split three ways, by a hash of their ids, so that the
same essay falls on the same side in every run: offset and scale are fitted on the first part, the
interval on the second, and what is reported is measured on the third, which nothing has seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Final, Literal

import attrs

from ..grading import Line

FIT_PERCENT: Final = 50
INTERVAL_PERCENT: Final = 25
OFFSET_ESSAYS_MIN: Final = 5
"""Fewer essays say nothing about a judge's mean."""
SCALE_ESSAYS_MIN: Final = 20
"""Nor these about the spread."""
SCALE_LIMITS: Final = (0.5, 2.0)
"""Above 0: a better essay never gets a lower score. A judge beyond them needs another prompt."""
FOLDS: Final = 5
COVERAGE: Final = 0.9

Stage = Literal["none", "offset", "scale"]


@attrs.frozen
class Split:
    """Indices of essays."""

    fit: tuple[int, ...]
    interval: tuple[int, ...]
    held_out: tuple[int, ...]


def split(ids: Sequence[str], *, seed: int = 0) -> Split:
    """Three parts; which essay is where hangs on its id and the seed, not on the file's order."""
    order = sorted(
        range(len(ids)), key=lambda at: hashlib.sha256(f"{seed}:{ids[at]}".encode()).digest()
    )
    fit = len(order) * FIT_PERCENT // 100
    held_out = fit + len(order) * INTERVAL_PERCENT // 100
    return Split(tuple(order[:fit]), tuple(order[fit:held_out]), tuple(order[held_out:]))


def fit(scores: Sequence[float], human: Sequence[float], stage: Stage) -> Line:
    """Offset first, then scale.

    The offset makes the judge's mean the people's. The scale makes its spread theirs too: of all
    straight lines that one has the highest QWK, for `2kc / (k²v + w)` is greatest at k² = w/v.
    Least squares would pull every score to the mean instead.

    Args:
      scores: the judge's, 0..100.
      human: of the same essays, 0..100.
      stage: how far to go; the scale needs SCALE_ESSAYS_MIN essays, the offset OFFSET_ESSAYS_MIN,
        and with fewer there is none.
    """
    if stage == "none" or len(scores) < OFFSET_ESSAYS_MIN:
        return Line()
    ours, theirs = fmean(scores), fmean(human)
    scale = 1.0
    if stage == "scale" and len(scores) >= SCALE_ESSAYS_MIN and pstdev(scores) > 0:
        low, high = SCALE_LIMITS
        scale = min(high, max(low, pstdev(human) / pstdev(scores)))
    return Line(theirs - scale * ours, scale)


def choose(scores: Sequence[float], human: Sequence[float]) -> Stage:
    """The stage that agrees best with essays which it was not fitted on, the simpler one at a tie.

    By cross-validation, so only over the essays that are for fitting. A scale that 50 essays happen
    to ask for often makes the 51st worse.
    """
    if len(scores) < OFFSET_ESSAYS_MIN:
        return "none"
    stages: list[Stage] = ["none", "offset"]
    if len(scores) >= SCALE_ESSAYS_MIN * FOLDS / (FOLDS - 1):
        stages.append("scale")
    best: Stage = "none"
    highest = -math.inf
    for stage in stages:
        moved = [0.0] * len(scores)
        for fold in range(FOLDS):
            rest = [at for at in range(len(scores)) if at % FOLDS != fold]
            line = fit([scores[at] for at in rest], [human[at] for at in rest], stage)
            for at in range(fold, len(scores), FOLDS):
                moved[at] = line(scores[at])
        found = _agreement(moved, human)
        if found > highest + 1e-9:
            best, highest = stage, found
    return best


def margin(misses: Sequence[float], *, coverage: float = COVERAGE) -> float | None:
    """Half the width of a grade's interval, by split conformal prediction.

    Lei et al. 2018, algorithm 2; for essays arXiv 2509.15926, which has sets of classes instead.
    A new essay's person lies within it with a probability of at least `coverage`, whatever the
    distribution, as long as the new essay could as well have been among these.

    Args:
      misses: |grade - human|, of essays that nothing was fitted on.
      coverage: above 0, below 1.

    Returns:
      The ⌈(n + 1)·coverage⌉-th smallest miss; None where there are too few essays for the coverage.
    """
    rank = math.ceil((len(misses) + 1) * coverage - 1e-9)
    return sorted(misses)[rank - 1] if rank <= len(misses) else None


def misses_needed(coverage: float) -> int:
    """How few misses `margin` can work with."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def lines(
    scores: Mapping[str, Sequence[float]], human: Sequence[float], stage: Stage
) -> dict[str, Line]:
    """A line for each judge."""
    return {judge: fit(of_judge, human, stage) for judge, of_judge in scores.items()}


def _agreement(scores: Sequence[float], human: Sequence[float]) -> float:
    """Quadratic weighted kappa of scores that are on no grid (Lin's concordance)."""
    ours, theirs = fmean(scores), fmean(human)
    covariance = fmean((a - ours) * (b - theirs) for a, b in zip(scores, human, strict=True))
    apart = pstdev(scores) ** 2 + pstdev(human) ** 2 + (ours - theirs) ** 2
    return 2 * covariance / apart if apart else 1.0
