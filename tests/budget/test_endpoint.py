"""An endpoint's budget on a real Valkey: several workers, one quota; nothing is left behind.

The workers here are budgets with names and Redis connections of their own, in one process. Where a
test cannot wait a minute, the scripts' window is made a shorter one.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from coach import config
from coach.budget import LANES, Ask, EndpointBudget, Lane, Patience, open_endpoint_budget
from coach.budget.scripts import EndpointScripts
from coach.errors import Overloaded, TooLarge
from coach.store import Redis, open_embedded, open_redis
from tests.support.cancels import cancel_at_step
from tests.support.valkey import open_test_redis

from .endpoint_worker import SETTINGS, WAITING
from .support import (
    assert_nothing_left,
    line_of,
    open_holder,
    spent,
    tickets_of,
    use_window,
)

pytestmark = pytest.mark.real_time

OUTPUT = config.Quota(output_tokens_per_minute=100)
"""Hard 95, soft 80. Output is held until it is settled, so tests decide when there is room."""
WHOLE = Ask(input=10, output=95)
"""Nothing else fits beside it."""


@asynccontextmanager
async def open_budget(
    redis: Redis, quota: config.Quota = OUTPUT, *, worker: str = "w1", **settings: Any
) -> AsyncIterator[EndpointBudget]:
    async with open_endpoint_budget(
        redis,
        endpoint="e",
        quota=quota,
        settings=config.Budget(**settings),
        worker=worker,
    ) as budget:
        yield budget


@attrs.define(eq=False)
class Turn:
    """A request that a test starts, watches and ends."""

    budget: EndpointBudget
    lane: Lane = "interactive"
    ask: Ask = WHOLE
    uses: Ask | None = None
    """What it settles; None: nothing was sent."""
    places: list[tuple[int, float]] = attrs.field(factory=list)
    admitted_s: float | None = None
    admitted: trio.Event = attrs.field(factory=trio.Event)
    end: trio.Event = attrs.field(factory=trio.Event)
    error: BaseException | None = None
    patience: Patience | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)

    async def run(self) -> None:
        await trio.lowlevel.checkpoint()
        try:
            with self.scope:
                async with self.budget.admit(
                    self.ask,
                    lane=self.lane,
                    org="o",
                    on_position=lambda position, eta_s: self.places.append((position, eta_s)),
                    patience=self.patience,
                ) as admission:
                    self.admitted_s = trio.current_time()
                    self.admitted.set()
                    await self.end.wait()
                    if self.uses is not None:
                        admission.settle(self.uses)
        except Overloaded as error:
            self.error = error
        finally:
            self.ended.set()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        await trio.lowlevel.checkpoint()
        while not condition():  # noqa: ASYNC110  there is no event for this
            await trio.sleep(0.002)


async def eventually(read: Callable[[], Awaitable[object]], value: object) -> None:
    with trio.fail_after(5):
        while await read() != value:  # noqa: ASYNC110  Redis has no event for this
            await trio.sleep(0.002)


async def start(nursery: trio.Nursery, turn: Turn) -> Turn:
    """Start it, and wait until it is admitted or in line."""
    nursery.start_soon(turn.run)
    await until(lambda: bool(turn.places) or turn.admitted.is_set() or turn.ended.is_set())
    return turn


async def calls(redis: Redis) -> dict[str, int]:
    """How often the server ran which command since the last time."""
    stats = await redis.info("commandstats")
    await redis.execute_command("CONFIG RESETSTAT")
    return {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in stats.items()}


async def test_below_the_soft_share_admitted_at_once(tmp_path: Path) -> None:
    """One round trip to enter and one to settle; nothing is told, no loop is started."""
    async with open_test_redis(tmp_path) as redis, open_budget(redis) as budget:
        told: list[object] = []
        async with budget.admit(Ask(1, 1), lane="background", org="o"):
            pass  # now the server knows the scripts
        await calls(redis)
        async with budget.admit(
            Ask(input=7, output=50),
            lane="interactive",
            org="o",
            on_position=lambda *place: told.append(place),
        ) as admission:
            assert (await calls(redis))["evalsha"] == 1
            assert (await spent(redis, "e")).sum == (1, 7, 50, 57)
            statistics = await budget.statistics()
            assert statistics.used == {"output": 0.5}
            assert (statistics.running_count, statistics.admitted_count) == (1, 2)
            admission.settle(Ask(input=6, output=20))
            await calls(redis)
        counts = await calls(redis)
        assert counts["evalsha"] == 1
        assert "xread" not in counts
        assert told == []
        await assert_nothing_left(redis, "e", used=(1, 6, 20, 26))


async def test_the_line_goes_by_lane_then_by_arrival(tmp_path: Path) -> None:
    """However they came, and over two workers; a lower lane never passes a higher one."""
    arrivals: list[tuple[int, Lane]] = [
        (1, "background"),
        (2, "submission"),
        (2, "interactive"),
        (1, "background"),
        (1, "interactive"),
        (1, "submission"),
        (2, "interactive"),
    ]
    async with (
        open_test_redis(tmp_path) as redis,
        open_budget(redis, worker="w1") as one,
        open_budget(redis, worker="w2") as two,
        trio.open_nursery() as nursery,
    ):
        first = await start(nursery, Turn(one))
        turns = [
            await start(nursery, Turn(one if worker == 1 else two, lane))
            for worker, lane in arrivals
        ]
        statistics = await one.statistics()
        assert statistics.line == {"interactive": 3, "submission": 2, "background": 2}
        assert statistics.waiting_count == 4
        assert not any(turn.admitted.is_set() for turn in turns)
        order = []
        first.end.set()
        for _ in turns:
            await until(lambda: any(turn.admitted.is_set() and turn not in order for turn in turns))
            (now,) = [turn for turn in turns if turn.admitted.is_set() and turn not in order]
            order.append(now)
            now.end.set()
        ranks = ["interactive", "submission", "background"]
        assert order == sorted(turns, key=lambda turn: ranks.index(turn.lane))
        assert len({turn.admitted_s for turn in order}) == len(turns)
        await until(lambda: all(turn.ended.is_set() for turn in turns))
        await assert_nothing_left(redis, "e")


async def test_places_are_told_when_they_change_and_only_then(tmp_path: Path) -> None:
    """Standing still says nothing; each step forward is told once, at most five times a second."""
    async with (
        open_test_redis(tmp_path) as redis,
        open_budget(redis, ticket_lease_s=0.3) as budget,
        trio.open_nursery() as nursery,
    ):
        turns = [await start(nursery, Turn(budget)) for _ in range(4)]
        last = turns[-1]
        await trio.sleep(0.5)  # several looks
        assert [position for position, _ in last.places] == [3]
        for turn, expected in ((turns[0], 2), (turns[1], 1)):
            turn.end.set()
            await until(lambda expected=expected: last.places[-1][0] == expected)  # type: ignore[misc]  # bound now
        await trio.sleep(0.3)
        assert [position for position, _ in last.places] == [3, 2, 1]
        etas = [eta_s for _, eta_s in last.places]
        assert etas == sorted(etas, reverse=True)
        turns[2].end.set()
        last.end.set()


@pytest.mark.parametrize(
    ("end", "used"),
    [
        ("done", (1, 12, 30, 42)),
        ("more than asked", (1, 20, 60, 80)),
        ("failed", (1, 12, 30, 42)),
        ("cancelled", (1, 12, 30, 42)),
        ("said twice", (1, 2, 3, 5)),
        ("failed unsent", (0, 0, 0, 0)),
        ("cancelled unsent", (0, 0, 0, 0)),
    ],
)
async def test_settling_replaces_the_reservation(
    tmp_path: Path, end: str, used: tuple[int, ...]
) -> None:
    """In every way out; without a word everything is given back."""
    async with open_test_redis(tmp_path) as redis, open_budget(redis) as budget:
        with trio.CancelScope() as scope:
            await trio.lowlevel.checkpoint()
            try:
                async with budget.admit(Ask(15, 40), lane="interactive", org="o") as admission:
                    assert (await spent(redis, "e")).sum == (1, 15, 40, 55)
                    if not end.endswith("unsent"):
                        admission.settle(Ask(used[1], used[2]) if "twice" not in end else WHOLE)
                    if "twice" in end:
                        admission.settle(Ask(2, 3))
                    if end.startswith("failed"):
                        raise ZeroDivisionError
                    if end.startswith("cancelled"):
                        scope.cancel()
                        await trio.lowlevel.checkpoint()
            except ZeroDivisionError:
                assert end.startswith("failed")
        await assert_nothing_left(redis, "e", used=used)
        assert (await budget.statistics()).running_count == 0


@pytest.mark.parametrize("known", [True, False], ids=["known", "flushed"])
async def test_admit_cancelled_at_any_checkpoint_leaves_nothing(
    tmp_path: Path, *, known: bool
) -> None:
    """On the fast path, at the k-th step for every k; also where the scripts must be sent again."""
    async with open_test_redis(tmp_path) as redis, open_budget(redis) as budget:
        async with budget.admit(WHOLE, lane="interactive", org="o"):
            pass
        step, used, outcomes = 0, 0, set()
        while True:
            step += 1
            if not known:
                await redis.script_flush()
            settled = False
            with cancel_at_step(step) as scope:
                async with budget.admit(Ask(0, 5), lane="interactive", org="o") as admission:
                    await trio.lowlevel.checkpoint()
                    admission.settle(Ask(0, 1))
                    settled = True
                    await trio.lowlevel.checkpoint()
            used += settled
            outcomes.add(settled)
            await assert_nothing_left(redis, "e", used=(used, 0, used, used))
            if not scope.cancel_called:
                break
        assert step > 5
        assert outcomes == {True, False}


async def test_waiting_cancelled_at_any_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    """In line, as its turn comes, admitted or leaving; and whoever stands behind goes next."""
    async with (
        open_test_redis(tmp_path) as redis,
        open_budget(redis) as budget,
        open_budget(redis, worker="w2") as other,
    ):
        step, outcomes = 0, set()
        while True:
            step += 1
            admitted = False
            async with trio.open_nursery() as nursery:
                first = await start(nursery, Turn(budget))
                with cancel_at_step(step) as scope:
                    nursery.start_soon(_end_when_queued, redis, first)
                    async with budget.admit(WHOLE, lane="interactive", org="o"):
                        admitted = True
                        await trio.lowlevel.checkpoint()
                behind = Turn(other)
                behind.end.set()
                first.end.set()
                nursery.start_soon(behind.run)
                with trio.fail_after(1):
                    await behind.admitted.wait()
            outcomes.add(admitted)
            await assert_nothing_left(redis, "e")
            assert (await budget.statistics()).running_count == 0
            if not scope.cancel_called:
                break
        assert step > 10
        assert outcomes == {True, False}


async def _end_when_queued(redis: Redis, first: Turn) -> None:
    while not await line_of(redis, "e") and not first.end.is_set():
        pass
    first.end.set()


async def test_dead_workers_leave_the_line_within_their_lease(tmp_path: Path) -> None:
    """A worker that is killed cannot hold those up who stand behind it, nor keep what it had."""
    async with (
        open_test_redis(tmp_path) as redis,
        open_budget(redis, ticket_lease_s=0.3, reservation_lease_s=0.9) as budget,
        trio.open_nursery() as nursery,
    ):
        capacity = budget.capacity
        dead = EndpointScripts(
            redis,
            "e",
            hard=capacity.hard,
            soft=capacity.soft,
            worker_lease_s=0.3,
            ticket_lease_s=0.9,
        )
        begun_s = trio.current_time()
        for number in range(3):
            await dead.admit(
                f"dead:{number}",
                lane=0,
                ask=WHOLE.amounts,
                org="o",
                weight=1.0,
                rank="",
                line_max=9,
            )
        assert await tickets_of(redis, "e") == {
            "dead:0": "admitted",
            "dead:1": "waiting",
            "dead:2": "waiting",
        }
        turn = await start(nursery, Turn(budget))
        assert turn.places[0][0] == 3
        await until(lambda: turn.places[-1][0] == 1)
        assert 0.3 <= trio.current_time() - begun_s < 0.8
        await turn.admitted.wait()  # what was held is given back when the reservation's lease ends
        assert 0.9 <= trio.current_time() - begun_s < 1.4
        turn.end.set()
        await turn.ended.wait()
        # What it had asked was counted there, and slides out by itself.
        await assert_nothing_left(redis, "e", used=(1, 10, 0, 105))


async def test_of_a_killed_process_nothing_holds_anybody_up(tmp_path: Path) -> None:
    """kill -9 of a worker with a reservation and two places in line: the places are free within the
    lease of tickets, what it held when the lease of reservations ends."""
    async with (
        open_embedded(tmp_path / "data", appendonly=False) as server,
        open_redis(server.url) as redis,
        open_endpoint_budget(
            redis, endpoint="e", quota=OUTPUT, settings=SETTINGS, worker="alive"
        ) as budget,
        trio.open_nursery() as nursery,
    ):
        process, _ = await open_holder("endpoint_worker", server.url)
        turn = await start(nursery, Turn(budget, uses=Ask(10, 20)))
        await trio.sleep(2 * SETTINGS.reservation_lease_s)  # it lives, and renews
        assert turn.places[-1][0] == 1 + WAITING
        assert not turn.admitted.is_set()
        process.kill()
        await process.wait()
        await until(lambda: turn.places[-1][0] == 1)
        assert not turn.admitted.is_set()
        with trio.fail_after(5):
            await turn.admitted.wait()
        turn.end.set()
        await turn.ended.wait()
        # What the dead had sent may have been counted by the provider, and slides out by itself.
        await assert_nothing_left(redis, "e", used=(2, 20, 20, 135))


async def test_what_runs_for_long_keeps_its_reservation(tmp_path: Path) -> None:
    """Leases are prolonged for as long as the worker lives."""
    async with (
        open_test_redis(tmp_path) as redis,
        open_budget(redis, reservation_lease_s=0.3) as budget,
        open_budget(redis, worker="w2", reservation_lease_s=0.3) as other,
    ):
        async with budget.admit(WHOLE, lane="interactive", org="o"):
            await trio.sleep(0.8)
            statistics = await other.statistics()
            assert statistics.used == {"output": 0.95}
            assert await tickets_of(redis, "e") == {"w1:0": "admitted"}
        await assert_nothing_left(redis, "e")


@attrs.frozen
class Spent:
    """What a provider would have counted, and when."""

    at_s: float
    amounts: tuple[int, int, int]
    """Requests, input, output."""


def worst(spendings: list[Spent], window_s: float) -> tuple[int, ...]:
    """The most, per dimension, within any `window_s`."""
    spendings = sorted(spendings, key=lambda each: each.at_s)
    most, now, at = [0, 0, 0], [0, 0, 0], 0
    for each in spendings:
        now = [a + b for a, b in zip(now, each.amounts, strict=True)]
        while spendings[at].at_s <= each.at_s - window_s:
            now = [a - b for a, b in zip(now, spendings[at].amounts, strict=True)]
            at += 1
        most = [max(a, b) for a, b in zip(most, now, strict=True)]
    return tuple(most)


@attrs.define
class Writers:
    """Students without patience or mercy, and what a provider sees of them."""

    rng: random.Random
    end_s: float
    spendings: list[Spent] = attrs.field(factory=list)
    late_s: float = 0.05
    """How much later than Redis they may have noted what they spent."""

    async def watch(self, redis: Redis) -> None:
        while trio.current_time() < self.end_s:
            due_s = trio.current_time() + 0.01
            await trio.sleep(0.01)  # which is late where this process does not get the processor
            await redis.ping()
            self.late_s = max(self.late_s, trio.current_time() - due_s)
        await trio.lowlevel.checkpoint()

    async def run(self, budget: EndpointBudget) -> None:
        await trio.lowlevel.checkpoint()
        while trio.current_time() < self.end_s:
            how = self.rng.choice(["done", "done", "failed", "cancelled", "unsent", "left"])
            with trio.CancelScope() as scope:
                if how == "left":
                    scope.deadline = trio.current_time() + self.rng.uniform(0, 0.2)
                await trio.lowlevel.checkpoint()
                try:
                    await self._ask(budget, how, scope)
                except ZeroDivisionError:
                    assert how == "failed"
            await trio.sleep(self.rng.uniform(0, 0.05))

    async def _ask(self, budget: EndpointBudget, how: str, scope: trio.CancelScope) -> None:
        ask = Ask(self.rng.randrange(20, 120), self.rng.randrange(10, 60))
        async with budget.admit(ask, lane=self.rng.choice(LANES), org="o") as admission:
            if how == "unsent":
                return
            begun_s, output = trio.current_time(), self.rng.randrange(ask.output)
            self.spendings.append(Spent(begun_s, (1, ask.input, 0)))
            admission.settle(Ask(ask.input, output))
            with trio.CancelScope(shield=True):  # written meanwhile, which nobody can take back
                await trio.sleep(self.rng.uniform(0, 0.1))
            written_s = self.rng.uniform(begun_s, trio.current_time())
            self.spendings.append(Spent(written_s, (0, 0, output)))
            if how == "failed":
                raise ZeroDivisionError
            if how == "cancelled":
                scope.cancel()
                await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("seed", [7])
async def test_many_workers_never_exceed_the_quota_together(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No window holds more than the hard share, most of it is used, and nothing is left.

    Four workers ask for three times the quota and end in every way; the server loses its scripts.
    """
    window_s, run_s = 1, 1.5
    use_window(monkeypatch, window_s)
    quota = config.Quota(
        requests_per_minute=200, input_tokens_per_minute=10_000, output_tokens_per_minute=4_000
    )
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_embedded(tmp_path / "v", appendonly=False))
        own = await stack.enter_async_context(open_redis(server.url))
        budgets = []
        for number in range(4):
            redis = await stack.enter_async_context(open_redis(server.url))
            budgets.append(
                await stack.enter_async_context(open_budget(redis, quota, worker=f"w{number}"))
            )
        writers = Writers(random.Random(seed), trio.current_time() + run_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writers.watch, own)
            for budget in budgets:
                for _ in range(20):
                    nursery.start_soon(writers.run, budget)
            for _ in range(4):
                await trio.sleep(run_s / 5)
                await own.script_flush()
        most = worst(writers.spendings, max(0.1, window_s - writers.late_s))
        hard = budgets[0].capacity.hard
        assert all(a <= b for a, b in zip(most, hard, strict=False)), (most, hard)
        sent = sum(each.amounts[0] for each in writers.spendings)
        assert sent >= 0.5 * hard[0] * run_s / (window_s + 1)
        await trio.sleep(window_s + 1.1)
        await budgets[0].statistics()
        await assert_nothing_left(own, "e")
        assert not any(budget._line.is_running for budget in budgets)


async def test_restart_without_data_everybody_finds_back(tmp_path: Path) -> None:
    """Redis comes back empty: who waits keeps their place; who runs settles by what they used."""
    async with (
        open_embedded(tmp_path / "v", appendonly=False) as server,
        open_redis(server.url) as redis,
        open_budget(redis) as budget,
        trio.open_nursery() as nursery,
    ):
        running = await start(nursery, Turn(budget, uses=Ask(3, 90)))
        turns = [await start(nursery, Turn(budget)) for _ in range(3)]
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: redis.statistics().connections_count == 2)
        # The empty server lets the first in at once, as it knows nothing of the one that runs.
        await until(turns[0].admitted.is_set)
        await eventually(lambda: line_of(redis, "e"), ["w1:2", "w1:3"])
        running.end.set()
        await running.ended.wait()
        assert (await spent(redis, "e")).sum == (2, 13, 185, 198)
        for turn in turns:
            assert turn.error is None
            turn.scope.cancel()
            await turn.ended.wait()
        await assert_nothing_left(redis, "e", used=(1, 3, 90, 93))


async def test_restart_with_data_loses_nobody(tmp_path: Path) -> None:
    """A crash of a server that keeps its data: tickets and reservations are as before."""
    async with (
        open_embedded(tmp_path / "v", appendonly=True) as server,
        open_redis(server.url) as redis,
        open_budget(redis) as budget,
        trio.open_nursery() as nursery,
    ):
        turns = [await start(nursery, Turn(budget)) for _ in range(3)]
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: redis.statistics().connections_count == 2)
        for turn in turns:
            with trio.fail_after(3):
                await turn.admitted.wait()
            await trio.sleep(0.02)
            assert sum(each.admitted.is_set() and not each.ended.is_set() for each in turns) == 1
            turn.end.set()
            await turn.ended.wait()
        await assert_nothing_left(redis, "e")


async def test_without_redis_nobody_is_admitted(tmp_path: Path) -> None:
    """Overloaded within wait_s and a last try, with when to come again."""
    async with (
        open_redis(f"unix://{tmp_path}/nobody.sock", wait_s=30) as redis,
        open_budget(redis, wait_s=0.3) as budget,
    ):
        begun_s = trio.current_time()
        with pytest.raises(Overloaded) as caught:
            async with budget.admit(Ask(1, 1), lane="interactive", org="o"):
                pytest.fail("admitted without Redis")
        assert 0.3 <= trio.current_time() - begun_s < 0.8
        assert caught.value.retry_after_s


async def test_a_server_that_hangs_is_told_to_those_who_wait_and_forgets_nobody(
    tmp_path: Path,
) -> None:
    """It accepts and does not answer: both newcomers and those in line are refused in time.

    When it goes on, it carries out what it was sent; all that is undone soon after, though those
    it was for have gone.
    """
    async with (
        open_embedded(tmp_path / "v", appendonly=False) as server,
        open_redis(server.url) as redis,
        open_budget(redis, wait_s=1.0, ticket_lease_s=0.3) as budget,
        trio.open_nursery() as nursery,
    ):
        running = await start(nursery, Turn(budget, uses=Ask(3, 4)))
        waiting = await start(nursery, Turn(budget))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            begun_s = trio.current_time()
            newcomer = Turn(budget)
            nursery.start_soon(newcomer.run)
            running.end.set()
            for turn in (waiting, newcomer):
                with trio.fail_after(4):
                    await turn.ended.wait()
                assert isinstance(turn.error, Overloaded)
                assert turn.error.retry_after_s
            assert trio.current_time() - begun_s < 2.5
            await running.ended.wait()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await until(lambda: not budget._unsettled)
        await assert_nothing_left(redis, "e", used=(1, 3, 4, 7))


async def test_who_lost_redis_in_line_does_not_wait_for_it_again_elsewhere(
    tmp_path: Path,
) -> None:
    """A turn that goes on to its next provider's budget has waited already."""
    async with (
        open_embedded(tmp_path / "v", appendonly=False) as server,
        open_redis(server.url) as redis,
        open_budget(redis, wait_s=0.6, ticket_lease_s=0.3) as budget,
        trio.open_nursery() as nursery,
    ):
        running = await start(nursery, Turn(budget))
        waiting = await start(nursery, Turn(budget, patience=Patience(0.6)))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with trio.fail_after(4):
                await waiting.ended.wait()
            assert isinstance(waiting.error, Overloaded)
            elsewhere = Turn(budget, patience=waiting.patience)
            begun_s = trio.current_time()
            await elsewhere.run()
            assert isinstance(elsewhere.error, Overloaded)
            assert trio.current_time() - begun_s < 0.3
        finally:
            os.kill(server.pid, signal.SIGCONT)
        running.end.set()


async def test_more_input_than_the_whole_quota_is_refused_at_once(tmp_path: Path) -> None:
    """It could never be answered; Redis is not even asked. The message says what is too much."""
    quota = config.Quota(input_tokens_per_minute=1_000)
    async with (
        open_redis(f"unix://{tmp_path}/nobody.sock") as redis,
        open_budget(redis, quota) as budget,
    ):
        begun_s = trio.current_time()
        with pytest.raises(TooLarge, match="1,001 tokens of input are more than the whole input"):
            async with budget.admit(Ask(1_001, 1), lane="interactive", org="o"):
                pytest.fail("admitted")
        assert trio.current_time() - begun_s < 0.1


async def test_more_output_than_the_quota_waits_until_nothing_else_runs(tmp_path: Path) -> None:
    """The bound is hardly ever reached; what it really was is charged."""
    async with (
        open_test_redis(tmp_path) as redis,
        open_budget(redis) as budget,
        trio.open_nursery() as nursery,
    ):
        small = await start(nursery, Turn(budget, ask=Ask(1, 10)))
        large = await start(nursery, Turn(budget, ask=Ask(1, 5_000), uses=Ask(1, 30)))
        assert large.places[0][0] == 1
        assert not large.admitted.is_set()
        small.end.set()
        with trio.fail_after(1):
            await large.admitted.wait()
        assert (await spent(redis, "e")).sum[2] == 95
        large.end.set()
        await large.ended.wait()
        await assert_nothing_left(redis, "e", used=(1, 1, 30, 31))


async def test_a_full_line_refuses_with_a_time(tmp_path: Path) -> None:
    """Beyond line_max nobody waits; nothing of theirs stays."""
    async with (
        open_test_redis(tmp_path) as redis,
        open_budget(redis, line_max=2) as budget,
        trio.open_nursery() as nursery,
    ):
        turns = [await start(nursery, Turn(budget)) for _ in range(3)]
        await calls(redis)
        late = await start(nursery, Turn(budget))
        assert isinstance(late.error, Overloaded)
        assert str(late.error) == "2 requests wait already"
        assert (late.error.retry_after_s or 0) >= 1
        assert len(await tickets_of(redis, "e")) == 3
        for turn in turns:
            turn.scope.cancel()


async def test_a_closed_gate_holds_all_workers_without_busy_waiting(tmp_path: Path) -> None:
    """Nobody of any worker goes before the time is over; then all at once; few looks meanwhile."""
    async with (
        open_test_redis(tmp_path) as redis,
        open_budget(redis, ticket_lease_s=0.6) as one,
        open_budget(redis, worker="w2", ticket_lease_s=0.6) as two,
        trio.open_nursery() as nursery,
    ):
        async with one.admit(Ask(1, 1), lane="interactive", org="o") as admission:
            admission.close_gate(1.2)
            admission.close_gate(0.1)  # does not open it again
        begun_s = trio.current_time()
        await until(lambda: len(one._nursery.child_tasks) == 1)
        turns = [
            await start(nursery, Turn(budget, ask=Ask(1, 1))) for budget in (one, two, one, two)
        ]
        assert 0.5 < turns[0].places[0][1] <= 1.2
        assert (await two.statistics()).gate_s > 0.5
        await trio.sleep(0.1)
        await calls(redis)
        await trio.sleep(0.8)
        counts = await calls(redis)
        assert counts["evalsha"] + counts["xread"] <= 20  # two workers, a look each 0.2 s
        for turn in turns:
            await turn.admitted.wait()
            turn.end.set()
        assert 1.1 <= trio.current_time() - begun_s < 1.6


async def test_a_long_closed_gate_outlives_the_keys_usual_life(tmp_path: Path) -> None:
    """Whatever is said of it meanwhile, and however long the provider wants."""
    async with open_test_redis(tmp_path) as redis, open_budget(redis) as budget:
        async with budget.admit(Ask(1, 1), lane="interactive", org="o") as admission:
            admission.close_gate(1_000)
            await until(lambda: len(budget._nursery.child_tasks) == 1)
        assert (await budget.statistics()).gate_s > 990
        assert await redis.ttl("spend:{e}") > 1_000
        async with trio.open_nursery() as nursery:
            turn = await start(nursery, Turn(budget, ask=Ask(1, 1)))
            assert turn.places[0][1] > 990
            assert not turn.admitted.is_set()
            turn.scope.cancel()


async def test_a_gates_time_may_be_anything(tmp_path: Path) -> None:
    """A provider's nonsense closes it for an hour at most and breaks nothing."""
    async with (
        open_test_redis(tmp_path) as redis,
        open_budget(redis) as budget,
        budget.admit(Ask(1, 1), lane="interactive", org="o") as admission,
    ):
        for retry_after_s in (-5.0, float("nan"), float("inf"), 1e300):
            admission.close_gate(retry_after_s)
            await until(lambda: len(budget._nursery.child_tasks) == 1)
            expected_s = 3_600 if retry_after_s > 0 else 0
            gate_s = (await budget.statistics()).gate_s
            assert expected_s - 5 <= gate_s <= expected_s


async def test_headers_correct_the_window_downwards_only(tmp_path: Path) -> None:
    """What others have spent counts; what the provider is generous with does not."""
    quota = config.Quota(requests_per_minute=100, output_tokens_per_minute=1_000)
    name = "anthropic-ratelimit-{}-remaining"
    async with open_test_redis(tmp_path) as redis, open_budget(redis, quota) as budget:
        async with budget.admit(Ask(5, 100), lane="interactive", org="o") as admission:
            for remaining, expected in [
                ("99", (1, 5, 100, 105)),  # as coach sees it: nothing is sent
                ("5000", (1, 5, 100, 105)),  # more than the quota
                ("60", (40, 5, 100, 105)),  # others have sent 39
                ("70", (40, 5, 100, 105)),
                ("0", (100, 5, 100, 105)),
            ]:
                admission.observe({name.format("requests"): remaining})
                await until(lambda: len(budget._nursery.child_tasks) == 1)
                assert (await spent(redis, "e")).sum == expected
            admission.observe({name.format("output-tokens"): "1"})
            await until(lambda: len(budget._nursery.child_tasks) == 1)
            assert (await spent(redis, "e")).sum == (100, 5, 999, 105)
            assert (await budget.statistics()).used == {"requests": 1.0, "output": 0.999}
        window = await spent(redis, "e")
        assert window.sum == window.in_buckets == (99, 0, 899, 0)


async def test_every_key_ends_by_itself_and_shares_a_slot(tmp_path: Path) -> None:
    """After everything that writes: admitting, waiting, waking, settling, correcting."""
    async with (
        open_test_redis(tmp_path) as redis,
        open_budget(redis) as budget,
        trio.open_nursery() as nursery,
    ):
        running = await start(nursery, Turn(budget, uses=Ask(1, 2)))
        waiting = await start(nursery, Turn(budget))
        keys = [key.decode() for key in await redis.execute_command("KEYS", "*")]
        names = {"spend", "line", "tickets", "leases", "wake", "shares"}
        assert {key.partition(":")[0] for key in keys} == names
        assert all(key.endswith("{e}") for key in keys)
        assert all([120 < await redis.ttl(key) <= 300 for key in keys])
        running.end.set()
        waiting.scope.cancel()


async def test_what_the_body_raises_comes_out_as_it_is(tmp_path: Path) -> None:
    """Also while it is cancelled from outside: no error is lost, and none in a group."""
    async with open_redis(f"unix://{tmp_path}/nobody.sock") as redis:
        with pytest.raises(ZeroDivisionError) as caught:
            async with open_budget(redis):
                raise ZeroDivisionError
        assert caught.value.__context__ is None
        with trio.CancelScope() as scope:
            async with open_budget(redis):
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        with pytest.RaisesGroup(ZeroDivisionError), trio.CancelScope() as scope:
            async with open_budget(redis):
                scope.cancel()
                raise ZeroDivisionError


async def test_a_ticket_admitted_before_its_place_was_read_goes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply that puts it in line and the look that lets it go may be read in one go."""
    async with (
        open_test_redis(tmp_path) as redis,
        open_budget(redis, ticket_lease_s=60.0, wait_s=60.0) as budget,
        trio.open_nursery() as nursery,
    ):
        held = trio.Event()
        admit = EndpointScripts.admit

        async def held_up(scripts: EndpointScripts, ticket: str, **named: Any) -> Any:
            reply = await admit(scripts, ticket, **named)
            if ticket == "w1:1":
                await held.wait()
            return reply

        monkeypatch.setattr(EndpointScripts, "admit", held_up)
        first = await start(nursery, Turn(budget))
        second = Turn(budget)
        nursery.start_soon(second.run)
        await eventually(lambda: line_of(redis, "e"), ["w1:1"])
        third = await start(nursery, Turn(budget))  # keeps the loop going
        first.end.set()
        await eventually(lambda: tickets_of(redis, "e"), {"w1:1": "admitted", "w1:2": "waiting"})
        await until(lambda: "w1:1" in budget._line._early)
        held.set()
        with trio.fail_after(1):
            await second.admitted.wait()
        second.end.set()
        third.end.set()
        await until(lambda: second.ended.is_set() and third.ended.is_set())
        await assert_nothing_left(redis, "e")
