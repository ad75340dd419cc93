"""The scripts on a clock the test sets, and looks into Redis that the product has no need of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import attrs
import pytest
import trio

from coach.budget import scripts
from coach.budget.quota import Amounts
from coach.store import Redis, Script

CLOCK = "clock"


def use_clock(monkeypatch: pytest.MonkeyPatch, edit: Callable[[str], str] = str) -> None:
    """Let the scripts read the time from a key instead of the server's clock.

    Args:
      monkeypatch: the test's own.
      edit: a further change of every script's source.
    """
    assembled = scripts.assembled

    @cache
    def clocked(name: str) -> Script:
        source = assembled(name).source
        assert 'redis.call("TIME")' in source
        source = edit(source.replace('redis.call("TIME")', f'redis.call("HMGET", "{CLOCK}", 1, 2)'))
        return Script(name, source, hashlib.sha1(source.encode()).hexdigest())

    monkeypatch.setattr(scripts, "assembled", clocked)


@attrs.define
class Clock:
    """The scripts' time, in milliseconds."""

    redis: Redis
    now_ms: int = 1_800_000_000_000

    async def set(self, now_ms: int) -> None:
        """Set it; backwards, too."""
        self.now_ms = now_ms
        await self.redis.hset(
            CLOCK, mapping={"1": str(now_ms // 1000), "2": str(now_ms % 1000 * 1000)}
        )

    async def advance(self, seconds: float) -> None:
        """Let time pass."""
        await self.set(self.now_ms + round(seconds * 1000))


@attrs.frozen
class Window:
    """A window as Redis holds it."""

    sum: tuple[int, ...]
    buckets: dict[int, tuple[int, ...]]

    @property
    def in_buckets(self) -> tuple[int, ...]:
        """Per dimension, all buckets together; without what is held outside them."""
        width = len(self.sum)
        return tuple(sum(values[d] for values in self.buckets.values()) for d in range(width))


async def read_window(redis: Redis, key: str, dimensions: int) -> Window:
    """The window at `key`; empty where there is none."""
    total: tuple[int, ...] = (0,) * dimensions
    buckets = {}
    for field, value in (await redis.hgetall(key)).items():
        if field == b"sum":
            total = tuple(map(int, value.split()))
        elif field.isdigit():
            buckets[int(field)] = tuple(map(int, value.split()))
    return Window(total, buckets)


async def spent(redis: Redis, endpoint: str) -> Window:
    """An endpoint's window."""
    return await read_window(redis, f"spend:{{{endpoint}}}", len(Amounts.__args__))  # type: ignore[attr-defined]  # a tuple alias


async def line_of(redis: Redis, endpoint: str) -> list[str]:
    """The tickets in line, in order."""
    return [ticket.decode() for ticket in await redis.zrange(f"line:{{{endpoint}}}", 0, -1)]


async def tickets_of(redis: Redis, endpoint: str) -> dict[str, str]:
    """Tickets and their states, without those that have ended."""
    records = await redis.hgetall(f"tickets:{{{endpoint}}}")
    states = {ticket.decode(): value.split()[0].decode() for ticket, value in records.items()}
    return {ticket: state for ticket, state in states.items() if state != "ended"}


@attrs.define(eq=False)
class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when the task that entered `armed` yields for the `step`-th time."""

    step: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    fired: bool = False
    _task: trio.lowlevel.Task | None = None
    _steps_count: int = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio's hook."""
        if task is self._task:
            self._steps_count += 1
            if self._steps_count == self.step:
                self.fired = True
                self.scope.cancel()

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Count the steps of the present task; the cancellation ends here."""
        self._task = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(self)
        try:
            with self.scope:
                yield
        finally:
            trio.lowlevel.remove_instrument(self)
