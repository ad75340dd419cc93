"""The estimator: on the safe side at first, near the truth soon, and never beyond its bounds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.providers import Estimator, size_of
from coach.providers.estimator import SIZE_MIN, TOKENS_PER_BYTE_MAX, TOKENS_PER_BYTE_MIN
from coach.providers.records import TOKENS_AROUND


def test_before_anything_was_counted_it_is_on_the_safe_side() -> None:
    """English prose has 4 to 5 bytes a token."""
    estimator = Estimator()
    assert estimator.most(7_000) > 7_000 / 4
    assert estimator.least(7_000) < 7_000 / 5


@pytest.mark.parametrize("bytes_per_token", [2.5, 3.0, 4.4, 5.2])
def test_it_follows_the_model(bytes_per_token: float) -> None:
    """After 60 answers that vary by 5 % the truth lies between least and most, and these near."""
    rng, estimator = random.Random(1), Estimator()

    def count(size: int) -> int:
        return round(size / bytes_per_token * rng.gauss(1, 0.05)) + TOKENS_AROUND

    for _ in range(60):
        size = rng.randrange(1_000, 12_000)
        estimator.learn(size, count(size))
    inside = 0
    for _ in range(500):
        size = rng.randrange(1_000, 12_000)
        tokens = count(size)
        inside += estimator.least(size) <= tokens <= estimator.most(size)
        assert estimator.most(size) <= 1.25 * size / bytes_per_token + TOKENS_AROUND
        assert estimator.least(size) >= 0.75 * size / bytes_per_token
    assert inside >= 0.9 * 500


def test_one_answer_says_much_and_not_everything() -> None:
    estimator = Estimator()
    estimator.learn(4_400, 1_000 + TOKENS_AROUND)
    assert 1_000 < estimator.most(4_400) < Estimator().most(4_400) + 100
    assert Estimator().least(4_400) < estimator.least(4_400) < 1_000


@given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 200_000))), st.integers(0, 10**6))
def test_whatever_providers_say_it_keeps_its_bounds(
    counted: list[tuple[int, int]], size: int
) -> None:
    estimator = Estimator()
    for each in counted:
        estimator.learn(*each)
    assert estimator.least(size) <= estimator.most(size)
    assert estimator.most(size) <= size * TOKENS_PER_BYTE_MAX + TOKENS_AROUND + 1
    assert estimator.least(size) >= int(size * TOKENS_PER_BYTE_MIN)


def test_short_prompts_teach_nothing() -> None:
    estimator = Estimator()
    estimator.learn(SIZE_MIN - 1, 5)
    assert estimator.most(1_000) == Estimator().most(1_000)


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("essay", 5), ("naïve", 6), ("作文", 6), ("😀", 4), ("\ud83d", 3)]
)
def test_sizes_are_bytes_whatever_the_script(text: str, size: int) -> None:
    assert size_of(text) == size
