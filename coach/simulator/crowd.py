"""Simulated students in several processes, and what they have seen, second by second.

One process is a plain call. Of several, each runs its part of one plan (`python -m
coach.simulator.crowd FD`), reads the plan as a line of JSON from standard input and writes, once a
second and at its end, all it has counted so far; the last word counts, and what a process that
dies has not said is lost, and the run with it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import attrs
import trio

from ..child import Process, start_child, stop_child
from ..errors import ConfigurationError
from ..nurseries import open_plain_nursery
from .conversation import Tally
from .histogram import Histogram
from .plan import Plan
from .writers import Presence, Report, simulate

PROCESSES_MAX: Final = 64
SAY_EVERY_S: Final = 1.0
START_S: Final = 2.0
"""From the start of the processes until their common beginning: they import for half a second."""
END_S_MAX: Final = 30.0
"""Beyond the plan's own end, before processes are given up."""
STOP_S_MAX: Final = 2.0
_LINE_BYTES_MAX: Final = 1 << 22


@attrs.define(eq=False)
class Crowd:
    """What all students have seen so far. Not exact across processes: each speaks once a second."""

    plan: Plan
    tally: Tally = attrs.field(factory=Tally)
    presence: Presence = attrs.field(factory=Presence)
    pids: list[int] = attrs.field(factory=lambda: [os.getpid()])
    """Of the processes that the students are in."""


async def run_crowd(crowd: Crowd, *, processes: int = 1) -> Report:
    """Run the plan; `crowd` follows what is seen.

    Raises:
      ConfigurationError: a process has died, or did not come to its end.

    Cancellation: connections are cut, processes are gone.
    """
    raise_open_files()
    if processes == 1:
        return await simulate(crowd.plan, tally=crowd.tally, presence=crowd.presence)
    begin_s = time.monotonic() + START_S
    parts = [_Part() for _ in range(processes)]
    crowd.pids = []
    async with AsyncExitStack() as stack:
        patience = crowd.plan.seconds + crowd.plan.grace_s + START_S + END_S_MAX
        with trio.move_on_after(patience) as patient:
            async with open_plain_nursery() as nursery:
                for number, part in enumerate(parts):
                    plan = attrs.evolve(crowd.plan, part=(number, processes))
                    lines = await stack.enter_async_context(_open_part(plan, begin_s, crowd))
                    nursery.start_soon(_follow, part, parts, lines, crowd)
        if patient.cancelled_caught:
            raise ConfigurationError("simulated students did not come to their end in time")
    return Report(crowd.plan, crowd.tally, time.monotonic() - begin_s)


def raise_open_files() -> None:
    """Take as many open files as the machine lets us have: each student holds one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@attrs.define
class _Part:
    """What one process has said last."""

    tally: Tally = attrs.field(factory=Tally)
    presence: Presence = attrs.field(factory=Presence)
    ended: bool = False


@asynccontextmanager
async def _open_part(
    plan: Plan, begin_s: float, crowd: Crowd
) -> AsyncIterator[trio.lowlevel.FdStream]:
    """Start a process; gives what it says."""
    read_fd, write_fd = os.pipe()
    plan_read_fd, plan_write_fd = os.pipe()
    process: Process | None = None
    async with trio.lowlevel.FdStream(read_fd) as lines:
        try:
            command = [sys.executable, "-m", "coach.simulator.crowd"]
            process = start_child(
                [*command, f"{plan_read_fd}", f"{write_fd}"], pass_fds=(plan_read_fd, write_fd)
            )
            crowd.pids.append(process.pid)
            os.close(write_fd)
            os.close(plan_read_fd)
            write_fd = plan_read_fd = -1
            async with trio.lowlevel.FdStream(plan_write_fd) as writing:
                plan_write_fd = -1
                told = {"begin_s": begin_s, "plan": attrs.asdict(plan)}
                await writing.send_all(json.dumps(told).encode())
            yield lines
        finally:
            for fd in (write_fd, plan_read_fd, plan_write_fd):
                if fd >= 0:
                    os.close(fd)
            if process is not None:
                await stop_child(process, within_s=STOP_S_MAX)  # noqa: ASYNC102  shields itself


async def _follow(
    part: _Part, parts: list[_Part], lines: trio.lowlevel.FdStream, crowd: Crowd
) -> None:
    buffer = bytearray()
    while data := await lines.receive_some():
        buffer += data
        if len(buffer) > _LINE_BYTES_MAX:
            raise ConfigurationError("a process of simulated students says too much")
        while (end := buffer.find(b"\n")) >= 0:
            _take(part, json.loads(bytes(buffer[:end])))
            del buffer[: end + 1]
            _sum_up(parts, crowd)
    if not part.ended:
        raise ConfigurationError(
            "a process of simulated students has died, and what it saw is lost"
        )


def _take(part: _Part, said: dict[str, Any]) -> None:
    part.tally = tally_from_json(said["tally"])
    part.presence = _presence_from_json(said["presence"])
    part.ended = said["ended"]


def _sum_up(parts: list[_Part], crowd: Crowd) -> None:
    """Into the crowd's own objects, which others watch."""
    tally, presence = Tally(), Presence()
    for part in parts:
        tally.merge(part.tally)
        for name in ("arrived", "connected", "typing", "finished"):
            setattr(presence, name, getattr(presence, name) + getattr(part.presence, name))
        presence.lag_ms.merge(part.presence.lag_ms)
    for target, source in ((crowd.tally, tally), (crowd.presence, presence)):
        for name in attrs.fields_dict(type(source)):
            setattr(target, name, getattr(source, name))


def tally_to_json(tally: Tally) -> dict[str, Any]:
    """What `tally_from_json` takes."""
    return {
        name: value.as_json() if isinstance(value, Histogram) else value
        for name, value in ((name, getattr(tally, name)) for name in attrs.fields_dict(Tally))
    }


def tally_from_json(said: dict[str, Any]) -> Tally:
    """What another process has counted."""
    tally = Tally()
    for name, value in said.items():
        now = getattr(tally, name)
        if isinstance(now, Histogram):
            setattr(tally, name, Histogram.from_json(value))
        else:
            setattr(tally, name, Counter(value) if isinstance(now, Counter) else value)
    return tally


def _presence_from_json(said: dict[str, Any]) -> Presence:
    return Presence(**{**said, "lag_ms": Histogram.from_json(said["lag_ms"])})


# -- a process of several --------------------------------------------------------------------------


def main(plan_fd: int, say_fd: int) -> None:
    """Run one part of a plan."""
    raise_open_files()
    with os.fdopen(plan_fd) as told:
        order = json.load(told)
    plan = order["plan"]
    for name in ("arrivals", "part", "offline_s"):
        plan[name] = tuple(plan[name])
    with os.fdopen(say_fd, "wb", buffering=0) as said:
        trio.run(_run_part, Plan(**plan), order["begin_s"], said)


async def _run_part(plan: Plan, begin_s: float, said: Any) -> None:
    crowd = Crowd(plan)

    def say(*, ended: bool) -> None:
        presence = attrs.asdict(crowd.presence, recurse=False)
        del presence["links"]  # nobody outside of this process can cut them
        presence["lag_ms"] = crowd.presence.lag_ms.as_json()
        line = {"tally": tally_to_json(crowd.tally), "presence": presence, "ended": ended}
        said.write(json.dumps(line).encode() + b"\n")

    async def say_again_and_again() -> None:
        while True:
            await trio.sleep(SAY_EVERY_S)
            say(ended=False)

    async with trio.open_nursery() as nursery:
        await trio.sleep(max(0.0, begin_s - time.monotonic()))
        nursery.start_soon(say_again_and_again)
        await simulate(plan, tally=crowd.tally, presence=crowd.presence)
        nursery.cancel_scope.cancel("all students have left")
    say(ended=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
