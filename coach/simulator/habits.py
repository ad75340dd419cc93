"""What kind of student somebody is: drawn once from the seed; pure.

Nobody writes like the average. Typing speeds and the wish for feedback are log-normal around the
plan's figures; some put the work aside for minutes; some have a phone that loses its network; and
schools are of unequal size, as Zipf's law has it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from .plan import Plan

CHARS_PER_S: Final = 4.0
"""Median of unhurried typing, about 50 words a minute."""
SPEED_SPREAD: Final = 0.3
"""Sigma of the logarithm: two of three type between 3 and 5.4 characters a second."""
THINKING_SPREAD: Final = 0.25
BREAK_S: Final = (300.0, 600.0)
"""Range of the pauses of those who put the work aside, before the time scale: beyond a provider's
five minutes of prompt cache, and beyond what proxies leave an idle connection."""


@attrs.frozen(kw_only=True)
class Habits:
    """One student's."""

    org: str
    chars_per_s: float
    think_every_s: float
    """Mean time between requests for feedback, seconds of the run."""
    break_after: float | None
    """The share of the first essay after which it is put aside; None: it is not."""
    break_s: float
    flaky: bool


def habits_of(plan: Plan, rng: random.Random) -> Habits:
    """Draw a student's habits.

    Args:
      plan: whose means and shares hold.
      rng: the student's own; the same state gives the same habits.
    """
    sizes = [1 / (rank + 1) for rank in range(plan.orgs)]
    (school,) = rng.choices(range(plan.orgs), sizes)
    puts_it_aside = rng.random() < plan.long_pauses
    return Habits(
        org="demo" if plan.orgs == 1 else f"school-{school + 1}",
        chars_per_s=CHARS_PER_S * rng.lognormvariate(0, SPEED_SPREAD) * plan.time_scale,
        think_every_s=plan.turn_every_s * rng.lognormvariate(0, THINKING_SPREAD) / plan.time_scale,
        break_after=rng.uniform(0.2, 0.8) if puts_it_aside else None,
        break_s=rng.uniform(*BREAK_S) / plan.time_scale,
        flaky=rng.random() < plan.flaky,
    )


def online_s(plan: Plan, rng: random.Random) -> float:
    """How long a flaky phone keeps its network this time, seconds of the run."""
    return rng.expovariate(1.0) * plan.online_s / plan.time_scale


def offline_s(plan: Plan, rng: random.Random) -> float:
    """How long it is without one then, seconds of the run."""
    return rng.uniform(*plan.offline_s) / plan.time_scale
