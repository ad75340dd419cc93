"""The scripts on a clock the test sets, and looks into Redis that the product has no need of."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import cache

import attrs
import pytest
import trio

from coach.budget.quota import NOTHING, Amounts
from coach.store import Redis, Script, script

CLOCK = "clock"


def edit_scripts(monkeypatch: pytest.MonkeyPatch, *edits: tuple[str, str]) -> None:
    """Replace text in the sources of the scripts, in whichever it stands."""
    unedited = script

    @cache
    def edited(name: str) -> Script:
        source = unedited(name).source
        for old, new in edits:
            assert old in source or name.startswith("limit_"), old
            source = source.replace(old, new)
        return Script(name, source, hashlib.sha1(source.encode()).hexdigest())

    for module in ("scripts", "limit_scripts"):
        monkeypatch.setattr(f"coach.budget.{module}.script", edited)


def use_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts read the time from a key instead of the server's clock."""
    edit_scripts(monkeypatch, ('redis.call("TIME")', f'redis.call("HMGET", "{CLOCK}", 1, 2)'))


def use_window(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """Let an endpoint's window be strict over `seconds` instead of 60."""
    edit_scripts(
        monkeypatch, ("WINDOW_S, OUTPUT = 4, 61, 3", f"WINDOW_S, OUTPUT = 4, {seconds + 1}, 3")
    )


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
    tickets = await redis.execute_command("ZRANGE", f"line:{{{endpoint}}}", 0, -1)
    return [ticket.decode().partition("|")[2] for ticket in tickets]


async def tickets_of(redis: Redis, endpoint: str) -> dict[str, str]:
    """Tickets and their states, without those that have ended or lapsed."""
    records = await redis.execute_command("HGETALL", f"tickets:{{{endpoint}}}")
    states = {ticket.decode(): value.split()[0].decode() for ticket, value in records.items()}
    return {ticket: state for ticket, state in states.items() if state not in {"ended", "lapsed"}}


async def assert_nothing_left(
    redis: Redis, endpoint: str, *, used: tuple[int, ...] = NOTHING
) -> None:
    """No reservation, no ticket, nobody in line; the window holds what was used."""
    window = await spent(redis, endpoint)
    assert await line_of(redis, endpoint) == []
    assert await tickets_of(redis, endpoint) == {}
    assert window.sum == window.in_buckets == used


async def open_holder(module: str, *arguments: str) -> tuple[trio.Process, bytes]:
    """A worker of `tests.budget` in a process of its own, and what it said until `holding`."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", f"tests.budget.{module}", *arguments], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    said, end = b"", b"holding\n"
    with trio.fail_after(20):
        while not said.endswith(end):
            piece = await process.stdout.receive_some()
            assert piece, said
            said += piece
    return process, said.removesuffix(end)
