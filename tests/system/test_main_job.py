"""The main job with real processes: a class writes and is graded, nothing is left over afterwards,
and whatever is killed meanwhile costs nobody what was promised to them."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import msgspec
import pytest
import trio
from trio_websocket import ConnectionClosed

from coach.child import exited
from coach.simulator.writers import Plan, simulate
from coach.store import open_redis
from tests.support.stack import (
    Stack,
    Student,
    connections_of,
    descriptors_of,
    open_stack,
    until,
)

pytestmark = pytest.mark.real_time

QUICK = ("--ttft-ms", "60", "--events-per-s", "60", "--judge-ms", "300")
PROVIDER = (
    "quota = {requests_per_minute = 100000, input_tokens_per_minute = 100000000,"
    " output_tokens_per_minute = 100000000}"
)
LONG = {"events_per_s": 40, "feedback_events_min": 400}
"""Ten seconds of feedback."""
SIM_PRICES = {"input": "3", "cache_write": "3.75", "cache_read": "0.3", "output": "15"}
"""For a million tokens, as prices.toml has it."""
ESSAY = "The sea was calm that day, and nobody on the pier believed that it would stay so. " * 8


async def test_a_class_leaves_nothing_behind(tmp_path: Path) -> None:
    """And thirty who hang up in the middle of their feedback leave no stream and no reservation."""
    gone_is_gone = "[session]\ndetached_s = 0"
    async with open_stack(
        tmp_path, simulator=QUICK, provider=PROVIDER, settings=gone_is_gone
    ) as stack:
        await one_of_everything(stack)
        await the_bill_is_right(stack)
        before = await Leftovers.of(stack)

        report = await simulate(
            Plan(url=stack.url, writers=12, seconds=12, ramp_s=2, turn_every_s=3, grace_s=20)
        )
        tally = report.tally
        assert report.ok, dict(tally.errors)
        assert tally.graded == tally.submissions == 12
        assert tally.completed >= 12

        await nothing_is_left(stack, before)
        stats = await stack.simulator()
        await the_bill_is_right(stack)
        assert stats["streams_lost"] == stats["rate_limited"] == stats["errors_sent"] == 0
        await keys_have_a_limit(stack)

        await hang_up(stack, count=30)
        await nothing_is_left(stack, before)
        assert "Traceback" not in stack.log() + stack.log("grade")
        assert "[error" not in stack.log() + stack.log("grade")


async def test_what_is_killed_costs_nobody_what_was_promised(tmp_path: Path) -> None:
    """A worker, the grader and Redis are killed in turn, and all is drained, under load."""
    grading = "drain_s = 4\n[grading]\nlease_s = 1\nheartbeat_s = 0.3"
    async with open_stack(tmp_path, workers=2, simulator=QUICK, settings=grading) as stack:
        await stack.control(**LONG)
        await a_killed_worker(stack)
        await a_killed_grader(stack)
        await a_killed_redis(stack)
        await a_drain(stack)
        assert "Traceback" not in stack.log() + stack.log("grade")


async def a_killed_worker(stack: Stack) -> None:
    """The others' feedback goes on, and what it has acknowledged is graded."""
    await stack.control(judge_ms=1_000)
    before = stack.workers()
    async with AsyncExitStack() as exits:
        students: list[Student] = []
        while not all(connections_of(worker, port_of(stack)) for worker in before):
            assert len(students) < 50
            students.append(await exits.enter_async_context(stack.student()))
        for number, student in enumerate(students):
            await student.ask(text=ESSAY)
            await hand_in(student, f"worker-{number}")
            await student.until("grading")
        victim = min(before, key=lambda worker: connections_of(worker, port_of(stack)))
        os.kill(victim, signal.SIGKILL)
        lost = [student for student in students if not await hears_more(student)]
        assert 0 < len(lost) < len(students)
        await until(lambda: len(stack.workers()) == 2)
        for number, student in enumerate(students):
            await until_graded(stack, student, f"worker-{number}")
        async with stack.student(lost[0].token) as again:
            grade = await again.until("grade")  # which came while nobody was there to hear it
            assert grade["submission"] == f"worker-{students.index(lost[0])}"
            await again.ask(text=ESSAY)
            await again.until("delta")


async def a_killed_grader(stack: Stack) -> None:
    """Another takes the essay up once the lease has run out, and the grade comes once."""
    assert stack.grader is not None
    async with stack.student() as student:
        asked = (await stack.simulator())["judge_requests"]
        await hand_in(student, "grader")
        with trio.fail_after(5):
            while (await stack.simulator())["judge_requests"] == asked:
                pass
        stack.grader.kill()
        await exited(stack.grader)
        began = trio.current_time()
        stack.start_grader()
        with trio.fail_after(10):
            grade = await student.until("grade")
        report(f"graded {trio.current_time() - began:.2f} s after the grader was killed")
        assert grade["submission"] == "grader"
        with trio.move_on_after(1) as silence:
            await student.receive()
        assert silence.cancelled_caught
    assert (await stack.simulator())["judge_requests"] == asked + 2 * 3  # judges


async def a_killed_redis(stack: Stack) -> None:
    """Feedback under way goes on, new turns wait or are refused, what is acknowledged is graded."""
    outcomes: list[str] = []
    async with AsyncExitStack() as exits:
        writers = [await exits.enter_async_context(stack.student()) for _ in range(6)]
        for number, student in enumerate(writers):
            await hand_in(student, f"redis-{number}")
            await student.until("grading")
            await student.ask(text=ESSAY)
            await student.until("delta")
        newcomers = [await exits.enter_async_context(stack.student()) for _ in range(6)]
        os.kill(stack.redis.pid, signal.SIGKILL)

        async def new_turn(student: Student) -> None:
            await student.ask(text=ESSAY)
            answer = await student.until("started", "error")
            outcomes.append(str(answer.get("code", "started")))

        async def goes_on(number: int, student: Student) -> None:
            for _ in range(10):
                await student.until("delta")
            await until_graded(stack, student, f"redis-{number}")
            assert await hears_more(student)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for student in newcomers:
                    nursery.start_soon(new_turn, student)
                for number, student in enumerate(writers):
                    nursery.start_soon(goes_on, number, student)
    report(f"new turns while Redis restarts: {outcomes}")
    assert set(outcomes) <= {"started", "overloaded"}
    async with stack.student() as student:
        await hand_in(student, "after")
        with trio.fail_after(10):
            await student.until("grade")


async def a_drain(stack: Stack) -> None:
    """Clients are told, then closed with 1012; the exit code is 0 within `drain_s`."""
    closed: list[int] = []
    said: set[str] = set()

    async def until_closed(student: Student) -> None:
        await student.until("draining")
        try:
            while True:
                last = await student.receive()
                said.add(f"{last['type']} {last.get('code', '')}".strip())
        except ConnectionClosed as error:
            closed.append(error.reason.code if error.reason is not None else 0)

    async with AsyncExitStack() as exits:
        students = [await exits.enter_async_context(stack.student()) for _ in range(12)]
        for student in students[:8]:
            await student.ask(text=ESSAY)
            await student.until("delta")
        began = trio.current_time()
        stack.supervisor.terminate()
        async with trio.open_nursery() as nursery:
            for student in students:
                nursery.start_soon(until_closed, student)
        assert closed == [1012] * 12
        assert said == {"delta"}, "what still runs goes on without its student"
        assert await exited(stack.supervisor) == 0
        report(f"drained within {trio.current_time() - began:.2f} s of 4; after draining: {said}")
        assert trio.current_time() - began < 4


async def hears_more(student: Student) -> bool:
    """Whether the feedback goes on: with more than was on its way."""
    try:
        with trio.fail_after(10):
            await student.until("delta")
            await trio.sleep(0.2)
            for _ in range(10):
                await student.until("delta")
    except ConnectionClosed:
        return False
    return True


async def hand_in(student: Student, submission: str) -> None:
    await student.send(type="submit", submission=submission, assignment="essay", text=ESSAY)


async def until_graded(stack: Stack, student: Student, submission: str) -> None:
    """Wait until the API says so, whatever has become of the student's own connection."""
    status = ""
    with trio.fail_after(10):
        while status != "graded":
            await trio.sleep(0.1)
            answer = await stack.submission(student.token, submission)
            status = answer.json().get("status", "")  # 503 while Redis is away


async def one_of_everything(stack: Stack) -> None:
    """Open what stays open: connections to the provider and to Redis."""
    async with stack.student() as student, stack.student(student.token) as second_tab:
        await student.ask()
        await student.until("done")
        await student.send(type="submit", submission="warm-up", assignment="essay", text=ESSAY)
        grades = [await each.until("grade") for each in (student, second_tab)]
        assert {grade["submission"] for grade in grades} == {"warm-up"}


@attrs.frozen
class Leftovers:
    """What may not grow, as the processes and the simulator say."""

    worker_files: int
    """Without the connections of students."""
    grader_files: int
    provider_connections: float
    sessions: float
    turns: float
    streams: float

    @classmethod
    async def of(cls, stack: Stack) -> Leftovers:
        (worker,) = stack.workers()
        assert stack.grader is not None
        stats = await stack.simulator()
        return cls(
            worker_files=descriptors_of(worker) - connections_of(worker, port_of(stack)),
            grader_files=descriptors_of(stack.grader.pid),
            provider_connections=stats["connections_open"],
            sessions=await stack.metric("coach_sessions"),
            turns=await stack.metric("coach_turns_running"),
            streams=stats["streams_open"],
        )

    def exceed(self, before: Leftovers) -> bool:
        """Whether there is more than before; a file or two may come and go with a request."""
        return (
            self.worker_files > before.worker_files + 2
            or self.grader_files > before.grader_files + 2
            or self.provider_connections > before.provider_connections
            or self.sessions + self.turns + self.streams > 0
        )


async def nothing_is_left(stack: Stack, before: Leftovers) -> None:
    now = await Leftovers.of(stack)
    with trio.move_on_after(5):
        while now.exceed(before):
            await trio.sleep(0.1)
            now = await Leftovers.of(stack)
    assert not now.exceed(before), (now, before, stack.log())


async def keys_have_a_limit(stack: Stack) -> None:
    """No key lives without a TTL, except the queue's own structures, which are empty."""
    async with open_redis(stack.redis.url) as redis:
        keys = [key.decode() async for key in redis.scan_iter(count=1_000)]
        for_ever = {key for key in keys if await redis.ttl(key) == -1}  # -2: gone meanwhile
        queue = {key for key in keys if key.startswith("queue:")}
    assert for_ever == queue
    assert {key.rpartition("}:")[2] for key in queue} <= {"control", "counts", "markers:submission"}
    assert any(key.startswith("submission:") for key in keys)


async def the_bill_is_right(stack: Stack) -> None:
    """`coach costs` says what the provider has counted, to the token.

    What was written of answers that were given up is estimated: the provider never says.
    """
    stats = await stack.simulator()
    counted = {name: int(stats[f"{name}_tokens"]) for name in SIM_PRICES}
    with trio.fail_after(10):
        while True:
            bill = await read_costs(stack)
            total, lines = bill["total"], {line["reason"]: line for line in bill["lines"]}
            if all(total.get(name) == counted[name] for name in counted if name != "output"):
                break
    wasted = lines.pop("wasted-cancel", {"output": 0, "requests": 0})
    assert set(lines) == {"feedback", "grading"}
    assert total["output"] - wasted["output"] <= counted["output"]
    estimated = total["output"] - counted["output"]
    assert abs(estimated) <= 40 * wasted["requests"]
    dollars = sum(Decimal(price) * total[name] for name, price in SIM_PRICES.items())
    assert Decimal(total["cost"]) == dollars / 1_000_000
    report(f"{total['requests']} requests, {wasted['requests']} given up: {total['cost']} USD")


async def read_costs(stack: Stack) -> dict[str, Any]:
    """What `coach costs` prints for programs."""
    environ = {**os.environ, "COACH_CONFIG": str(stack.data_dir / "coach.toml")}
    command = [sys.executable, "-m", "coach", "costs", "--json", "--by", "reason"]
    said = await trio.run_process(command, capture_stdout=True, env=environ)
    bill: dict[str, Any] = msgspec.json.decode(said.stdout)
    return bill


async def hang_up(stack: Stack, *, count: int) -> None:
    """The streams are reset at the provider, and only what was shown stays booked."""
    await stack.control(**LONG)
    before, booked_before = await stack.simulator(), await Booked.of(stack)
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            await nursery.start(listen_to_feedback, stack)
        reserved = await Booked.of(stack)
        assert reserved.running == (await stack.simulator())["streams_open"] == count
        assert reserved.output - booked_before.output >= count * 500
        nursery.cancel_scope.cancel("they all hang up")
    began, cancelled = trio.current_time(), before["streams_cancelled"] + count
    with trio.fail_after(5):
        while (stats := await stack.simulator())["streams_cancelled"] < cancelled:
            pass
    report(f"{count} streams reset within {trio.current_time() - began:.2f} s")
    assert stats["streams_cancelled"] == cancelled
    booked = await until_settled(stack)
    written = stats["output_tokens"] - before["output_tokens"]
    assert 0 < booked.output - booked_before.output <= 1.5 * written
    from_the_cache = stats["cache_read_tokens"] - before["cache_read_tokens"]
    of_the_endpoint = booked.endpoint - booked_before.endpoint
    with trio.move_on_after(5):  # a turn settles with its endpoint first, then with its org
        while booked.users - booked_before.users != of_the_endpoint + from_the_cache:
            booked = await Booked.of(stack)
    assert booked.users - booked_before.users == of_the_endpoint + from_the_cache


@attrs.frozen
class Booked:
    """What is reserved or spent in this minute, in tokens."""

    running: int
    """Tickets that have not ended."""
    output: int
    endpoint: int
    """Input and output at the endpoint."""
    users: int
    """Input, also from the provider's cache, and output of the org."""

    @classmethod
    async def of(cls, stack: Stack) -> Booked:
        async with open_redis(stack.redis.url) as redis:
            spent = (await redis.execute_command("HGET", "spend:{simulator}", "sum")).split()
            tickets = await redis.execute_command("HVALS", "tickets:{simulator}")
            (org,) = [key async for key in redis.scan_iter("limit:*:org*", count=1_000)]
            used = (await redis.execute_command("HGET", org, "sum")).split()
        return cls(
            running=sum(not ticket.startswith(b"ended") for ticket in tickets),
            output=int(spent[2]),
            endpoint=int(spent[3]),
            users=int(used[1]),
        )


async def until_settled(stack: Stack) -> Booked:
    with trio.fail_after(5):
        while (booked := await Booked.of(stack)).running:  # noqa: ASYNC110  in Redis
            await trio.sleep(0.05)
    return booked


async def listen_to_feedback(
    stack: Stack, *, task_status: trio.TaskStatus[Student] = trio.TASK_STATUS_IGNORED
) -> None:
    """A student in the middle of a long feedback, until the connection ends."""
    async with stack.student() as student:
        await student.ask(text=ESSAY)
        await student.until("delta")
        task_status.started(student)
        await student.until("done", "error")


def report(text: str) -> None:
    """For `pytest -s`: the figures behind a pass."""
    print(text)  # noqa: T201


def port_of(stack: Stack) -> int:
    port = urlsplit(stack.url).port
    assert port is not None
    return port
