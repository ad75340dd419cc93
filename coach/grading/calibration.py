"""Calibration: what people's scores have taught about each judge, and a grade's score by it. Pure.

A judge's line moves its score of 0..100; it is applied to each criterion's share of its highest
band, which comes to the same, since the weights add up to 1: Σ w (a + b x) = a + b Σ w x. So
medians per criterion stay what they are, of judges that are no longer too kind or too strict.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from statistics import median
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from .rubric import Rubric

Bands = Mapping[str, int]
"""By criterion."""


class Line(msgspec.Struct, frozen=True):
    """`offset + scale * score`, of scores from 0 to 100; scale is above 0."""

    offset: float = 0.0
    scale: float = 1.0

    def __call__(self, score: float) -> float:
        """Not clipped: what lies beyond 0 and 100 is cut off once, of the panel's score."""
        return self.offset + self.scale * score


def panel_score(
    rubric: Rubric, bands: Mapping[str, Bands], lines: Mapping[str, Line] | None = None
) -> Fraction:
    """The panel's score of 0..100, exact: the median per criterion, weighed by the rubric.

    Args:
      rubric: weights and highest bands.
      bands: by judge, at least one; each with every criterion.
      lines: by judge; None: as they judged.
    """
    total = Fraction(0)
    for criterion in rubric.criteria:
        shares = []
        for judge, of_judge in bands.items():
            share = Fraction(of_judge[criterion.name], criterion.band_max)
            if lines is not None:
                line = lines[judge]
                share = Fraction(line.offset) / 100 + Fraction(line.scale) * share
            shares.append(share)
        total += criterion.weight * median(shares)
    return min(Fraction(100), max(Fraction(0), total))
