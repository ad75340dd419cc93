"""The provider's own quotas: token buckets that refill continuously; pure.

The caller has the clock: times are its seconds.

Source: Anthropic, "Rate limits" (token bucket, continuously replenished; input counts uncached
tokens and cache writes; output counts as it is generated, whatever `max_tokens` says); OpenAI,
"Rate limits" (input and output together, by an estimate before anything is generated; requests that
are refused count, too).
"""

from __future__ import annotations

import math
from typing import Final, Literal

import attrs

Dimension = Literal["requests", "input-tokens", "output-tokens", "tokens"]
DIMENSIONS: Final[tuple[Dimension, ...]] = ("requests", "input-tokens", "output-tokens", "tokens")
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
    wait_s: float
    """Exactly; infinite for what exceeds the limit by itself."""
    asked: int


@attrs.frozen
class QuotaState:
    """What a response's headers say about one limit."""

    dimension: Dimension
    limit: int
    remaining: int
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

    def admit(self, input_tokens: int, now: float, *, tokens: int = 0) -> Shortage | None:
        """Take one request and its input, or take nothing and say what is short.

        Output is not known yet: a request is admitted while any output is left. `tokens` is what
        the request counts as where both are counted together.
        """
        ask: dict[Dimension, int] = {
            "requests": 1,
            "input-tokens": input_tokens,
            "output-tokens": 1,
            "tokens": tokens,
        }
        for dimension, bucket in self._buckets.items():
            wait = bucket.wait_s(ask[dimension], now)
            if wait > 0:
                seconds = max(1, math.ceil(min(wait, MINUTE_S)))
                return Shortage(dimension, bucket.limit, seconds, wait, ask[dimension])
        for dimension, bucket in self._buckets.items():
            if dimension != "output-tokens":
                bucket.take(ask[dimension], now)
        return None

    def spend(self, dimension: Dimension, amount: int, now: float) -> None:
        """Take what is there of an amount that is not admitted, but counted."""
        bucket = self._buckets.get(dimension)
        if bucket is not None:
            bucket.take(min(amount, max(0.0, bucket.level(now))), now)

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
            full_s = (bucket.limit - level) * MINUTE_S / bucket.limit
            states.append(QuotaState(dimension, bucket.limit, int(level), full_s))
        return states
