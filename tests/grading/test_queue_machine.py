"""Any sequence of operations on the real scripts does what a model of plain dictionaries does.

The model knows of each job where it is and who may change it, and computes the order of claims by
itself. Leases and delays end by a rule, never by time.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

import attrs
import msgspec
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from coach.errors import Conflict, Forbidden, Overloaded
from coach.grading.desk import Desk
from coach.grading.jobs import Claim
from coach.grading.queue import Queue
from coach.grading.records import LANES, Lane
from coach.grading.scripts import UNIT
from coach.store import Redis, open_redis
from tests.store.nodes import HOST, open_node

from .support import GRADE, SETTINGS, broken_invariants, essay

FAILURES_MAX = 2
WEIGHTS = {"b": 2, "c": 3}
OPTIONS = msgspec.structs.replace(
    SETTINGS,
    lease_s=600.0,
    attempts_max=FAILURES_MAX,
    weights=WEIGHTS,
    retry_per_s=1_000_000,
    retry_burst=1_000_000,
)
NAMES = st.sampled_from(["p", "q", "r", "s", "t", "u"])
ORGS = st.sampled_from(["a", "b", "c"])
SOME_LANES = st.sampled_from([LANES, LANES[1:], LANES[:1], (LANES[2], LANES[0])])
PICK = st.integers(min_value=0, max_value=99)


@attrs.define
class Modelled:
    """A job as the model has it."""

    org: str
    lane: Lane
    text: str
    start: int
    arrival: int
    place: str = "ready"
    """ready, delayed, leased, dead, graded or cancelled."""
    attempt: int = 0
    failures: int = 0
    ended_by: int = 0
    """The attempt that graded it or gave it up; 0: nobody, or an operator."""
    is_due: bool = False
    """Its delay or its lease has run out."""


class Portal:
    """A client on a server of its own, in a thread with a trio of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: SimpleQueue[Any] = SimpleQueue()
        self._closing = trio.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)
        self._thread.start()
        self.redis: Redis
        self.redis, self._token = self._opened.get(timeout=20)

    async def _run(self) -> None:
        async with (
            open_node(self._folder, "--appendonly", "yes", "--appendfsync", "always") as node,
            open_redis(f"redis://{HOST}:{node.port}") as redis,
        ):
            self._opened.put((redis, trio.lowlevel.current_trio_token()))
            await self._closing.wait()

    def __call__(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        return trio.from_thread.run(operation, trio_token=self._token)

    def close(self) -> None:
        self._token.run_sync_soon(self._closing.set)
        self._thread.join(10)


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[Portal]:
    opened = Portal(tmp_path)
    yield opened
    opened.close()


class QueueMachine(RuleBasedStateMachine):
    portal: ClassVar[Portal]

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue(self.portal.redis, OPTIONS)
        self.desk = Desk(self.portal.redis, OPTIONS)
        self.jobs: dict[str, Modelled] = {}
        self.claims: list[Claim] = []
        """Every claim ever made, those that were lost too."""
        self.clock = dict.fromkeys(LANES, 0)
        self.finish_tags: dict[tuple[Lane, str], int] = {}
        self.mode = dict.fromkeys(LANES, "open")
        self.arrivals = 0
        self.portal(partial(self.portal.redis.execute_command, "FLUSHALL"))

    def run(self, operation: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Any:
        return self.portal(partial(operation, *args, **named))

    # -- the model's order ---------------------------------------------------------------------

    def place(self, org: str, lane: Lane) -> int:
        start = max(self.clock[lane], self.finish_tags.get((lane, org), 0))
        self.finish_tags[lane, org] = start + UNIT // WEIGHTS.get(org, 1)
        return start

    def tidy(self, lane: Lane) -> None:
        """With nobody waiting in a lane, nobody is ahead."""
        if not any(job.place == "ready" and job.lane == lane for job in self.jobs.values()):
            for key in [key for key in self.finish_tags if key[0] == lane]:
                del self.finish_tags[key]

    def promote(self) -> None:
        for job in self.jobs.values():
            if job.is_due:
                job.failures += job.place == "leased"
                job.place, job.is_due = "ready", False

    def holds(self, claim: Claim) -> Modelled | None:
        job = self.jobs[claim.id]
        return job if (job.place, job.attempt) == ("leased", claim.attempt) else None

    # -- students ------------------------------------------------------------------------------

    @rule(id_=NAMES, org=ORGS, lane=st.sampled_from(LANES), text=st.sampled_from(["x", "y"]))
    def submit(self, id_: str, org: str, lane: Lane, text: str) -> None:
        one = essay(id_, org=org, lane=lane, text=text)
        known = self.jobs.get(id_)
        if known is not None and known.org != org:
            with pytest.raises(Forbidden):
                self.run(self.queue.submit, one)
        elif known is not None and known.text != text:
            with pytest.raises(Conflict):
                self.run(self.queue.submit, one)
        elif known is None and self.mode[lane] == "draining":
            with pytest.raises(Overloaded):
                self.run(self.queue.submit, one)
        else:
            if known is None:
                self.arrivals += 1
                self.jobs[id_] = known = Modelled(
                    org, lane, text, self.place(org, lane), self.arrivals
                )
            assert self.run(self.queue.submit, one).status == status_of(known)

    # -- graders -------------------------------------------------------------------------------

    @rule(lanes=SOME_LANES, count=st.sampled_from([1, 1, 3]))
    def claim(self, lanes: tuple[Lane, ...], count: int) -> None:
        claims, due_s = self.run(self.queue.claim_many, 0, lanes, count)
        self.promote()
        expected: list[tuple[str, Lane, int, int]] = []
        for lane in lanes:
            ready = [
                (job.start, job.arrival, id_)
                for id_, job in self.jobs.items()
                if job.place == "ready" and job.lane == lane and self.mode[lane] != "paused"
            ]
            for start, _, id_ in sorted(ready)[: count - len(expected)]:
                job = self.jobs[id_]
                job.place, job.attempt = "leased", job.attempt + 1
                self.clock[lane] = max(self.clock[lane], start)
                expected.append((id_, lane, job.attempt, job.failures))
            self.tidy(lane)
        assert [(c.id, c.lane, c.attempt, c.failures) for c in claims] == expected
        taken = {id_ for id_, *_ in expected}
        waiting = [
            id_
            for id_, job in self.jobs.items()
            if job.place in ("delayed", "leased") and id_ not in taken
        ]
        assert (due_s is None) == (not waiting)
        self.claims += claims

    @rule()
    def promote_alone(self) -> None:
        due = [job.place for job in self.jobs.values() if job.is_due]
        assert self.run(self.queue.promote, 0) == (due.count("delayed"), due.count("leased"))
        self.promote()
        for lane in LANES:
            self.tidy(lane)

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def heartbeat(self, pick: int) -> None:
        claim = self.claims[pick % len(self.claims)]
        job = self.holds(claim)
        assert self.run(self.queue.heartbeat, claim) == (job is not None)
        if job is not None:
            job.is_due = False

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def save(self, pick: int) -> None:
        claim = self.claims[pick % len(self.claims)]
        assert self.run(self.queue.save, claim, "opus", b"{}") == (self.holds(claim) is not None)

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def finish(self, pick: int) -> None:
        claim = self.claims[pick % len(self.claims)]
        receiver = self.run(self.queue.finish, claim, GRADE)
        job = self.jobs[claim.id]
        if self.holds(claim) is not None:
            job.place, job.ended_by, job.is_due = "graded", claim.attempt, False
        assert (receiver is not None) == ((job.place, job.ended_by) == ("graded", claim.attempt))

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, counted=st.booleans(), final=st.booleans())
    def fail(self, pick: int, counted: bool, final: bool) -> None:
        claim = self.claims[pick % len(self.claims)]
        told = self.run(
            self.queue.fail, claim, reason="no", counted=counted, final=final, delay_s=600
        )
        job = self.jobs[claim.id]
        if self.holds(claim) is not None:
            job.failures += counted or final
            is_dead = job.failures >= (1 if final else FAILURES_MAX)
            job.place, job.is_due = "dead" if is_dead else "delayed", False
            job.ended_by = claim.attempt if is_dead else 0
            assert (told.dead is not None, told.failures) == (is_dead, job.failures)
        elif job.place in ("dead", "cancelled") and job.ended_by == claim.attempt:
            assert told.dead is not None
        else:
            assert told is None

    @precondition(lambda self: self.claims)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        claim = self.claims[pick % len(self.claims)]
        job = self.holds(claim)
        assert self.run(self.queue.release, claim) == (job is not None)
        if job is not None:
            job.place, job.is_due = "ready", False

    # -- time and operators --------------------------------------------------------------------

    @rule(id_=NAMES)
    def time_runs_out(self, id_: str) -> None:
        """A grader has died, or a retry is due."""
        job = self.jobs.get(id_)
        if job is not None and job.place in ("delayed", "leased"):
            job.is_due = True
            key = f"queue:{{0}}:{job.place}"
            self.run(self.portal.redis.execute_command, "ZADD", key, "XX", 1, id_)

    @rule(id_=NAMES)
    def cancel(self, id_: str) -> None:
        found = self.run(self.desk.cancel, id_, reason="spam")
        job = self.jobs.get(id_)
        if job is None or job.place in ("graded", "cancelled"):
            assert found == []
            return
        assert [done.was for done in found] == [job.place]
        job.place, job.is_due = "cancelled", False
        self.tidy(job.lane)

    @rule(id_=NAMES)
    def replay(self, id_: str) -> None:
        found = self.run(self.desk.replay, id_)
        job = self.jobs.get(id_)
        if job is None or job.place in ("graded", "cancelled"):
            assert found == []
            return
        assert [done.was for done in found] == [job.place]
        if job.place == "dead":
            job.start, job.failures, job.ended_by = self.place(job.org, job.lane), 0, 0
        if job.place in ("dead", "delayed"):
            job.place, job.is_due = "ready", False

    @rule(lane=st.sampled_from(LANES), mode=st.sampled_from(["open", "paused", "draining"]))
    def set_mode(self, lane: Lane, mode: Any) -> None:
        unfinished = [
            job.lane == lane and job.place in ("ready", "delayed", "leased")
            for job in self.jobs.values()
        ]
        assert self.run(self.desk.set_mode, [lane], mode) == sum(unfinished)
        self.mode[lane] = mode
        self.tidy(lane)

    # -- always --------------------------------------------------------------------------------

    @invariant()
    def the_scripts_invariants_hold_and_the_counts_are_the_models(self) -> None:
        assert self.run(broken_invariants, self.portal.redis) == []
        statistics = self.run(self.queue.statistics)
        places = [job.place for job in self.jobs.values()]
        assert (statistics.delayed, statistics.leased, statistics.dead) == (
            places.count("delayed"),
            places.count("leased"),
            places.count("dead"),
        )
        for lane in LANES:
            ready = [job for job in self.jobs.values() if (job.lane, job.place) == (lane, "ready")]
            assert statistics.lanes[lane].ready == len(ready)
            assert statistics.lanes[lane].mode == self.mode[lane]


def status_of(job: Modelled) -> str:
    return {"leased": "grading", "graded": "graded", "dead": "failed", "cancelled": "failed"}.get(
        job.place, "queued"
    )


@pytest.mark.real_time
def test_every_sequence_of_operations_does_what_the_model_does(portal: Portal) -> None:
    QueueMachine.portal = portal
    run_state_machine_as_test(
        QueueMachine, settings=settings(max_examples=30, stateful_step_count=30)
    )
