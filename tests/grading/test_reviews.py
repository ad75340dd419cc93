"""Grades before a person: judges that disagree, with a fresh panel's opinion, and a sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from coach.grading.reviews import Reviews, second_id
from coach.store import ResponseError, script

from .fakes import FakeProvider, essay_in, judged
from .support import SETTINGS, essay, open_test_queue
from .test_grader import grading, open_world

pytestmark = pytest.mark.real_time


def strict_and_kind() -> tuple[FakeProvider, FakeProvider]:
    async def kind(prompt: object) -> str:
        return judged(essay_in(prompt)[:40], band=5)  # type: ignore[arg-type]

    async def strict(prompt: object) -> str:
        return judged(essay_in(prompt)[:40], band=1)  # type: ignore[arg-type]

    return FakeProvider(name="a", answer=kind), FakeProvider(name="b", answer=strict)


async def test_what_judges_disagree_on_is_listed_and_read_again_in_the_background(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path, *strict_and_kind()) as world:
        async with grading(world):
            await world.queue.submit(essay())
            first = await world.ended()
            second = await world.ended(second_id("s1"))
        (review,) = await Reviews(world.redis, world.queue, world.settings).newest("school")
        assert len(await world.mails()) == 1
    assert first.grade is not None
    assert first.grade.review
    assert (review.submission, review.reason) == ("s1", "disagreement")
    assert (review.grade, review.second) == (first.grade, second.grade)
    assert {prompt.user_id for prompt in world.providers[0].prompts} != {None}


@pytest.mark.parametrize(("percent", "listed"), [(100, ["sample"]), (0, [])])
async def test_a_sample_of_what_they_agree_on_is_listed(
    tmp_path: Path, percent: int, listed: list[str]
) -> None:
    async with open_world(tmp_path, review_percent=percent) as world:
        async with grading(world):
            await world.queue.submit(essay())
            state = await world.ended()
        reviews = Reviews(world.redis, world.queue, world.settings)
        assert [review.reason for review in await reviews.newest("school")] == listed
        assert await world.queue.get("school", second_id("s1")) is None
    assert state.grade is not None
    assert state.grade.review == bool(listed)


async def test_an_org_sees_its_own_newest_first_and_what_was_looked_at_is_gone(
    tmp_path: Path,
) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        reviews = Reviews(redis, queue, SETTINGS)
        for org, id_ in (("school", "s1"), ("other", "s2"), ("school", "s3"), ("school", "s1")):
            await reviews.add(org, id_, "sample")
        assert {review.submission for review in await reviews.newest("school")} == {"s1", "s3"}
        assert [review.submission for review in await reviews.newest("other")] == ["s2"]
        found = await reviews.find("school", "s1")
        assert found is not None
        assert (found.reason, found.grade) == ("sample", None)
        assert await reviews.find("school", "s2") is None
        assert await reviews.done("school", "s1")
        assert not await reviews.done("school", "s1")
        assert [review.submission for review in await reviews.newest("school")] == ["s3"]
        (key,) = [key async for key in redis.scan_iter("reviews:*school")]
        assert 0 < await redis.ttl(key) <= SETTINGS.result_days * 86_400


async def test_the_list_forgets_the_oldest_and_refuses_bad_arguments(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (_, redis):
        add = script("review_add")
        await redis.execute_command("ZADD", "r", 1, "sample old", 2, "sample older")
        assert await add(redis, ["r"], ["sample new", 60, 10]) == 1
        assert await redis.execute_command("ZRANGE", "r", 0, -1) == [b"sample new"]
        assert await add(redis, ["r"], ["sample new", 60, 10]) == 0
        refused: list[list[str | int]] = [["", 60, 10], ["x", 0, 10], ["x", 60, 0], ["x", "a", 10]]
        for bad in refused:
            with pytest.raises(ResponseError, match="COACH_BADARG"):
                await add(redis, ["r"], bad)
