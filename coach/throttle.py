"""How often somebody may do something: so many at once, and then at a steady rate.

No clock in here; callers say what time it is. The generic cell rate algorithm (ITU-T I.371), which
does what a token bucket does with one number for each key: when the bucket will be full again.

Memory bound: `keys_max` entries of some 200 bytes with their keys; 3 MB for 16,384. The key that
did least lately goes first, and may then begin anew: whoever has so many keys is not held by a
limit for each of them.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar, final

Key = TypeVar("Key", bound=Hashable)

KEYS_MAX: Final = 16_384
_GRAIN_S: Final = 1e-6
"""Less than this is rounding, not a wait."""
_LOOKS: Final = 2
"""Keys looked at for each new one: so they go at least as fast as they come."""


@final
class Throttle(Generic[Key]):
    """A limit that each key has for itself."""

    def __init__(self, *, per_s: float, burst: float, keys_max: int = KEYS_MAX) -> None:
        """Allow `burst` at once, and `per_s` in the long run; both above 0.

        What costs more than `burst` is never taken by `take`.
        """
        assert per_s > 0
        assert burst > 0
        assert keys_max > 0
        self._per_s = per_s
        self._burst_s = burst / per_s
        self._keys_max = keys_max
        self._full_at: dict[Key, float] = {}  # the one that did something last stands last

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._full_at)

    def take(self, key: Key, now: float, cost: float = 1.0) -> float:
        """Take `cost` if it is there; else how long until it is, in seconds, and nothing changed.

        Args:
          key: whose.
          now: seconds of a clock that never goes back.
          cost: in the unit of `burst`.

        Returns:
          0.0: it was taken.
        """
        full_at = max(self._full_at.get(key, now), now) + cost / self._per_s
        wait_s = full_at - now - self._burst_s
        if wait_s > _GRAIN_S:
            return wait_s
        self._note(key, full_at, now)
        return 0.0

    def spend(self, key: Key, now: float, cost: float = 1.0) -> float:
        """Take `cost` in any case; how long to wait until it would have been there, in seconds.

        For those who are slowed down instead of refused: each waits before the next.
        """
        full_at = max(self._full_at.get(key, now), now) + cost / self._per_s
        self._note(key, full_at, now)
        return max(0.0, full_at - now - self._burst_s)

    def full_in(self, key: Key, now: float) -> float:
        """How long until `burst` is there again, in seconds, if nothing is taken meanwhile."""
        return max(0.0, self._full_at.get(key, now) - now)

    def _note(self, key: Key, full_at: float, now: float) -> None:
        if self._full_at.pop(key, None) is None:
            self._forget(now)
        self._full_at[key] = full_at

    def _forget(self, now: float) -> None:
        """Make room for one more: what is full is as good as unknown."""
        for _ in range(_LOOKS):
            oldest = next(iter(self._full_at), None)
            if oldest is None:
                return
            if self._full_at[oldest] > now and len(self._full_at) < self._keys_max:
                return
            del self._full_at[oldest]
