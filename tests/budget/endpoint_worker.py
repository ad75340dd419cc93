"""A worker's share of an endpoint's budget in a process of its own, for a test that kills it.

`python -m tests.budget.endpoint_worker <redis url>` is admitted to the whole quota, lets two more
requests wait in line behind, writes `holding`, and stands still.
"""

from __future__ import annotations

import sys

import trio

from coach import config
from coach.budget import Ask, EndpointBudget, open_endpoint_budget
from coach.store import open_redis

QUOTA = config.Quota(output_tokens_per_minute=100)
WHOLE = Ask(input=10, output=95)
SETTINGS = config.Budget(ticket_lease_s=0.6, reservation_lease_s=1.5)
WAITING = 2


async def main(url: str) -> None:
    """Until it is killed."""
    async with (
        open_redis(url) as redis,
        open_endpoint_budget(
            redis, endpoint="e", quota=QUOTA, settings=SETTINGS, worker="killed"
        ) as budget,
        trio.open_nursery() as requests,
    ):
        for _ in range(1 + WAITING):
            await requests.start(request, budget)
        print("holding", flush=True)  # noqa: T201  the test reads it


async def request(
    budget: EndpointBudget, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """One that does not end; started when it is admitted or in line."""
    told = False

    def in_line(position: int, eta_s: float) -> None:
        nonlocal told
        del position, eta_s
        if not told:
            told = True
            task_status.started()

    async with budget.admit(WHOLE, lane="interactive", org="o", on_position=in_line):
        if not told:
            task_status.started()
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
