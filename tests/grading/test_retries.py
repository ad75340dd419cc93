"""The retry budget: an outage that fails everything does not bring everything back at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from coach.grading.jobs import Claim
from coach.grading.records import LANES

from .support import broken_invariants, essay, let_leases_run_out, open_test_queue, take

pytestmark = pytest.mark.real_time


async def test_no_more_retries_begin_than_the_budget_has(tmp_path: Path) -> None:
    """A burst, then so many a second: in any t seconds at most burst + rate * t, and no fewer."""
    budget: dict[str, Any] = {"retry_per_s": 50, "retry_burst": 5, "attempts_max": 9}
    async with open_test_queue(tmp_path, **budget) as (queue, redis):
        for number in range(40):
            await queue.submit(essay(f"n{number}"))
        claims, _ = await queue.claim_many(0, LANES, 40)
        for claim in claims:
            await queue.fail(claim, reason="outage", delay_s=0)
        began = trio.current_time()
        begun = 0
        while begun < 20:
            claims, due_s = await queue.claim_many(0, LANES, 64)
            begun += len(claims)
            assert begun <= 5 + 50 * (trio.current_time() - began) + 0.05
            assert due_s is not None
            await trio.sleep(min(due_s, 0.03))
        assert trio.current_time() - began < 2.0
        assert await broken_invariants(redis) == []


async def test_new_essays_and_lost_leases_need_no_budget(tmp_path: Path) -> None:
    budget: dict[str, Any] = {"retry_per_s": 1, "retry_burst": 1, "lease_s": 60.0}
    async with open_test_queue(tmp_path, **budget) as (queue, redis):
        for id_ in ("spends", "waits", "lost"):
            await queue.submit(essay(id_))
        spends, waits = await take(queue), await take(queue)
        await take(queue)
        await let_leases_run_out(redis, queue)
        again = [await take(queue) for _ in range(3)]
        assert {claim.id for claim in again} == {"spends", "waits", "lost"}
        for claim in again[:2]:
            assert await queue.fail(claim, reason="x", delay_s=0) is not None
        assert (await take(queue)).id == spends.id
        due_s = await queue.claim(0, LANES)
        assert isinstance(due_s, float)
        assert 0.5 < due_s <= 1.0
        await queue.submit(essay("new"))
        assert (await take(queue)).id == "new"
        await trio.sleep(due_s + 0.005)
        assert (await take(queue)).id == waits.id


async def test_a_queue_that_never_runs_empty_takes_back_what_the_dead_held(tmp_path: Path) -> None:
    """Graders that always find work never sleep: so a claim itself looks for lost leases."""
    async with open_test_queue(tmp_path, lease_s=0.2, heartbeat_s=0.05) as (queue, _):
        for number in range(50):
            await queue.submit(essay(f"n{number}"))
        dead = await take(queue)
        died_at = trio.current_time()
        while True:
            claim = await queue.claim(0, LANES)
            assert isinstance(claim, Claim)
            if claim.id == dead.id:
                break
            await trio.sleep(0.01)
        assert 0.15 < trio.current_time() - died_at < 0.3
        assert (claim.attempt, claim.failures) == (2, 1)
