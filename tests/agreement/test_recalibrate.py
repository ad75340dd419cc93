"""Recalibration brings a judge closer to people, and an interval holds what it says."""

from __future__ import annotations

import random

import pytest

from coach.agreement import choose, fit, lines, margin, split
from coach.agreement.recalibrate import SCALE_ESSAYS_MIN, misses_needed
from coach.grading import Line


def judged(
    count: int, *, offset: float, scale: float, noise: float = 6.0, seed: int = 3
) -> tuple[list[float], list[float]]:
    """A judge's scores and people's, of 0 to 100."""
    draw = random.Random(seed)
    human = [min(100.0, max(0.0, draw.gauss(60, 16))) for _ in range(count)]
    return [offset + scale * each + draw.gauss(0, 1) * noise for each in human], human


def test_the_offset_is_what_a_judge_is_too_kind_by() -> None:
    scores, human = judged(400, offset=12, scale=1.0)
    line = fit(scores, human, "offset")
    assert line.offset == pytest.approx(-12, abs=1)
    assert line.scale == 1.0


def test_the_scale_undoes_a_judge_who_shies_away_from_the_ends() -> None:
    scores, human = judged(400, offset=30, scale=0.5, noise=1.0)
    line = fit(scores, human, "scale")
    assert line.scale == pytest.approx(2.0, abs=0.1)
    assert line(30 + 0.5 * 80) == pytest.approx(80, abs=2)


def test_a_better_essay_never_gets_a_lower_score() -> None:
    """Also where a judge has it the wrong way round, or gives everybody the same."""
    scores, human = judged(100, offset=100, scale=-1.0)
    for line in lines({"wrong": scores, "same": [50.0] * 100}, human, "scale").values():
        assert line.scale > 0


def test_each_stage_has_its_essays_or_is_left_out() -> None:
    scores, human = judged(SCALE_ESSAYS_MIN - 1, offset=10, scale=0.5)
    assert fit(scores, human, "scale").scale == 1.0
    assert fit(scores[:4], human[:4], "offset") == Line()
    assert choose(scores[:4], human[:4]) == "none"


def test_it_goes_as_far_as_essays_it_has_not_seen_are_better_for() -> None:
    assert choose(*judged(400, offset=15, scale=0.5, noise=3)) == "scale"
    assert choose(*judged(24, offset=15, scale=0.5, noise=3)) == "offset"
    exact = judged(30, offset=0, scale=1.0, noise=0)
    assert choose(*exact) == "none"


def test_a_split_hangs_on_ids_and_seed_and_loses_nothing() -> None:
    ids = [f"essay-{at}" for at in range(101)]
    one = split(ids)
    assert sorted((*one.fit, *one.interval, *one.held_out)) == list(range(101))
    assert (len(one.fit), len(one.interval), len(one.held_out)) == (50, 25, 26)
    turned = split(ids[::-1])
    assert {ids[at] for at in one.fit} == {ids[::-1][at] for at in turned.fit}
    assert split(ids, seed=1) != one


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("count", [9, 40])
def test_an_interval_holds_as_often_as_it_says(coverage: float, count: int) -> None:
    """Over many calibrations and new essays; the noise is skewed, which it must not mind.

    In the mean over calibrations coverage is rank / (n + 1), which is what theory says exactly.
    """
    draw = random.Random(5)
    rounds, held = 3_000, 0
    for _ in range(rounds):
        wide = margin([draw.expovariate(0.1) for _ in range(count)], coverage=coverage)
        assert wide is not None
        held += draw.expovariate(0.1) <= wide
    rank = -(-(count + 1) * round(coverage * 10) // 10)
    assert held / rounds == pytest.approx(rank / (count + 1), abs=0.02)
    assert held / rounds >= coverage - 0.02


def test_too_few_essays_promise_nothing() -> None:
    assert misses_needed(0.9) == 9
    assert margin([1.0] * 8, coverage=0.9) is None
    assert margin([1.0] * 9, coverage=0.9) == 1.0
    assert misses_needed(0.8) == 4
