"""Cancellation at every checkpoint of an operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


@contextmanager
def cancel_at_step(n: int) -> Iterator[trio.CancelScope]:
    """Cancel the block at its nth step: a step is a wake-up of this task or a turn of the loop.

    Swept over n, it tries a cancellation at every checkpoint that an operation passes, and
    wherever it waits. The scope's `cancel_called` says whether the block got as far as step n.
    """
    with trio.CancelScope() as scope:
        instrument = _Steps(scope, n)
        trio.lowlevel.add_instrument(instrument)
        try:
            yield scope
        finally:
            trio.lowlevel.remove_instrument(instrument)


class _Steps(trio.abc.Instrument):
    def __init__(self, scope: trio.CancelScope, n: int) -> None:
        self._scope = scope
        self._left = n
        self._task = trio.lowlevel.current_task()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._step()

    def after_io_wait(self, timeout: float) -> None:
        self._step()

    def _step(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()
