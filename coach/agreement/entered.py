"""Scores that educators entered on coach's own page, as an evaluation. Pure.

The judges have answered already, when the essays were graded: nothing is asked or paid again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ..errors import ConfigurationError
from ..grading import SCORE_MAX
from .essays import key_of
from .figures import Evaluation, JudgedEssay

if TYPE_CHECKING:
    from ..grading import JudgeView, PersonsScore, Reading, Rubric

ANSWERED_PERCENT: Final = 50
"""Of the essays; an endpoint that answered fewer only stood in for others, and is left out: what is
compared are the essays that all judges have judged."""


def evaluation_of(
    readings: Sequence[Reading], rubric: Rubric, *, source: str, blind: bool = False
) -> Evaluation:
    """What judges and people gave the same essays.

    The reference is the score of whoever entered one first. Judges are endpoints, as calibrations
    know them, each with the model that answered most; of two seats that one endpoint answered for
    the first in the order of names counts.

    Args:
      readings: essays with scores.
      rubric: what they were judged by.
      source: what it is called.
      blind: leave out scores that were entered after the grade had been seen.

    Raises:
      ConfigurationError: there is no essay with a score and judges' answers.
    """
    scored = [
        (reading, scores)
        for reading in readings
        if reading.judges
        and (scores := [each for each in reading.scores if each.blind or not blind])
    ]
    models = _models([reading for reading, _ in scored])
    if not models:
        raise ConfigurationError(
            f"{source}: no essay has both a {'blind ' if blind else ''}score and judges' answers "
            "by the rubric in use (grading.rubric)"
        )
    return Evaluation(
        source=source,
        rubric=rubric.fingerprint(),
        judges=models,
        low=0,
        high=SCORE_MAX,
        step=1,
        rater_low=0,
        rater_high=SCORE_MAX,
        raters_in_label=1,
        essays=tuple(_essay(reading, scores, models) for reading, scores in scored),
    )


def _models(readings: Sequence[Reading]) -> dict[str, str]:
    """The model of each endpoint that answered for enough essays."""
    answered: dict[str, Counter[str]] = {}
    for reading in readings:
        for endpoint, view in _by_endpoint(reading):
            answered.setdefault(endpoint, Counter())[view.model] += 1
    return {
        endpoint: counts.most_common(1)[0][0]
        for endpoint, counts in sorted(answered.items())
        if counts.most_common(1)[0][1] * 100 >= ANSWERED_PERCENT * len(readings)
    }


def _by_endpoint(reading: Reading) -> Iterator[tuple[str, JudgeView]]:
    seen = set()
    for view in reading.judges:
        if view.provider not in seen:
            seen.add(view.provider)
            yield view.provider, view


def _essay(reading: Reading, scores: Sequence[PersonsScore], models: dict[str, str]) -> JudgedEssay:
    first, second = [*scores, None][:2]
    assert first is not None
    return JudgedEssay(
        key=key_of(reading.text),
        id=reading.submission,
        score=first.score,
        raters=None if second is None else (first.score, second.score),
        bands={
            endpoint: {name: each.band for name, each in view.answer.criteria.items()}
            for endpoint, view in _by_endpoint(reading)
            if models.get(endpoint) == view.model
        },
    )
