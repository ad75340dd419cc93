"""coach's side of the queue benchmark: one process that hands in, claims and finishes.

Run by queue_run.py with the server's URL and the plan as JSON; prints its figures as one JSON line.
Only its queue is at work: no provider, no judges.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter, defaultdict
from functools import partial
from typing import Any

import attrs
import trio

from coach import config
from coach.grading import LANES, Claim, Grade, Lane, Queue, Submission
from coach.store import Redis, open_redis

GRADE = Grade(score=71, criteria=(), judges=1, degraded=False, feedback="Shorten it.")
ESSAY = "I like to read by the sea. " * 20
CLAIMED_AT_ONCE = 32
CLAIMERS = 3
HANDED_IN_AT_ONCE = 400


def submission(id_: str, org: str = "school", lane: Lane = "submission") -> Submission:
    """An essay that is like all others."""
    return Submission(id=id_, user="ann", org=org, assignment="free", text=ESSAY, lane=lane)


async def throughput(redis: Redis, plan: dict[str, Any]) -> dict[str, float]:
    """Jobs handed in beforehand, then claimed, read and finished as fast as it goes."""
    queue = Queue(redis, config.Grading(depth_max=1_000_000, org_depth_percent=100))
    jobs = plan["jobs"]
    began = trio.current_time()
    await _hand_in(queue, [submission(f"t{number}") for number in range(jobs)])
    handed_in_s = trio.current_time() - began
    left = jobs

    async def finish(claim: Claim) -> None:
        nonlocal left
        await queue.load(claim)
        await queue.finish(claim, GRADE)
        left -= 1

    async def work() -> None:
        while left:
            claims, _ = await queue.claim_many(0, LANES, CLAIMED_AT_ONCE)
            if not claims:
                return
            async with trio.open_nursery() as nursery:
                for claim in claims:
                    nursery.start_soon(finish, claim)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(CLAIMERS):
            nursery.start_soon(work)
    seconds = trio.current_time() - began
    return {"handed_in_per_s": jobs / handed_in_s, "done_per_s": jobs / seconds}


async def _hand_in(queue: Queue, submissions: list[Submission]) -> None:
    """All of them, many at a time: they share the wait for the disk."""
    waiting = iter(submissions)

    async def submit() -> None:
        for one in waiting:
            await queue.submit(one)

    async with trio.open_nursery() as nursery:
        for _ in range(HANDED_IN_AT_ONCE):
            nursery.start_soon(submit)


@attrs.define
class Graders:
    """So many places, which sleep until they are woken, as graders do; a job takes `work_s`."""

    queue: Queue
    places: int
    work_s: float
    sent_at: dict[str, float]
    picked_up_ms: defaultdict[str, list[float]] = attrs.field(factory=lambda: defaultdict(list))
    """By lane."""

    async def run(self) -> None:
        """Claim and work, until cancelled."""
        slots = trio.Semaphore(self.places)
        async with trio.open_nursery() as nursery:
            while True:
                await slots.acquire()
                claim = await self.queue.claim(0, LANES)
                if not isinstance(claim, Claim):
                    slots.release()
                    await self.queue.wait(0, LANES, at_most_s=1.0)
                    continue
                waited_s = trio.current_time() - self.sent_at[claim.id]
                self.picked_up_ms[claim.lane].append(waited_s * 1000)
                nursery.start_soon(self._work, claim, slots)

    async def _work(self, claim: Claim, slots: trio.Semaphore) -> None:
        if self.work_s:
            await trio.sleep(self.work_s)
        await self.queue.finish(claim, GRADE)
        slots.release()


async def idle(redis: Redis, plan: dict[str, Any]) -> dict[str, list[float]]:
    """Jobs that come one by one to a queue with nothing to do; from before they are handed in."""
    queue = Queue(redis, config.Grading())
    sent_at: dict[str, float] = {}
    graders = Graders(queue, plan["places"], 0.0, sent_at)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(graders.run)
        await trio.sleep(0.2)
        async with trio.open_nursery() as senders:
            for number in range(plan["idle_jobs"]):
                one = submission(f"i{number}", lane=LANES[number % 3])
                sent_at[one.id] = trio.current_time()
                senders.start_soon(queue.submit, one)  # which waits for the disk
                await trio.sleep(plan["idle_gap_s"])
        await trio.sleep(0.2)
        nursery.cancel_scope.cancel("measured")
    return graders.picked_up_ms


async def overload(redis: Redis, plan: dict[str, Any]) -> dict[str, list[float]]:
    """Twice as many jobs as can be done: 1 of 10 interactive, 6 submissions, 3 background."""
    queue = Queue(redis, config.Grading())
    sent_at: dict[str, float] = {}
    graders = Graders(queue, plan["places"], plan["work_s"], sent_at)
    per_s = 2 * plan["places"] / plan["work_s"]
    lanes = [LANES[0]] + [LANES[1]] * 6 + [LANES[2]] * 3
    rng = random.Random(1)  # noqa: S311  the same lanes each time
    async with trio.open_nursery() as nursery:
        nursery.start_soon(graders.run)
        await trio.sleep(0.2)
        began, number = trio.current_time(), 0
        while trio.current_time() - began < plan["overload_s"]:
            while number < (trio.current_time() - began) * per_s:
                one = submission(f"o{number}", lane=rng.choice(lanes))
                sent_at[one.id] = trio.current_time()
                nursery.start_soon(queue.submit, one)
                number += 1
            await trio.sleep(0.005)
        nursery.cancel_scope.cancel("measured")
    return graders.picked_up_ms


async def fairness(redis: Redis, plan: dict[str, Any]) -> dict[str, float]:
    """Shares of three orgs that all wait, of weights 3, 2 and 1; the lightest came first."""
    weights = {"heavy": 3, "middle": 2, "light": 1}
    queue = Queue(redis, config.Grading(weights=weights))
    jobs = plan["fair_jobs"]
    for org in reversed(weights):
        await _hand_in(queue, [submission(f"{org}-{number}", org) for number in range(jobs)])
    graded: Counter[str] = Counter()
    while graded.total() < jobs:
        claims, _ = await queue.claim_many(0, LANES, CLAIMED_AT_ONCE)
        for claim in claims:
            graded[claim.id.partition("-")[0]] += 1
            await queue.finish(claim, GRADE)
    return {org: graded[org] / graded.total() for org in weights}


async def main(url: str, plan: dict[str, Any]) -> None:
    """All measurements, one after the other, each on an empty server."""
    figures: dict[str, Any] = {"of": "coach"}
    async with open_redis(url) as redis:
        for name, measure in (
            ("idle", idle),
            ("overload", overload),
            ("throughput", throughput),
            ("fairness", fairness),
        ):
            await redis.execute_command("FLUSHALL")
            if name in plan["measure"]:
                figures[name] = await measure(redis, plan)
    print(json.dumps(figures))


if __name__ == "__main__":
    trio.run(partial(main, sys.argv[1], json.loads(sys.argv[2])))
