"""Histogram: percentiles within 0.5 %, merged or not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.simulator.histogram import Histogram

VALUES = st.lists(st.floats(0.02, 1e6), min_size=1, max_size=200)


def filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(values=VALUES, percent=st.floats(1, 100))
def test_a_percentile_is_the_nearest_rank_within_half_a_percent(
    values: list[float], percent: float
) -> None:
    """Against the exact order statistic."""
    exact = sorted(values)[math.ceil(len(values) * percent / 100) - 1]
    assert filled(values).percentile(percent) == pytest.approx(exact, rel=0.0051)


@given(first=VALUES, second=VALUES)
def test_merging_is_recording_both(first: list[float], second: list[float]) -> None:
    """So that processes can measure apart."""
    merged = filled(first)
    merged.merge(filled(second))
    assert merged.summary() == filled(first + second).summary()
    assert merged.count == len(first) + len(second)


def test_empty_and_zero_are_told_apart() -> None:
    """No value is None; a value below the floor is 0."""
    assert Histogram().summary() == {"p50": None, "p95": None, "p99": None}
    assert filled([0.0, -1.0]).percentile(50) == 0.0
