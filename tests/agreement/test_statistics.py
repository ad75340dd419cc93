"""Agreement is measured as it should be: simulated raters of known noise, theory beside them."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coach.agreement import (
    Scale,
    agreement,
    ceilings,
    interval,
    qwk,
    raters_in,
)
from coach.errors import ConfigurationError

from .raters import PLACES, Rater, draw_true, expected_qwk

ESSAYS = 3_000
STEPS = PLACES - 1


def drawn(*raters: Rater, count: int = ESSAYS, seed: int = 1) -> list[list[int]]:
    draw = random.Random(seed)
    true = draw_true(count, draw)
    return [[rater.score(each, draw) for each in true] for rater in raters]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Rater(0.0), Rater(0.0)),
        (Rater(0.5), Rater(0.5)),
        (Rater(0.4), Rater(1.1)),
        (Rater(0.6, offset=1.0), Rater(0.6)),
        (Rater(0.5, offset=1.2, scale=0.6), Rater(0.8)),
        (Rater(3.0), Rater(3.0)),
    ],
    ids=str,
)
def test_qwk_is_what_the_joint_distribution_says(one: Rater, other: Rater) -> None:
    ours, theirs = drawn(one, other)
    found = agreement(ours, theirs, steps=STEPS)
    assert found.low - 0.01 <= expected_qwk(one, other) <= found.high + 0.01
    assert found.qwk == pytest.approx(expected_qwk(one, other), abs=0.03)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=40))
def test_the_bootstrap_resamples_the_same_kappa(pairs: list[tuple[int, int]]) -> None:
    """One essay or a thousand times the same sample: the cheap formula is scikit-learn's figure."""
    from coach.agreement.statistics import _kappas

    numpy = pytest.importorskip("numpy")
    ours, theirs = (list(each) for each in zip(*pairs, strict=True))
    (cheap,) = _kappas(numpy.array([ours], float), numpy.array([theirs], float))
    full = qwk(ours, theirs, steps=9)
    assert cheap == pytest.approx(full, abs=1e-9, nan_ok=True)


def test_a_score_that_nobody_got_keeps_its_distance() -> None:
    """0 and 6 are six steps apart, also where only 0, 1 and 6 occur."""
    assert qwk([0, 6, 0, 1], [6, 6, 0, 0], steps=6) == pytest.approx(
        2 * 3.75 / (6.1875 + 9 + 1.25**2)
    )


def test_kappa_of_one_score_for_all_is_no_number() -> None:
    assert math.isnan(qwk([3, 3], [3, 3], steps=6))
    assert all(map(math.isnan, interval([3, 3], [3, 3])))
    assert math.isnan(agreement([3, 3], [3, 3], steps=6).spread)


def test_the_interval_is_the_same_every_time_and_holds_the_truth() -> None:
    """At 95 %: of 60 small samples at most a few miss it."""
    rater = Rater(0.8)
    truth = expected_qwk(rater, rater)
    held = 0
    for seed in range(60):
        ours, theirs = drawn(rater, rater, count=80, seed=seed)
        low, high = interval(ours, theirs, resamples=200)
        assert (low, high) == interval(ours, theirs, resamples=200)
        held += low <= truth <= high
    assert 52 <= held <= 60


def test_bias_and_spread_and_shares_are_those_of_the_scores() -> None:
    found = agreement([1, 2, 3, 6], [0, 2, 4, 4], steps=6)
    assert (found.exact, found.adjacent) == (0.25, 0.75)
    assert found.bias == pytest.approx(100 * 0.5 / 6)
    assert found.spread == pytest.approx(1.8708287 / 1.6583124, abs=1e-6)


FINE = 61
"""Places of a fine scale, on which rounding costs next to nothing."""


def fine(rater_noise: float, count: int = 6_000) -> tuple[list[float], list[int], list[int]]:
    draw = random.Random(7)
    true = [10 * each for each in draw_true(count, draw)]
    first, second = Rater(rater_noise, places=FINE), Rater(rater_noise, places=FINE)
    return true, [first.score(t, draw) for t in true], [second.score(t, draw) for t in true]


@pytest.mark.parametrize("noise", [3.0, 6.0, 10.0])
def test_a_perfect_judge_reaches_the_ceiling_of_one_rater_and_no_more(noise: float) -> None:
    true, first, second = fine(noise)
    found = ceilings(first, second, steps=FINE - 1, raters_in_label=1)
    perfect = [round(each) for each in true]
    assert qwk(perfect, first, steps=FINE - 1) == pytest.approx(found.perfect, abs=0.02)
    assert found.human == pytest.approx(found.humanlike, abs=0.02)
    assert found.perfect > found.human


@pytest.mark.parametrize("noise", [3.0, 6.0, 10.0])
def test_against_the_sum_of_two_raters_both_ceilings_are_above_the_raters_own(
    noise: float,
) -> None:
    true, first, second = fine(noise)
    both = [one + other for one, other in zip(first, second, strict=True)]
    found = ceilings(first, second, steps=FINE - 1, raters_in_label=raters_in(both, first, second))
    perfect = [round(2 * each) for each in true]
    draw = random.Random(8)
    rater = Rater(noise, places=FINE)
    humanlike = [2 * rater.score(each, draw) for each in true]
    steps = 2 * (FINE - 1)
    assert qwk(perfect, both, steps=steps) == pytest.approx(found.perfect, abs=0.02)
    assert qwk(humanlike, both, steps=steps) == pytest.approx(found.humanlike, abs=0.02)
    assert found.human < found.humanlike < found.perfect
    assert found.label_reliability > found.reliability


def test_raters_of_a_coarse_scale_are_close_to_their_ceiling_in_theory() -> None:
    """Rounding is an error too, which the ceiling does not know: it is a few points too high."""
    rater = Rater(0.8)
    first, second = drawn(rater, rater)
    found = ceilings(first, second, steps=STEPS, raters_in_label=1)
    assert found.perfect == pytest.approx(expected_qwk(Rater(0.0), rater), abs=0.04)


def test_a_reference_counts_two_raters_only_where_it_is_made_of_both() -> None:
    assert raters_in([3, 5], [1, 2], [2, 3]) == 2
    assert raters_in([1.5, 2.5], [1, 2], [2, 3]) == 2
    assert raters_in([2, 3], [1, 2], [2, 3]) == 1


def test_raters_without_any_agreement_have_no_ceiling_above_chance() -> None:
    found = ceilings([0, 0, 4, 4], [0, 4, 0, 4], steps=4, raters_in_label=2)
    assert (found.reliability, found.perfect, found.humanlike) == (0, 0, 0)
    assert math.isnan(ceilings([1, 1], [2, 2], steps=4, raters_in_label=1).perfect)


def test_a_scale_knows_its_places() -> None:
    scale = Scale(2, 12)
    assert [scale.place(score) for score in (2, 7, 12)] == [0, 5, 10]
    assert [scale.nearest(percent) for percent in (-5, 0, 4.9, 5, 95, 100, 120)] == [
        *(0, 0, 0, 1),
        *(10, 10, 10),
    ]
    assert scale.percent(5) == 50
    assert Scale(0, 4, 0.5).place(2.5) == 5


@pytest.mark.parametrize("score", [1, 13, 2.5, math.nan, math.inf])
def test_a_score_beside_the_scale_is_refused(score: float) -> None:
    with pytest.raises(ConfigurationError, match="is not on the scale from 2 to 12"):
        Scale(2, 12).place(score)


@pytest.mark.parametrize("ends", [(3, 3, 1), (4, 2, 1), (0, 5, 2), (0, 5, 0), (0, 5000, 1)])
def test_what_is_no_scale_is_refused(ends: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigurationError, match="set --min, --max and --step"):
        Scale(*ends)
