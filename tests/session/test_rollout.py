"""Users for whom a part of coach is off: the usual way is gone instead, and said to be."""

from __future__ import annotations

import pytest

from coach import config
from coach.errors import ProviderUnavailable, RateLimited
from coach.session import wire
from tests.support.costs import exhaust

from .test_failover import ask
from .world import GRADE, World, says, state


async def test_for_whom_a_flag_is_off_goes_the_usual_way_and_says_so() -> None:
    """No budget is asked, and nothing of it is settled."""
    world = World(says("a"), rollout=config.Rollout(backpressure=0))
    told, error = await ask(world)
    assert error is None
    started = told.messages[0]
    assert isinstance(started, wire.Started)
    assert started.flags_off == ("backpressure",)
    assert (world.budget.ended, world.streams) == ([], 1)


async def test_for_whom_limits_are_not_shared_the_worker_counts_alone() -> None:
    """Redis is not asked; the worker's own limit refuses as the shared one would."""
    own = config.Limits(user_requests_per_minute=1)
    world = World(says("a"), rollout=config.Rollout(shared_limits=0), own_limits=own)
    _, error = await ask(world)
    assert error is None
    assert world.wanted == []
    services = world.services()
    async with services.limits_of("ana").reserve(user="ana", org="o", tokens=1) as reservation:
        reservation.settle(1)
    with pytest.raises(RateLimited, match="your limit of 1 requests"):
        async with services.limits_of("ana").reserve(user="ana", org="o", tokens=1):
            pass


async def test_a_request_over_its_own_connection_is_asked_of_the_same_endpoint() -> None:
    world = World(says("a"), rollout=config.Rollout(pool=0))
    told, error = await ask(world)
    assert error is None
    assert told.kinds == ["started", "delta", "done"]
    assert len(world.budget.ended) == 1


async def test_without_the_queue_an_essay_is_graded_at_once_and_said_to_be() -> None:
    world = World(says(), rollout=config.Rollout(queue=0, pool=0))
    async with world.student() as student:
        await student.submit("s1")
        grading, grade = await student.until("grade", "error")
    assert (grading["type"], grading["flags_off"]) == ("grading", ["pool", "queue"])
    assert (grade["submission"], grade["score"]) == ("s1", GRADE.score)
    ((submission, off),) = world.graded_at_once
    assert (submission.id, submission.org, off) == ("s1", "school", {"pool", "queue"})
    assert world.submitted == []
    assert world.limits.ended == [0]


async def test_without_the_queue_a_late_grade_is_announced() -> None:
    world = World(says(), rollout=config.Rollout(queue=0), grade_s=9.0)
    async with world.student() as student:
        await student.submit("s1")
        told = await student.until("grade", "error")
    assert [message.get("delayed", message["type"]) for message in told] == [
        "grading",
        True,
        "grade",
    ]


async def test_without_the_queue_judges_that_are_away_end_it_with_an_error() -> None:
    """Nobody tries again: that is what the queue is for."""
    away = ProviderUnavailable("the essay could not be graded", retry_after_s=3.0)
    world = World(says(), rollout=config.Rollout(queue=0), no_grade=away)
    async with world.student() as student:
        await student.submit("s1")
        *_, error = await student.until("grade", "error")
    assert (error["code"], error["retry_after_ms"]) == ("provider_unavailable", 3000)
    assert (error["submission"], len(world.graded_at_once)) == ("s1", 1)


async def test_an_essay_that_the_queue_knows_stays_there_when_the_flag_is_turned_off() -> None:
    world = World(says())
    async with world.student() as student:
        await student.submit("s1")
        await student.until("grading")
    world.rollout = config.Rollout(queue=0)
    world.states["s1"] = state(world.submitted[0], "graded", grade=GRADE)
    world.inbox.essays.clear()  # or the grade would be told before it is asked for
    async with world.student() as student:
        await student.submit("s1")
        *_, grade = await student.until("grade", "error")
    assert grade["score"] == GRADE.score
    assert (len(world.submitted), world.graded_at_once) == (2, [])


async def test_an_essay_that_waits_for_money_waits_in_the_queue() -> None:
    world = World(says(), rollout=config.Rollout(queue=0))
    exhaust(world.costs, "school")
    async with world.student() as student:
        await student.submit("s1")
        *_, error = await student.until("error")
    assert "handed in and kept" in error["message"]
    assert (len(world.submitted), world.graded_at_once) == (1, [])
