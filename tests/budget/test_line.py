"""The scripts of window and line, on a clock the tests set, beside a plain model of their rules."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coach.budget.quota import DIMENSIONS, NOTHING, UNSAID, Amounts
from coach.budget.scripts import Admitted, EndpointScripts, Full, Queued
from coach.store import Redis
from tests.support.valkey import open_test_redis

from .order import Order, Waiting
from .support import Clock, assert_nothing_left, line_of, spent, tickets_of, use_clock

pytestmark = pytest.mark.real_time

HARD: Final[Amounts] = (10, 1_000, 300, 0)
SOFT: Final[Amounts] = (8, 800, 250, 0)
WORKER_LEASE_MS, TICKET_LEASE_MS = 2_000, 20_000
WINDOW_S = 61
LINE_MAX = 6
OUTPUT = DIMENSIONS.index("output")
WORKERS = ("w1", "w2")
PERCENTS = (20, 5)


def scripts_on(redis: Redis, hard: Amounts = HARD, soft: Amounts = SOFT) -> EndpointScripts:
    return EndpointScripts(
        redis,
        "e",
        hard=hard,
        soft=soft,
        worker_lease_s=WORKER_LEASE_MS / 1000,
        ticket_lease_s=TICKET_LEASE_MS / 1000,
        lane_percents=PERCENTS,
    )


def amounts(input_tokens: int, output_tokens: int) -> Amounts:
    return (1, input_tokens, output_tokens, input_tokens + output_tokens)


@attrs.define
class Running:
    """An admitted ticket."""

    at_ms: int
    asked: Amounts
    lease_ms: int
    """When its lease ends."""


@attrs.define
class Model:
    """What the headers of budget_line.lua and budget_admit.lua promise, pacing aside."""

    now_ms: int
    buckets: dict[int, list[int]] = attrs.field(factory=dict)
    running: dict[str, Running] = attrs.field(factory=dict)
    line: Order = attrs.field(factory=lambda: Order(HARD, PERCENTS))
    workers: dict[str, int] = attrs.field(factory=dict)
    """Those with tickets in line -> when their leases end."""
    gate_ms: int = 0
    provider: list[tuple[int, tuple[int, int, int]]] = attrs.field(factory=list)
    """(when, requests, input and output as the provider counts them)."""

    @property
    def second(self) -> int:
        return self.now_ms // 1000

    @property
    def sum(self) -> tuple[int, ...]:
        total = [0, 0, 0, 0]
        for second, values in self.buckets.items():
            if second > self.second - WINDOW_S:
                total = [a + b for a, b in zip(total, values, strict=True)]
        total[OUTPUT] += sum(ticket.asked[OUTPUT] for ticket in self.running.values())
        return tuple(total)

    def spend(self, second: int, change: list[int]) -> None:
        if second > self.second - WINDOW_S:
            old = self.buckets.get(second, [0, 0, 0, 0])
            self.buckets[second] = [max(0, a + b) for a, b in zip(old, change, strict=True)]

    def begin(self) -> None:
        """Every script does this first."""
        for worker, end_ms in list(self.workers.items()):
            if end_ms <= self.now_ms:
                del self.workers[worker]
                for each in self.line:
                    if each.worker == worker:
                        self.line.leave(each)
        for name, ticket in list(self.running.items()):
            if ticket.lease_ms <= self.now_ms:
                requests, read, _, total = ticket.asked
                self.end(name, (requests, read, 0, total))

    def has_room(self, asked: Amounts) -> bool:
        return all(
            limit == 0 or (total < soft and total + more <= limit)
            for limit, soft, total, more in zip(HARD, SOFT, self.sum, asked, strict=True)
        )

    def may_go(self, head: Waiting, *, is_owed: bool) -> bool:
        limits = zip(HARD, SOFT, self.sum, head.asked, strict=True)
        return self.gate_ms <= self.now_ms and all(
            limit == 0 or (total + more <= limit and (head.lane < 2 or is_owed or total < soft))
            for limit, soft, total, more in limits
        )

    def admit(self, name: str, asked: Amounts) -> None:
        self.running[name] = Running(self.now_ms, asked, self.now_ms + TICKET_LEASE_MS)
        self.spend(self.second, [asked[0], asked[1], 0, asked[3]])

    def end(self, name: str, used: Amounts) -> None:
        ticket = self.running.pop(name)
        change = [a - b for a, b in zip(used, ticket.asked, strict=True)]
        change[OUTPUT] = 0
        self.spend(ticket.at_ms // 1000, change)
        self.spend(self.second, [0, 0, used[OUTPUT], 0])


@attrs.define
class Play:
    """Carries steps out on the scripts and on the model, and compares."""

    redis: Redis
    clock: Clock
    scripts: EndpointScripts
    model: Model
    count: int = 0

    @classmethod
    async def begin(cls, redis: Redis) -> Play:
        await redis.execute_command("FLUSHALL")
        clock = Clock(redis)
        await clock.set(clock.now_ms)
        return cls(redis, clock, scripts_on(redis), Model(clock.now_ms))

    async def ask(self, worker: str, lane: int, org: str, asked: Amounts) -> None:
        """A newcomer: the model knows whether it goes at once, waits, or is turned away."""
        self.count += 1
        name, model = f"{worker}:{self.count}", self.model
        reply = await self.scripts.admit(
            name, lane=lane, ask=asked, org=org, weight=1.0, rank="", line_max=LINE_MAX
        )
        model.begin()
        if not len(model.line) and model.gate_ms <= model.now_ms and model.has_room(asked):
            model.admit(name, asked)
            assert reply == Admitted(model.sum)  # type: ignore[arg-type]  # four of them
        elif len(model.line) >= LINE_MAX:
            assert isinstance(reply, Full)
        else:
            model.line.enter(name, lane, org, asked, self.count)
            model.workers[worker] = model.now_ms + WORKER_LEASE_MS
            assert isinstance(reply, Queued)
            assert reply.position == model.line.sequence().index(name) + 1
            await self.clock.advance(0.001)  # no two arrive in the same microsecond
            model.now_ms += 1

    async def look(self, worker: str, *, is_full: bool = True) -> float | None:
        """Those at the head that go may go, in order; returns until when to wait."""
        model = self.model
        passed = await self.scripts.look(worker, is_full=is_full)
        if worker in model.workers:
            model.workers[worker] = model.now_ms + WORKER_LEASE_MS
        model.begin()
        for name in passed.admitted:
            found = model.line.next()
            assert found is not None
            head, is_owed = found
            assert (head.ticket, head.worker) == (name, worker)
            assert model.may_go(head, is_owed=is_owed)
            model.line.admit()
            model.admit(name, head.asked)
        mine = {each.ticket for each in model.line if each.worker == worker}
        places = {name: at for at, name in enumerate(model.line.sequence(), 1) if name in mine}
        if is_full:
            assert passed.positions == places
            if not places:
                model.workers.pop(worker, None)
        following = model.line.next()
        assert passed.is_mine == (following is not None and following[0].worker == worker)
        if passed.is_mine and passed.outlook.head_s == 0:
            pytest.fail("the head may go and does not")
        return passed.outlook.head_s if passed.is_mine else 1.0

    async def settle(self, which: int, share: float, moment: float) -> None:
        """An end; the provider counted the output at some moment of its life."""
        await trio.lowlevel.checkpoint()
        if not self.model.running:
            return
        name = sorted(self.model.running)[which % len(self.model.running)]
        ticket = self.model.running[name]
        output = int(share * ticket.asked[OUTPUT])
        used = NOTHING if share == 0 else amounts(ticket.asked[1], output)
        await self.scripts.settle(name, used)
        self.model.begin()
        if name not in self.model.running:  # it has lapsed: what it asked is charged already
            self.model.spend(self.model.second, [0, 0, used[2], 0])
            return
        if used is not NOTHING:
            written_ms = ticket.at_ms + int(moment * (self.model.now_ms - ticket.at_ms))
            self.model.provider.append((ticket.at_ms, (1, used[1], 0)))
            self.model.provider.append((written_ms, (0, 0, output)))
        self.model.end(name, used)

    async def advance(self, ms: int) -> None:
        await self.clock.advance(ms / 1000)
        self.model.now_ms += ms

    async def close(self, ms: int) -> None:
        await self.scripts.correct(quota=NOTHING, left=UNSAID, closed_s=ms / 1000)
        self.model.begin()
        self.model.gate_ms = max(self.model.gate_ms, self.model.now_ms + ms)

    async def renew(self) -> None:
        await self.scripts.renew(sorted(self.model.running) or ["w1:0"])
        for ticket in self.model.running.values():
            ticket.lease_ms = self.model.now_ms + TICKET_LEASE_MS
        self.model.begin()

    async def check(self) -> None:
        await self.scripts.statistics()  # which sweeps
        self.model.begin()
        window = await spent(self.redis, "e")
        assert window.sum == self.model.sum
        assert await line_of(self.redis, "e") == [each.ticket for each in self.model.line]
        states = {each.ticket: "waiting" for each in self.model.line}
        states |= dict.fromkeys(self.model.running, "admitted")
        assert await tickets_of(self.redis, "e") == states

    async def drain(self) -> None:
        """Everybody in line goes in the end, at the times that were promised."""
        limit_ms = self.model.now_ms + 3_600_000 + (len(self.model.line) + 2) * WINDOW_S * 1000
        while len(self.model.line):
            assert self.model.now_ms < limit_ms
            wait_s = 1.0
            for worker in WORKERS:
                head_s = await self.look(worker)
                if head_s is None:  # somebody has to give something back
                    assert self.model.running
                wait_s = min(wait_s, 1.0 if head_s is None else head_s)
            while self.model.running:
                await self.settle(0, 1.0, 1.0)
            await self.advance(max(1, round(wait_s * 1000)))
        await self.advance(WINDOW_S * 1000)
        await self.check()
        await assert_nothing_left(self.redis, "e")

    def assert_within_quota(self) -> None:
        """No 60 s of the provider's, however cut, hold more than the hard share."""
        for end_ms, _ in self.model.provider:
            within = [each for at, each in self.model.provider if end_ms - 60_000 < at <= end_ms]
            for limit, used in zip(HARD, map(sum, zip(*within, strict=True)), strict=False):
                assert used <= limit


worker_names = st.sampled_from(WORKERS)
few, many = st.integers(0, 20), st.integers(0, 300)
newcomers = st.tuples(
    st.just("ask"),
    worker_names,
    st.integers(0, 2),
    st.sampled_from("ab"),
    st.builds(amounts, few, few) | st.builds(amounts, few | many, few | many),
)
looks = st.tuples(st.just("look"), worker_names)
ends = st.tuples(st.just("settle"), st.integers(0, 9), st.floats(0, 1), st.floats(0, 1))
steps = st.one_of(
    newcomers,
    newcomers,
    looks,
    looks,
    ends,
    st.tuples(st.just("advance"), st.integers(1, 1_500) | st.integers(1, 30_000)),
    st.tuples(st.just("close"), st.integers(1, 5_000)),
    st.tuples(st.just("renew")),
)


async def test_the_scripts_follow_the_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any order of requests, looks, ends, deaths and time: as the model, and within the quota."""
    use_clock(monkeypatch)
    async with open_test_redis(tmp_path) as redis:

        async def play(script: list[tuple[object, ...]]) -> None:
            game = await Play.begin(redis)
            for name, *args in script:
                step: Callable[..., Awaitable[object]] = getattr(game, str(name))
                await step(*args)
                await game.check()
            await game.drain()
            game.assert_within_quota()

        @settings(
            max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(st.lists(steps, min_size=10, max_size=50))
        def examples(script: list[tuple[object, ...]]) -> None:
            trio.from_thread.run(play, script)

        await trio.to_thread.run_sync(examples)


async def test_the_background_lane_goes_below_the_soft_share_only(tmp_path: Path) -> None:
    """What is left above it is for those somebody waits for."""
    async with open_test_redis(tmp_path) as redis:
        scripts = scripts_on(redis)
        admit = partial(scripts.admit, org="o", weight=1.0, rank="", line_max=9)
        await admit("w:large", ask=amounts(1, 260), lane=0)
        for ticket, lane in (("w:background", 2), ("w:submission", 1)):
            assert isinstance(await admit(ticket, ask=amounts(1, 5), lane=lane), Queued)
        assert (await scripts.look("w", is_full=True)).admitted == ("w:submission",)
        passed = await scripts.look("w", is_full=True)
        assert (passed.admitted, passed.outlook.head_s) == ((), None)
        await scripts.settle("w:large", NOTHING)
        assert (await scripts.look("w", is_full=True)).admitted == ("w:background",)


async def overload(
    redis: Redis, clock: Clock, scripts: EndpointScripts, *, seconds: int, asked: Amounts
) -> list[int]:
    """Keep the line from emptying; returns the admissions, as milliseconds from the beginning."""
    begun_ms, admitted, count = clock.now_ms, [], 0
    await trio.lowlevel.checkpoint()
    while clock.now_ms < begun_ms + seconds * 1000:
        while len(await line_of(redis, "e")) < 3:
            count += 1
            if isinstance(
                await scripts.admit(
                    f"w:{count}", lane=0, ask=asked, org="o", weight=1.0, rank="", line_max=9
                ),
                Admitted,
            ):
                admitted.append(clock.now_ms - begun_ms)
                await scripts.settle(f"w:{count}", asked)
        passed = await scripts.look("w", is_full=False)
        for ticket in passed.admitted:
            admitted.append(clock.now_ms - begun_ms)
            await scripts.settle(ticket, asked)
        await clock.advance(min(0.5, max(0.001, passed.outlook.head_s or 0.5)))
    return admitted


async def test_under_overload_the_line_flows_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst at first, up to the soft share; from the second minute on no gaps and no bursts."""
    use_clock(monkeypatch)
    hard, soft = (0, 9_500, 0, 0), (0, 8_000, 0, 0)
    async with open_test_redis(tmp_path) as redis:
        clock = Clock(redis)
        await clock.set(clock.now_ms)
        admitted = await overload(
            redis, clock, scripts_on(redis, hard, soft), seconds=240, asked=amounts(100, 0)
        )
    assert sum(at == 0 for at in admitted) >= 80
    for begin_s in range(60, 240, 60):
        minute = [at for at in admitted if begin_s <= at / 1000 < begin_s + 60]
        assert 0.97 * 95 <= len(minute) <= 95
        mean = len(minute) / 12
        for at_s in range(begin_s, begin_s + 60, 5):
            count = sum(at_s <= at / 1000 < at_s + 5 for at in minute)
            assert 0.7 * mean <= count <= 1.3 * mean, (at_s, count)


async def test_one_that_used_far_more_than_it_asked_holds_others_up_for_a_window_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it owes the pacing is bounded by what a window holds."""
    use_clock(monkeypatch)
    async with open_test_redis(tmp_path) as redis:
        clock, scripts = Clock(redis), scripts_on(redis)
        await clock.set(clock.now_ms)
        admit = partial(
            scripts.admit, org="o", weight=1.0, rank="", line_max=9, ask=amounts(1, 300), lane=0
        )
        await admit("w:1")
        await admit("w:2")
        await scripts.settle("w:1", NOTHING)
        assert (await scripts.look("w", is_full=True)).admitted == ("w:2",)  # paced from here on
        await admit("w:3")
        await scripts.settle("w:2", amounts(1, 30_000))
        waited_s = 0.0
        while not (passed := await scripts.look("w", is_full=True)).admitted:
            wait_s = passed.outlook.head_s
            assert wait_s
            await clock.advance(min(wait_s, 1.0))
            waited_s += min(wait_s, 1.0)
        assert 60 <= waited_s <= 2 * 61


@pytest.mark.parametrize("back_s", [1, 30, 3_600])
async def test_clock_set_back_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back_s: int
) -> None:
    """A failover to a server whose clock lags: nothing is forgotten, nothing counts for ever."""
    use_clock(monkeypatch)
    async with open_test_redis(tmp_path) as redis:
        clock, scripts = Clock(redis), scripts_on(redis)
        await clock.set(clock.now_ms)
        admit = partial(scripts.admit, org="o", weight=1.0, rank="", line_max=9, lane=0)
        await admit("w:1", ask=amounts(500, 100))
        await clock.advance(10)
        await admit("w:2", ask=amounts(200, 50))
        await clock.advance(-back_s)
        await scripts.statistics()
        assert (await spent(redis, "e")).sum[:3] == (2, 700, 150)
        await scripts.settle("w:1", amounts(400, 10))
        assert (await spent(redis, "e")).sum[:3] == (2, 600, 60)
        await scripts.settle("w:2", NOTHING)
        assert (await spent(redis, "e")).sum[:3] == (1, 400, 10)
        await admit("w:3", ask=amounts(1, 1))
        await scripts.settle("w:3", amounts(1, 1))
        await clock.advance(WINDOW_S + (back_s if back_s < WINDOW_S else 0) + 1)
        await scripts.statistics()
        await assert_nothing_left(redis, "e")


async def test_leases_are_prolonged_though_they_have_just_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pause of Redis the first call of a worker may be the one that prolongs them."""
    use_clock(monkeypatch)
    async with open_test_redis(tmp_path) as redis:
        clock, scripts = Clock(redis), scripts_on(redis)
        await clock.set(clock.now_ms)
        await scripts.admit(
            "w:1", ask=amounts(5, 5), org="o", weight=1.0, rank="", line_max=9, lane=0
        )
        await clock.advance(TICKET_LEASE_MS / 1000 + 1)
        await scripts.renew(["w:1", "w:2"])
        assert await tickets_of(redis, "e") == {"w:1": "admitted"}
        assert (await spent(redis, "e")).sum[OUTPUT] == 5


async def test_repeating_a_script_changes_nothing(tmp_path: Path) -> None:
    """After a lost connection each may be run again; what has ended cannot be revived."""
    async with open_test_redis(tmp_path) as redis:
        scripts = scripts_on(redis)
        admit = partial(scripts.admit, org="o", weight=1.0, rank="", line_max=9, lane=0)
        for _ in range(3):
            assert isinstance(await admit("w:1", ask=amounts(5, 300)), Admitted)
            assert (await spent(redis, "e")).sum[:3] == (1, 5, 300)
        for _ in range(3):
            reply = await admit("w:2", ask=amounts(5, 300))
            assert isinstance(reply, Queued)
            assert reply.position == 1
        for _ in range(3):
            await scripts.settle("w:1", amounts(4, 3))
            await scripts.settle("w:2", NOTHING)
            await scripts.settle("w:3", NOTHING)  # comes before its admission
            await assert_nothing_left(redis, "e", used=(1, 4, 3, 7))
        for ticket in ("w:1", "w:2", "w:3"):
            with pytest.raises(Exception, match="ended"):
                await admit(ticket, ask=amounts(5, 5))
        await assert_nothing_left(redis, "e", used=(1, 4, 3, 7))
