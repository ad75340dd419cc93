"""What a provider's fault means for the request and the endpoint, and how patient to be; pure.

- The same request goes elsewhere after every kind of fault but those in `FINAL`.
- The kinds in `FAULTS` count against the endpoint; enough of them open its breaker.
- After those in `CLOSING` it is left alone for as long as it says; after `spend_cap` for `SPENT_S`.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, final

from .records import ErrorKind, ProviderError

FINAL: Final[frozenset[ErrorKind]] = frozenset(("filtered", "too_long"))
"""About the text, not the provider: what was filtered is never taken elsewhere."""
FAULTS: Final[frozenset[ErrorKind]] = frozenset(
    (
        *("overloaded", "server_error", "unreachable", "cut", "stalled", "malformed"),
        *("auth", "spend_cap"),
    )
)
"""Not `rate_limited` and `accelerated` (what coach should have kept to) nor `refused` (a request
that only this provider does not take)."""
CLOSING: Final[frozenset[ErrorKind]] = frozenset(("rate_limited", "accelerated", "overloaded"))
"""The endpoint's gate closes for all workers."""
GATE_S: Final = 1.0
"""How long, where the provider does not say."""
SPENT_S: Final = 300.0
"""How long an endpoint whose money is spent is left alone, before one request tries again."""
SAMPLES_MAX: Final = 256
SAMPLES_MIN: Final = 32
"""Below so many answers nobody knows how long one takes."""
RENEW_EVERY: Final = 16
PATIENCE: Final = 2.0
"""Times the 99th percentile: beyond that an answer is not slow, but probably not coming."""


def is_final(kind: ErrorKind) -> bool:
    """Whether the same request would be answered no better elsewhere."""
    return kind in FINAL


def is_fault(kind: ErrorKind) -> bool:
    """Whether it counts against the endpoint."""
    return kind in FAULTS


def closes_gate(kind: ErrorKind) -> bool:
    """Whether nobody may be sent to the endpoint for `hold_s`."""
    return kind in CLOSING


def hold_s(error: ProviderError) -> float | None:
    """Seconds for which the endpoint is left alone; None: it may be asked at once."""
    if error.kind == "spend_cap":
        return error.retry_after_s or SPENT_S
    return (error.retry_after_s or GATE_S) if error.kind in CLOSING else None


@final
class FirstTokens:
    """How long an endpoint takes to its first token, of late, and how long to wait for one.

    Memory: `SAMPLES_MAX` floats.
    """

    def __init__(self, *, s_min: float, s_max: float, s_first: float | None = None) -> None:
        """Wait at least `s_min` seconds and at most `s_max`.

        `s_first` is the first guess, before so many answers have come; None: `s_max`.
        """
        self._s_min = s_min
        self._s_max = s_max
        self._samples: deque[float] = deque(maxlen=SAMPLES_MAX)
        self._observed = 0
        self.deadline_s = s_max if s_first is None else s_first
        """Seconds from sending a request after which its first token counts as late."""

    def observe(self, seconds: float) -> None:
        """An answer's first token came after so many seconds."""
        self._samples.append(seconds)
        self._observed += 1
        if self._observed >= SAMPLES_MIN and self._observed % RENEW_EVERY == 0:
            ordered = sorted(self._samples)
            p99 = ordered[math.ceil(len(ordered) * 0.99) - 1]
            self.deadline_s = min(self._s_max, max(self._s_min, PATIENCE * p99))
