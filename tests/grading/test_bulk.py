"""Bulk jobs: by list, assignment or sample; fed in windows, by whoever lives; counted once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest

from coach.errors import BadMessage, Overloaded
from coach.grading.bulk import BulkJob, Feeder, again_id
from coach.grading.jobs import Claim
from coach.grading.queue import Queue
from coach.grading.reviews import Reviews
from coach.store import Redis, ResponseError, script
from tests.support.cancels import cancel_at_step

from .support import GRADE, SETTINGS, essay, let_leases_run_out, mailed, open_test_queue, take
from .test_grader import grading, open_world

pytestmark = pytest.mark.real_time

SECOND = attrs.evolve(GRADE, score=60)


@attrs.frozen
class World:
    """Graded essays, and a grader's feeder."""

    queue: Queue
    redis: Redis
    reviews: Reviews
    feeder: Feeder

    async def graded(self, *ids: str, **changes: Any) -> None:
        for id_ in ids:
            assert await self.queue.keep(essay(id_, **changes), GRADE)

    async def begin(self, *ids: str, kind: Any = "regrade") -> str:
        return await self.feeder.open("school", kind, ids, by="eva")

    async def job(self, id_: str) -> BulkJob:
        found = await self.feeder.find(id_)
        assert found is not None
        return found

    async def grade_all(self) -> list[str]:
        """Grade what is in the background lane; the ids."""
        done = []
        while isinstance(claim := await self.queue.claim(0, ("background",)), Claim):
            assert await self.queue.finish(claim, SECOND) is not None
            done.append(claim.id)
        return done

    async def feed(self) -> None:
        await self.feeder.feed(0)

    async def scores(self, id_: str) -> list[int]:
        history = await self.queue.history("school", id_)
        return [state.grade.score for state in history if state.grade is not None]


@asynccontextmanager
async def open_bulk(tmp_path: Path, **changes: Any) -> AsyncIterator[World]:
    async with open_test_queue(tmp_path, **changes) as (queue, redis):
        settings = msgspec.structs.replace(SETTINGS, **changes)
        reviews = Reviews(redis, queue, settings)
        yield World(queue, redis, reviews, Feeder(redis, queue, reviews, settings, worker="g1"))


async def test_essays_are_chosen_by_list_assignment_and_sample(tmp_path: Path) -> None:
    async with open_bulk(tmp_path, bulk_max=200) as world:
        numbers = [f"n{number}" for number in range(200)]
        await world.graded(*numbers, assignment="a")
        await world.graded("other", assignment="b")
        await world.graded("theirs", org="other", assignment="a")
        await world.queue.submit(essay("open", assignment="a"))
        await world.queue.submit(essay("again.1", assignment="a", kind="regrade"))

        async def chosen(**what: Any) -> list[str]:
            return [each.id for each in await world.feeder.choose("school", **what)]

        assert await chosen(ids=["other", "n3", "n3", "theirs", "open", "none"]) == ["other", "n3"]
        assert sorted(await chosen(assignment="b", ids=["n1", "other"])) == ["n1", "other"]
        with pytest.raises(BadMessage, match="bulk_max"):
            await chosen(assignment="a", ids=["other"])  # with the one that is still open
        sample = await chosen(assignment="a", percent=20)
        assert 20 < len(sample) < 60
        assert sample == await chosen(assignment="a", percent=20)
        assert set(sample) < set(await chosen(assignment="a", percent=40))
        (one,) = await world.feeder.choose("school", ids=["n1"])
        assert (one.bytes, one.grade) == (len(essay().text), GRADE)


async def test_a_job_goes_in_windows_and_second_grades_stand_beside_the_first(
    tmp_path: Path,
) -> None:
    async with open_bulk(tmp_path, bulk_window=2) as world:
        ids = ["s1", "s2", "s3"]
        await world.graded(*ids)
        id_ = await world.begin(*ids)
        for under_way, ended in ((2, 0), (1, 2)):
            await world.feed()
            await world.feed()  # nothing twice
            job = await world.job(id_)
            assert (job.running, job.graded, job.mode) == (under_way, ended, "running")
            assert len(await world.grade_all()) == under_way
        await world.feed()
        job = await world.job(id_)
        assert (job.total, job.waiting, job.running, job.graded) == (3, 0, 0, 3)
        assert job.mode == "done"
        assert job.ended_at is not None
        for each in ids:
            state = await world.queue.get("school", each)
            assert state is not None
            assert state.grade == GRADE
            assert await world.scores(each) == [60]
        again = await world.begin("s1")
        await world.feed()
        await world.grade_all()
        assert await world.scores("s1") == [60, 60]
        assert [job.id for job in await world.feeder.jobs()] == [again, id_]
        assert await world.reviews.newest("school") == []


async def test_a_paused_job_begins_nothing_and_goes_on_where_it_was(tmp_path: Path) -> None:
    async with open_bulk(tmp_path, bulk_window=1) as world:
        await world.graded("s1", "s2", "s3")
        id_ = await world.begin("s1", "s2", "s3")
        await world.feed()
        job = await world.feeder.set_mode(await world.job(id_), "paused")
        assert job.mode == "paused"
        await world.grade_all()
        for _ in range(2):
            await world.feed()
        job = await world.job(id_)
        assert (job.waiting, job.running, job.graded) == (2, 0, 1)
        assert (await world.feeder.set_mode(job, "running")).mode == "running"
        await world.feed()
        assert (await world.job(id_)).running == 1
        assert (await world.feeder.set_mode(job, "stopped")).mode == "stopped"
        await world.grade_all()
        await world.feed()
        job = await world.job(id_)
        assert (job.mode, job.waiting, job.graded) == ("stopped", 0, 2)
        assert job.ended_at is not None
        assert (await world.feeder.set_mode(job, "running")).mode == "stopped"


async def test_an_audit_is_put_before_educators_with_both_grades(tmp_path: Path) -> None:
    async with open_bulk(tmp_path) as world:
        await world.graded("s1")
        await world.begin("s1", kind="audit")
        await world.feed()
        claim = await take(world.queue, ("background",))
        job = await world.queue.load(claim)
        assert job is not None
        assert (job.kind, job.parameters["of"]) == ("audit", "s1")
        await world.queue.finish(claim, SECOND)
        assert await world.reviews.newest("school") == []
        await world.feed()
        (review,) = await world.reviews.newest("school")
        assert (review.reason, review.grade, review.second) == ("audit", GRADE, SECOND)


async def test_a_grader_reads_an_audited_essay_with_a_fresh_panel(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        reviews = Reviews(world.redis, world.queue, world.settings)
        feeder = Feeder(world.redis, world.queue, reviews, world.settings, worker="g1")
        await world.queue.keep(essay(), GRADE)
        job = await feeder.open("school", "audit", ["s1"], by="eva")
        async with grading(world):
            await feeder.feed(0)
            await world.ended(again_id(job, "s1"))
        assert len(await world.queue.history("school", "s1")) == 1
        assert await mailed(world.redis) == []


async def test_what_fails_or_is_gone_is_counted_and_a_full_lane_is_waited_for(
    tmp_path: Path,
) -> None:
    async with open_bulk(tmp_path, depth_max=2, background_depth_percent=50) as world:
        await world.graded("s1", "s2")
        id_ = await world.begin("s1", "s2", "gone")
        with pytest.raises(Overloaded):
            await world.feed()
        assert await world.queue.fail(await take(world.queue), reason="no", final=True)
        await world.feed()
        await world.grade_all()
        await world.feed()
        job = await world.job(id_)
        assert (job.graded, job.failed, job.gone, job.mode) == (1, 1, 1, "done")


async def test_one_feeder_at_a_time_serves_a_shard(tmp_path: Path) -> None:
    async with open_bulk(tmp_path) as world:
        await world.graded("s1")
        id_ = await world.begin("s1")
        await world.redis.set("bulk:{0}:feeder", "another", px=10_000)
        await world.feed()
        assert (await world.job(id_)).running == 0
        await world.redis.delete("bulk:{0}:feeder")
        await world.feed()
        assert (await world.job(id_)).running == 1


async def test_cancelled_at_every_checkpoint_every_essay_is_graded_again_once(
    tmp_path: Path,
) -> None:
    async with open_bulk(tmp_path, bulk_window=2) as world:
        for step in range(1, 1_000, 2):  # a command to Redis has two steps or more
            await world.graded(f"s{step}")
            id_ = await world.begin(f"s{step}", kind="audit")
            with cancel_at_step(step) as scope:
                await world.feed()
                await world.grade_all()
                await world.feed()
            # another one goes on
            await world.feed()
            await let_leases_run_out(world.redis, world.queue)
            await world.grade_all()
            await world.feed()
            job = await world.job(id_)
            assert (job.mode, job.graded, job.failed, job.gone) == ("done", 1, 0, 0)
            assert await world.scores(f"s{step}") == [60]
            if not scope.cancel_called:
                break
        assert step > 10


BAD: list[tuple[str, list[str | int], str]] = [
    ("bulk_open", ["", "o", "k", "b", 60, 10, "live", "s"], "id"),
    ("bulk_open", ["j", "", "k", "b", 60, 10, "live", "s"], "org"),
    ("bulk_open", ["j", "o", "", "b", 60, 10, "live", "s"], "kind"),
    ("bulk_open", ["j", "o", "k", "b", 0, 10, "live", "s"], "ttl_s"),
    ("bulk_open", ["j", "o", "k", "b", 60, 0, "live", "s"], "jobs_max"),
    ("bulk_open", ["j", "o", "k", "b", 60, 10, "x", "s"], "way"),
    ("bulk_open", ["j", "o", "k", "b", 60, 10, "live"], "submissions"),
    ("bulk_swap", ["", "", "x", 60], "field"),
    ("bulk_take", [0, 60], "window"),
    ("bulk_take", [1, 0], "ttl_s"),
    ("bulk_settle", ["j", "lost"], "outcome"),
    ("bulk_mode", ["done"], "mode"),
    ("queue_again", ["", "k"], "id"),
    ("queue_again", ["i", ""], "kind"),
]


async def test_scripts_refuse_bad_arguments_and_know_no_unknown_job(tmp_path: Path) -> None:
    async with open_bulk(tmp_path) as world:
        keys = ["{0}a", "{0}b", "{0}c", "{0}d"]
        for name, args, argument in BAD:
            with pytest.raises(ResponseError, match=f"COACH_BADARG {argument}$"):
                await script(name)(world.redis, keys, args)
        assert await script("bulk_take")(world.redis, keys, [1, 60]) == [b""]
        assert await script("bulk_settle")(world.redis, keys, ["j", "gone", "s"]) == b""
        assert await script("bulk_mode")(world.redis, keys, ["paused"]) == b""
        assert await script("queue_again")(world.redis, keys, ["i", "k"]) == 0
        assert await world.feeder.find("none") is None
        assert await world.redis.execute_command("DBSIZE") == 0
