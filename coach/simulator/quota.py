"""The provider's own quotas: token buckets that refill continuously; pure.

The caller has the clock: times are its seconds.

Source: Anthropic, "Rate limits" (token bucket, continuously replenished; input counts uncached
tokens and cache writes; output counts as it is generated, whatever `max_tokens` says).
"""

from __future__ import annotations

import math
from typing import Final, Literal

import attrs

Dimension = Literal["requests", "input-tokens", "output-tokens"]
DIMENSIONS: Final[tuple[Dimension, ...]] = ("requests", "input-tokens", "output-tokens")
MINUTE_S: Final = 60.0


@attrs.define
class Bucket:
    """Holds at most `limit`, gains `limit` a minute; may be overdrawn by output under way."""

    limit: int
    """Per minute, also the most that can be saved up."""
    _level: float
    _at: float
    # the level was right at this time (seconds)

    @classmethod
    def full(cls, limit: int, now: float) -> Bucket:
        """A bucket nothing has been taken from."""
        return cls(limit, float(limit), now)

    def level(self, now: float) -> float:
        """What could be taken now; negative while overdrawn."""
        return min(
            float(self.limit), self._level + max(0.0, now - self._at) * self.limit / MINUTE_S
        )

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, also if that overdraws; a negative amount gives back."""
        self._level = self.level(now) - amount
        self._at = max(now, self._at)

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` can be taken; infinite for more than the limit."""
        if amount > self.limit:
            return math.inf
        return max(0.0, (amount - self.level(now)) * MINUTE_S / self.limit)


@attrs.frozen
class Shortage:
    """Why a request is refused."""

    dimension: Dimension
    limit: int
    retry_after_s: int
    """Whole seconds, at least 1, as the provider rounds."""


@attrs.frozen
class QuotaState:
    """What a response's headers say about one limit."""

    dimension: Dimension
    limit: int
    remaining: int
    """Tokens are rounded to the nearest thousand, as the provider does."""
    full_s: float
    """Seconds until everything has been replenished."""


class Quota:
    """The buckets of one account; absent limits admit everything."""

    def __init__(self, limits: dict[Dimension, int | None], now: float) -> None:
        self._buckets = {
            dimension: Bucket.full(limit, now)
            for dimension in DIMENSIONS
            if (limit := limits.get(dimension)) is not None
        }

    def admit(self, input_tokens: int, now: float) -> Shortage | None:
        """Take one request and its input, or take nothing and say what is short.

        Output is not known yet: a request is admitted while any output is left.
        """
        ask: dict[Dimension, float] = {
            "requests": 1,
            "input-tokens": input_tokens,
            "output-tokens": 1,
        }
        for dimension, bucket in self._buckets.items():
            wait = bucket.wait_s(ask[dimension], now)
            if wait > 0:
                seconds = max(1, math.ceil(min(wait, MINUTE_S)))
                return Shortage(dimension, bucket.limit, seconds)
        for dimension, bucket in self._buckets.items():
            if dimension != "output-tokens":
                bucket.take(ask[dimension], now)
        return None

    def spend_output(self, tokens: int, now: float) -> None:
        """Count output tokens that were generated."""
        bucket = self._buckets.get("output-tokens")
        if bucket is not None:
            bucket.take(tokens, now)

    def states(self, now: float) -> list[QuotaState]:
        """Every limit there is, as of now."""
        states = []
        for dimension, bucket in self._buckets.items():
            level = max(0.0, bucket.level(now))
            remaining = int(level)
            if dimension != "requests":
                remaining = min(bucket.limit, round(level / 1_000) * 1_000)
            full_s = (bucket.limit - level) * MINUTE_S / bucket.limit
            states.append(QuotaState(dimension, bucket.limit, remaining, full_s))
        return states
