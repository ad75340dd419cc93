"""People's scores: kept in the essay's record by one script, bounded, and gone with the essay."""

from __future__ import annotations

from pathlib import Path

import pytest

from coach.errors import Conflict, Forbidden
from coach.grading import Readings, load_rubric
from coach.grading.readings import PEOPLE_MAX
from coach.store import ResponseError, script

from .support import GRADE, SETTINGS, essay, open_test_queue, take

pytestmark = pytest.mark.real_time


async def test_a_score_is_of_one_persons_and_ends_with_the_essay(tmp_path: Path) -> None:
    """The list of what has scores forgets an essay with its last score, and with its record."""
    async with open_test_queue(tmp_path) as (queue, redis):
        readings = Readings(redis, queue, SETTINGS, load_rubric())
        for id_ in ("s1", "s2"):
            await queue.submit(essay(id_))
            await queue.finish(await take(queue), GRADE)
            await readings.enter("school", id_, by="eva", score=50, blind=True)
        await readings.enter("school", "s1", by="ben", score=0, blind=False)
        found = [each async for each in readings.scored("school")]
        # in any order: both may have been scored in the same millisecond
        assert {each.submission: len(each.scores) for each in found} == {"s1": 2, "s2": 1}
        assert [each async for each in readings.scored("school", "another")] == []
        assert [each async for each in readings.scored("other")] == []
        await readings.withdraw("school", "s1", by="eva")
        await readings.withdraw("school", "s1", by="eva")
        assert len([each async for each in readings.scored("school")]) == 2
        await readings.withdraw("school", "s1", by="ben")
        assert await redis.execute_command("ZCARD", "scored:{0}:school") == 1
        await redis.delete(queue.record("school", "s2"))
        assert [each async for each in readings.scored("school")] == []
        assert 0 < await redis.ttl("scored:{0}:school") <= SETTINGS.result_days * 86_400


async def test_what_is_not_the_orgs_or_one_person_too_many_changes_nothing(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        readings = Readings(redis, queue, SETTINGS, load_rubric())
        await queue.submit(essay())
        await queue.submit(essay("second", kind="regrade"))
        for org, id_ in (("other", "s1"), ("school", "s9"), ("school", "second")):
            with pytest.raises(Forbidden):
                await readings.enter(org, id_, by="eva", score=50, blind=False)
            with pytest.raises(Forbidden):
                await readings.withdraw(org, id_, by="eva")
        for number in range(PEOPLE_MAX):
            await readings.enter("school", "s1", by=f"p{number}", score=number, blind=False)
        with pytest.raises(Conflict, match="which is enough"):
            await readings.enter("school", "s1", by="one-more", score=1, blind=False)
        await readings.enter("school", "s1", by="p0", score=99, blind=False)
        reading = await readings.find("school", "s1")
        assert reading is not None
        assert (len(reading.scores), reading.grade) == (PEOPLE_MAX, None)
        assert {each.score for each in reading.scores if each.by == "p0"} == {99}


async def test_the_script_forgets_the_oldest_and_refuses_bad_arguments(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (_, redis):
        enter = script("score_enter")
        keys = ["{r}record", "{r}scored"]
        await redis.execute_command("HSET", keys[0], "org", "school", "kind", "grade")
        await redis.execute_command("ZADD", keys[1], 1, "ancient")
        good: list[str | int] = ["s1", "school", "eva", 50, 1, 60, 8, 10]
        assert (await enter(redis, keys, good))[0] == b"entered"
        assert await redis.execute_command("ZRANGE", keys[1], 0, -1) == [b"s1"]
        for at, bad in ((0, ""), (1, ""), (2, ""), (3, 101), (3, -2), (3, 1.5), (4, 2), (5, 0)):
            with pytest.raises(ResponseError, match="COACH_BADARG"):
                await enter(redis, keys, [*good[:at], bad, *good[at + 1 :]])
        assert len(await redis.execute_command("HGETALL", keys[0])) == 3
