"""What a day costs, and for how long students write in it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from coach import config
from coach.ops import Costs, load_prices, note_writing, read_today
from coach.ops.costs import DAY_S
from tests.support.valkey import open_test_redis

from .test_costs import NANO, book

pytestmark = pytest.mark.real_time

PRICES = load_prices(config.Settings())


async def test_today_is_what_all_orgs_spent_since_midnight_and_all_hosts_writers(
    tmp_path: Path,
) -> None:
    async with open_test_redis(tmp_path) as redis:
        nothing = await read_today(redis)
        assert (nothing.nano, nothing.writer_s) == (0, 0.0)
        now = [time.time() - DAY_S]
        costs = Costs(PRICES, config.Costs(), worker="w", wall=lambda: now[0])
        book(costs, org="school")  # yesterday's
        now[0] = time.time()
        for org in ("school", "night-school"):
            book(costs, org=org)
        await costs.close(redis)
        for seconds in (1.5, 0.25):
            await note_writing(redis, seconds)
        today = await read_today(redis)
        (key,) = await redis.execute_command("KEYS", "writing:*")
        lasts = await redis.ttl(key)
    assert (today.nano, today.writer_s) == (2 * NANO, 1.75)
    assert DAY_S < lasts <= 2 * DAY_S
