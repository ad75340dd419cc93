"""Simulated judges of a made-up class: kind, strict and noisy ones, all of known make."""

from __future__ import annotations

import random
from collections.abc import Mapping

import attrs

from coach.agreement import Evaluation, JudgedEssay
from coach.grading import load_rubric

RUBRIC = load_rubric()
HIGH = 20
"""People score from 0 to 20."""


@attrs.frozen
class Habit:
    """A judge sees `offset + scale * share` of 0..1 with a normal error on each criterion."""

    offset: float = 0.0
    scale: float = 1.0
    noise: float = 0.08


HABITS: Mapping[str, Habit] = {
    "kind": Habit(offset=0.2),
    "strict": Habit(offset=-0.12),
    "narrow": Habit(offset=0.3, scale=0.5),
}


def evaluated(
    count: int, habits: Mapping[str, Habit] = HABITS, *, seed: int = 1, raters: bool = False
) -> Evaluation:
    draw = random.Random(seed)
    essays = []
    for number in range(count):
        true = min(1.0, max(0.0, draw.gauss(0.55, 0.2)))
        pair = [min(HIGH, max(0, round(HIGH * true + draw.gauss(0, 1.5)))) for _ in range(2)]
        bands = {
            name: {
                criterion.name: min(
                    criterion.band_max,
                    max(
                        0,
                        round(
                            criterion.band_max
                            * (habit.offset + habit.scale * true + draw.gauss(0, habit.noise))
                        ),
                    ),
                )
                for criterion in RUBRIC.criteria
            }
            for name, habit in habits.items()
        }
        essays.append(
            JudgedEssay(
                key=f"{seed}-{number}",
                id=str(number),
                score=pair[0],
                raters=(pair[0], pair[1]) if raters else None,
                bands=bands,
            )
        )
    return Evaluation(
        source="class.csv",
        rubric=RUBRIC.fingerprint(),
        judges=dict.fromkeys(habits, "sim-1"),
        low=0,
        high=HIGH,
        step=1,
        rater_low=0,
        rater_high=HIGH,
        raters_in_label=1,
        essays=tuple(essays),
    )
