"""saq's and arq's side of the queue benchmark: one process that hands in and works off.

    python queue_python.py saq|arq URL PLAN

The same measurements as scripts/bench/queue_coach.py, on the same server, each in its library's
usual way; prints its figures as one JSON line. Runs in an environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import uvloop  # type: ignore[import-not-found,unused-ignore]

ESSAY = "I like to read by the sea. " * 20
AT_ONCE = 32

tally: Counter[str] = Counter()
picked_up_ms: list[float] = []
sent_at: dict[str, float] = {}


async def job(ctx: dict[str, Any], *, id_: str, essay: str, work_s: float = 0.0) -> None:
    """What a worker does: look at the clock, then take `work_s`."""
    if id_ in sent_at:
        picked_up_ms.append((time.monotonic() - sent_at[id_]) * 1000)
    if work_s:
        await asyncio.sleep(work_s)
    tally["done"] += 1


class Saq:
    """https://saq-py.readthedocs.io: jobs are popped by BLMOVE."""

    def __init__(self, path: str) -> None:
        from redis import asyncio as aioredis
        from saq.queue.redis import RedisQueue  # type: ignore[import-not-found,unused-ignore]

        self._redis = aioredis.from_url(f"unix://{path}")
        self._queue = RedisQueue(self._redis, max_concurrent_ops=200)

    async def hand_in(self, id_: str, work_s: float) -> None:
        """Hand one job in."""
        await self._queue.enqueue("job", id_=id_, essay=ESSAY, work_s=work_s)

    async def work(self, places: int) -> None:
        """Run a worker until cancelled."""
        from saq import Worker  # type: ignore[import-not-found,unused-ignore]

        worker = Worker(self._queue, functions=[("job", job)], concurrency=places)
        worker.SIGNALS = []
        await worker.start()

    async def flush(self) -> None:
        """Empty the server."""
        await self._redis.flushall()


class Arq:
    """https://arq-docs.helpmanual.io: workers look at a sorted set every `poll_delay`, 0.5 s."""

    def __init__(self, path: str) -> None:
        from arq.connections import RedisSettings  # type: ignore[import-not-found,unused-ignore]

        self._settings = RedisSettings(unix_socket_path=path)
        self._pool: Any = None

    async def hand_in(self, id_: str, work_s: float) -> None:
        """Hand one job in."""
        await (await self._opened()).enqueue_job("job", id_=id_, essay=ESSAY, work_s=work_s)

    async def work(self, places: int) -> None:
        """Run a worker until cancelled."""
        from arq import Worker  # type: ignore[import-not-found,unused-ignore]

        worker = Worker(
            [job],
            redis_settings=self._settings,
            max_jobs=places,
            handle_signals=False,
            log_results=False,
        )
        await worker.main()

    async def flush(self) -> None:
        """Empty the server."""
        await (await self._opened()).flushall()

    async def _opened(self) -> Any:
        if self._pool is None:
            from arq import create_pool  # type: ignore[import-not-found,unused-ignore]

            self._pool = await create_pool(self._settings)
        return self._pool


async def throughput(side: Any, plan: dict[str, Any]) -> dict[str, float]:
    """Jobs handed in beforehand, then worked off as fast as it goes."""
    jobs = plan["jobs"]
    began = time.monotonic()
    numbers = iter(range(jobs))

    async def send() -> None:
        for number in numbers:
            await side.hand_in(f"t{number}", 0.0)

    await asyncio.gather(*[send() for _ in range(100)])
    handed_in_s = time.monotonic() - began
    began = time.monotonic()

    async def all_done() -> None:
        while tally["done"] < jobs:  # noqa: ASYNC110  a counter has no event
            await asyncio.sleep(0.005)

    await working(side, AT_ONCE, all_done)
    return {
        "handed_in_per_s": jobs / handed_in_s,
        "done_per_s": jobs / (time.monotonic() - began),
    }


async def idle(side: Any, plan: dict[str, Any]) -> dict[str, list[float]]:
    """Jobs that come one by one to a queue with nothing to do."""

    async def one_by_one() -> None:
        await asyncio.sleep(1.0)
        for number in range(plan["idle_jobs"]):
            sent_at[f"i{number}"] = time.monotonic()
            await side.hand_in(f"i{number}", 0.0)
            await asyncio.sleep(plan["idle_gap_s"])
        await asyncio.sleep(1.0)

    await working(side, plan["places"], one_by_one)
    return {"all": picked_up_ms[:]}


async def overload(side: Any, plan: dict[str, Any]) -> dict[str, list[float]]:
    """Twice as many jobs as can be done."""
    per_s = 2 * plan["places"] / plan["work_s"]

    async def too_much() -> None:
        await asyncio.sleep(1.0)
        began, number = time.monotonic(), 0
        sending: set[asyncio.Task[None]] = set()
        while time.monotonic() - began < plan["overload_s"]:
            while number < (time.monotonic() - began) * per_s:
                sent_at[f"o{number}"] = time.monotonic()
                task = asyncio.ensure_future(side.hand_in(f"o{number}", plan["work_s"]))
                sending.add(task)
                task.add_done_callback(sending.discard)
                number += 1
            await asyncio.sleep(0.005)

    await working(side, plan["places"], too_much)
    return {"all": picked_up_ms[:]}


async def working(side: Any, places: int, body: Callable[[], Awaitable[None]]) -> None:
    """Run a worker beside the body, then end it."""
    worker = asyncio.ensure_future(side.work(places))
    try:
        await body()
    finally:
        worker.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await asyncio.wait_for(worker, 5)


async def main(name: str, path: str, plan: dict[str, Any]) -> None:
    """All measurements, each on an empty server."""
    logging.disable(logging.CRITICAL)
    side: Any = {"saq": Saq, "arq": Arq}[name](path)
    figures: dict[str, Any] = {"of": name}
    for title, measure in (("idle", idle), ("overload", overload), ("throughput", throughput)):
        await side.flush()
        picked_up_ms.clear()
        tally.clear()
        sent_at.clear()
        if title in plan["measure"]:
            figures[title] = await measure(side, plan)
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
