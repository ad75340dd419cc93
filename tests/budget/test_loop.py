"""The budget loop on the mock clock, with a Redis that says what the test wants: when it looks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, cast

import attrs
import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from coach.budget.loop import LATE_S_MAX, LOOK_S_MIN, PLACES_S, Line, Ticket
from coach.budget.quota import NOTHING, Outlook
from coach.budget.scripts import RETRY_S, Admitted, EndpointScripts, Full, Passed, Queued
from coach.errors import Overloaded
from coach.store import ConnectionLost, NotSent, Redis

LEASE_S, WAIT_S = 3.0, 5.0
SPENT = Admitted((1, 2, 3, 5))


@attrs.define(eq=False)
class Scripted:
    """Stands for both the client and the scripts."""

    worker_lease_s: float = LEASE_S
    wake_key: str = "wake:{e}"
    outlook: Outlook = attrs.field(factory=lambda: Outlook(None, 1.0))
    is_mine: bool = True
    admits: list[str] = attrs.field(factory=list)
    """Tickets that may go at the next look."""
    positions: dict[str, int] = attrs.field(factory=dict)
    back: list[Admitted | Queued | Full] = attrs.field(factory=list)
    """Answers to tickets that fell out of the line."""
    error: Exception | None = None
    """What looks end with."""
    looks_hang: bool = False
    sleeps_hang: bool = False
    looks_s: list[tuple[float, bool]] = attrs.field(factory=list)
    """When the loop looked, and whether at all places."""
    sleeps: list[int] = attrs.field(factory=list)
    """Milliseconds."""
    found: list[tuple[str, str]] = attrs.field(factory=list)
    """Tickets, and the ranks they came back with."""
    _wakes: trio.MemorySendChannel[str] = attrs.field(init=False)
    _woken: trio.MemoryReceiveChannel[str] = attrs.field(init=False)
    _entry: int = 0

    def __attrs_post_init__(self) -> None:
        self._wakes, self._woken = trio.open_memory_channel[str](100)

    async def look(self, worker: str, *, is_full: bool) -> Passed:
        self.looks_s.append((trio.current_time(), is_full))
        await trio.lowlevel.checkpoint()
        if self.looks_hang:
            await trio.sleep_forever()
        if self.error is not None:
            raise self.error
        admitted, self.admits = tuple(self.admits), []
        for name in admitted:
            self.positions.pop(name, None)
        return Passed(
            outlook=self.outlook,
            is_mine=self.is_mine,
            wake_id=f"{self._entry}-0",
            now=SPENT,
            admitted=admitted,
            positions=dict(self.positions) if is_full else None,
        )

    async def admit(self, ticket: str, *, rank: str, **_: object) -> Admitted | Queued | Full:
        await trio.lowlevel.checkpoint()
        self.found.append((ticket, rank))
        return self.back.pop(0)

    async def execute_command(self, *args: Any) -> dict[bytes, list[Any]]:
        name, block, block_ms, streams, key, _ = args
        assert (name, block, streams, key) == ("XREAD", "BLOCK", "STREAMS", self.wake_key)
        self.sleeps.append(block_ms)
        with trio.move_on_after(float("inf") if self.sleeps_hang else block_ms / 1000):
            worker = await self._woken.receive()
            return {b"wake:{e}": [(f"{self._entry}-0".encode(), {b"w": worker.encode()})]}
        return {}

    def wake(self, worker: str = "w") -> None:
        self._entry += 1
        self._wakes.send_nowait(worker)


@asynccontextmanager
async def open_line(scripted: Scripted) -> AsyncIterator[Line]:
    async with trio.open_nursery() as nursery:
        yield Line(
            cast("Redis", scripted),
            cast("EndpointScripts", scripted),
            nursery,
            worker="w",
            line_max=9,
            wait_s=WAIT_S,
        )
        nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Waiter:
    """Waits in line, and notes what it is told."""

    line: Line
    scripted: Scripted
    name: str
    position: int = 1
    told: list[tuple[float, int, float]] = attrs.field(factory=list)
    """(when, position, ETA)."""
    ended_s: float | None = None
    result: Admitted | Overloaded | None = None

    async def run(self) -> None:
        await trio.lowlevel.checkpoint()
        ticket = Ticket(
            id=self.name, lane=0, ask=NOTHING, org="o", weight=1.0, on_position=self._note
        )
        self.scripted.positions[self.name] = self.position
        queued = Queued(f"rank of {self.name}", self.position, self.scripted.outlook)
        try:
            self.result = await self.line.wait(ticket, queued)
        except Overloaded as error:
            self.result = error
        self.ended_s = trio.current_time()

    def _note(self, position: int, eta_s: float) -> None:
        self.told.append((trio.current_time(), position, eta_s))


def start(nursery: trio.Nursery, waiters: Sequence[Waiter]) -> None:
    for waiter in waiters:
        nursery.start_soon(waiter.run)


@pytest.mark.parametrize(
    ("is_mine", "head_s", "expected"),
    [
        (True, 0.25, [0, 0.25, 0.5, 0.75]),  # the head may go then
        (
            True,
            None,
            [0, 0.75, 1.5, 2.25],
        ),  # something has to be given back; a quarter of the lease
        (True, 900.0, [0, 0.75, 1.5, 2.25]),  # a closed gate
        (False, 0.25, [0, 0.75, 1.5, 2.25]),  # its owner looks
    ],
)
async def test_sleeps_until_there_may_be_something_to_do(
    is_mine: bool, head_s: float | None, expected: list[float]
) -> None:
    """No polling; and at least three looks within a lease, or others would take it for dead."""
    scripted = Scripted(is_mine=is_mine, outlook=Outlook(head_s, 1.0))
    async with open_line(scripted) as line, trio.open_nursery() as nursery:
        start(nursery, [Waiter(line, scripted, "a")])
        await trio.sleep(expected[-1] + 0.01)
        assert [at for at, _ in scripted.looks_s] == pytest.approx(expected)
        nursery.cancel_scope.cancel()


async def test_wakes_for_itself_only() -> None:
    """A neighbour's entry in the stream is read over; the sleep goes on for what is left of it."""
    scripted = Scripted(is_mine=False)
    async with open_line(scripted) as line, trio.open_nursery() as nursery:
        start(nursery, [Waiter(line, scripted, "a")])
        await trio.sleep(0.4)
        scripted.wake("neighbour")
        await trio.sleep(0.2)
        assert scripted.sleeps == [750, 350]
        scripted.admits = ["a"]
        scripted.wake()
        await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert scripted.looks_s == [(0, True), (pytest.approx(0.6), True)]
        assert not line.is_running


async def test_all_places_are_looked_at_four_times_a_second_at_most() -> None:
    """They cost Redis time for everybody in line; who may go is another question."""
    scripted = Scripted(outlook=Outlook(0.1, 1.0))
    async with open_line(scripted) as line, trio.open_nursery() as nursery:
        start(nursery, [Waiter(line, scripted, "a")])
        await trio.sleep(10.05)
        assert len(scripted.looks_s) == pytest.approx(101, abs=1)
        full_s = [at for at, is_full in scripted.looks_s if is_full]
        assert all(b - a >= PLACES_S - 1e-6 for a, b in pairwise(full_s))
        assert len(full_s) >= 30
        nursery.cancel_scope.cancel()


async def test_exists_only_while_somebody_waits() -> None:
    """And again for the next one."""
    scripted = Scripted()
    async with open_line(scripted) as line:
        for _ in range(2):
            waiter = Waiter(line, scripted, "a")
            scripted.admits = ["a"]
            await waiter.run()
            assert waiter.result == SPENT
            assert waiter.told == [(trio.current_time(), 1, 1.0)]
            await trio.testing.wait_all_tasks_blocked()
            assert not line.is_running
            assert len(line) == 0
        looks_count = len(scripted.looks_s)
        await trio.sleep(60)
        assert len(scripted.looks_s) == looks_count


async def test_places_are_told_when_they_change() -> None:
    """Steps within a fifth of a second are told as one, later; so is a gate that was closed."""
    scripted = Scripted(outlook=Outlook(0.5, 0.5))
    async with open_line(scripted) as line, trio.open_nursery() as nursery:
        waiter = Waiter(line, scripted, "a", position=5)
        start(nursery, [waiter])
        await trio.sleep(0.9)
        assert waiter.told == [(0, 5, 2.5)]  # as good as it was said
        scripted.positions["a"] = 4
        scripted.wake()
        await trio.sleep(0.1)
        scripted.positions["a"] = 3
        scripted.wake()
        await trio.sleep(1)
        assert [position for _, position, _ in waiter.told] == [5, 4, 3]
        times_s = [at for at, _, _ in waiter.told]
        assert all(b - a >= 0.2 for a, b in pairwise(times_s))
        scripted.outlook = Outlook(60.0, 0.5)  # the gate was closed
        await trio.sleep(1)
        assert waiter.told[-1][1:] == (3, 61.0)
        nursery.cancel_scope.cancel()


async def test_who_is_not_in_line_any_more_comes_back_to_the_same_place() -> None:
    """Redis lost the line, or the worker was silent for too long; each gets what the line says."""
    scripted = Scripted()
    full = Full(7, Outlook(3.0, 1.0))
    async with open_line(scripted) as line, trio.open_nursery() as nursery:
        waiters = {name: Waiter(line, scripted, name) for name in "abc"}
        start(nursery, list(waiters.values()))
        await trio.sleep(0.5)
        scripted.positions.clear()
        scripted.back = [SPENT, Queued("rank", 2, Outlook(None, 1.0)), full]
        await trio.sleep(1)
        scripted.positions = {name: 2 for name, _ in scripted.found[1:2]}
        assert sorted(scripted.found) == [(name, f"rank of {name}") for name in "abc"]
        first, second, third = (waiters[name] for name, _ in scripted.found)
        assert first.result == SPENT
        assert second.result is None
        assert second.told[-1][1] == 2
        assert isinstance(third.result, Overloaded)
        assert third.result.retry_after_s == full.outlook.eta_s(7)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("fault", "expected_s"),
    [
        ({"looks_hang": True}, WAIT_S),
        ({"error": NotSent("no connection")}, WAIT_S),
        ({"error": ConnectionLost("no answer")}, WAIT_S),
        # The last look that was answered was at 0, too; its sleep takes a third of the lease.
        ({"looks_hang": True, "sleeps_hang": True}, WAIT_S),
    ],
)
async def test_those_in_line_are_refused_when_redis_is_away_for_too_long(
    fault: dict[str, Any], expected_s: float
) -> None:
    """Within wait_s of the last answer, with a time; the loop ends, and is no busy one."""
    scripted = Scripted()
    async with open_line(scripted) as line, trio.open_nursery() as nursery:
        waiters = [Waiter(line, scripted, name) for name in "ab"]
        start(nursery, waiters)
        await trio.testing.wait_all_tasks_blocked()
        for name, value in fault.items():
            setattr(scripted, name, value)
        await trio.sleep(WAIT_S * 2)
        for waiter in waiters:
            assert isinstance(waiter.result, Overloaded)
            assert waiter.result.retry_after_s == WAIT_S
            assert waiter.ended_s == pytest.approx(expected_s, abs=2 * RETRY_S)
        assert not line.is_running
        assert len(scripted.looks_s) <= WAIT_S / RETRY_S + 2


async def test_a_sleep_that_redis_does_not_end_is_ended() -> None:
    """A server that hangs sends nothing, not even the end of the block."""
    scripted = Scripted(sleeps_hang=True)
    async with open_line(scripted) as line, trio.open_nursery() as nursery:
        start(nursery, [Waiter(line, scripted, "a")])
        await trio.sleep(2.5)
        late_s = LEASE_S / 4 + LATE_S_MAX
        assert [at for at, _ in scripted.looks_s] == pytest.approx([0, late_s, 2 * late_s])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_worker_that_was_held_up_asks_before_it_gives_up(*, hangs: bool) -> None:
    """Its own silence says nothing about Redis: there is a look, with time for an answer."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    scripted = Scripted()
    async with open_line(scripted) as line, trio.open_nursery() as nursery:
        waiter = Waiter(line, scripted, "a")
        start(nursery, [waiter])
        await trio.testing.wait_all_tasks_blocked()
        scripted.admits, scripted.looks_hang = ["a"], hangs
        clock.jump(2 * WAIT_S)
        await trio.sleep(WAIT_S)
        if hangs:
            assert isinstance(waiter.result, Overloaded)
            assert waiter.ended_s == pytest.approx(2 * WAIT_S + LOOK_S_MIN)
        else:
            assert waiter.result == SPENT
            assert waiter.ended_s == pytest.approx(2 * WAIT_S)


async def test_errors_are_survived_and_a_lost_admission_is_found() -> None:
    """The reply that let it go was lost with the connection: the next look asks for all places."""
    scripted = Scripted()
    async with open_line(scripted) as line, trio.open_nursery() as nursery:
        waiter = Waiter(line, scripted, "a")
        start(nursery, [waiter])
        await trio.sleep(0.74)
        scripted.error = ConnectionLost("no answer")
        await trio.sleep(0.03)
        scripted.error = None
        scripted.positions.clear()
        scripted.back = [SPENT]
        await trio.sleep(RETRY_S)
        assert waiter.result == SPENT
        assert [is_full for _, is_full in scripted.looks_s] == [True, True, True]
        nursery.cancel_scope.cancel()


async def test_whoever_leaves_is_forgotten_at_once() -> None:
    """Cancelled in line, also while a look is under way; the loop ends when nobody is left."""
    scripted = Scripted()
    async with open_line(scripted) as line:
        with trio.CancelScope() as scope:
            scope.deadline = 0.5
            await Waiter(line, scripted, "a").run()
        assert len(line) == 0
        scripted.admits = ["a"]  # too late: its owner gives it back
        scripted.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert not line.is_running
