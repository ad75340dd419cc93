"""The queue with shards on three real cluster nodes, and many at work on it at once."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import attrs
import msgspec
import pytest
import trio

from coach.errors import Overloaded
from coach.grading.desk import Desk
from coach.grading.jobs import Claim
from coach.grading.queue import Queue
from coach.grading.records import LANES, Submission
from coach.store import NotSent, RedisError, open_redis
from tests.store.test_cluster import open_cluster
from tests.support.cancels import cancel_at_step

from .support import GRADE, SETTINGS, broken_invariants, essay, open_test_queue

pytestmark = pytest.mark.real_time

ORGS = [f"org-{number}" for number in range(12)]
OPTIONS = msgspec.structs.replace(
    SETTINGS, shards=6, lease_s=0.5, heartbeat_s=0.1, retry_per_s=1_000, attempts_max=100
)


@attrs.define
class Crowd:
    """Students who hand in until they are told so, and graders who may die with their claims."""

    queue: Queue
    rng: random.Random
    graded: Counter[str] = attrs.field(factory=Counter)
    """Times that a grader was told that it had written the grade."""

    async def hand_in(self, one: Submission) -> None:
        while True:
            try:
                await self.queue.submit(one)
            except (RedisError, Overloaded):
                await trio.sleep(0.05)  # again under the same id
            else:
                return

    async def grade(self, shard: int) -> None:
        while True:
            try:
                claim = await self.queue.claim(shard, LANES)
                if not isinstance(claim, Claim):
                    await self.queue.wait(shard, LANES, at_most_s=0.1)
                elif self.rng.random() < 0.8:
                    await self._end(claim)
            except RedisError:
                await trio.sleep(0.05)

    async def _end(self, claim: Claim) -> None:
        if self.rng.random() < 0.2:
            await self.queue.fail(claim, reason="bad luck", delay_s=0.01)
        elif await self.queue.finish(claim, GRADE) is not None:
            self.graded[claim.id] += 1


async def test_on_a_cluster_everything_is_graded_once_also_when_a_node_dies(
    tmp_path: Path,
) -> None:
    """Six shards on three nodes; graders forget claims now and then; a node is killed."""
    rng = random.Random(7)
    async with open_cluster(tmp_path) as (url, nodes), open_redis(url, wait_s=8) as redis:
        for node in nodes:
            await node.ask("CONFIG SET", "appendfsync", "always")
        queue = Queue(redis, OPTIONS)
        crowd = Crowd(queue, rng)
        essays = [
            essay(f"{org}-{number}", org=org, lane=rng.choice(LANES))
            for org in ORGS
            for number in range(8)
        ]
        async with trio.open_nursery() as nursery:
            for shard in (*queue.shards, *queue.shards):
                nursery.start_soon(crowd.grade, shard)
            async with trio.open_nursery() as students:
                for one in essays:
                    students.start_soon(crowd.hand_in, one)
                await trio.sleep(0.1)
                nodes[1].kill()
                await trio.sleep(0.2)
                await nodes[1].start()
            with trio.fail_after(20):
                while await unfinished(queue):  # noqa: ASYNC110  in Redis
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel("all are graded")
        # An answer that was lost with the node is a grade that nobody counted.
        assert set(crowd.graded.values()) == {1}
        for one in essays:
            state = await queue.get(one.org, one.id)
            assert state is not None
            assert state.status == "graded"
        for shard in queue.shards:
            assert await broken_invariants(redis, shard) == []


async def unfinished(queue: Queue) -> int:
    return sum(lane.unfinished for lane in (await queue.statistics()).lanes.values())


async def test_cancelled_at_every_step_an_operation_has_happened_or_not(tmp_path: Path) -> None:
    """Claims that were taken are returned; what operators do leaves no half-done job behind."""
    async with open_test_queue(tmp_path, lease_s=600.0) as (queue, redis):
        desk = Desk(redis, SETTINGS)
        got_through, step = False, 0
        while not got_through:
            step += 1
            await queue.submit(essay(f"a{step}"))
            await queue.submit(essay(f"b{step}"))
            claims: list[Claim] = []
            with cancel_at_step(step) as scope:
                claims, _ = await queue.claim_many(0, LANES, 2)
                for claim in claims:
                    await queue.fail(claim, reason="x", final=True)
                await desk.replay(f"a{step}")
                await desk.cancel(f"a{step}", reason="x")
                await desk.set_mode(["background"], "paused")
                await desk.set_mode(["background"], "open")
            statistics = await queue.statistics()
            assert statistics.leased + statistics.dead + statistics.ready["submission"] <= 2
            assert statistics.leased <= len(claims), step
            assert await broken_invariants(redis) == []
            for state in ("ready", "leased", "dead"):
                for job in [job async for job in desk.jobs(state)]:
                    await desk.cancel(job.id, reason="tidy")
            got_through = not scope.cancel_called
        assert step > 10


async def test_without_a_connection_nothing_is_taken_in(tmp_path: Path) -> None:
    async with open_redis("redis://127.0.0.1:1", wait_s=0.05) as redis:
        queue = Queue(redis, SETTINGS)
        for operation in (queue.submit(essay()), queue.claim(0, LANES), queue.statistics()):
            with pytest.raises(NotSent):
                await operation
