"""Who is graded next when there are more essays than graders; on a real Valkey."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from coach.errors import Overloaded
from coach.grading.queue import Queue
from coach.grading.records import LANES, Lane
from coach.grading.scripts import UNIT

from .support import GRADE, broken_invariants, essay, open_test_queue, take

pytestmark = pytest.mark.real_time


async def submit_all(queue: Queue, org: str, count: int, lane: Lane = "submission") -> None:
    for number in range(count):
        await queue.submit(essay(f"{org}-{lane}-{number}", org=org, lane=lane))


async def served(queue: Queue, count: int) -> list[str]:
    """The orgs of the next jobs, in the order of claims."""
    claims, _ = await queue.claim_many(0, LANES, count)
    for claim in claims:
        await queue.finish(claim, GRADE)
    return [claim.id.partition("-")[0] for claim in claims]


async def test_one_orgs_backlog_holds_up_no_other_org(tmp_path: Path) -> None:
    """Whoever comes after a hundred essays of somebody else is the next but one at the latest."""
    async with open_test_queue(tmp_path) as (queue, redis):
        await submit_all(queue, "flood", 100)
        await served(queue, 10)
        await submit_all(queue, "small", 2)
        await submit_all(queue, "late", 1)
        orgs = await served(queue, 6)
        assert orgs.count("small") == 2
        assert orgs.index("small") <= 1
        assert orgs.index("late") <= 2
        assert await broken_invariants(redis) == []


async def test_orgs_that_wait_are_served_by_their_weights(tmp_path: Path) -> None:
    """3:2:1 of any run of claims, to within a job each, however many they have sent."""
    weights = {"a": 3, "b": 2}
    async with open_test_queue(tmp_path, weights=weights) as (queue, redis):
        for org, count in (("c", 60), ("b", 40), ("a", 45)):
            await submit_all(queue, org, count)
        total: Counter[str] = Counter()
        for _ in range(6):
            total.update(await served(queue, 10))
            so_far = sum(total.values())
            for org, share in (("a", 3 / 6), ("b", 2 / 6), ("c", 1 / 6)):
                assert abs(total[org] - share * so_far) <= 1.5, total
        assert await broken_invariants(redis) == []


async def test_an_idle_org_saves_nothing_up_and_owes_nothing(tmp_path: Path) -> None:
    """After a quiet time it gets its share from now on, not what it did not use."""
    async with open_test_queue(tmp_path) as (queue, redis):
        await submit_all(queue, "busy", 60)
        await served(queue, 30)
        await submit_all(queue, "idle", 30)
        assert Counter(await served(queue, 20))["idle"] in (9, 10, 11)
        while await served(queue, 64):
            pass
        assert await redis.execute_command("EXISTS", "queue:{0}:share") == 0
        await submit_all(queue, "busy", 2, "background")
        await submit_all(queue, "idle", 2, "background")
        assert await served(queue, 4) == ["busy", "idle", "busy", "idle"]


async def test_equal_ranks_go_by_arrival_and_not_by_name(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        for org in ("z", "m", "a"):
            await submit_all(queue, org, 2)
        ranks = await redis.execute_command("ZRANGE", "queue:{0}:ready", 0, -1, "WITHSCORES")
        assert [float(rank) - 2**51 for _, rank in ranks] == [0, 0, 0, UNIT, UNIT, UNIT]
        assert await served(queue, 6) == ["z", "m", "a", "z", "m", "a"]


async def test_a_lane_has_clocks_of_its_own(tmp_path: Path) -> None:
    """What an org has in the background costs it nothing among submissions."""
    async with open_test_queue(tmp_path) as (queue, _):
        await submit_all(queue, "a", 20, "background")
        await submit_all(queue, "b", 2)
        await submit_all(queue, "a", 2)
        assert await served(queue, 4) == ["b", "a", "b", "a"]


async def test_background_jobs_are_refused_before_submissions(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "depth_max": 6,
        "background_depth_percent": 50,
        "org_depth_percent": 100,
    }
    async with open_test_queue(tmp_path, **changes) as (queue, redis):
        await submit_all(queue, "a", 2)
        await submit_all(queue, "b", 1, "background")
        with pytest.raises(Overloaded) as caught:
            await submit_all(queue, "c", 1, "background")
        assert caught.value.retry_after_s == 10.0
        await submit_all(queue, "c", 3)
        with pytest.raises(Overloaded):
            await submit_all(queue, "d", 1)
        await take(queue)  # a job with a grader is unfinished still
        with pytest.raises(Overloaded):
            await submit_all(queue, "d", 1)
        assert await broken_invariants(redis) == []


async def test_one_org_cannot_fill_the_queue(tmp_path: Path) -> None:
    """It is refused at its share of the depth, and the others are not."""
    async with open_test_queue(tmp_path, depth_max=20, org_depth_percent=25) as (queue, _):
        await submit_all(queue, "flood", 5)
        with pytest.raises(Overloaded, match="your organisation"):
            await queue.submit(essay("more", org="flood"))
        await submit_all(queue, "small", 5)
        await served(queue, 6)
        await queue.submit(essay("more", org="flood"))
