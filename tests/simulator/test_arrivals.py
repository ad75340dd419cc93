"""Who arrives when, and what they are like: fixed by the options and the seed."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from coach.errors import ConfigurationError
from coach.simulator.arrivals import ramp_from, seconds_from, spike_from, steps_from
from coach.simulator.habits import BREAK_S, habits_of
from coach.simulator.plan import Plan


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("500ms", 0.5), ("10m", 600), ("1h", 3600)]
)
def test_times_have_units(text: str, seconds: float) -> None:
    assert seconds_from(text) == seconds


def test_a_ramp_begins_with_some_and_ends_with_all() -> None:
    moments = ramp_from("2:6:40s")
    assert moments == (0, 0, 10, 20, 30, 40)


def test_a_ramp_may_be_flat() -> None:
    assert ramp_from("3:3:10s") == (0, 0, 0)


def test_steps_rise_at_the_beginning_of_each() -> None:
    moments = steps_from("10,30:20s")
    assert len(moments) == 30
    assert max(moments[:10]) < 4
    assert 20 <= min(moments[10:]) < max(moments) < 24


def test_a_spike_is_one_moment() -> None:
    assert spike_from("30@20s") == (20.0,) * 30


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (seconds_from, "soon"),
        (seconds_from, "3 weeks"),
        (ramp_from, "1:600"),
        (ramp_from, "600:1:10s"),
        (ramp_from, "0:9:10s"),
        (ramp_from, "1:9000000:10s"),
        (steps_from, "100,200"),
        (steps_from, "200,100:30s"),
        (steps_from, ":30s"),
        (spike_from, "30"),
        (spike_from, "many@3s"),
    ],
)
def test_what_is_no_schedule_is_told_in_one_line(parse: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse(text)
    assert "\n" not in str(refused.value)


def students(**changes: Any) -> Counter[str]:
    plan = Plan(secret="x" * 32, **changes)
    return Counter(habits_of(plan, random.Random(number)).org for number in range(2_000))


def test_schools_are_of_unequal_size() -> None:
    """By Zipf's law: of three, 6/11, 3/11 and 2/11."""
    sizes = students(orgs=3)
    assert sizes["school-1"] == pytest.approx(2_000 * 6 / 11, rel=0.1)
    assert sizes["school-2"] == pytest.approx(2_000 * 3 / 11, rel=0.1)
    assert sizes.total() == 2_000
    assert students() == {"demo": 2_000}


def test_habits_follow_the_plan_and_the_seed() -> None:
    """Shares are met, breaks are long and scaled with time, the same seed is the same student."""
    plan = Plan(long_pauses=0.3, flaky=0.1, time_scale=10, turn_every_s=30)
    drawn = [habits_of(plan, random.Random(number)) for number in range(2_000)]
    assert drawn[7] == habits_of(plan, random.Random(7))
    breaks = [each for each in drawn if each.break_after is not None]
    assert len(breaks) == pytest.approx(600, rel=0.15)
    assert all(BREAK_S[0] <= each.break_s * 10 <= BREAK_S[1] for each in breaks)
    assert sum(each.flaky for each in drawn) == pytest.approx(200, rel=0.25)
    assert sum(each.chars_per_s for each in drawn) / 2_000 == pytest.approx(40, rel=0.1)
    assert sum(each.think_every_s for each in drawn) / 2_000 == pytest.approx(3, rel=0.1)
