"""Users for whom a part of coach is off: the usual way is gone instead, and said to be."""

from __future__ import annotations

import pytest

from coach import config
from coach.errors import RateLimited
from coach.session import wire

from .test_failover import ask
from .world import World, says


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
