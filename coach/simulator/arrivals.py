"""When students arrive: fixed before the run, whatever the server does (open loop); pure.

--ramp 5            all of them evenly within 5 s
--ramp 1:600:120s   one at once, then evenly more until there are 600 after 120 s
    --steps 100,200:30s   100, and 200 after 30 s; each within the first fifth of its step
--spike 30@20s      30 more in one moment, as a class that is told to begin
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import ConfigurationError

WRITERS_MAX: Final = 100_000
STEP_SHARE: Final = 0.2
"""Of a step's length, in which those who are new with it arrive."""
_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3_600.0}


def seconds_from(text: str) -> float:
    """`90`, `90s`, `10m`, `1.5h` as seconds.

    Raises:
      ConfigurationError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    if found is None or found[2] not in _UNITS:
        raise ConfigurationError(f"{text!r} is not a time like 90, 90s, 10m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def evenly(count: int, within_s: float) -> tuple[float, ...]:
    """`count` arrivals from 0 on, evenly within `within_s` seconds."""
    return tuple(within_s * index / count for index in range(count))


def ramp_from(text: str) -> tuple[float, ...]:
    """Arrivals of a ramp written as `first:last:time`.

    Raises:
      ConfigurationError: it is not, or there would be nobody, or too many.
    """
    parts = text.split(":")
    if len(parts) != 3:
        raise ConfigurationError(f"--ramp {text}: expected FIRST:LAST:TIME, as in 1:600:120s")
    first, last = _count(parts[0], "--ramp"), _count(parts[1], "--ramp")
    within_s = seconds_from(parts[2])
    if not first <= last:
        raise ConfigurationError(f"--ramp {text}: the first number must not be above the last")
    more = last - first
    return (0.0,) * first + tuple(within_s * (index + 1) / more for index in range(more))


def steps_from(text: str) -> tuple[float, ...]:
    """Arrivals of steps written as `100,200,400:30s`.

    Raises:
      ConfigurationError: they are not, or do not rise.
    """
    levels, _, length = text.partition(":")
    if not length:
        raise ConfigurationError(f"--steps {text}: expected N,N,…:TIME, as in 100,200,400:30s")
    length_s = seconds_from(length)
    moments: list[float] = []
    for number, part in enumerate(levels.split(",")):
        more = _count(part, "--steps") - len(moments)
        if more <= 0:
            raise ConfigurationError(f"--steps {text}: each step must be above the one before")
        begin_s = number * length_s
        moments += [begin_s + each for each in evenly(more, length_s * STEP_SHARE)]
    return tuple(moments)


def spike_from(text: str) -> tuple[float, ...]:
    """Arrivals of a spike written as `30@20s`.

    Raises:
      ConfigurationError: it is not.
    """
    count, at, moment = text.partition("@")
    if not at:
        raise ConfigurationError(f"--spike {text}: expected N@TIME, as in 30@20s")
    return (seconds_from(moment),) * _count(count, "--spike")


def _count(text: str, option: str) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text) <= WRITERS_MAX:
        raise ConfigurationError(f"{option}: {text!r} is not a number from 1 to {WRITERS_MAX}")
    return int(text)
