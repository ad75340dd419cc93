"""Histogram: percentiles within 0.5 %, merged or not."""

from __future__ import annotations

import json
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


def test_what_came_since_a_copy_is_the_difference() -> None:
    """And survives JSON, on its way from another process."""
    histogram = Histogram()
    histogram.record(900.0)
    before = histogram.copy()
    for value in (10.0, 20.0, 30.0):
        histogram.record(value)
    since = Histogram.from_json(json.loads(json.dumps(histogram.as_json()))).since(before)
    assert since.count == 3
    assert since.percentile(50) == pytest.approx(20, rel=0.01)
    assert since.max_ms == pytest.approx(30, rel=0.02)
    assert before.count == 1
    assert before.since(before).percentile(50) is None
