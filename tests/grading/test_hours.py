"""Hours of the day: over midnight, by a zone's clocks, and what is refused in a line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import trio

from coach.errors import ConfigurationError
from coach.grading.hours import LOOK_S, Hours, work_within

MINUTE_S = 60.0
DAY = datetime(2026, 3, 28, tzinfo=UTC)
"""In the night that follows, clocks in Berlin go from 2 to 3."""


def at(text: str, *, day: datetime = DAY) -> datetime:
    hour, _, minute = text.partition(":")
    return day + timedelta(hours=int(hour), minutes=int(minute or 0))


@pytest.mark.parametrize(
    ("hours", "within", "without"),
    [
        ("22-06", ["22", "23:59", "0", "5:59"], ["6", "12", "21:59"]),
        ("9-17:30", ["9", "17:29"], ["8:59", "17:30", "0"]),
        ("18-24", ["18", "23:59"], ["0", "17:59"]),
        ("0-6", ["0", "5:59"], ["6", "23:59"]),
    ],
)
def test_the_first_minute_is_within_and_the_last_is_not(
    hours: str, within: list[str], without: list[str]
) -> None:
    parsed = Hours.parse(hours)
    assert [text for text in within if not parsed.include(at(text))] == []
    assert [text for text in without if parsed.include(at(text))] == []


def test_hours_are_those_of_the_zones_clocks_also_when_they_change() -> None:
    hours = Hours.parse("22-06", "Europe/Berlin")
    assert hours.include(at("21"))
    assert not hours.include(at("20:59"))
    next_day = DAY + timedelta(days=1)
    assert hours.include(at("3:59", day=next_day))  # 5:59 in summer, 4:59 the day before
    assert not hours.include(at("4", day=next_day))
    assert hours.include(at("4"))


@pytest.mark.parametrize(
    ("hours", "zone", "said"),
    [
        ("night", "UTC", "write two times of day, as 22-06"),
        ("22", "UTC", "write two times of day"),
        ("22-06-08", "UTC", "write two times of day"),
        ("-1-6", "UTC", "write two times of day"),
        ("22-25", "UTC", "00 to 24"),
        ("22:60-6", "UTC", "00 to 24"),
        ("24:01-6", "UTC", "00 to 24"),
        ("6-06:00", "UTC", "leave it out"),
        ("0-24", "UTC", "leave it out"),
        ("22-06", "Mars/Base", "'Mars/Base' is unknown"),
        ("22-06", "", "is unknown"),
        ("22-06", "Europe", "is unknown"),
        ("22-06", "../etc/passwd", "is unknown"),
    ],
)
def test_nonsense_is_refused_in_a_line(hours: str, zone: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        Hours.parse(hours, zone)
    assert "\n" not in str(refused.value)


class Day:
    """Work that notes when it begins and ends, in seconds, and a clock on the wall."""

    def __init__(self, begins: str) -> None:
        self._begins, self._at = at(begins), trio.current_time()
        self.notes: list[tuple[str, float]] = []

    def now(self) -> datetime:
        return self._begins + timedelta(seconds=self.passed_s())

    def passed_s(self) -> float:
        return trio.current_time() - self._at

    def skip(self, period: timedelta) -> None:
        """Set the clock on the wall."""
        self._begins += period

    async def work_within(self, hours: str, stopping: trio.Event) -> None:
        await work_within(Hours.parse(hours), self._work, stopping=stopping, now=self.now)

    async def _work(self, ending: trio.Event) -> None:
        self.notes.append(("begins", self.passed_s()))
        try:
            await ending.wait()
        finally:
            self.notes.append(("ends", self.passed_s()))


async def test_work_begins_and_ends_with_its_hours_day_after_day() -> None:
    day, stopping = Day("21:59"), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(day.work_within, "22-22:02", stopping))
        await trio.sleep(5 * MINUTE_S)
        day.skip(timedelta(days=1, minutes=-5))
        await trio.sleep(2 * MINUTE_S)
        stopping.set()
    assert [what for what, _ in day.notes] == ["begins", "ends"] * 2
    late_s = [
        when_s - minute * MINUTE_S
        for (_, when_s), minute in zip(day.notes, [1, 3, 6, 7], strict=True)
    ]
    assert all(0 <= each <= LOOK_S + 1 for each in late_s), late_s


async def test_told_to_stop_while_it_waits_it_ends_at_once() -> None:
    day, stopping = Day("12"), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(day.work_within, "22-06", stopping))
        await trio.sleep(7)
        stopping.set()
    assert day.notes == []
    assert day.passed_s() == pytest.approx(7)


async def test_cancelled_it_cancels_the_work() -> None:
    day = Day("23")
    with trio.move_on_after(MINUTE_S) as scope:
        await day.work_within("22-06", trio.Event())
    assert scope.cancelled_caught
    assert day.notes == [("begins", 0.0), ("ends", pytest.approx(MINUTE_S))]
