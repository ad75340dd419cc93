"""What faults mean, and how long to wait for a first token."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.providers import ErrorKind, FirstTokens, is_fault, is_final
from coach.providers.failover import FAULTS, FINAL, PATIENCE, SAMPLES_MAX


def test_every_kind_has_its_meaning() -> None:
    kinds = set(get_args(ErrorKind))
    assert kinds >= FAULTS | FINAL
    assert not FAULTS & FINAL
    assert kinds - FAULTS - FINAL == {"rate_limited", "accelerated", "refused"}
    assert [is_fault("cut"), is_final("cut"), is_final("filtered")] == [True, False, True]


def test_nothing_is_known_at_first() -> None:
    tokens = FirstTokens(s_min=1.0, s_max=8.0)
    for _ in range(20):
        tokens.observe(0.2)
    assert tokens.deadline_s == 8.0


def test_the_deadline_follows_the_slowest_of_late() -> None:
    tokens = FirstTokens(s_min=0.1, s_max=8.0)
    for _ in range(SAMPLES_MAX):
        tokens.observe(1.0)
    assert tokens.deadline_s == PATIENCE * 1.0
    for _ in range(SAMPLES_MAX):
        tokens.observe(0.25)
    assert tokens.deadline_s == PATIENCE * 0.25


@given(st.lists(st.floats(0, 100), max_size=600))
def test_the_deadline_keeps_its_bounds(seconds: list[float]) -> None:
    tokens = FirstTokens(s_min=1.0, s_max=8.0)
    for each in seconds:
        tokens.observe(each)
        assert 1.0 <= tokens.deadline_s <= 8.0


@pytest.mark.parametrize("slow", [1, 2])
def test_one_outlier_in_a_hundred_is_not_waited_for_for_ever(slow: int) -> None:
    tokens = FirstTokens(s_min=0.1, s_max=60.0)
    for _ in range(SAMPLES_MAX - slow):
        tokens.observe(0.5)
    for _ in range(slow):
        tokens.observe(30.0)
    for _ in range(16):
        tokens.observe(0.5)
    assert tokens.deadline_s == PATIENCE * 0.5
