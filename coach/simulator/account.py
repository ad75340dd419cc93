"""One account at the provider: settings, quotas, cache, faults, chances, counters; no I/O."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

from .cache import PromptCache
from .dialect import Dialect, Request
from .exchange import Headers
from .faults import FaultName, Faults, Rule
from .pacing import Wheel
from .quota import Quota, Shortage
from .settings import Settings
from .statistics import Kind, Statistics

_QUOTA_FIELDS: Final = (
    "requests_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
    "tokens_per_minute",
)


class Account:
    """What all requests share.

    Args:
      settings: how the provider behaves at first.
      faults: what goes wrong at first.
      dialect: which provider's API it is.
      clock: seconds, monotonic.
      wall: seconds since the epoch, for the reset times in headers.
    """

    def __init__(
        self,
        settings: Settings,
        faults: dict[FaultName, Rule],
        *,
        dialect: Dialect,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.dialect = dialect
        self.faults = Faults(faults)
        self.statistics = Statistics()
        self.wheel = Wheel()
        self.cache = PromptCache(
            ttl_s=settings.cache_ttl_s,
            tokens_min=settings.cache_tokens_min,
            lookback_blocks=dialect.lookback_blocks,
        )
        self.rng = random.Random(settings.seed)  # noqa: S311 - a seed replays a run
        self.clock = clock
        self.wall = wall
        self._quota = self._new_quota()
        self._output_unspent = 0
        # output tokens generated since the last `settle`

    def change(self, settings: Settings) -> None:
        """Behave differently from now on; quotas that change begin full."""
        before, self.settings = self.settings, settings
        if any(getattr(before, name) != getattr(settings, name) for name in _QUOTA_FIELDS):
            self._quota = self._new_quota()
        self.cache.ttl_s = settings.cache_ttl_s
        self.cache.tokens_min = settings.cache_tokens_min
        if settings.seed != before.seed:
            self.rng.seed(settings.seed)

    def admit(self, request: Request, uncached_tokens: int) -> Shortage | None:
        """Take a request and its tokens from the quotas, or say what is short."""
        self.settle()
        tokens = self.dialect.counted_tokens(request)
        shortage = self._quota.admit(uncached_tokens, self.clock(), tokens=tokens)
        if shortage is not None and self.dialect.counts_refused:
            self._quota.spend("requests", 1, self.clock())
        return shortage

    def count_failed(self, request: Request) -> None:
        """A request has failed without being asked for: does that count?"""
        if self.dialect.counts_refused:
            now = self.clock()
            self._quota.spend("requests", 1, now)
            self._quota.spend("tokens", self.dialect.counted_tokens(request), now)

    def spend_output(self, tokens: int, kind: Kind) -> None:
        """Output has been generated."""
        self._output_unspent += tokens
        self.statistics.sums[kind].output_tokens += tokens

    def settle(self) -> None:
        """Take what was generated from the quotas: once a tick, not once a token."""
        if self._output_unspent:
            self.statistics.output_tokens += self._output_unspent
            self._quota.spend_output(self._output_unspent, self.clock())
            self._output_unspent = 0

    def limits_headers(self) -> Headers:
        """What the head of an answer says of the quotas as of now."""
        self.settle()
        return self.dialect.limit_headers(self._quota.states(self.clock()), self.wall())

    def draw_s(self, mean_ms: float, jitter_ms: float) -> float:
        """A latency in seconds: log-normal with this mean and standard deviation."""
        if mean_ms <= 0 or jitter_ms <= 0:
            return mean_ms / 1_000
        variance = math.log1p((jitter_ms / mean_ms) ** 2)
        mu = math.log(mean_ms) - variance / 2
        return self.rng.lognormvariate(mu, math.sqrt(variance)) / 1_000

    def new_id(self, prefix: str) -> str:
        """An identifier as the provider makes them."""
        return f"{prefix}_01{self.rng.getrandbits(112):028x}"

    def _new_quota(self) -> Quota:
        return Quota(
            {
                "requests": self.settings.requests_per_minute,
                "input-tokens": self.settings.input_tokens_per_minute,
                "output-tokens": self.settings.output_tokens_per_minute,
                "tokens": self.settings.tokens_per_minute,
            },
            self.clock(),
        )
