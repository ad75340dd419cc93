"""A timer wheel: when each of very many timers is due, in ticks; pure, the caller keeps the clock.

One task sleeps until the next occupied tick and fires everything in it, so that a thousand streams
cost one wake-up a tick instead of one each.
"""

from __future__ import annotations

import heapq
import math
from typing import Final

TICK_S: Final = 0.010


class Timer:
    """Something that happens once at a time; the wheel holds it by identity.

    A timer is in at most one place: scheduling it again without firing or cancelling is an error.
    """

    __slots__ = ("due", "tick")

    def __init__(self) -> None:
        self.due: float = 0.0
        """Seconds on the caller's clock; exact, while `tick` is rounded up."""
        self.tick: int | None = None
        """The wheel's slot this timer is in; None while it is not scheduled."""

    def fire(self, now: float) -> None:
        """What happens. Called with the timer already taken off the wheel."""
        raise NotImplementedError


class Wheel:
    """Timers by tick. Memory: one dict entry a timer, one dict and one heap entry a tick in use."""

    def __init__(self, *, tick_s: float = TICK_S) -> None:
        self.tick_s = tick_s
        self._slots: dict[int, dict[Timer, None]] = {}
        self._ticks: list[int] = []
        # heap of the keys of _slots, each once; a slot may have become empty by cancelling
        self._passed = -1
        # every tick up to this one has fired

    def schedule(self, timer: Timer, due: float) -> None:
        """Fire `timer` at the end of the tick in which `due` (seconds) falls, or in the next."""
        assert timer.tick is None, "a timer is scheduled once at a time"
        tick = int(due / self.tick_s) + 1
        if tick <= self._passed:
            tick = self._passed + 1
        slot = self._slots.get(tick)
        if slot is None:
            slot = self._slots[tick] = {}
            heapq.heappush(self._ticks, tick)
        slot[timer] = None
        timer.due = due
        timer.tick = tick

    def cancel(self, timer: Timer) -> None:
        """Forget `timer` at once; nothing happens if it is not scheduled."""
        if timer.tick is not None:
            del self._slots[timer.tick][timer]
            timer.tick = None

    def next_s(self) -> float:
        """When the next occupied tick ends, on the caller's clock; infinite: nothing is due."""
        while self._ticks and not self._slots[self._ticks[0]]:
            del self._slots[heapq.heappop(self._ticks)]
        return self._ticks[0] * self.tick_s if self._ticks else math.inf

    def fire(self, now: float) -> int:
        """Fire everything due at `now`, in order of ticks; return how many timers fired.

        A timer scheduled while this runs waits for the next tick at the earliest.
        """
        fired = 0
        reached = int(now / self.tick_s + 1e-6)  # a tick's own time counts as reached
        while self._ticks and self._ticks[0] <= reached:
            tick = heapq.heappop(self._ticks)
            slot = self._slots[tick]
            self._passed = tick
            while slot:
                timer, _ = slot.popitem()
                timer.tick = None
                timer.fire(now)
                fired += 1
            del self._slots[tick]
        return fired

    def __len__(self) -> int:
        return sum(len(slot) for slot in self._slots.values())
