"""Hours of the day to which a grader is held: `coach grade --lanes background --hours 22-06`."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, time, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

import attrs
import structlog
import trio

from ..errors import ConfigurationError

log = structlog.get_logger()

LOOK_S: Final = 30.0
"""Between two looks at the clock on the wall, which somebody may set: so exactly are hours kept."""
_HOURS: Final = re.compile(r"(\d{1,2})(?::(\d\d))?-(\d{1,2})(?::(\d\d))?", re.ASCII)


@attrs.frozen
class Hours:
    """From a time of day to another, also over midnight, by the clocks of a time zone."""

    begin: time
    end: time
    """Not within; never `begin`."""
    zone: tzinfo

    @classmethod
    def parse(cls, text: str, zone: str = "UTC") -> Hours:
        """Read `22-06` or `21:30-6`; 24 is midnight.

        Args:
          text: what the operator wrote.
          zone: a name of the IANA time zone database.

        Raises:
          ConfigurationError: it is none, or nobody knows the zone.
        """
        match = _HOURS.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"--hours {text!r}: write two times of day, as 22-06")
        begin, end = _time(text, *match.group(1, 2)), _time(text, *match.group(3, 4))
        if begin == end:
            raise ConfigurationError(f"--hours {text!r}: leave it out to grade all day")
        try:
            found = UTC if zone == "UTC" else ZoneInfo(zone)
        except (KeyError, ValueError, OSError) as error:
            raise ConfigurationError(
                f"--time-zone {zone!r} is unknown: write one as Europe/Berlin, or UTC"
            ) from error
        return cls(begin, end, found)

    def include(self, now: datetime) -> bool:
        """Whether it is time; `now` is aware of its zone."""
        local = now.astimezone(self.zone).time()
        if self.begin < self.end:
            return self.begin <= local < self.end
        return local >= self.begin or local < self.end

    def __str__(self) -> str:
        """As an operator would say it."""
        return f"{self.begin:%H:%M}-{self.end:%H:%M} {self.zone}"


def _time(text: str, hour: str, minute: str | None) -> time:
    total = int(hour) * 60 + int(minute or 0)
    if int(minute or 0) > 59 or total > 24 * 60:
        raise ConfigurationError(f"--hours {text!r}: a time of day is 00 to 24, or 00:00 to 24:00")
    return time(total // 60 % 24, total % 60)


def _wall_clock() -> datetime:
    return datetime.now(UTC)


async def work_within(
    hours: Hours,
    work: Callable[[trio.Event], Awaitable[None]],
    *,
    stopping: trio.Event,
    now: Callable[[], datetime] = _wall_clock,
) -> None:
    """Run `work` anew each time the hours begin, until `stopping` is set.

    Cancellation: `work` is cancelled.

    Args:
      hours: when to work.
      work: told to end by the event it is given, when the hours end or at `stopping`.
      stopping: set it to end.
      now: the clock on the wall.
    """
    while not stopping.is_set():
        if not hours.include(now()):
            log.info("grader_waits_for_its_hours", hours=str(hours))
            await _until(hours, True, stopping, now)
            continue
        ending = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end, hours, ending, stopping, now)
            await work(ending)
            nursery.cancel_scope.cancel("the work has ended")


async def _end(
    hours: Hours, ending: trio.Event, stopping: trio.Event, now: Callable[[], datetime]
) -> None:
    await _until(hours, False, stopping, now)
    ending.set()


async def _until(
    hours: Hours, wanted: bool, stopping: trio.Event, now: Callable[[], datetime]
) -> None:
    """Return when the hours are as wanted, or all is to end."""
    while hours.include(now()) != wanted and not stopping.is_set():
        with trio.move_on_after(LOOK_S):
            await stopping.wait()
