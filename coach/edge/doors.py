"""How many connections a worker has at once, so that descriptors are left for its own.

No sockets in here. A worker that has taken its last descriptor can open no connection to a provider
or to Redis: those inside would pay for those who come. So newcomers are refused before that, with
an answer while few are refused at a time, without one when many are.

Memory: two integers.
"""

from __future__ import annotations

from typing import Final, final

from ..ops import health

RETRY_AFTER_S: Final = 2


@final
class Doors:
    """Counts connections; each `enter` and `begin_refusal` that gave True is given back."""

    def __init__(self, connections_max: int) -> None:
        """Let `connections_max` in at once; at least one."""
        assert connections_max > 0
        self.connections_max = connections_max
        self._open = 0
        self._refusals = 0  # at most health.REFUSED, for at most a second each

    def __len__(self) -> int:
        """How many are in."""
        return self._open

    def enter(self) -> bool:
        """Let one in; False where the worker is full."""
        if self._open >= self.connections_max:
            return False
        self._open += 1
        return True

    def leave(self) -> None:
        """One that was let in has gone."""
        assert self._open > 0
        self._open -= 1

    def begin_refusal(self) -> bool:
        """Whether one that was not let in may be told why."""
        if self._refusals >= health.REFUSED:
            return False
        self._refusals += 1
        return True

    def end_refusal(self) -> None:
        """It was told."""
        assert self._refusals > 0
        self._refusals -= 1
