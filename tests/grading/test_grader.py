"""The grader process on a real Valkey, with judges in memory: no essay is lost, none graded twice.

That a submission waits for its disk is test_queue's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from coach import config
from coach.errors import Overloaded
from coach.grading.calibration import Calibration, Line
from coach.grading.calibrations import Calibrations, keep_calibration
from coach.grading.desk import Desk
from coach.grading.grader import run_grader
from coach.grading.jobs import Claim, Receiver
from coach.grading.judges import Judge
from coach.grading.queue import Queue
from coach.grading.records import LANES, Grade, SubmissionState
from coach.grading.reviews import Reviews
from coach.ops import Costs
from coach.providers import Prompt, ProviderError, Pseudonyms
from coach.session import wire
from coach.store import Redis, RedisError
from tests.support.costs import exhaust, new_costs, reasons

from .fakes import RUBRIC, USAGE, FakeBudget, FakeProvider, bench_of, essay_in, judged
from .support import (
    SETTINGS,
    broken_invariants,
    essay,
    let_leases_run_out,
    mailed,
    open_test_queue,
    take,
    until,
)

pytestmark = pytest.mark.real_time

DONE_S_MAX = 10.0


@attrs.define(kw_only=True)
class World:
    """A queue, and judges that any number of graders share."""

    redis: Redis
    queue: Queue
    settings: config.Grading
    providers: list[FakeProvider]
    budget: FakeBudget = attrs.field(factory=FakeBudget)
    costs: Costs = attrs.field(factory=new_costs)
    calibrations: Calibrations | None = None
    stopping: trio.Event = attrs.field(factory=trio.Event)

    async def run_grader(self, queue: Queue | None = None, name: str = "grader") -> None:
        await run_grader(
            queue=queue or self.queue,
            judges=[
                Judge(
                    provider.name,
                    [bench_of(provider, self.budget)],
                    RUBRIC,
                    costs=self.costs,
                    pseudonyms=Pseudonyms("k"),
                    lens="Read it twice.",
                )
                for provider in self.providers
            ],
            reviews=Reviews(self.redis, self.queue, self.settings),
            rubric=RUBRIC,
            settings=self.settings,
            costs=self.costs,
            calibrations=self.calibrations,
            worker=name,
            stopping=self.stopping,
        )

    async def ended(self, id_: str = "s1") -> SubmissionState:
        """Wait until a submission is graded or given up."""
        with trio.fail_after(DONE_S_MAX):
            while True:
                state = await self.queue.get("school", id_)
                if state is not None and state.status in ("graded", "failed"):
                    return state
                await trio.sleep(0.005)

    async def mails(self, count: int = 1) -> list[dict[str, str]]:
        """Wait for so much mail."""
        with trio.fail_after(DONE_S_MAX):
            while True:
                mails = await mailed(self.redis)
                if len(mails) >= count:
                    return mails
                await trio.sleep(0.005)


@asynccontextmanager
async def open_world(
    tmp_path: Path, *providers: FakeProvider, **changes: Any
) -> AsyncIterator[World]:
    settings = msgspec.structs.replace(SETTINGS, **changes)
    async with open_test_queue(tmp_path, settings) as (queue, redis):
        yield World(
            redis=redis,
            queue=queue,
            settings=settings,
            providers=list(providers) or [FakeProvider()],
        )


@asynccontextmanager
async def grading(world: World) -> AsyncIterator[None]:
    """One grader beside the body; then it is told to stop, and must."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run_grader)
        try:
            yield
        finally:
            world.stopping.set()
    assert world.budget.open == 0


# -- the way of an essay -----------------------------------------------------------------------


async def test_an_essay_is_graded_kept_and_pushed(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, grading(world):
        await world.queue.submit(essay())
        state = await world.ended()
        (mail,) = await world.mails()
    grade = state.grade
    assert grade is not None
    assert (grade.score, grade.judges, grade.degraded, grade.review) == (60, 1, False, False)
    assert [criterion.band for criterion in grade.criteria] == [3] * 4
    assert grade.usage.output == USAGE.output
    assert 0 < grade.seconds < 5
    payload = mail.pop("payload")
    about = {"user": "ann", "org": "school", "submission": "s1"}
    assert mail == {"kind": "grade", "session": "sid", **about}
    message = msgspec.json.decode(payload, type=wire.Grade)
    assert (message.submission, message.score, message.feedback) == ("s1", 60, grade.feedback)
    assert [c.evidence for c in message.criteria] == [c.evidence for c in grade.criteria]


async def test_an_essay_without_a_mailbox_is_graded_all_the_same(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, grading(world):
        await world.queue.submit(essay(worker="", session=""))
        assert (await world.ended()).status == "graded"
        assert await world.redis.execute_command("KEYS", "mail:*") == []


async def test_the_judge_sees_the_task_and_stands_in_the_lane_of_the_job(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, grading(world):
        await world.queue.submit(essay(assignment="book-review", lane="background"))
        await world.ended()
    assert [(lane, org) for _, lane, org in world.budget.admitted] == [("background", "school")]
    assert RUBRIC.task("book-review") in str(world.providers[0].prompts[0])


async def test_an_idle_grader_is_woken_and_does_not_wait_for_its_next_look(tmp_path: Path) -> None:
    """The next look is two minutes off, beyond the guard; scripts/bench/queue has the figures."""
    async with open_world(tmp_path, lease_s=600.0) as world, grading(world):
        for number in range(20):
            await trio.sleep(0.01)
            await world.queue.submit(essay(f"s{number}", text=f"Essay {number}."))
            await world.ended(f"s{number}")


async def test_no_more_than_the_concurrency_is_worked_on_at_once(tmp_path: Path) -> None:
    provider = FakeProvider(replies=[0.02] * 12)
    async with open_world(tmp_path, provider, concurrency=3) as world:
        for number in range(12):
            await world.queue.submit(essay(f"s{number}"))
        async with grading(world):
            await world.mails(12)
    assert provider.running_peak == 3


async def test_every_shard_is_served(tmp_path: Path) -> None:
    async with open_world(tmp_path, shards=3) as world, grading(world):
        orgs = [f"org-{number}" for number in range(9)]
        assert {world.queue.shard(org) for org in orgs} == {0, 1, 2}
        for org in orgs:
            await world.queue.submit(essay(f"of-{org}", org=org))
        await world.mails(len(orgs))


# -- failure -----------------------------------------------------------------------------------


def fault(kind: str, retry_after_s: float | None = None) -> ProviderError:
    return ProviderError(kind, kind=kind, provider="opus", retry_after_s=retry_after_s)  # type: ignore[arg-type]


async def test_a_judge_that_fails_once_is_asked_again_later(tmp_path: Path) -> None:
    provider = FakeProvider(replies=[fault("cut")])
    async with open_world(tmp_path, provider) as world, grading(world):
        await world.queue.submit(essay())
        assert (await world.ended()).status == "graded"
    assert len(provider.prompts) == 2


async def test_an_essay_that_fails_too_often_is_given_up_and_the_student_told(
    tmp_path: Path,
) -> None:
    provider = FakeProvider(replies=[fault("cut")] * 99)
    async with open_world(tmp_path, provider, attempts_max=3) as world, grading(world):
        await world.queue.submit(essay())
        state = await world.ended()
        (mail,) = await world.mails()
        assert await broken_invariants(world.redis) == []
    assert state.failure is not None
    assert state.failure.attempts == len(provider.prompts) == 3
    assert "cut" in state.failure.reason
    message = msgspec.json.decode(mail["payload"], type=wire.Error)
    assert (mail["kind"], message.submission) == ("failed", "s1")
    assert (message.code, message.message) == (state.failure.code, state.failure.message)


async def test_a_hopeless_essay_is_given_up_at_once(tmp_path: Path) -> None:
    provider = FakeProvider(replies=[fault("filtered")])
    async with open_world(tmp_path, provider) as world, grading(world):
        await world.queue.submit(essay())
        assert (await world.ended()).status == "failed"
    assert len(provider.prompts) == 1


@pytest.mark.parametrize("kind", ["unreachable", "server_error", "rate_limited"])
async def test_while_the_provider_is_away_essays_wait_and_no_attempt_counts(
    tmp_path: Path, kind: str
) -> None:
    provider = FakeProvider(replies=[fault(kind, retry_after_s=0.01)] * 9)
    async with open_world(tmp_path, provider, attempts_max=1) as world, grading(world):
        await world.queue.submit(essay())
        assert (await world.ended()).status == "graded"
    assert len(provider.prompts) == 10


async def test_while_the_budget_refuses_essays_wait(tmp_path: Path) -> None:
    async with open_world(tmp_path, attempts_max=1) as world, grading(world):
        world.budget.refuse = Overloaded("the line is full", retry_after_s=0.02)
        await world.queue.submit(essay())
        await trio.sleep(0.1)
        state = await world.queue.get("school", "s1")
        assert state is not None
        assert state.status in ("queued", "grading")
        world.budget.refuse = None
        assert (await world.ended()).status == "graded"


async def test_a_bug_costs_its_essay_and_not_the_grader(tmp_path: Path) -> None:
    provider = FakeProvider(replies=[ZeroDivisionError("bug")] * 2)
    with capture_logs() as logs:
        async with open_world(tmp_path, provider, attempts_max=2) as world, grading(world):
            await world.queue.submit(essay())
            state = await world.ended()
            await world.queue.submit(essay("s2"))
            assert (await world.ended("s2")).status == "graded"
    assert [entry["event"] for entry in logs].count("grading_failed") == 2
    assert state.failure is not None
    assert state.failure.code == "internal"
    assert "ZeroDivisionError" in state.failure.reason


async def test_an_essay_whose_graders_die_is_given_up_in_the_end(tmp_path: Path) -> None:
    async with open_world(tmp_path, attempts_max=2) as world:
        await world.queue.submit(essay())
        for _ in range(2):
            await take(world.queue)
            await let_leases_run_out(world.redis, world.queue)
        async with grading(world):
            state = await world.ended()
            assert len(await world.mails()) == 1
    assert state.failure is not None
    assert state.failure.reason == "2 attempts did not end"
    assert world.providers[0].prompts == []


async def test_a_kind_that_the_grader_does_not_know_is_a_dead_letter_to_be_replayed(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world, grading(world):
        await world.queue.submit(essay(kind="webhook", lane="background"))
        state = await world.ended()
    assert state.failure is not None
    assert "update them, then `coach queue retry`" in state.failure.reason
    assert world.providers[0].prompts == []


async def test_a_grader_that_waits_goes_on_as_soon_as_its_lane_is_resumed(tmp_path: Path) -> None:
    async with open_world(tmp_path, lease_s=60.0, heartbeat_s=10.0) as world, grading(world):
        desk = Desk(world.redis, world.settings)
        await desk.set_mode(["submission"], "paused")
        await world.queue.submit(essay())
        await trio.sleep(0.1)
        assert world.providers[0].prompts == []
        await desk.set_mode(["submission"], "open")
        with trio.fail_after(0.5):
            await world.ended()


# -- the panel ---------------------------------------------------------------------------------


async def test_a_retry_pays_only_for_the_judges_still_missing(tmp_path: Path) -> None:
    """Of two judges one fails: the quorum is two, so the job is retried; the other's stays."""
    steady = FakeProvider(name="steady")
    shaky = FakeProvider(name="shaky", replies=[fault("cut"), fault("stalled")])
    async with open_world(tmp_path, steady, shaky) as world, grading(world):
        await world.queue.submit(essay())
        state = await world.ended()
    assert (len(steady.prompts), len(shaky.prompts)) == (1, 3)
    assert state.grade is not None
    assert (state.grade.judges, state.grade.degraded) == (2, False)
    assert state.grade.usage.output == 2 * USAGE.output


async def test_with_a_quorum_the_grade_is_given_and_marked(tmp_path: Path) -> None:
    panel = [FakeProvider(name=name) for name in ("a", "b")]
    broken = FakeProvider(name="c", replies=["not JSON", "still not"])
    async with open_world(tmp_path, *panel, broken) as world, grading(world):
        await world.queue.submit(essay())
        grade = (await world.ended()).grade
    assert grade is not None
    assert (grade.judges, grade.degraded) == (2, True)
    assert grade.usage.output == 4 * USAGE.output  # the broken judge's two answers were paid


async def test_at_the_deadline_a_quorum_gives_the_grade_and_says_who_was_late(
    tmp_path: Path,
) -> None:
    panel = [FakeProvider(name="a"), FakeProvider(name="b"), FakeProvider(name="c", replies=[9.0])]
    async with open_world(tmp_path, *panel, deadline_s=0.4) as world, grading(world):
        await world.queue.submit(essay())
        grade = (await world.ended()).grade
        (mail,) = await world.mails()
    assert grade is not None
    assert (grade.judges, grade.degraded_reason) == (2, "2 of 3 judges answered: c late")
    assert 0.3 < grade.seconds < 2
    told = msgspec.json.decode(mail["payload"], type=wire.Grade)
    assert (told.degraded, told.degraded_reason) == (True, grade.degraded_reason)
    assert told.bands_apart == grade.bands_apart == 0
    assert world.budget.open == 0


async def test_without_a_quorum_at_the_deadline_the_student_is_told_and_the_essay_tried_again(
    tmp_path: Path,
) -> None:
    panel = [FakeProvider(name="a"), FakeProvider(name="b", replies=[9.0])]
    async with open_world(tmp_path, *panel, deadline_s=0.2) as world, grading(world):
        await world.queue.submit(essay())
        state = await world.ended()
        first, second = await world.mails(2)
    assert state.grade is not None
    assert (first["kind"], second["kind"]) == ("grading", "grade")
    assert msgspec.json.decode(first["payload"], type=wire.Grading).delayed
    assert [len(provider.prompts) for provider in panel] == [1, 2]  # the answer was kept


async def test_judges_are_asked_at_the_same_time(tmp_path: Path) -> None:
    panel = [FakeProvider(name=name, replies=[0.3]) for name in ("a", "b", "c")]
    async with open_world(tmp_path, *panel) as world, grading(world):
        await world.queue.submit(essay())
        grade = (await world.ended()).grade
    assert grade is not None
    assert grade.seconds < 0.6


# -- leases ------------------------------------------------------------------------------------


async def test_a_heartbeat_holds_a_job_that_takes_longer_than_its_lease(tmp_path: Path) -> None:
    provider = FakeProvider(replies=[1.0])
    async with (
        open_world(tmp_path, provider, lease_s=0.3, heartbeat_s=0.1) as world,
        grading(world),
    ):
        await world.queue.submit(essay())
        await world.ended()
    assert len(provider.prompts) == 1


async def test_a_grader_that_lost_its_lease_drops_its_work(tmp_path: Path) -> None:
    """Its judge is cancelled, its result is not written, another attempt grades the essay once."""
    provider = FakeProvider(replies=[30.0])
    async with open_world(tmp_path, provider, heartbeat_s=0.05) as world, grading(world):
        await world.queue.submit(essay())
        await until(lambda: provider.running)
        assert await let_leases_run_out(world.redis, world.queue) == (0, 1)
        with trio.fail_after(2):
            assert (await world.ended()).status == "graded"
        assert len(await world.mails()) == 1
        await until(lambda: not provider.running, within_s=1.0)
    assert len(provider.prompts) == 2


async def test_a_grader_gives_its_work_up_when_redis_is_gone_for_a_lease(tmp_path: Path) -> None:
    """It cannot know that nobody else has the job by now."""
    provider = FakeProvider(replies=[30.0])
    async with open_world(tmp_path, provider, lease_s=0.4, heartbeat_s=0.1) as world:
        deaf = _KillableQueue(world.redis, world.settings)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(world.run_grader, deaf))
            await world.queue.submit(essay())
            await until(lambda: provider.running)
            deaf.killed = True
            with trio.fail_after(1.0):
                await until(lambda: not provider.running)
            nursery.cancel_scope.cancel()
        async with grading(world):
            assert (await world.ended()).status == "graded"


# -- the end of a grader -----------------------------------------------------------------------


async def test_told_to_stop_it_finishes_what_it_has_and_claims_nothing_more(
    tmp_path: Path,
) -> None:
    provider = FakeProvider(replies=[0.2])
    async with open_world(tmp_path, provider) as world:
        async with grading(world):
            await world.queue.submit(essay("s1"))
            await until(lambda: provider.running)
            world.stopping.set()
            await trio.sleep(0.05)
            await world.queue.submit(essay("s2"))
        assert (await world.ended("s1")).status == "graded"
        state = await world.queue.get("school", "s2")
        assert state is not None
        assert state.status == "queued"
        assert await broken_invariants(world.redis) == []


async def test_what_it_cannot_finish_in_the_drain_time_it_hands_back(tmp_path: Path) -> None:
    """At once to the others, not after the lease; and the attempt does not count."""
    provider = FakeProvider(replies=[30.0, 30.0])
    async with open_world(tmp_path, provider, drain_s=0.1, lease_s=60.0, heartbeat_s=1.0) as world:
        with trio.fail_after(2):
            async with grading(world):
                await world.queue.submit(essay("s1"))
                await world.queue.submit(essay("s2"))
                await until(lambda: provider.running == 2)
        claims = [await take(world.queue), await take(world.queue)]
        assert [(claim.id, claim.failures) for claim in claims] == [("s1", 0), ("s2", 0)]


async def test_an_idle_grader_stops_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        with trio.fail_after(1):
            async with grading(world):
                await trio.sleep(0.05)


async def test_a_grader_that_stops_as_it_is_woken_wakes_another(tmp_path: Path) -> None:
    """Else the job's only marker would be gone with it."""

    class StopsWhenWoken(Queue):
        async def wait(self, shard: int, lanes: Any, *, at_most_s: float) -> bool:
            assert await super().wait(shard, lanes, at_most_s=at_most_s)
            world.stopping.set()
            await trio.sleep_forever()

    async with open_world(tmp_path, lease_s=60.0) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.run_grader, StopsWhenWoken(world.redis, world.settings))
            await trio.sleep(0.05)
            await world.queue.submit(essay())
        assert world.providers[0].prompts == []
        assert await world.queue.wait(0, LANES, at_most_s=0.1)


async def test_cancelled_at_every_step_no_essay_is_lost_graded_twice_or_left_leased(
    tmp_path: Path,
) -> None:
    """Cancel a grader at the n-th step of the whole run, for every n until it gets through.

    After each the essay is graded and pushed, or it can be claimed again at once.
    """
    async with open_world(tmp_path, lease_s=60.0, heartbeat_s=10.0) as world:
        graded_undisturbed = 0
        outcomes: Counter[str] = Counter()
        for step in range(1, 1_000):
            id_ = f"s{step}"
            await world.queue.submit(essay(id_))
            with trio.CancelScope() as scope:
                saboteur = _CancelAt(scope, step)
                trio.lowlevel.add_instrument(saboteur)
                try:
                    await _grade_one(world, id_)
                finally:
                    trio.lowlevel.remove_instrument(saboteur)
            state = await world.queue.get("school", id_)
            assert state is not None
            pushed = [mail["submission"] for mail in await mailed(world.redis)].count(id_)
            outcomes[state.status] += 1
            assert world.budget.open == 0
            if state.status == "graded":
                assert pushed == 1, step
            else:
                assert (state.status, pushed) == ("queued", 0), step
                claim = await take(world.queue)
                assert (claim.id, claim.failures) == (id_, 0)
                assert await world.queue.fail(claim, reason="tidy", final=True) is not None
            assert await broken_invariants(world.redis) == []
            graded_undisturbed = 0 if scope.cancel_called else graded_undisturbed + 1
            if graded_undisturbed == 3:
                break
        assert graded_undisturbed == 3
        assert outcomes["queued"] > 10


async def _grade_one(world: World, id_: str) -> None:
    """Run a grader until the essay is graded."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run_grader)
        await world.ended(id_)
        while id_ not in [mail["submission"] for mail in await mailed(world.redis)]:
            pass
        nursery.cancel_scope.cancel()


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope after so many steps of any task."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._steps_left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps_left -= 1
        if self._steps_left == 0:
            self._scope.cancel("injected")


# -- many essays, graders that come and go -----------------------------------------------------


class _KillableQueue(Queue):
    """The queue as a process sees it that may be killed: from then on nothing reaches Redis."""

    killed = False
    finished: list[tuple[str, int]]

    def __init__(self, redis: Redis, settings: config.Grading) -> None:
        super().__init__(redis, settings)
        self.finished = []
        """Submission and attempt of each grade that this process knows to be written."""

    async def _check(self) -> None:
        if self.killed:
            await trio.lowlevel.checkpoint()
            raise RedisError("killed")

    async def claim(self, shard: int, lanes: Any) -> Claim | float | None:
        await self._check()
        return await super().claim(shard, lanes)

    async def heartbeat(self, claim: Claim) -> bool:
        await self._check()
        return await super().heartbeat(claim)

    async def finish(self, claim: Claim, grade: Grade) -> Receiver | None:
        await self._check()
        receiver = await super().finish(claim, grade)
        if receiver is not None:
            self.finished.append((claim.id, claim.attempt))
        return receiver

    async def fail(self, claim: Claim, **details: Any) -> Any:
        await self._check()
        return await super().fail(claim, **details)

    async def release(self, claim: Claim) -> bool:
        await self._check()
        return await super().release(claim)

    async def promote(self, shard: int) -> tuple[int, int]:
        await self._check()
        return await super().promote(shard)


@pytest.mark.parametrize("seed", range(3))
async def test_essays_outlive_graders_that_are_cancelled_or_killed(
    tmp_path: Path, seed: int
) -> None:
    """100 essays, 4 graders, each cancelled or killed again and again: one grade, one push each.

    A kill just between storing a grade and mailing it is left out: then nobody is told, and the
    student's session finds the grade in the record.
    """
    rng = random.Random(seed)

    async def answer(prompt: Prompt) -> str:
        await trio.sleep(rng.uniform(0, 0.05))
        if rng.random() < 0.1:
            raise fault(rng.choice(["cut", "unreachable", "rate_limited"]), retry_after_s=0.01)
        return judged(essay_in(prompt))

    provider = FakeProvider(answer=answer)
    queues: list[_KillableQueue] = []
    async with open_world(
        tmp_path, provider, lease_s=0.4, heartbeat_s=0.1, attempts_max=100, concurrency=4
    ) as world:

        async def live_and_die(name: str) -> None:
            while True:
                queue = _KillableQueue(world.redis, world.settings)
                queues.append(queue)
                with trio.move_on_after(rng.uniform(0.01, 0.3)):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(partial(world.run_grader, queue, name))
                        await trio.sleep(rng.uniform(0.01, 0.3))
                        queue.killed = rng.random() < 0.5
                        nursery.cancel_scope.cancel()

        ids = [f"s{number}" for number in range(100)]
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(live_and_die, f"grader-{number}")
            for id_ in ids:
                await world.queue.submit(
                    essay(id_, text=f"The essay {id_}.", lane=rng.choice(LANES))
                )
                await trio.sleep(rng.uniform(0, 0.01))
            with trio.fail_after(30):
                for id_ in ids:
                    assert (await world.ended(id_)).status == "graded"
            await world.mails(len(ids))
            await trio.sleep(0.5)  # what would be told twice would be told by now
            nursery.cancel_scope.cancel()

        grades = Counter(id_ for queue in queues for id_, _ in queue.finished)
        assert grades == Counter(ids)
        assert Counter(mail["submission"] for mail in await mailed(world.redis)) == Counter(ids)
        for id_ in ids:
            grade = (await world.ended(id_)).grade
            assert grade is not None
            assert grade.criteria[0].evidence == f"The essay {id_}."
        assert await broken_invariants(world.redis) == []
        statistics = await world.queue.statistics()
        assert (statistics.delayed, statistics.leased, statistics.dead) == (0, 0, 0)
        assert world.budget.open == 0


async def test_the_essays_of_an_org_without_money_wait_and_no_judge_is_asked(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world:
        exhaust(world.costs)
        await world.queue.submit(essay())
        async with grading(world):
            with trio.fail_after(DONE_S_MAX):
                while not (await world.queue.statistics()).delayed:  # noqa: ASYNC110  in Redis
                    await trio.sleep(0.01)
        state = await world.queue.get("school", "s1")
        assert state is not None
        assert state.status == "queued"
        assert world.providers[0].prompts == []
        assert reasons(world.costs) == {}


async def test_a_grade_is_by_the_calibration_in_use_and_says_so(tmp_path: Path) -> None:
    """In the record and in the student's mail alike; the bands stay as they were judged."""
    text = essay().text
    providers = [FakeProvider(replies=[judged(text[:10], band=3)])]
    calibration = Calibration(
        rubric=RUBRIC.fingerprint(),
        models={"opus": "judge-1"},
        lines={"opus": Line(-8.0, 1.0)},
        margins={"opus": 6},
        coverage=0.9,
        source="class.csv",
        essays=100,
        made_at=1.0,
    )
    async with open_world(tmp_path, *providers) as world, trio.open_nursery() as nursery:
        version = await keep_calibration(world.redis, calibration)
        world.calibrations = Calibrations(RUBRIC)
        await nursery.start(world.calibrations.run, world.redis)
        await world.queue.submit(essay())
        async with grading(world):
            grade = (await world.ended()).grade
            (mail,) = await world.mails()
        nursery.cancel_scope.cancel()
    assert grade is not None
    assert (grade.score, grade.calibration) == (52, version)
    assert (grade.interval, grade.coverage) == ((46, 58), 0.9)
    assert {each.band for each in grade.criteria} == {3}
    told = msgspec.json.decode(mail["payload"], type=wire.Grade)
    assert (told.score, told.calibration, told.interval, told.coverage) == (52, 1, (46, 58), 0.9)
