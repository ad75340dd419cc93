"""Whatever the bill is broken down by, it is the same bill."""

from __future__ import annotations

from pathlib import Path

import pytest

from coach import config
from coach.errors import BadMessage
from coach.ops import Costs, ask_for_bill, load_prices, read_bill
from coach.ops.bill import DIMENSIONS, Question
from coach.ops.costs import HOUR_S, MEASURES, Reason
from coach.store import Redis
from tests.support.valkey import open_test_redis

from .test_costs import NANO, book

FIRST = 1_793_491_200.0
"""2026-11-01T00 UTC."""
PRICES = load_prices(config.Settings())


def question(by: str, **other: str) -> Question:
    asked = {"since": "2026-11", "until": "2026-11", **other}
    return ask_for_bill(
        org=asked.get("org"),
        user=asked.get("user"),
        by=by,
        since=asked["since"],
        until=asked["until"],
    )


async def fill(redis: Redis) -> int:
    """Books of two orgs, over 150 hours; returns how many bookings."""
    now = [FIRST]
    costs = Costs(PRICES, config.Costs(), worker="w", wall=lambda: now[0])
    reasons: list[Reason] = ["feedback", "grading", "keep-warm"]
    for number in range(150):
        now[0] = FIRST + number * HOUR_S
        book(
            costs,
            org=("school", "night-school")[number % 2],
            user=f"u{number % 7}",
            reason=reasons[number % 3],
            assignment=("essay", "")[number % 5 == 0],
        )
    await costs.close(redis)
    return 150


@pytest.mark.real_time
async def test_every_breakdown_adds_up_to_the_same(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        count = await fill(redis)
        for by in (*DIMENSIONS, "org,user", "day,model,reason"):
            bill = await read_bill(redis, question(by))
            total = dict(zip(MEASURES, bill.total, strict=True))
            assert total["requests"] == count, by
            assert total["nano"] == count * NANO, by
        by_day = await read_bill(redis, question("day"))
        assert [day for (day,) in by_day.lines] == [f"2026-11-0{day}" for day in range(1, 8)]


@pytest.mark.real_time
async def test_a_bill_can_be_of_one_org_one_user_and_some_hours(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        await fill(redis)

        async def requests(**asked: str) -> int:
            bill = await read_bill(redis, question("reason", **asked))
            return bill.total[0]

        assert await requests(org="school") == 75
        assert await requests(org="nobody") == 0
        assert await requests(user="u3") == 21
        assert await requests(org="school", user="u3") == 10
        assert await requests(since="2026-11-02", until="2026-11-02") == 24
        assert await requests(since="2026-11-02T05", until="2026-11-02T06") == 2
        assert await requests(since="2026-12", until="2026-12") == 0


@pytest.mark.real_time
async def test_programs_get_exact_decimals_in_the_currency_asked_for(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        await fill(redis)
        bill = await read_bill(redis, question("org"))
    record = bill.as_json(PRICES, "USD")
    assert record["total"]["cost"] == "0.675"
    assert record["lines"][0] == {
        "org": "night-school",
        "requests": 75,
        "input": 75_000,
        "output": 7_500,
        "cache_write": 0,
        "cache_read": 0,
        "unpriced": 0,
        "cost": "0.3375",
    }
    assert (record["from"], record["to"]) == ("2026-11-01T00", "2026-11-30T23")
    assert bill.as_json(PRICES, "EUR")["total"]["cost"] == "0.58050"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"by": "week"}, "by: some of org, hour"),
        ({"by": "day,day"}, "each once"),
        ({"since": "yesterday"}, "from: a month, a day or an hour"),
        ({"until": "2026-13"}, "to: a month"),
        ({"since": "2026-11-02", "until": "2026-11-01"}, "from: it is after to"),
    ],
)
def test_a_question_that_makes_no_sense_is_answered_by_what_would(
    asked: dict[str, str], expected: str
) -> None:
    by = asked.pop("by", "day")
    with pytest.raises(BadMessage, match=expected):
        question(by, **asked)
