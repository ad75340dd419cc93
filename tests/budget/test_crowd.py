"""Crowds at one endpoint on a real Valkey: exactly what fits goes, and nothing is left behind."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from pathlib import Path

import attrs
import pytest
import trio

from coach import config
from coach.budget import LANES, Ask, EndpointBudget, open_endpoint_budget
from coach.budget.scripts import Admitted, EndpointScripts, Queued
from coach.store import Redis, open_embedded, open_redis
from tests.support.valkey import open_test_redis

from .support import Clock, assert_nothing_left, line_of, use_clock, use_window

pytestmark = pytest.mark.real_time


async def test_of_a_thousand_at_once_exactly_those_go_that_fit(tmp_path: Path) -> None:
    """Four workers, one quota of 125 requests; the others wait, and all leave without a trace."""
    quota = config.Quota(requests_per_minute=125)  # soft 100
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_embedded(tmp_path / "v", appendonly=False))
        own = await stack.enter_async_context(open_redis(server.url))
        budgets = [
            await stack.enter_async_context(
                open_endpoint_budget(
                    await stack.enter_async_context(open_redis(server.url)),
                    endpoint="e",
                    quota=quota,
                    settings=config.Budget(),
                    worker=f"w{number}",
                )
            )
            for number in range(4)
        ]
        admitted, queued = set[int](), set[int]()

        async def ask(budget: EndpointBudget, number: int) -> None:
            async with budget.admit(
                Ask(10, 10),
                lane="interactive",
                org=f"o{number % 7}",
                on_position=lambda *_: queued.add(number),
            ):
                admitted.add(number)
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for number in range(1_000):
                nursery.start_soon(ask, budgets[number % 4], number)
            with trio.fail_after(10):
                while len(admitted | queued) < 1_000:  # noqa: ASYNC110  no event for this
                    await trio.sleep(0.02)
            at_once = admitted - queued
            assert len(at_once) == 100
            assert len(await line_of(own, "e")) + len(admitted) == 1_000
            assert len(admitted) <= 118  # the hard share
            nursery.cancel_scope.cancel()
        with trio.fail_after(20):  # a thousand at once may take longer than each waits for it
            while any(budget._unsettled for budget in budgets):  # noqa: ASYNC110  no event
                await trio.sleep(0.02)
        await assert_nothing_left(own, "e")


@attrs.frozen
class Used:
    """What a crowd has used of a provider, in all."""

    total: list[int] = attrs.field(factory=lambda: [0, 0, 0, 0])

    def add(self, ask: Ask) -> None:
        for dimension, amount in enumerate(ask.amounts):
            self.total[dimension] += amount


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_window_ends_equal_to_what_was_used(tmp_path: Path, seed: int) -> None:
    """Done, failed, cancelled, never sent, gone from the line: the sum of it, to the token."""
    rng, used = random.Random(seed), Used()
    quota = config.Quota(requests_per_minute=10_000, output_tokens_per_minute=1_500)
    async with (
        open_test_redis(tmp_path) as redis,
        open_endpoint_budget(
            redis, endpoint="e", quota=quota, settings=config.Budget(), worker="w"
        ) as budget,
    ):

        async def ask(how: str, asked: Ask, real: Ask, lane: int, org: str) -> None:
            await trio.lowlevel.checkpoint()
            with trio.move_on_after(rng.uniform(0.05, 0.4) if how == "left" else 30) as scope:
                async with budget.admit(asked, lane=LANES[lane], org=org) as admission:
                    if how in {"done", "cancelled"}:
                        admission.settle(real)
                        used.add(real)
                    if how == "cancelled":
                        scope.cancel()
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for _ in range(60):
                asked = Ask(rng.randrange(50), rng.randrange(60, 120))
                real = Ask(asked.input, rng.randrange(5))
                how = rng.choice(["done", "done", "cancelled", "unsent", "left"])
                nursery.start_soon(ask, how, asked, real, rng.randrange(3), rng.choice("abc"))
        await assert_nothing_left(redis, "e", used=tuple(used.total))


def scripts_on(redis: Redis, **lanes: tuple[int, int]) -> EndpointScripts:
    return EndpointScripts(
        redis,
        "e",
        hard=(0, 10_000, 0, 0),
        soft=(0, 8_000, 0, 0),
        worker_lease_s=600,
        ticket_lease_s=600,
        **lanes,  # type: ignore[arg-type]  # lane_percents only
    )


def jain(shares: list[int]) -> float:
    return sum(shares) ** 2 / (len(shares) * sum(each * each for each in shares))


async def run_line(scripts: EndpointScripts, clock: Clock, count: int) -> list[str]:
    """The next `count` tickets in the order of their admissions."""
    admitted: list[str] = []
    while len(admitted) < count:
        passed = await scripts.look("w", is_full=False)
        for name in passed.admitted:
            admitted.append(name)
            await scripts.settle(name, (1, 100, 0, 100))
        await clock.advance(min(1.0, max(0.001, passed.outlook.head_s or 0.0)))
    return admitted


async def test_orgs_of_unequal_demand_share_alike_or_by_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that asks ten times as much gets no more than another that never ceases to ask."""
    use_clock(monkeypatch)
    async with open_test_redis(tmp_path) as redis:
        clock, scripts = Clock(redis), scripts_on(redis)
        await clock.set(clock.now_ms)
        await scripts.admit(
            "w:0:x", lane=0, ask=(1, 9_000, 0, 0), org="x", weight=1.0, rank="", line_max=9
        )
        demand = {"a": 200, "b": 120, "c": 60, "d": 50, "heavy": 90}
        for org, tickets in demand.items():
            for number in range(tickets):
                reply = await scripts.admit(
                    f"w:{number}{org}",
                    lane=0,
                    ask=(1, 100, 0, 100),
                    org=org,
                    weight=2.0 if org == "heavy" else 1.0,
                    rank="",
                    line_max=999,
                )
                assert isinstance(reply, Queued)
        await clock.advance(61)
        admitted = await run_line(scripts, clock, 240)
        counts = {org: sum(name.endswith(org) for name in admitted) for org in demand}
        equals = [count for org, count in counts.items() if org != "heavy"]
        assert jain(equals) > 0.999
        assert counts["heavy"] == pytest.approx(2 * equals[0], abs=2)


async def test_lower_lanes_get_their_shares_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a line in which everybody waits: 20 and 5 per cent; alone, a lane gets all of it."""
    use_clock(monkeypatch)
    async with open_test_redis(tmp_path) as redis:
        clock, scripts = Clock(redis), scripts_on(redis, lane_percents=(20, 5))
        await clock.set(clock.now_ms)
        await scripts.admit(
            "w:0:x", lane=0, ask=(1, 9_000, 0, 0), org="x", weight=1.0, rank="", line_max=9
        )
        places = {}
        for number in range(160):
            for lane in (2, 1, 0):
                reply = await scripts.admit(
                    f"w:{number}-{lane}",
                    lane=lane,
                    ask=(1, 100, 0, 100),
                    org="o",
                    weight=1.0,
                    rank="",
                    line_max=999,
                )
                assert not isinstance(reply, Admitted)
        passed = await scripts.look("w", is_full=True)
        assert passed.positions is not None
        places = passed.positions
        await clock.advance(61)
        admitted = await run_line(scripts, clock, 200)
        counts = [sum(name.endswith(f"-{lane}") for name in admitted) for lane in range(3)]
        assert counts[1] == pytest.approx(40, abs=3)
        assert counts[2] == pytest.approx(10, abs=2)
        first = sorted(places, key=lambda name: places[name])[:32]
        assert first == admitted[:32]


async def test_a_workers_clock_means_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour off, by wall clock: leases, windows and places are Redis' own."""
    import time

    use_window(monkeypatch, 1)
    monkeypatch.setattr(time, "time", lambda: 3_600.0)
    quota = config.Quota(requests_per_minute=10)
    async with open_test_redis(tmp_path) as redis, AsyncExitStack() as stack:
        budget = await stack.enter_async_context(
            open_endpoint_budget(
                redis, endpoint="e", quota=quota, settings=config.Budget(), worker="w"
            )
        )
        with trio.fail_after(8):
            for _ in range(11):
                async with budget.admit(Ask(1, 1), lane="interactive", org="o") as admission:
                    admission.settle(Ask(1, 1))
        await trio.sleep(2.1)
        await budget.statistics()
        await assert_nothing_left(redis, "e")
