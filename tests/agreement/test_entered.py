"""Scores entered on the page, beside what the judges had said: an evaluation like any other."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from coach.agreement import calibration_of, evaluation_of, report
from coach.errors import ConfigurationError
from coach.grading import Answer, JudgeView, PersonsScore, Reading
from coach.grading.answers import Judgement

from .judging import RUBRIC


def judge(seat: str, provider: str, band: int, model: str = "m") -> JudgeView:
    criteria = {
        criterion.name: Judgement(band=band, evidence="", reason="")
        for criterion in RUBRIC.criteria
    }
    answer = Answer(criteria=criteria, improve_first="", provider=provider, model=model)
    return JudgeView(judge=seat, provider=provider, model=model, score=0, answer=answer)


def reading(
    id_: str, judges: tuple[JudgeView, ...], scores: Mapping[str, int], *, blind: bool = True
) -> Reading:
    return Reading(
        submission=id_,
        user="ana",
        assignment="x",
        text=f"Essay {id_}.",
        submitted_at=0.0,
        grade=None,
        judges=judges,
        second=None,
        second_judges=(),
        scores=tuple(
            PersonsScore(by=by, score=score, blind=blind, at=at)
            for at, (by, score) in enumerate(scores.items())
        ),
    )


def test_judges_are_endpoints_with_the_model_that_answered_most() -> None:
    """A second seat of an endpoint, a stand-in and another model are left out."""
    readings = [
        reading(str(n), (judge("1", "a", 2), judge("2", "b", 3), judge("3", "a", 5)), {"eva": 40})
        for n in range(4)
    ]
    readings.append(
        reading("4", (judge("1", "a", 2, "old"), judge("2", "c", 4)), {"eva": 60, "ben": 70})
    )
    found = evaluation_of(readings, RUBRIC, source="s")
    assert found.judges == {"a": "m", "b": "m"}
    assert [set(each.bands) for each in found.essays] == [{"a", "b"}] * 4 + [set()]
    assert set(found.essays[0].bands["a"].values()) == {2}
    assert (found.essays[4].score, found.essays[4].raters) == (60, (60, 70))
    assert found.essays[0].raters is None


def test_only_blind_scores_count_where_they_are_asked_for() -> None:
    judges = (judge("1", "a", 2),)
    readings = [
        reading("1", judges, {"eva": 40}, blind=False),
        reading("2", judges, {"eva": 50}),
        reading("3", (), {"eva": 50}),
    ]
    assert [each.id for each in evaluation_of(readings, RUBRIC, source="s").essays] == ["1", "2"]
    assert [each.id for each in evaluation_of(readings, RUBRIC, source="s", blind=True).essays] == [
        "2"
    ]
    with pytest.raises(ConfigurationError, match="s: no essay has both a blind score and"):
        evaluation_of(readings[::2], RUBRIC, source="s", blind=True)


def test_a_judge_who_is_too_kind_by_what_people_enter_is_calibrated_so() -> None:
    draw = random.Random(2)
    readings = []
    for number in range(60):
        band = draw.randrange(1, 5)
        readings.append(reading(str(number), (judge("1", "a", band),), {"eva": 20 * band - 12}))
    evaluation = evaluation_of(readings, RUBRIC, source="s")
    found = report(evaluation, RUBRIC)
    calibration = calibration_of(evaluation, found, made_at=0.0)
    assert calibration.models == {"a": "m"}
    assert calibration.lines["a"](60) == pytest.approx(48, abs=1)
