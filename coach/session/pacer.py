"""Deltas in fewer, larger messages: for a reader's eye, 25 a second are as good as a hundred.

The first delta of a turn leaves at once, and so does any that comes when the last message is
`window_s` old. What comes sooner is held in its turn until then. One task for the whole worker
flushes what is due; a provider that sends less often than the window never wakes it.

Memory: one entry a turn that holds text.
"""

from __future__ import annotations

import heapq
from itertools import count
from math import inf
from typing import Final, Protocol, final

import trio

TICK_S: Final = 0.005
"""Flushes are gathered in ticks, rounded up: one wake-up for all that fall due in it."""


class Holder(Protocol):
    """Who holds text back; in this room a `Turn`."""

    def flush(self) -> None:
        """Send what is held, if anything still is. Must neither block nor raise."""


@final
class Pacer:
    """When held text is due; a worker has one."""

    def __init__(self, window_s: float) -> None:
        """Hold text for `window_s` at most (and a tick); 0: not at all."""
        self.window_s: Final = window_s
        self._due: list[tuple[float, int, Holder]] = []  # a heap by time; the number breaks ties
        self._numbers = count()
        self._sleep = trio.CancelScope()  # of the task; its deadline moves to what is due first

    def flush_at(self, when_s: float, holder: Holder) -> None:
        """Call `holder.flush` at `when_s` of trio's clock, or up to a tick later."""
        tick_s = (when_s // TICK_S + 1) * TICK_S
        heapq.heappush(self._due, (tick_s, next(self._numbers), holder))
        if tick_s < self._sleep.deadline:
            self._sleep.deadline = tick_s

    async def run(self) -> None:
        """Flush what is due, until cancelled."""
        due = self._due
        while True:
            with trio.CancelScope(deadline=due[0][0] if due else inf) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            while due and due[0][0] <= now:
                heapq.heappop(due)[2].flush()
