"""What operators do with the queue, on a real Valkey, while graders and students are at work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from coach.errors import Overloaded
from coach.grading.desk import Desk, Done, JobState
from coach.grading.queue import Queue
from coach.grading.records import LANES
from coach.grading.scripts import BOUNDS_MS, UNIT
from coach.store import Redis, script

from .support import (
    GRADE,
    SETTINGS,
    broken_invariants,
    due_now,
    essay,
    mailed,
    open_test_queue,
    take,
)

pytestmark = pytest.mark.real_time


async def one_of_each(queue: Queue) -> None:
    """Jobs in every state, named after it."""
    for state in ("dead", "delayed", "leased"):
        await queue.submit(essay(state))
        claim = await take(queue)
        if state == "dead":
            await queue.fail(claim, reason="no use", final=True)
        if state == "delayed":
            await queue.fail(claim, reason="away", delay_s=60)
    await queue.submit(essay("ready"))


async def ids(desk: Desk, state: JobState, **which: Any) -> list[str]:
    return [job.id async for job in desk.jobs(state, **which)]


# -- looking -----------------------------------------------------------------------------------


async def test_every_state_can_be_listed(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        desk = Desk(redis, SETTINGS)
        await one_of_each(queue)
        for state in ("ready", "delayed", "leased", "dead"):
            (job,) = [job async for job in desk.jobs(state)]
            assert (job.id, job.state, job.lane, job.kind) == (state, state, "submission", "grade")
            assert (job.org, job.user) == ("school", "ann")
            assert job.attempts == (state != "ready")
            assert (job.at is None) == (state == "ready")
            if job.at is not None:
                assert abs(job.at - job.submitted_at) < 62
        (dead,) = [job async for job in desk.jobs("dead")]
        assert (dead.failures, dead.reason) == (1, "no use")


async def test_listings_are_bounded_filtered_and_in_order(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path, shards=2) as (queue, redis):
        desk = Desk(redis, msgspec.structs.replace(SETTINGS, shards=2))
        for number in range(5):
            for org in ("a", "b", "c"):
                await queue.submit(essay(f"{org}{number}", org=org, lane=LANES[1 + (number == 4)]))
        everything = await ids(desk, "ready")
        assert len(everything) == 15
        assert await ids(desk, "ready", count_max=4) == everything[:4]
        assert set(await ids(desk, "ready", lane="background")) == {"a4", "b4", "c4"}
        backwards = await ids(desk, "ready", newest_first=True)
        assert set(backwards) == set(everything)
        assert backwards != everything


async def test_a_listing_longer_than_a_page_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coach.grading.desk.PAGE", 3)
    async with open_test_queue(tmp_path) as (queue, redis):
        for number in range(7):
            await queue.submit(essay(f"n{number}"))
        assert await ids(Desk(redis, SETTINGS), "ready") == [f"n{number}" for number in range(7)]


# -- repeating ---------------------------------------------------------------------------------


async def test_a_dead_letter_that_is_replayed_begins_again(tmp_path: Path) -> None:
    """No failures, a new place, its owner's state open; its attempts go on counting."""
    async with open_test_queue(tmp_path) as (queue, redis):
        desk = Desk(redis, SETTINGS)
        await queue.submit(essay("dead"))
        old = await take(queue)
        await queue.fail(old, reason="no use", final=True)
        assert await desk.replay("dead") == [Done(id="dead", shard=0, was="dead")]
        assert await desk.replay("dead") == [Done(id="dead", shard=0, was="ready")]
        state = await queue.get("school", "dead")
        assert state is not None
        assert (state.status, state.failure) == ("queued", None)
        assert await broken_invariants(redis) == []
        new = await take(queue)
        assert (new.attempt, new.failures) == (2, 0)
        assert await queue.finish(old, GRADE) is None
        assert await queue.fail(old, reason="late") is None
        assert await queue.finish(new, GRADE) is not None


async def test_a_replay_tells_what_it_could_not_do(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        desk = Desk(redis, SETTINGS)
        await one_of_each(queue)
        was = {id_: await desk.replay(id_) for id_ in ("delayed", "leased", "ready", "nobody")}
        assert {id_: [done.was for done in found] for id_, found in was.items()} == {
            "delayed": ["delayed"],
            "leased": ["leased"],
            "ready": ["ready"],
            "nobody": [],
        }
        await redis.execute_command("DEL", "submission:{0}:dead")
        assert [done.was for done in await desk.replay("dead")] == ["gone"]
        assert {(await take(queue)).id, (await take(queue)).id} == {"delayed", "ready"}
        assert await broken_invariants(redis) == []


async def test_replayed_jobs_stand_behind_their_orgs_others_and_not_before_all(
    tmp_path: Path,
) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        for number in range(3):
            await queue.submit(essay(f"old{number}"))
            await queue.fail(await take(queue), reason="x", final=True)
        for org in ("school", "other"):
            await queue.submit(essay(f"new-{org}", org=org))
        for number in range(3):
            await Desk(redis, SETTINGS).replay(f"old{number}")
        order = [(await take(queue)).id for _ in range(5)]
        assert order == ["new-school", "new-other", "old0", "old1", "old2"]


# -- dropping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ready", "delayed", "leased", "dead"])
async def test_a_dropped_job_is_gone_and_its_student_told_once(tmp_path: Path, state: str) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        desk = Desk(redis, SETTINGS)
        await one_of_each(queue)
        done = await desk.cancel(state, reason="spam")
        assert done == [Done(id=state, shard=0, was=state)]
        assert await desk.cancel(state, reason="spam") == []
        assert state not in [
            id_ for each in ("ready", "delayed", "leased", "dead") for id_ in await ids(desk, each)
        ]
        found = await queue.get("school", state)
        assert found is not None
        assert found.failure is not None
        assert found.failure.reason == ("no use" if state == "dead" else "spam")
        mails = await mailed(redis)
        assert len(mails) == (state != "dead")
        for mail in mails:
            assert (mail["kind"], mail["submission"]) == ("failed", state)
            assert json.loads(mail["payload"])["code"] == "cancelled"
        assert await broken_invariants(redis) == []


async def test_who_holds_a_dropped_job_can_do_nothing_with_it(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        await queue.submit(essay())
        claim = await take(queue)
        await Desk(redis, SETTINGS).cancel("s1", reason="spam")
        assert not await queue.heartbeat(claim)
        assert not await queue.save(claim, "opus", b"{}")
        assert await queue.fail(claim, reason="late", final=True) is None
        assert await queue.finish(claim, GRADE) is None
        assert not await queue.release(claim)
        state = await queue.get("school", "s1")
        assert state is not None
        assert state.grade is None
        assert (await queue.submit(essay())).status == "failed"


# -- lanes -------------------------------------------------------------------------------------


async def test_a_paused_lane_takes_in_and_hands_out_nothing(tmp_path: Path) -> None:
    """Others go on; nobody is woken for it; what is resumed wakes a sleeper at once."""
    async with open_test_queue(tmp_path) as (queue, redis), trio.open_nursery() as nursery:
        desk = Desk(redis, SETTINGS)
        await queue.submit(essay("before"))
        assert await desk.set_mode(["submission"], "paused") == 1
        await queue.submit(essay("during"))
        await queue.submit(essay("other", lane="background"))
        assert (await queue.statistics()).lanes["submission"].mode == "paused"
        assert (await take(queue)).id == "other"
        assert await queue.claim(0, LANES) == pytest.approx(1.0, abs=0.2)
        assert await broken_invariants(redis) == []
        woken = trio.Event()

        async def sleep() -> None:
            assert await queue.wait(0, LANES, at_most_s=5.0)
            woken.set()

        nursery.start_soon(sleep)
        await trio.sleep(0.1)
        assert not woken.is_set()
        assert await desk.set_mode(["submission"], "open") == 2
        with trio.fail_after(0.2):
            await woken.wait()
        assert [(await take(queue)).id for _ in range(2)] == ["before", "during"]


async def test_while_paused_failures_and_handed_back_jobs_wait_too(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        for id_ in ("fails", "returns"):
            await queue.submit(essay(id_))
        fails, returns = await take(queue), await take(queue)
        await Desk(redis, SETTINGS).set_mode(["submission"], "paused")
        assert await queue.fail(fails, reason="x", delay_s=0) is not None
        assert await queue.release(returns)
        await due_now(redis, queue)
        assert await queue.claim(0, LANES) is None
        assert await broken_invariants(redis) == []
        assert not await queue.wait(0, LANES, at_most_s=0.05)
        await Desk(redis, SETTINGS).set_mode(["submission"], "open")
        assert {(await take(queue)).id for _ in range(2)} == {"fails", "returns"}


async def test_a_drained_lane_hands_out_and_takes_in_nothing_new(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        desk = Desk(redis, SETTINGS)
        await queue.submit(essay("before"))
        assert await desk.set_mode(["submission"], "draining") == 1
        with pytest.raises(Overloaded) as caught:
            await queue.submit(essay("during"))
        assert caught.value.retry_after_s == 30.0
        assert (await queue.submit(essay("before"))).status == "queued"
        await queue.submit(essay("other", lane="background"))
        claim = await take(queue)
        assert (await queue.statistics()).lanes["submission"].unfinished == 1
        await queue.finish(claim, GRADE)
        assert await desk.set_mode(["submission"], "open") == 0
        await queue.submit(essay("during"))


# -- what has happened -------------------------------------------------------------------------


async def test_latencies_and_events_are_counted_for_all_graders_together(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        desk = Desk(redis, SETTINGS)
        for id_ in ("a", "b", "c"):
            await queue.submit(essay(id_))
        await trio.sleep(0.06)
        first = await take(queue)
        await queue.fail(await take(queue), reason="x", final=True)
        await queue.release(await take(queue))
        await take(queue)  # a second claim is no pick-up
        await queue.finish(first, GRADE)
        await desk.replay("b")
        await desk.cancel("b", reason="x")
        counts = await queue.counts()
        pickup, total = counts.pickup["submission"], counts.total["submission"]
        assert sum(pickup.counts.values()) + pickup.beyond == 3
        assert sum(pickup.counts[bound] for bound in (5, 10, 20, 50)) == 0
        assert 3 * 0.06 <= pickup.sum_s < 3 * 0.3
        assert sum(total.counts.values()) == 1
        assert sum(counts.total["background"].counts.values()) == 0
        assert counts.events == {
            ("submitted", "submission"): 3,
            ("dead", "submission"): 1,
            ("replayed", "submission"): 1,
            ("cancelled", "submission"): 1,
        }


def test_the_script_and_python_count_by_the_same_bounds() -> None:
    source = script("queue_depth").source
    bounds = re.search(r"BOUNDS_MS = \{ ([\d, ]+) \}", source)
    assert bounds is not None
    assert tuple(map(int, bounds[1].split(", "))) == BOUNDS_MS
    assert re.search(rf"= 2251799813685248, 3, 10, 64, {UNIT}\n", source)


async def test_no_key_of_a_fresh_queue_is_needed_to_look(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        assert_empty = (await queue.statistics(), await queue.counts())
        assert assert_empty[0].delayed == assert_empty[0].dead == 0
        assert assert_empty[1].events == {}
        assert await ids(Desk(redis, SETTINGS), "dead") == []
        assert await _keys(redis) == set()


async def _keys(redis: Redis) -> set[bytes]:
    return set(await redis.execute_command("KEYS", "queue:*"))
