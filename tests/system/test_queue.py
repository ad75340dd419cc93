"""Acknowledged is graded: graders are killed at random and Redis twice, while a school hands in."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from coach.child import Process, exited
from coach.errors import Overloaded
from coach.grading import Queue, Submission
from coach.store import RedisError, open_embedded, open_redis
from tests.support.stack import start_python
from tests.system.claimer import OPTIONS

pytestmark = pytest.mark.real_time

ESSAYS = 300
ORGS = 20
RESTARTS = 2
KILLS_MIN = 3
CLAIMERS = 3
CLAIMER_S = (0.2, 0.6)
"""How long the next to be killed lives on, from when it is seen to work."""
HANDED_IN_S = 4.0
GRADED_S_MAX = 40.0


@attrs.define
class Claimers:
    """Processes that grade, each replaced when it is killed."""

    folder: Path
    url: str
    rng: random.Random
    running: list[tuple[str, Process]] = attrs.field(factory=list)
    """By seed, the oldest first."""
    started: int = 0
    kills: int = 0

    def start(self) -> None:
        """Start one more."""
        seed = str(self.started)
        self.started += 1
        command = ["-m", "tests.system.claimer", self.url, str(self.folder / "log"), seed]
        self.running.append((seed, start_python(command, self.folder / "claimers.log")))

    def log(self) -> list[tuple[str, ...]]:
        """What all of them have written, in order."""
        path = self.folder / "log"
        return [tuple(line.split()) for line in path.read_text().splitlines()]

    async def live_and_die(self) -> None:
        """Kill one after the other, each at work, until cancelled."""
        while True:
            seed, victim = self.running[0]
            with trio.fail_after(GRADED_S_MAX):
                while ("began", seed) not in self.log():  # noqa: ASYNC110  another process
                    await trio.sleep(0.05)
            await trio.sleep(self.rng.uniform(*CLAIMER_S))
            os.kill(victim.pid, signal.SIGKILL)
            await exited(victim)
            self.running.pop(0)
            self.kills += 1
            self.start()


@asynccontextmanager
async def open_claimers(folder: Path, url: str, rng: random.Random) -> AsyncIterator[Claimers]:
    claimers = Claimers(folder, url, rng)
    (folder / "log").touch()
    for _ in range(CLAIMERS):
        claimers.start()
    try:
        yield claimers
    finally:
        for _, process in claimers.running:
            process.kill()
            process.wait()


async def test_what_was_acknowledged_has_one_grade_whoever_is_killed(tmp_path: Path) -> None:
    """300 essays of 20 orgs: one grade each, no answer paid twice once kept, no push twice."""
    rng = random.Random(11)
    async with (
        open_embedded(tmp_path / "valkey") as server,
        open_redis(server.url, wait_s=8) as redis,
        open_claimers(tmp_path, server.url, rng) as claimers,
    ):
        queue = Queue(redis, OPTIONS)
        essays = [_essay(number) for number in range(ESSAYS)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(claimers.live_and_die)
            async with trio.open_nursery() as students:
                for one in essays:
                    students.start_soon(_hand_in, queue, one, rng.uniform(0, HANDED_IN_S))
                for _ in range(RESTARTS):
                    await trio.sleep(HANDED_IN_S / (RESTARTS + 1))
                    os.kill(server.pid, signal.SIGKILL)
            began = trio.current_time()
            with trio.fail_after(GRADED_S_MAX):
                while await _unfinished(queue):  # noqa: ASYNC110  other processes have no events
                    await trio.sleep(0.05)
            graded_s = trio.current_time() - began
            nursery.cancel_scope.cancel("all are graded")
        for one in essays:
            state = await queue.get(one.org, one.id)
            assert state is not None
            assert state.grade is not None, state
            assert state.grade.criteria[0].evidence == one.text
        log = claimers.log()
        again = paid_again(log)
        print(  # noqa: T201  the figures behind a pass, for `pytest -s`
            f"{claimers.kills} graders killed; all graded {graded_s:.1f} s after the last essay; "
            f"{sum(line[0] == 'asked' for line in log)} answers asked for, "
            f"{len({line for line in log if line[0] == 'saved'})} kept"
        )
        assert claimers.kills >= KILLS_MIN
        assert again == []
        # Nobody's essay was finished by two attempts; one may have been told so twice.
        finished = {line for line in log if line[0] == "finished"}
        assert len({id_ for _, id_, _ in finished}) == len(finished)
        mails = await redis.execute_command("XRANGE", "mail:w0-1", "-", "+")
        pushed = Counter(fields[b"submission"].decode() for _, fields in mails)
        assert set(pushed.values()) == {1}
        # A grader killed between storing a grade and telling of it tells nobody: the record does.
        assert len(pushed) >= ESSAYS - (claimers.kills + CLAIMERS * RESTARTS) * OPTIONS.concurrency
        statistics = await queue.statistics()
        assert (statistics.delayed, statistics.leased, statistics.dead) == (0, 0, 0)
        assert "Traceback" not in (tmp_path / "claimers.log").read_text()


def paid_again(log: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Whom of the judges somebody asked although the answer was kept already."""
    kept: set[tuple[str, ...]] = set()
    again = []
    for event, *about in log:
        if event == "saved":
            kept.add(tuple(about))
        elif event == "asked" and tuple(about) in kept:
            again.append(tuple(about))
    return again


def _essay(number: int) -> Submission:
    return Submission(
        id=f"s{number}",
        user=f"student-{number}",
        org=f"org-{number % ORGS}",
        assignment="free",
        text=f"s{number} is what this student has to say.",
        worker="w0-1",
        session="sid",
    )


async def _hand_in(queue: Queue, one: Submission, after_s: float) -> None:
    """As clients do: until it is acknowledged, under the same id."""
    await trio.sleep(after_s)
    while True:
        try:
            await queue.submit(one)
        except (RedisError, Overloaded):
            await trio.sleep(0.1)
        else:
            return


async def _unfinished(queue: Queue) -> int:
    try:
        return sum(lane.unfinished for lane in (await queue.statistics()).lanes.values())
    except RedisError:
        return 1
