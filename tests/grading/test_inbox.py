"""What authors have not heard yet, and where they are: on a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from coach.grading.inbox import ESSAYS_MAX, Inbox
from tests.support.valkey import open_test_redis

from .support import GRADE, essay, mailed, open_test_queue, take

pytestmark = pytest.mark.real_time

ANN = ("school", "ann")


async def test_what_is_expected_waits_until_it_is_told(tmp_path: Path) -> None:
    """Once each, in the order in which it was handed in; names may hold anything."""
    people = (ANN, ("school", "b{ann}"), ("school/ann", "c"), ("school", "ann/c"))
    async with open_test_redis(tmp_path) as redis:
        inbox = Inbox(redis, keep_s=60)
        for org, user in people:
            for id_ in ("s1", "s2", "s1"):
                await inbox.expect(org, user, f"{id_} of {user}")
        for org, user in people:
            assert set(await inbox.come(org, user, "w-1")) == {f"s1 of {user}", f"s2 of {user}"}
            await inbox.told(org, user, f"s1 of {user}", "never heard of")
            assert await inbox.come(org, user, "w-1") == [f"s2 of {user}"]
        for key in await redis.keys("*"):
            assert 0 < await redis.ttl(key) <= 7_200


async def test_no_more_is_kept_than_the_newest(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        inbox = Inbox(redis, keep_s=60)
        for number in range(ESSAYS_MAX + 5):
            await inbox.expect(*ANN, f"s{number:03}")
        found = await inbox.come(*ANN, "w-1")
        assert found == [f"s{number:03}" for number in range(5, ESSAYS_MAX + 5)]


async def test_a_grade_goes_to_each_worker_at_which_its_author_is(tmp_path: Path) -> None:
    """And to the one at which it was handed in, which may have forgotten the author."""
    async with open_test_queue(tmp_path) as (queue, redis):
        for worker in ("w-1", "w-2", "w-3"):
            await queue.inbox.come(*ANN, worker)
        await queue.inbox.leave(*ANN, "w-3")
        await queue.submit(essay())
        receiver = await queue.finish(await take(queue), GRADE)
        assert receiver is not None
        await queue.mail_all(receiver, "school", b"{}")
        assert sorted(await redis.keys("mail:*")) == [b"mail:w-1", b"mail:w-2", b"mail:w0-1"]
        assert {mail["org"] for mail in await mailed(redis)} == {"school"}
