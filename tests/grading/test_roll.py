"""How many graders work, as far as they have said so lately."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from coach.grading import be_counted, count_graders, roll
from tests.support.valkey import open_test_redis

pytestmark = pytest.mark.real_time


async def test_graders_are_counted_for_a_while_after_their_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_test_redis(tmp_path) as redis:
        assert await count_graders(redis) == 0
        async with trio.open_nursery() as nursery:
            for worker in ("g1", "g2"):
                nursery.start_soon(partial(be_counted, redis, worker))
            with trio.fail_after(5):
                while await count_graders(redis) < 2:  # noqa: ASYNC110  in Redis
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert await count_graders(redis) == 2
        assert 0 < await redis.ttl(roll.KEY) <= 30
        monkeypatch.setattr(roll, "COUNTED_S", 0.0)
        await trio.sleep(0.01)
        assert await count_graders(redis) == 0
