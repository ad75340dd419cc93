"""Calibration: what people's scores have taught about each judge, and a grade's score by it. Pure.

A judge's line moves its score of 0..100; it is applied to each criterion's share of its highest
band, which comes to the same, since the weights add up to 1: Σ w (a + b x) = a + b Σ w x. So
medians per criterion stay what they are, of judges that are no longer too kind or too strict.
Bands stay as they were judged: their evidence and reasons speak of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from statistics import median
from typing import TYPE_CHECKING, Annotated

import attrs
import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from .answers import Answer
    from .records import Grade
    from .rubric import Rubric

Bands = Mapping[str, int]
"""By criterion."""


class Line(msgspec.Struct, frozen=True):
    """`offset + scale * score`, of scores from 0 to 100; scale is above 0."""

    offset: float = 0.0
    scale: Annotated[float, Meta(gt=0)] = 1.0

    def __call__(self, score: float) -> float:
        """Not clipped: what lies beyond 0 and 100 is cut off once, of the panel's score."""
        return self.offset + self.scale * score


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Of a panel, from people's scores."""

    rubric: str
    """Fingerprint of the rubric that was judged by."""
    models: dict[str, str]
    """Who answered, by the provider's endpoint."""
    lines: dict[str, Line]
    """By the provider's endpoint: a panel's judges are calibrated by who answers for them."""
    margins: dict[str, int] = {}
    """Half the width of a grade's interval, of 100, by `panel_name` of different endpoints; too few
    essays, and there is none."""
    coverage: float
    """At least so many of a hundred people's scores lie in such an interval, divided by 100."""
    source: str
    """What people had scored."""
    essays: int
    made_at: float
    """Seconds since the epoch."""
    qwk: tuple[float | None, float | None] = (None, None)
    """The widest panel's on held-out essays, as judged and calibrated."""
    bias: tuple[float | None, float | None] = (None, None)
    """Likewise, of 100."""
    covered: float | None = None
    """Share of held-out essays in the interval."""

    def fits(self, rubric: Rubric, answers: Mapping[str, Answer]) -> bool:
        """Whether it is of these judges, of the models that answered, and of this rubric.

        One answer by an endpoint or a model that it does not know, and it is of no use: a median of
        some moved and some unmoved bands would be neither.
        """
        return self.rubric == rubric.fingerprint() and all(
            answer.provider in self.lines and self.models[answer.provider] == answer.model
            for answer in answers.values()
        )


def panel_name(judges: Iterable[str]) -> str:
    """What a panel is called among margins."""
    return "+".join(sorted(judges))


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


def calibrated(
    grade: Grade,
    rubric: Rubric,
    answers: Mapping[str, Answer],
    version: int,
    calibration: Calibration,
) -> Grade:
    """The grade with a calibrated score, the version, and an interval where there is one.

    Unchanged where the calibration is not of this panel (see `Calibration.fits`).
    """
    if not calibration.fits(rubric, answers):
        return grade
    bands = {
        name: {criterion: judgement.band for criterion, judgement in answer.criteria.items()}
        for name, answer in answers.items()
    }
    lines = {name: calibration.lines[answer.provider] for name, answer in answers.items()}
    score = math.floor(panel_score(rubric, bands, lines) + Fraction(1, 2))
    # Two answers of one endpoint err alike: what was measured of different ones says nothing then.
    margin = calibration.margins.get(panel_name(answer.provider for answer in answers.values()))
    return attrs.evolve(
        grade,
        score=score,
        calibration=version,
        interval=None if margin is None else (max(0, score - margin), min(100, score + margin)),
        coverage=None if margin is None else calibration.coverage,
    )
