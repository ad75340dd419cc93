"""How fast a user is read: whoever sends too much is not refused anything, but read later.

A draft is what its edits add up to, so that one edit refused would cost the text; one that is read
later costs nothing. While an allowance waits, its connection's reader waits, so that the kernel's
buffers fill and the sender is held up by TCP. Counted are messages, pongs that are owed, and bytes:
a flood of what makes no message, as empty fragments, is held up by its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, final

import trio

from ..ops import metrics
from ..throttle import Throttle

BURST_S: Final = 20.0
"""How many seconds' worth may come at once."""
BYTES: Final = 2_048
"""So many count as one message more."""


def open_throttle(messages_per_s: float) -> Throttle[Hashable]:
    """What all allowances of a worker draw on; a user's connections share theirs."""
    return Throttle(per_s=messages_per_s, burst=messages_per_s * BURST_S)


@final
class Allowance:
    """What one connection may send; its user's, as soon as that is known."""

    __slots__ = ("_on_wait", "_quiet_until", "_throttle", "key")

    def __init__(self, throttle: Throttle[Hashable], on_wait: Callable[[float], None]) -> None:
        """Draw on `throttle`.

        Args:
          throttle: of the worker.
          on_wait: called, synchronously, when a burst has been used up, with the seconds after
            which another one may come; not again before they are over.
        """
        self.key: Hashable = id(self)
        """Whose; by itself the connection's own."""
        self._throttle = throttle
        self._on_wait = on_wait
        self._quiet_until = 0.0

    async def spend(self, cost: float = 1.0) -> None:
        """Count what has come, and wait as long as it is too much. A checkpoint only then."""
        now = trio.current_time()
        wait_s = self._throttle.spend(self.key, now, cost)
        if wait_s <= 0:
            return
        metrics.messages_held.inc()
        if now >= self._quiet_until:
            full_s = self._throttle.full_in(self.key, now)
            self._quiet_until = now + full_s
            self._on_wait(full_s)
        await trio.sleep(wait_s)
