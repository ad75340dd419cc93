"""How near one worker process is to its own limits: its event loop, its CPU, its open files, Redis.

Two tasks of the worker. What they see goes to metrics.py, from where operators, alert rules and the
load test read what breaks first.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from .. import config
from ..store import RedisError
from . import metrics

LAG_EVERY_S: Final = 0.05
"""Between two looks at the event loop: twenty a second."""
SAMPLE_S: Final = 1.0
FILES: Final = 64
"""Open files of a worker without connections: libraries, logs, pipes, Redis."""
REFUSED: Final = 32
"""Connections that may be open only to be told that the worker is full."""
FILES_UNLIMITED: Final = 1_048_576
"""What is taken for no limit of open files."""
_OPEN_FILES: Final = Path("/proc/self/fd")


async def watch_loop() -> None:
    """Observe by how much this process' event loop is late, until cancelled.

    A sleep that wakes late has waited behind other tasks that were ready, behind a call that
    blocked, or for a core: whatever is read or timed in this process has waited as long.
    """
    while True:
        due_s = trio.current_time() + LAG_EVERY_S
        await trio.sleep_until(due_s)
        metrics.loop_lag_seconds.observe(max(0.0, trio.current_time() - due_s))


async def watch_process(ping: Callable[[], Awaitable[object]]) -> None:
    """Sample CPU, open files, tasks and Redis' round trip once a second, until cancelled.

    Args:
      ping: asks Redis for nothing. One that raises RedisError is not counted: `/readyz` says so.
    """
    cpu_s, at_s = time.process_time(), trio.current_time()
    while True:
        await trio.sleep(SAMPLE_S)
        used_s, now_s = time.process_time(), trio.current_time()
        metrics.worker_cpu.set((used_s - cpu_s) / (now_s - at_s))
        metrics.worker_cpu_seconds_total.inc(used_s - cpu_s)
        cpu_s, at_s = used_s, now_s
        metrics.open_files.set(open_files_share())
        metrics.tasks.set(trio.lowlevel.current_statistics().tasks_living)
        asked_s = trio.current_time()
        try:
            await ping()
        except RedisError:
            continue
        metrics.redis_latency_seconds.observe(trio.current_time() - asked_s)


def files_reserved(settings: config.Settings) -> int:
    """Descriptors of a worker that no client may take: providers, Redis, its own, refusals."""
    providers = len(settings.provider) * settings.pool.connections_max
    return providers + FILES + REFUSED


def connections_max(settings: config.Settings, files: int) -> int:
    """How many clients a worker takes that may open so many `files`; at least a few.

    `server.connections_max` lowers it and never raises it.
    """
    left = max(files - files_reserved(settings), files // 4, 1)
    return min(left, settings.server.connections_max or left)


def open_files_share() -> float:
    """Share of its limit of open files that this process uses; 0.0 where nobody can tell."""
    try:
        count = len(os.listdir(_OPEN_FILES))  # noqa: PTH208  names alone, there may be thousands
    except OSError:
        return 0.0
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0.0 if soft == resource.RLIM_INFINITY else count / soft
