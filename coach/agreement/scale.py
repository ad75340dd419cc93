"""The scale that people scored on, and how a score of 0 to 100 stands on it. Pure."""

from __future__ import annotations

import math
from typing import Final

import attrs

from ..errors import ConfigurationError

STEPS_MAX: Final = 1_000
"""Of a scale; agreement is a table of so many by so many at most."""
_NEARLY: Final = 1e-6


@attrs.frozen
class Scale:
    """Scores from `low` to `high` in steps; a place on it is 0..`steps`."""

    low: float
    high: float
    step: float = 1.0

    def __attrs_post_init__(self) -> None:
        """Refuse what is no scale.

        Raises:
          ConfigurationError: there are no two scores on it, or too many.
        """
        wide = (self.high - self.low) / self.step if self.step > 0 else 0.0
        if not 1 <= wide <= STEPS_MAX or abs(wide - round(wide)) > _NEARLY:
            raise ConfigurationError(
                f"a scale from {self.low:g} to {self.high:g} in steps of {self.step:g} does not "
                f"work: set --min, --max and --step so that it has 2 to {STEPS_MAX + 1} scores"
            )

    @property
    def steps(self) -> int:
        """The highest place."""
        return round((self.high - self.low) / self.step)

    def place(self, score: float) -> int:
        """Where a person's score stands.

        Raises:
          ConfigurationError: it is not on the scale.
        """
        place = (score - self.low) / self.step
        if not math.isfinite(place) or abs(place - round(place)) > _NEARLY:
            raise ConfigurationError(f"the score {score:g} is not on {self}")
        if not 0 <= round(place) <= self.steps:
            raise ConfigurationError(f"the score {score:g} is not on {self}")
        return round(place)

    def nearest(self, percent: float) -> int:
        """The place nearest to a score of 0..100; of two equally near the higher one."""
        return min(self.steps, max(0, math.floor(percent / 100 * self.steps + 0.5)))

    def percent(self, place: int) -> float:
        """A place as a score of 0..100."""
        return 100 * place / self.steps

    def __str__(self) -> str:
        by = "" if self.step == 1 else f" in steps of {self.step:g}"
        return f"the scale from {self.low:g} to {self.high:g}{by}"


ASAP: Final = {
    1: Scale(2, 12),
    2: Scale(1, 6),
    3: Scale(0, 3),
    4: Scale(0, 3),
    5: Scale(0, 4),
    6: Scale(0, 4),
    7: Scale(0, 30),
    8: Scale(0, 60),
}
"""Of `domain1_score`, by `essay_set` (Kaggle, "Hewlett Foundation: Automated Essay Scoring")."""
ASAP_RATERS: Final = {**ASAP, 1: Scale(1, 6), 7: Scale(0, 15), 8: Scale(0, 30)}
"""Of `rater1_domain1` and `rater2_domain1`; where it is another, `domain1_score` is their sum."""
