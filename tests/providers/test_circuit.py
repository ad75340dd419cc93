"""Breakers on a real Redis: they open and heal, for all workers, and one probes at a time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import msgspec
import pytest
import trio

from coach import config
from coach.providers import Circuit, Leave, open_circuit
from coach.providers.circuit import CircuitStatistics
from coach.store import Redis
from tests.support.cancels import cancel_at_step
from tests.support.valkey import open_test_redis

pytestmark = pytest.mark.real_time

SETTINGS = config.Failover(
    faults_max=3, requests_min=10, window_s=10.0, open_s=0.15, open_s_max=1.0, ramp_step_s=0.1
)


@attrs.frozen
class World:
    redis: Redis
    circuits: list[Circuit]

    async def state(self) -> str:
        found = await self.redis.hget("circuit:{a}", "state")
        return {None: "closed", b"open": "open", b"ramping": "ramping"}[found]  # type: ignore[index]


@asynccontextmanager
async def open_world(
    tmp_path: Path, *, workers: int = 1, settings: config.Failover = SETTINGS
) -> AsyncIterator[World]:
    async with open_test_redis(tmp_path) as redis, trio.open_nursery() as nursery:
        circuits: list[Circuit] = []

        async def work(
            number: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        ) -> None:
            async with open_circuit(
                redis, endpoint="a", settings=settings, rng=random.Random(number)
            ) as circuit:
                circuits.append(circuit)
                task_status.started()
                await trio.sleep_forever()

        for number in range(workers):
            await nursery.start(work, number)
        yield World(redis, circuits)
        nursery.cancel_scope.cancel()


async def leave_of(circuit: Circuit) -> Leave:
    leave = await circuit.ask()
    assert leave is not None
    return leave


async def leave_soon(circuit: Circuit) -> Leave:
    """The next leave there is."""
    with trio.fail_after(5):
        while (leave := await circuit.ask()) is None:  # noqa: ASYNC110  it says no at once
            await trio.sleep(0.005)
    return leave


async def until_shared(world: World, state: str) -> None:
    with trio.fail_after(5):
        while await world.state() != state:  # noqa: ASYNC110  no events in Redis
            await trio.sleep(0.01)


async def until(circuit: Circuit, state: str) -> None:
    with trio.fail_after(5):
        while circuit.statistics().state != state:  # noqa: ASYNC110  no events in what is tested
            await trio.sleep(0.01)


async def fault(circuit: Circuit, count: int = 1) -> None:
    for _ in range(count):
        (await leave_of(circuit)).failed(is_fault=True)


async def test_faults_in_a_row_open_it_at_once_here_and_soon_elsewhere(tmp_path: Path) -> None:
    async with open_world(tmp_path, workers=2) as world:
        one, other = world.circuits
        await fault(one, 3)
        assert one.statistics().state == "open"
        assert await one.ask() is None
        (await leave_of(other)).succeeded()
        await until(other, "open")


async def test_faults_of_different_workers_count_together(tmp_path: Path) -> None:
    async with open_world(tmp_path, workers=3) as world:
        for circuit in world.circuits:
            await fault(circuit)
        for circuit in world.circuits:
            (await leave_of(circuit)).dropped()
        await until_shared(world, "open")


async def test_a_success_between_faults_keeps_it_closed(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        (circuit,) = world.circuits
        for _ in range(3):
            await fault(circuit, 2)
            (await leave_of(circuit)).succeeded()
            await trio.sleep(0.03)
        assert circuit.statistics().state == "closed"


async def test_too_many_faults_among_successes_open_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        (circuit,) = world.circuits
        for _ in range(6):
            await fault(circuit)
            (await leave_of(circuit)).succeeded()
        await until(circuit, "open")


async def test_one_probes_and_its_success_lets_in_more_and_more(tmp_path: Path) -> None:
    async with open_world(tmp_path, workers=2) as world:
        one, other = world.circuits
        await fault(one, 3)
        (await leave_of(other)).succeeded()
        await until(other, "open")
        await trio.sleep(0.4)
        probes = [leave for leave in (await one.ask(), await other.ask()) if leave is not None]
        assert len(probes) == 1
        assert await one.ask() is None
        probes[0].succeeded()
        await until(one, "ramping")
        shares = set()
        with trio.fail_after(10):
            while one.statistics().state == "ramping":
                shares.add(one.statistics().share)
                leave = await one.ask()
                if leave is not None:
                    leave.succeeded()
                await trio.sleep(0.005)
        assert shares == {0.1, 0.25, 0.5}
        assert one.statistics() == CircuitStatistics(state="closed", share=1.0)


async def test_a_probe_that_fails_opens_it_for_longer(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        (circuit,) = world.circuits
        await fault(circuit, 3)
        waits = []
        for _ in range(3):
            began = trio.current_time()
            leave = await leave_soon(circuit)
            waits.append(trio.current_time() - began)
            leave.failed(is_fault=True)
            await trio.sleep(0.05)
        assert waits[2] > waits[0]
        assert int(await world.redis.hget("circuit:{a}", "trips") or 0) == 4


async def test_a_probe_nobody_reports_on_is_anothers_turn(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, probe_s_max=0.3)
    async with open_world(tmp_path, settings=settings) as world:
        (circuit,) = world.circuits
        await fault(circuit, 3)
        await trio.sleep(0.2)
        await leave_soon(circuit)
        await leave_soon(circuit)


async def test_a_dropped_probe_is_given_back_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        (circuit,) = world.circuits
        await fault(circuit, 3)
        for _ in range(2):
            leave = await leave_soon(circuit)
            leave.dropped()
        assert await world.state() == "open"


async def test_held_it_asks_nobody_for_so_long_in_any_worker(tmp_path: Path) -> None:
    async with open_world(tmp_path, workers=2) as world:
        one, other = world.circuits
        (await leave_of(one)).failed(is_fault=False, hold_s=1.0)
        assert await one.ask() is None
        (await leave_of(other)).succeeded()
        await trio.sleep(0.5)
        assert await other.ask() is None
        await trio.sleep(0.7)
        assert await one.ask() is not None
        assert await other.ask() is not None
        assert one.statistics().state == "closed"


async def test_an_operator_lets_requests_in_again_in_all_workers(tmp_path: Path) -> None:
    """Whatever was seen or said: an open breaker and a provider that wants to be left alone."""
    async with open_world(tmp_path, workers=2) as world:
        one, other = world.circuits
        await fault(one, 3)
        one.hold(60.0)
        await until_shared(world, "open")
        other.bypass().succeeded()  # what it reports is answered by how things stand
        await until(other, "open")
        assert await other.ask() is None
        await one.reset()
        assert await one.ask() is not None
        await leave_soon(other)


async def test_only_the_first_word_on_a_leave_counts(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        (circuit,) = world.circuits
        leave = await leave_of(circuit)
        leave.succeeded()
        for _ in range(5):
            leave.failed(is_fault=True)
        assert circuit.statistics().state == "closed"


async def test_its_record_has_an_end(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await fault(world.circuits[0], 3)
        await until_shared(world, "open")
        assert 0 < await world.redis.pttl("circuit:{a}") <= 3_600_000


async def test_cancelled_while_it_asks_for_a_probe_it_goes_on(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, open_s=0.01, probe_s_max=0.05)
    async with open_world(tmp_path, settings=settings) as world:
        (circuit,) = world.circuits
        await fault(circuit, 3)
        for n in range(1, 6):
            await trio.sleep(0.3)
            with cancel_at_step(n):
                leave = await circuit.ask()
                if leave is not None:
                    leave.dropped()
        await leave_soon(circuit)
