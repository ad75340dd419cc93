"""The timer wheel: every timer fires once, in time, in order, and costs nothing when cancelled."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from coach.simulator.pacing import TICK_S, Timer, Wheel


class Recorded(Timer):
    """Writes down when it fired, and may do something then."""

    def __init__(self, fired: list[tuple[float, Recorded]]) -> None:
        super().__init__()
        self.fired = fired

    def fire(self, now: float) -> None:
        assert self.tick is None
        self.fired.append((now, self))


def run(wheel: Wheel, until: float = math.inf) -> None:
    while (due := wheel.next_s()) < until:
        wheel.fire(due)


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=50))
def test_every_timer_that_is_not_cancelled_fires_once_within_a_tick(
    plan: list[tuple[float, bool]],
) -> None:
    wheel, fired = Wheel(), list[tuple[float, Recorded]]()
    timers = [Recorded(fired) for _ in plan]
    for timer, (due, _) in zip(timers, plan, strict=True):
        wheel.schedule(timer, due)
    assert len(wheel) == len(plan)
    for timer, (_, stays) in zip(timers, plan, strict=True):
        if not stays:
            wheel.cancel(timer)
            wheel.cancel(timer)
    run(wheel)

    assert {id(timer) for _, timer in fired} == {
        id(timer) for timer, (_, stays) in zip(timers, plan, strict=True) if stays
    }
    assert all(0 <= now - timer.due <= TICK_S * 1.001 for now, timer in fired)
    assert [now for now, _ in fired] == sorted(now for now, _ in fired)
    assert (len(wheel), wheel.next_s()) == (0, math.inf)


def test_a_late_wake_up_fires_everything_that_is_due() -> None:
    wheel, fired = Wheel(), list[tuple[float, Recorded]]()
    for due in (0.1, 0.2, 0.3, 9.0):
        wheel.schedule(Recorded(fired), due)

    assert wheel.fire(1.0) == 3
    assert wheel.next_s() == 9.01


class Again(Recorded):
    """Schedules itself anew, for a time that has passed already."""

    def __init__(self, wheel: Wheel, fired: list[tuple[float, Recorded]]) -> None:
        super().__init__(fired)
        self.wheel = wheel

    def fire(self, now: float) -> None:
        super().fire(now)
        if len(self.fired) < 5:
            self.wheel.schedule(self, now - 1.0)


def test_a_timer_that_is_due_again_at_once_waits_for_the_next_tick() -> None:
    wheel, fired = Wheel(), list[tuple[float, Recorded]]()
    wheel.schedule(Again(wheel, fired), 0.0)

    assert wheel.fire(TICK_S) == 1
    run(wheel)
    assert len(fired) == 5
    assert len({now for now, _ in fired}) == 5


class Canceller(Recorded):
    """Cancels another timer of the same tick."""

    def __init__(self, wheel: Wheel, fired: list[tuple[float, Recorded]]) -> None:
        super().__init__(fired)
        self.wheel = wheel
        self.other: Timer | None = None

    def fire(self, now: float) -> None:
        super().fire(now)
        if self.other is not None:
            self.wheel.cancel(self.other)


def test_a_timer_may_cancel_another_of_its_tick() -> None:
    wheel, fired = Wheel(), list[tuple[float, Recorded]]()
    one, two = Canceller(wheel, fired), Canceller(wheel, fired)
    one.other, two.other = two, one
    wheel.schedule(one, 0.001)
    wheel.schedule(two, 0.002)
    run(wheel)

    assert len(fired) == 1
    assert len(wheel) == 0


def test_ticks_whose_timers_were_all_cancelled_wake_nobody() -> None:
    wheel = Wheel()
    timers = [Recorded([]) for _ in range(100)]
    for index, timer in enumerate(timers):
        wheel.schedule(timer, float(index))
    for timer in timers[:99]:
        wheel.cancel(timer)

    assert wheel.next_s() == 99.01
