"""A throttle lets a burst through and then a rate, and remembers no more than it may."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from coach.throttle import Throttle


def test_a_burst_goes_at_once_and_then_one_by_one() -> None:
    throttle: Throttle[str] = Throttle(per_s=2, burst=3)
    assert [throttle.take("a", 10.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert throttle.take("b", 10.0) == 0, "each has its own"
    assert throttle.take("a", 10.5) == 0
    assert throttle.take("a", 10.5) == 0.5
    assert throttle.full_in("a", 10.5) == 1.5
    assert throttle.full_in("a", 99.0) == throttle.full_in("nobody", 99.0) == 0
    assert [throttle.take("a", 99.0) for _ in range(4)] == [0, 0, 0, 0.5], "no more for waiting"


def test_who_is_slowed_down_waits_longer_each_time() -> None:
    throttle: Throttle[str] = Throttle(per_s=10, burst=2)
    waits = [throttle.spend("a", 0.0) for _ in range(4)]
    assert [round(wait, 6) for wait in waits] == [0, 0, 0.1, 0.2]
    assert throttle.spend("a", 0.0, cost=5) > 0.6
    assert throttle.spend("a", 100.0) == 0


def test_those_who_are_full_again_are_forgotten() -> None:
    throttle: Throttle[int] = Throttle(per_s=1, burst=1)
    for key in range(1_000):
        throttle.take(key, key * 0.6)
    assert len(throttle) < 5


def test_more_than_may_be_known_are_not() -> None:
    throttle: Throttle[int] = Throttle(per_s=0.001, burst=1, keys_max=10)
    for key in range(1_000):
        assert throttle.take(key, 0.0) == 0
    assert len(throttle) <= 10
    assert throttle.take(999, 0.0) > 0
    assert throttle.take(0, 0.0) == 0, "it did least lately"


@given(
    per_s=st.floats(0.1, 100),
    burst=st.integers(1, 50),
    gaps=st.lists(st.floats(0, 2), max_size=200),
)
def test_no_span_ever_holds_more_than_burst_and_rate(
    per_s: float, burst: int, gaps: list[float]
) -> None:
    throttle: Throttle[str] = Throttle(per_s=per_s, burst=burst)
    now, taken = 0.0, []
    for gap in gaps:
        now += gap
        wait_s = throttle.take("a", now)
        if wait_s == 0:
            taken.append(now)
        else:
            now += wait_s
            assert throttle.take("a", now) == 0
            taken.append(now)
    for begin in range(len(taken)):
        for end in range(begin, len(taken)):
            span_s = taken[end] - taken[begin]
            assert end - begin + 1 <= math.ceil(burst + span_s * per_s + 1e-3)
