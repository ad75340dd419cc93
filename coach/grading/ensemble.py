"""Several judges' answers become one grade. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from .calibration import panel_score
from .records import CriterionGrade, Grade, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .answers import Answer
    from .rubric import Rubric

SPREAD_MAX: Final = 2
"""Bands between the highest and the lowest judge; more, and a person should look."""


def combine(
    rubric: Rubric,
    answers: Mapping[str, Answer],
    *,
    panel: Mapping[str, str],
    absent: Mapping[str, str] | None = None,
    usage: Usage,
    seconds: float,
) -> Grade:
    """The panel's grade: the median per criterion, weighed by the rubric.

    With an even number of judges a median may lie between two bands: the score counts the half,
    the band shown is rounded up. Words come from a judge whose own band is nearest to the median,
    in the order of names, so that the same answers always give the same grade.

    Args:
      rubric: names, weights, highest bands.
      answers: by judge, at least one; each with every criterion of the rubric.
      panel: who there could have been, and at which provider each is at home, by judge.
      absent: why the others are missing, in a word each, by judge.
      usage: of all judges.
      seconds: from submission to grade.
    """
    names = sorted(answers)
    medians = {
        criterion.name: median([answers[name].criteria[criterion.name].band for name in names])
        for criterion in rubric.criteria
    }

    def distance(name: str, criterion: str) -> Fraction:
        return abs(answers[name].criteria[criterion].band - medians[criterion])

    criteria = []
    spread = 0
    for criterion in rubric.criteria:
        bands = [answers[name].criteria[criterion.name].band for name in names]
        spread = max(spread, max(bands) - min(bands))
        nearest = min(names, key=lambda name: distance(name, criterion.name))
        judgement = answers[nearest].criteria[criterion.name]
        criteria.append(
            CriterionGrade(
                name=criterion.name,
                label=criterion.label,
                band=_half_up(medians[criterion.name]),
                band_max=criterion.band_max,
                evidence=judgement.evidence,
                reason=judgement.reason,
            )
        )
    score = panel_score(rubric, {name: _bands(answers[name]) for name in names})
    reason = why_degraded(answers, panel, absent or {})
    speaker = min(names, key=lambda name: sum(distance(name, c.name) for c in rubric.criteria))
    return Grade(
        score=_half_up(score),
        criteria=tuple(criteria),
        judges=len(names),
        degraded=bool(reason),
        degraded_reason=reason,
        bands_apart=spread if len(names) > 1 else None,
        review=spread > SPREAD_MAX,
        feedback=answers[speaker].improve_first,
        usage=usage,
        seconds=seconds,
    )


def why_degraded(
    answers: Mapping[str, Answer], panel: Mapping[str, str], absent: Mapping[str, str]
) -> str:
    """Why a grade is to be less sure of; empty: it is not.

    Judges may be missing; or one provider stands in for another, so that fewer different models
    have read the essay than should: their errors are less apart.
    """
    missing = [f"{name} {absent.get(name, 'missing')}" for name in panel if name not in answers]
    if missing:
        return f"{len(answers)} of {len(panel)} judges answered: {', '.join(missing)}"
    asked = {answer.provider for answer in answers.values()}
    if len(asked) < len(set(panel.values())):
        away = sorted(set(panel.values()) - asked)
        return f"no judge at {', '.join(away)}: others stood in"
    return ""


def median(values: Sequence[int]) -> Fraction:
    """The middle value, or the exact mean of the two middle ones."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return Fraction(ordered[middle])
    return Fraction(ordered[middle - 1] + ordered[middle], 2)


def total(usages: Iterable[Usage]) -> Usage:
    """Tokens of several requests together."""
    input_, cache_write, cache_read, output = 0, 0, 0, 0
    for usage in usages:
        input_ += usage.input
        cache_write += usage.cache_write
        cache_read += usage.cache_read
        output += usage.output
    return Usage(input=input_, cache_write=cache_write, cache_read=cache_read, output=output)


def _bands(answer: Answer) -> dict[str, int]:
    return {name: judgement.band for name, judgement in answer.criteria.items()}


def _half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
