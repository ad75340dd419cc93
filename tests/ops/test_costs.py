"""The bill: what is booked comes into the books once, whatever breaks on the way."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from structlog.testing import capture_logs

from coach import config
from coach.ops import BudgetExhausted, Costs, load_prices, metrics, open_costs
from coach.ops.costs import MEASURES, OTHERS, Keys, Reason
from coach.ops.prices import CacheLife
from coach.providers import Usage
from coach.store import ConnectionLost, Redis, ResponseError, script
from coach.store.routing import slot_of
from tests.support.cancels import cancel_at_step
from tests.support.costs import booked, new_costs
from tests.support.valkey import open_test_redis

MODEL = "claude-sonnet-4-5"
USAGE = Usage(input=1_000, cache_write=0, cache_read=0, output=100)
NANO = 4_500_000
"""What USAGE costs: 1,000 * $3 + 100 * $15, for a million."""
HOUR = 500_000


def book(costs: Costs, *, user: str = "ana", org: str = "school", **other: Any) -> None:
    reason: Reason = other.pop("reason", "feedback")
    fields = {"model": MODEL, "usage": USAGE, "assignment": "essay", **other}
    costs.book(reason=reason, provider="p", org=org, user=user, **fields)


async def sums(redis: Redis, org: str = "school") -> list[dict[str, int]]:
    """What stands in the books of an org: by hour, by user, and in the months."""
    found = []
    for pattern in ("????-??-??T??", "????-??-??T??:users"):
        total = dict.fromkeys(MEASURES, 0)
        async for key in redis.scan_iter(f"{Keys.of(org).tag}:{pattern}"):
            for amounts in await redis.execute_command("HVALS", key):
                for name, amount in zip(MEASURES, amounts.split(), strict=True):
                    total[name] += int(amount)
        found.append(total)
    months = dict.fromkeys(("nano", "unpriced"), 0)
    async for key in redis.scan_iter(f"{Keys.of(org).tag}:month:*"):
        for name in months:
            months[name] += int(await redis.execute_command("HGET", key, name) or 0)
    return [*found, months]


def total_of(count: int) -> list[dict[str, int]]:
    """The books after `count` bookings of USAGE."""
    counts = (1, USAGE.input, 0, 0, USAGE.output, NANO, 0)
    whole = {name: count * each for name, each in zip(MEASURES, counts, strict=True)}
    return [whole, whole, {"nano": whole["nano"], "unpriced": 0}]


def test_what_has_no_price_is_counted_as_unknown_and_not_as_nothing() -> None:
    costs = new_costs()

    async def main() -> None:
        await trio.lowlevel.checkpoint()
        book(costs, model="another")
        book(costs, model="sim-x-from-nowhere-1", asked=MODEL)
        book(costs, model="claude-sonnet-from-elsewhere", asked=MODEL)
        book(costs, usage=Usage(0, 0, 0, 0))

    trio.run(main)
    by_model = {cell.model: amounts for cell, amounts in booked(costs).items()}
    assert by_model["another"]["nano"] == 0
    assert by_model["another"]["unpriced"] == 1_100
    assert by_model["claude-sonnet-from-elsewhere"]["nano"] == NANO
    assert sum(amounts["requests"] for amounts in by_model.values()) == 3


async def test_memory_is_bounded_and_no_money_is_lost_by_it() -> None:
    costs = new_costs(config.Settings(costs=config.Costs(cells_max=100)))
    for number in range(1_000):
        book(costs, user=f"user-{number}")
    cells = booked(costs)
    assert len(cells) == 101
    assert sum(amounts["nano"] for amounts in cells.values()) == 1_000 * NANO
    (rest,) = [amounts for cell, amounts in cells.items() if cell.user == OTHERS]
    assert rest["requests"] == 900


@pytest.mark.real_time
async def test_hours_users_and_months_add_up_to_what_was_booked(tmp_path: Path) -> None:
    """With three processes that book and flush at the same time, over hours and months."""
    async with open_test_redis(tmp_path) as redis:
        now = [HOUR * 3_600.0]
        prices, settings = load_prices(config.Settings()), config.Costs()
        processes = [Costs(prices, settings, worker=f"w{n}", wall=lambda: now[0]) for n in range(3)]

        async def work(costs: Costs, seed: int) -> None:
            for number in range(300):
                now[0] += 5_400 * (number % 50 == 0)
                user, reason = f"u{(number * seed) % 17}", ("feedback", "wasted-cancel")[number % 2]
                book(costs, user=user, reason=reason)
                if number % 10 == seed:
                    await costs.flush(redis)
            await costs.close(redis)

        async with trio.open_nursery() as nursery:
            for seed, costs in enumerate(processes, 1):
                nursery.start_soon(work, costs, seed)
        assert await sums(redis) == total_of(900)
        assert not any(costs.left for costs in processes)


@attrs.define
class BreakingRedis:
    """The connection is lost at given scripts, before or after they ran."""

    redis: Redis
    lost_before: set[int] = attrs.field(factory=set)
    lost_after: set[int] = attrs.field(factory=set)
    calls: int = 0

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls in self.lost_before:
            raise ConnectionLost("before")
        reply = await self.redis.execute_command(*args, **options)
        if self.calls in self.lost_after:
            raise ConnectionLost("after")
        return reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self.redis, name)


@pytest.mark.real_time
async def test_a_flush_that_breaks_is_in_the_books_once(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        await redis.script_load(script("cost_book").source)
        breaking = BreakingRedis(redis, lost_before={2, 5}, lost_after={1, 3, 6})
        costs = new_costs()
        for number in range(450):  # three flushes
            book(costs, user=f"u{number}")
        for _ in range(5):
            with pytest.raises(ConnectionLost):
                await costs.flush(cast(Redis, breaking))
            book(costs)
        await costs.flush(cast(Redis, breaking))
        assert await sums(redis) == total_of(455)


@pytest.mark.real_time
async def test_cancelled_at_every_checkpoint_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        costs, count = new_costs(), 0
        for n in range(1, 60):
            for number in range(250):
                book(costs, user=f"u{number}")
            count += 250
            with cancel_at_step(n) as scope:
                await costs.flush(redis)
            if not scope.cancelled_caught:
                break
        assert n > 5
        await costs.close(redis)
        assert await sums(redis) == total_of(count)


@pytest.mark.real_time
async def test_what_a_process_books_until_its_end_is_in_the_books(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        settings = config.Costs(flush_s=30)
        prices = load_prices(config.Settings())
        with trio.CancelScope() as scope:
            async with open_costs(redis, prices, settings, worker="w") as costs:
                book(costs)
                scope.cancel()
                book(costs)
        assert await sums(redis) == total_of(2)
        keys = [key async for key in redis.scan_iter("cost:*")]
        assert len(keys) == 6
        assert all([await redis.ttl(key) > 0 for key in keys])


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("position", "value", "name"),
    [
        (0, 0, "flush"),
        (1, 0, "hour"),
        (2, 0, "keep_s"),
        (5, 2, "fields"),
        (7, "1 2 3", "amounts"),
        (7, f"1 2 3 4 5 6 {2**51}", "amounts"),
    ],
)
async def test_bad_arguments_write_nothing(
    tmp_path: Path, position: int, value: object, name: str
) -> None:
    async with open_test_redis(tmp_path) as redis:
        arguments: list[Any] = [1, HOUR, 60, 60, 60, 1, "f", "1 2 3 4 5 6 7"]
        arguments[position] = value
        keys = [f"{{a}}{n}" for n in range(5)]
        with pytest.raises(ResponseError, match=f"COACH_BADARG {name}"):
            await script("cost_book")(redis, keys, arguments)
        assert await redis.dbsize() == 0


def budget(soft: int | None, hard: int | None, *, org: str = "school") -> config.Settings:
    """Budgets in thousandths of a dollar."""
    amounts = {"soft": soft, "hard": hard}
    decimals = {name: None if n is None else Decimal(n) / 1_000 for name, n in amounts.items()}
    return config.Settings(costs=config.Costs(budget={org: config.OrgBudget(**decimals)}))


@pytest.mark.real_time
async def test_a_hard_budget_holds_for_all_processes_and_for_this_one_at_once(
    tmp_path: Path,
) -> None:
    async with open_test_redis(tmp_path) as redis:
        here, there = (new_costs(budget(5, 9), worker=name) for name in ("here", "there"))
        for costs in (here, there):
            costs.check("school")
            await costs.refresh(redis)
        book(here)
        here.check("school")
        book(here)  # 9 thousandths
        with pytest.raises(BudgetExhausted):
            here.check("school")
        there.check("school")
        await here.flush(redis)
        await there.refresh(redis)
        assert there.is_exhausted("school")
        assert not there.is_exhausted("another")


@pytest.mark.real_time
async def test_a_budget_set_while_coach_runs_counts_and_can_be_raised(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        costs = new_costs(budget(None, 4, org=OTHERS))
        book(costs)
        await costs.flush(redis)
        await costs.refresh(redis)
        assert costs.is_exhausted("school")
        await redis.hset(Keys.of("school").budget, mapping={"hard": 2 * NANO})
        await costs.refresh(redis)
        assert not costs.is_exhausted("school")


@pytest.mark.real_time
async def test_a_new_month_begins_with_nothing_spent(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        now = [1_796_083_199.0]  # the last second of November 2026
        settings = budget(None, 4)
        prices = load_prices(settings)
        costs = Costs(prices, settings.costs, worker="w", wall=lambda: now[0])
        costs.watch("school")
        await costs.refresh(redis)
        book(costs)
        assert costs.is_exhausted("school")
        now[0] += 1
        assert not costs.is_exhausted("school")
        await costs.refresh(redis)
        assert not costs.is_exhausted("school")
        await costs.flush(redis)
        await costs.refresh(redis)
        assert not costs.is_exhausted("school")
        book(costs)
        assert costs.is_exhausted("school")


@pytest.mark.real_time
async def test_an_operator_is_told_once_of_each_budget(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        processes = [new_costs(budget(4, 9), worker=f"w{n}") for n in range(2)]
        with capture_logs() as logs:
            for booking in processes:
                book(booking)
                for costs in processes * 2:
                    costs.watch("school")
                    await costs.flush(redis)
                    await costs.refresh(redis)
    told = [line["budget"] for line in logs if line["event"] == "budget_spent"]
    assert told == ["soft", "hard"]


@pytest.mark.parametrize("org", ["school", "a.b@c", "{brace}"])
def test_the_books_of_an_org_lie_on_one_node_of_a_cluster(org: str) -> None:
    keys = Keys.of(org)
    names = [keys.hour(HOUR), keys.users(HOUR), keys.hours, keys.month("2026-11")]
    names += [keys.budget, keys.flushed("w0-1")]
    assert len({slot_of(name.encode()) for name in names}) == 1
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("cache", "factor"), [("5m", 1.25), ("1h", 2.0)])
async def test_what_is_written_for_an_hour_costs_what_an_hour_costs(
    cache: CacheLife, factor: float
) -> None:
    """Anthropic asks 1.25 and 2 times the price of input."""
    costs = Costs(load_prices(config.Settings()), config.Costs(), worker="w", cache=cache)
    metric = metrics.cost_nanodollars.labels("p", MODEL, "feedback")
    before = metric._value.get()
    book(costs)
    plain = metric._value.get() - before
    book(costs, usage=Usage(input=0, cache_write=1_000, cache_read=0, output=100))
    written = metric._value.get() - before - plain
    price = costs.prices.find(provider="p", model=MODEL)
    assert price is not None
    assert written - plain == pytest.approx((factor - 1) * price.input)
