"""Calibration moves a grade's score as it was fitted, where it is of the judges that answered."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import attrs
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from coach.grading.answers import Answer, Judgement
from coach.grading.calibration import Calibration, Line, calibrated, panel_name, panel_score
from coach.grading.calibrations import (
    KEPT_MAX,
    KEY,
    Calibrations,
    current_version,
    keep_calibration,
    read_calibration,
    read_history,
    use_calibration,
)
from coach.grading.ensemble import combine
from coach.grading.records import Grade, Usage
from coach.grading.rubric import load_rubric
from coach.store import ResponseError, script
from tests.support.valkey import open_test_redis

from .support import until

RUBRIC = load_rubric()
BAND_MAX = RUBRIC.criteria[0].band_max
CALIBRATION = Calibration(
    rubric=RUBRIC.fingerprint(),
    models={"opus": "m-1", "mini": "m-2"},
    lines={"opus": Line(-10.0, 1.0), "mini": Line(20.0, 0.5)},
    margins={panel_name(["mini", "opus"]): 7},
    coverage=0.9,
    source="class.csv",
    essays=120,
    made_at=1_700_000_000.0,
)


PROVIDERS = {"m-1": "opus", "m-2": "mini", "m-9": "mini", "": "opus"}


def answer(band: int, model: str) -> Answer:
    return Answer(
        {each.name: Judgement(band, "words", "It shows.") for each in RUBRIC.criteria},
        "Say why.",
        provider=PROVIDERS.get(model, "new"),
        model=model,
    )


def graded(answers: dict[str, Answer]) -> Grade:
    return combine(
        RUBRIC, answers, panel=dict.fromkeys(answers, "opus"), usage=Usage(), seconds=1.0
    )


def test_each_judge_is_moved_by_its_own_line_and_the_interval_is_the_panels() -> None:
    answers = {"opus": answer(4, "m-1"), "mini": answer(3, "m-2")}  # 80 and 60
    before = graded(answers)
    after = calibrated(before, RUBRIC, answers, 3, CALIBRATION)
    assert (before.score, after.score) == (70, 60)  # the mean of 70 and 50
    assert (after.calibration, after.interval, after.coverage) == (3, (53, 67), 0.9)
    assert after.criteria == before.criteria
    assert (before.calibration, before.interval, before.coverage) == (0, None, None)


def test_a_panel_without_a_margin_of_its_own_gets_no_interval() -> None:
    answers = {"opus": answer(4, "m-1")}
    after = calibrated(graded(answers), RUBRIC, answers, 3, CALIBRATION)
    assert (after.score, after.calibration, after.interval, after.coverage) == (70, 3, None, None)


def test_a_panels_seats_are_moved_by_who_answered_for_them() -> None:
    """Two of one endpoint err alike: no interval was measured of such a panel."""
    answers = {"judge-1": answer(4, "m-1"), "judge-2": answer(3, "m-2")}
    after = calibrated(graded(answers), RUBRIC, answers, 3, CALIBRATION)
    assert (after.score, after.interval) == (60, (53, 67))
    answers["judge-3"] = answer(4, "m-1")
    after = calibrated(graded(answers), RUBRIC, answers, 3, CALIBRATION)
    assert (after.score, after.calibration, after.interval) == (70, 3, None)


def test_scores_and_intervals_end_at_0_and_100() -> None:
    answers = {"opus": answer(5, "m-1"), "mini": answer(5, "m-2")}
    lines = {"opus": Line(10.0, 1.0), "mini": Line(10.0, 1.0)}
    kind = msgspec.structs.replace(CALIBRATION, lines=lines)
    assert calibrated(graded(answers), RUBRIC, answers, 1, kind).interval == (93, 100)
    answers = {"opus": answer(0, "m-1"), "mini": answer(0, "m-2")}
    strict = msgspec.structs.replace(CALIBRATION, lines=dict.fromkeys(lines, Line(-10.0, 1.0)))
    after = calibrated(graded(answers), RUBRIC, answers, 1, strict)
    assert (after.score, after.interval) == (0, (0, 7))


OTHERS = {
    "a judge it does not know": {"opus": answer(4, "m-1"), "new": answer(3, "m-3")},
    "another model": {"opus": answer(4, "m-1"), "mini": answer(3, "m-9")},
    "no model was kept": {"opus": answer(4, "")},
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_judges_than_it_was_fitted_for_are_left_as_they_judged(case: str) -> None:
    before = graded(OTHERS[case])
    assert calibrated(before, RUBRIC, OTHERS[case], 3, CALIBRATION) == before


def test_another_rubric_is_graded_as_judged() -> None:
    answers = {"opus": answer(4, "m-1"), "mini": answer(3, "m-2")}
    other = msgspec.structs.replace(CALIBRATION, rubric="0" * 12)
    assert calibrated(graded(answers), RUBRIC, answers, 3, other).calibration == 0


@given(
    st.lists(st.integers(0, BAND_MAX), min_size=4, max_size=4),
    st.floats(-20, 20),
    st.floats(0.5, 2),
)
def test_a_line_on_every_criterion_is_the_line_on_the_score(
    bands: list[int], offset: float, scale: float
) -> None:
    of_judge = {each.name: band for each, band in zip(RUBRIC.criteria, bands, strict=True)}
    line = Line(offset, scale)
    raw = panel_score(RUBRIC, {"a": of_judge})
    moved = panel_score(RUBRIC, {"a": of_judge}, {"a": line})
    expected = min(100, max(0, Fraction(offset) + Fraction(scale) * raw))
    assert moved == expected


@given(st.integers(0, BAND_MAX), st.integers(0, BAND_MAX), st.floats(0.5, 2))
def test_a_better_essay_never_gets_a_lower_score(one: int, other: int, scale: float) -> None:
    low, high = sorted((one, other))
    lines = {"a": Line(3.0, scale), "b": Line(-8.0, 1.0)}

    def score(band: int) -> Fraction:
        bands = {each.name: band for each in RUBRIC.criteria}
        return panel_score(RUBRIC, {"a": bands, "b": bands}, lines)

    assert score(low) <= score(high)


# -- in Redis ----------------------------------------------------------------------------------


@pytest.mark.real_time
async def test_versions_rise_older_ones_can_be_used_again_and_a_reset_keeps_them(
    tmp_path: Path,
) -> None:
    async with open_test_redis(tmp_path) as redis:
        assert await read_calibration(redis) == (0, None)
        assert await keep_calibration(redis, CALIBRATION) == 1
        second = msgspec.structs.replace(CALIBRATION, essays=240)
        assert await keep_calibration(redis, second) == 2
        assert await read_calibration(redis) == (2, second)
        assert await use_calibration(redis, 1)
        assert await read_calibration(redis) == (1, CALIBRATION)
        assert not await use_calibration(redis, 7)
        assert await current_version(redis) == 1
        assert await use_calibration(redis, 0)
        assert await read_calibration(redis) == (0, None)
        assert list((await read_history(redis))[1]) == [2, 1]
        assert await keep_calibration(redis, CALIBRATION) == 3


@pytest.mark.real_time
async def test_so_many_are_kept_and_no_more(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        newest = KEPT_MAX + 5
        made = [await keep_calibration(redis, CALIBRATION) for _ in range(newest)]
        current, kept = await read_history(redis)
        assert current == made[-1] == newest
        assert list(kept) == list(range(newest, newest - KEPT_MAX - 1, -1))


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("calibration_keep", ["", 5], "calibration"),
        ("calibration_keep", ["{}", 0], "kept_max"),
        ("calibration_keep", ["{}", "many"], "kept_max"),
        ("calibration_use", [-1], "version"),
        ("calibration_use", ["1.5"], "version"),
    ],
)
async def test_bad_arguments_write_nothing(
    tmp_path: Path, name: str, args: list[str | int], said: str
) -> None:
    async with open_test_redis(tmp_path) as redis:
        with pytest.raises(ResponseError, match=f"COACH_BADARG {said}"):
            await script(name)(redis, [KEY], args)
        assert not await redis.exists(KEY)


@pytest.mark.real_time
async def test_a_grader_follows_and_goes_on_without_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coach.grading.calibrations.REFRESH_S", 0.01)
    answers = {"opus": answer(4, "m-1")}
    before = graded(answers)
    async with open_test_redis(tmp_path) as redis, trio.open_nursery() as nursery:
        calibrations = Calibrations(RUBRIC)
        await nursery.start(calibrations.run, redis)
        assert calibrations.apply(before, answers) == before

        await keep_calibration(redis, CALIBRATION)
        await until(lambda: calibrations.version == 1)
        assert calibrations.apply(before, answers) == attrs.evolve(before, score=70, calibration=1)
        await redis.set(KEY, "no hash")  # what answers errors from here on
        await trio.sleep(0.05)
        assert calibrations.version == 1
        await redis.delete(KEY)
        await until(lambda: calibrations.version == 0)
        assert calibrations.apply(before, answers) == before
        nursery.cancel_scope.cancel()
