"""Simulated raters of known noise, and what theory says that comes of them.

A true score is drawn from a table; a rater sees it with a normal error and rounds. The expected QWK
is summed up over the joint distribution of two raters' scores, with nothing of coach in it.
"""

from __future__ import annotations

import math
import random
from itertools import pairwise

import attrs

PLACES = 7
TRUE = {place / 2: math.exp(-((place / 2 - 3.2) ** 2) / 3.4) for place in range(13)}
"""True scores 0, 0.5 … 6 with their weights."""


@attrs.frozen
class Rater:
    """Sees `offset + scale * true + error` and rounds it to a place."""

    noise: float
    offset: float = 0.0
    scale: float = 1.0
    places: int = PLACES

    def score(self, true: float, draw: random.Random) -> int:
        seen = self.offset + self.scale * true + draw.gauss(0, 1) * self.noise
        return min(self.places - 1, max(0, math.floor(seen + 0.5)))

    def chances(self, true: float) -> list[float]:
        """The probability of each place."""
        mean = self.offset + self.scale * true

        def below(edge: float) -> float:
            if self.noise == 0:
                return float(edge > mean)
            return 0.5 * (1 + math.erf((edge - mean) / (self.noise * math.sqrt(2))))

        edges = [0.0, *(below(place + 0.5) for place in range(self.places - 1)), 1.0]
        return [high - low for low, high in pairwise(edges)]


def draw_true(count: int, draw: random.Random) -> list[float]:
    return draw.choices(list(TRUE), list(TRUE.values()), k=count)


def expected_qwk(one: Rater, other: Rater) -> float:
    """From the joint distribution: 1 - Σ w P / Σ w P P."""
    size = one.places
    total = sum(TRUE.values())
    joint = [[0.0] * size for _ in range(size)]
    for true, weight in TRUE.items():
        ours, theirs = one.chances(true), other.chances(true)
        for i in range(size):
            for j in range(size):
                joint[i][j] += weight / total * ours[i] * theirs[j]
    rows = [sum(row) for row in joint]
    columns = [sum(row[j] for row in joint) for j in range(size)]
    pairs = [(i, j) for i in range(size) for j in range(size)]
    seen = sum((i - j) ** 2 * joint[i][j] for i, j in pairs)
    chance = sum((i - j) ** 2 * rows[i] * columns[j] for i, j in pairs)
    return 1 - seen / chance
