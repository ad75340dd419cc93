"""A deploy that nobody notices: two coaches behind HAProxy, restarted one after the other."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio

from coach.simulator.plan import Plan
from coach.simulator.writers import simulate
from tests.support.hosts import Hosts, needs_haproxy, open_hosts

pytestmark = [pytest.mark.real_time, needs_haproxy]

SIMULATOR = ("--number", "true", "--events-per-s", "60", "--judge-ms", "300")


WRITERS = 200


async def restart_everything(hosts: Hosts) -> None:
    await trio.sleep(5)
    for index in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hosts.restart_coach, index)
            nursery.start_soon(hosts.restart_grader, index)


async def test_everything_is_restarted_under_students_and_none_of_them_loses_a_word(
    tmp_path: Path,
) -> None:
    """A quarter have flaky phones, too. Each checks its feedback by the simulator's numbers."""
    plan = Plan(
        writers=WRITERS,
        seconds=28,
        ramp_s=4,
        turn_every_s=30,
        grace_s=30,
        flaky=0.25,
        time_scale=4,
    )
    async with open_hosts(tmp_path, settings="drain_s = 6", simulator=SIMULATOR) as hosts:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(restart_everything, hosts)
            report = await simulate(attrs.evolve(plan, url=hosts.url, persistent=True))
        tally = report.tally
        assert dict(tally.errors) == {}
        assert tally.graded == tally.submissions >= WRITERS
        assert tally.completed >= WRITERS
        assert tally.resumed >= WRITERS, "each was sent elsewhere at least once"
        assert tally.dropped == tally.caught_up == 0
        assert "Traceback" not in hosts.log()
