"""A plain model of how an endpoint's line is paced: what budget_quota.lua does, in Python.

One dimension, its own clock in milliseconds, and nothing that gives anything back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs

WINDOW_S = 61


@attrs.define
class Paced:
    """A window of 61 s with hard and soft share, and the pacing of those who wait.

    With `is_bare` there is no pacing: whoever waits goes as soon as there is room.
    """

    hard: int
    soft: int
    now_ms: int = 1_800_000_000_000
    is_bare: bool = False
    buckets: dict[int, int] = attrs.field(factory=dict)
    credit: tuple[int, float] | None = None

    @property
    def second(self) -> int:
        return self.now_ms // 1000

    @property
    def seconds(self) -> Iterator[int]:
        """What was spent in each second that still counts, the oldest first."""
        first = self.second - WINDOW_S + 1
        return (self.buckets.get(second, 0) for second in range(first, self.second + 1))

    @property
    def sum(self) -> int:
        return sum(self.seconds)

    def spend(self, amount: int) -> None:
        self.buckets[self.second] = self.buckets.get(self.second, 0) + amount

    def goes_at_once(self, ask: int) -> bool:
        """For one who finds nobody waiting."""
        return self.sum < self.soft and self.sum + ask <= self.hard

    @property
    def rate(self) -> float:
        """The highest that can go on without ever stopping, per second."""
        free, rate = self.hard - self.sum, math.inf
        for t, amount in enumerate(self.seconds, 1):
            free += amount
            rate = min(rate, free / t)
        return max(0.0, rate)

    def slide_ms(self, ask: int) -> int:
        """Until so much has slid out that the ask fits."""
        excess = self.sum + ask - self.hard
        if excess <= 0:
            return 0
        for t, amount in enumerate(self.seconds, 1):
            excess -= amount
            if excess <= 0:
                return max(1, (self.second + t) * 1000 - self.now_ms)
        raise AssertionError("it never fits")

    def look(self, asks: list[int]) -> tuple[list[int], int | None]:
        """Admit those of the waiting `asks` that may go; returns them, and when the next may."""
        admitted: list[int] = []
        credit = 0.0
        for number, ask in enumerate(asks):
            rate = self.rate
            if number == 0 and not self.is_bare:
                at_ms, stored = self.credit or (self.now_ms - 1000, 0.0)
                passed_s = max(0, self.now_ms - at_ms) / 1000
                credit = min(stored + rate * passed_s, rate)
            wait_ms = self.slide_ms(ask)
            if credit < 0:
                due_ms = math.ceil(-credit / rate * 1000) if rate > 0 else 1000
                wait_ms = max(wait_ms, min(due_ms, 1000))
            if wait_ms:
                break
            self.spend(ask)
            admitted.append(ask)
            if not self.is_bare:
                credit -= ask
        else:
            wait_ms = 0
        if admitted and not self.is_bare:
            self.credit = (self.now_ms, float(f"{max(-self.hard, credit):.3f}"))
        return admitted, wait_ms
