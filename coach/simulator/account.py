"""One account at the provider: settings, quotas, cache, faults, chances, counters; no I/O."""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import Callable
from typing import Final

from .cache import PromptCache
from .faults import FaultName, Faults, Rule
from .pacing import Wheel
from .quota import Quota, Shortage
from .settings import Settings
from .statistics import Statistics

_QUOTA_FIELDS: Final = (
    "requests_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
)


class Account:
    """What all requests share.

    Args:
      settings: how the provider behaves at first.
      faults: what goes wrong at first.
      clock: seconds, monotonic.
      wall: seconds since the epoch, for the reset times in headers.
    """

    def __init__(
        self,
        settings: Settings,
        faults: dict[FaultName, Rule],
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.faults = Faults(faults)
        self.statistics = Statistics()
        self.wheel = Wheel()
        self.cache = PromptCache(ttl_s=settings.cache_ttl_s, tokens_min=settings.cache_tokens_min)
        self.rng = random.Random(settings.seed)  # noqa: S311 - a seed replays a run
        self.clock = clock
        self._wall = wall
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

    def admit(self, input_tokens: int) -> Shortage | None:
        """Take a request and its input from the quotas, or say what is short."""
        self.settle()
        return self._quota.admit(input_tokens, self.clock())

    def spend_output(self, tokens: int) -> None:
        """Output has been generated."""
        self._output_unspent += tokens

    def settle(self) -> None:
        """Take what was generated from the quotas: once a tick, not once a token."""
        if self._output_unspent:
            self.statistics.output_tokens += self._output_unspent
            self._quota.spend_output(self._output_unspent, self.clock())
            self._output_unspent = 0

    def limits_headers(self) -> list[tuple[bytes, bytes]]:
        """`anthropic-ratelimit-*` as of now, for the limits there are."""
        self.settle()
        headers = []
        now, wall = self.clock(), self._wall()
        for state in self._quota.states(now):
            name = f"anthropic-ratelimit-{state.dimension}-".encode()
            headers += [
                (name + b"limit", b"%d" % state.limit),
                (name + b"remaining", b"%d" % state.remaining),
                (name + b"reset", _rfc3339(wall + state.full_s)),
            ]
        return headers

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
            },
            self.clock(),
        )


def _rfc3339(seconds: float) -> bytes:
    at = dt.datetime.fromtimestamp(math.ceil(seconds), tz=dt.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
