"""Judges asked in batches: each once, whoever dies; what they leave is asked live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
import trio

from coach.grading.batch import ASKING_S, Batcher, custom_id
from coach.grading.bulk import Feeder, again_id
from coach.grading.judges import Judge, seat_panel
from coach.grading.queue import Queue
from coach.grading.reviews import Reviews
from coach.ops import Costs
from coach.providers import (
    BatchApi,
    BatchRequest,
    BatchResult,
    Completion,
    Found,
    ProviderError,
    Pseudonyms,
)
from coach.store import Redis
from tests.support.cancels import cancel_at_step
from tests.support.costs import exhaust, new_costs, reasons

from .fakes import RUBRIC, USAGE, FakeBudget, FakeProvider, bench_of, essay_in, judged
from .support import GRADE, SETTINGS, essay, open_test_queue, take

pytestmark = pytest.mark.real_time


@attrs.define
class FakeBatches:
    """A provider's batches in memory; each ends when it is told to."""

    has_labels: bool
    """Its list says whose a batch is."""
    batches: dict[str, tuple[str, list[BatchRequest]]] = attrs.field(factory=dict)
    asked: list[str] = attrs.field(factory=list)
    """Every request of every batch."""
    refuse: list[ProviderError] = attrs.field(factory=list)
    lost: list[ProviderError] = attrs.field(factory=list)
    """Raised after the batch was taken in."""
    ended: bool = True
    spoil: dict[int, str] = attrs.field(factory=dict)
    """By seat: "expired", "refused" or what it answers."""

    async def ask(self, requests: Sequence[BatchRequest], *, label: str) -> str:
        await trio.lowlevel.checkpoint()
        if self.refuse:
            raise self.refuse.pop()
        batch = f"batch-{id(self)}-{len(self.batches)}"
        self.batches[batch] = (label, list(requests))
        self.asked += [request.id for request in requests]
        await trio.lowlevel.checkpoint()
        if self.lost:
            raise self.lost.pop()
        return batch

    async def is_ended(self, batch: str) -> bool:
        await trio.lowlevel.checkpoint()
        return self.ended

    async def results(self, batch: str) -> list[BatchResult]:
        await trio.lowlevel.checkpoint()
        return [self._result(request) for request in reversed(self.batches[batch][1])]

    def _result(self, request: BatchRequest) -> BatchResult:
        spoilt = self.spoil.get(int(request.id.rpartition("-")[2]))
        if spoilt in ("expired", "refused"):
            return BatchResult(request.id, spoilt)  # type: ignore[arg-type]
        text = judged(essay_in(request.prompt)[:40], band=4) if spoilt is None else spoilt
        completion = Completion(text=text, usage=USAGE, stop_reason="end_turn", model="m")
        return BatchResult(request.id, "answered", completion)

    async def find(self, label: str, *, since_s: float) -> list[Found]:
        await trio.lowlevel.checkpoint()
        return [
            Found(batch, is_ours=self.has_labels)
            for batch, (labelled, _) in self.batches.items()
            if not self.has_labels or labelled == label
        ]


@attrs.define
class World:
    """Graded essays, two providers with batches, and feeders that come and go."""

    queue: Queue
    redis: Redis
    settings: Any
    apis: dict[str, FakeBatches]
    judges: tuple[Judge, ...]
    costs: Costs
    now: float = 1_000_000.0

    def feeder(self, worker: str = "g1", *, knows: bool = True) -> Feeder:
        """Of a process that has just started; it knows the org's standing or not."""
        apis: dict[str, BatchApi] = dict(self.apis)
        batcher = Batcher(
            self.redis,
            self.queue,
            self.judges,
            apis,
            RUBRIC,
            self.settings,
            costs=self.costs,
            worker=worker,
            wall=lambda: self.now,
        )
        if knows:
            batcher._watched.add("school")
        reviews = Reviews(self.redis, self.queue, self.settings)
        return Feeder(self.redis, self.queue, reviews, self.settings, worker="any", batcher=batcher)

    async def begin(self, *ids: str) -> str:
        for id_ in ids:
            await self.queue.keep(essay(id_), GRADE)
        return await self.feeder().open("school", "regrade", ids, by="eva", way="batch")

    async def answers_of(self, job: str, id_: str) -> set[str]:
        record = await self.redis.execute_command("HKEYS", f"submission:{{0}}:{again_id(job, id_)}")
        return {name.decode() for name in record if name.startswith(b"judge:")}

    @property
    def asked(self) -> list[str]:
        return sorted(id_ for api in self.apis.values() for id_ in api.asked)

    def wanted(self, job: str, *ids: str) -> list[str]:
        return sorted(custom_id(job, id_, seat) for id_ in ids for seat in range(3))


@asynccontextmanager
async def open_batches(
    tmp_path: Path, *, has_labels: bool = True, **changes: Any
) -> AsyncIterator[World]:
    settings = msgspec.structs.replace(SETTINGS, batch_poll_s=0.000_001, **changes)
    async with open_test_queue(tmp_path, settings) as (queue, redis):
        costs = new_costs()
        benches = [bench_of(FakeProvider(name=name), FakeBudget()) for name in ("a", "b")]
        judges = seat_panel(
            benches, RUBRIC, costs=costs, pseudonyms=Pseudonyms("k"), judges=3, fresh=True
        )
        apis = {name: FakeBatches(has_labels) for name in ("a", "b")}
        yield World(queue, redis, settings, apis, judges, costs)


async def test_a_job_goes_by_batches_before_its_essays_go_into_the_queue(tmp_path: Path) -> None:
    async with open_batches(tmp_path) as world:
        world.apis["b"].ended = False
        job = await world.begin("s1", "s2")
        feeder = world.feeder()
        for _ in range(3):
            await feeder.feed(0)
        assert world.asked == world.wanted(job, "s1", "s2")
        assert (await world.queue.statistics()).ready["background"] == 0
        world.apis["b"].ended = True
        for _ in range(2):
            await feeder.feed(0)
        assert (await world.queue.statistics()).ready["background"] == 2
        expected = {"judge:judge-1", "judge:judge-2", "judge:judge-3"}
        assert await world.answers_of(job, "s1") == expected
        claimed = await world.queue.load(await take(world.queue, ("background",)))
        assert claimed is not None
        assert {answer[:13] for answer in claimed.answers.values()} == {b'{"criteria":{'}
        assert reasons(world.costs) == {"regrade": 6}
        assert world.asked == world.wanted(job, "s1", "s2")


async def test_what_expires_is_refused_or_is_no_use_is_left_to_be_asked_live(
    tmp_path: Path,
) -> None:
    async with open_batches(tmp_path) as world:
        world.apis["b"].spoil = {0: "expired", 2: "no JSON"}
        job = await world.begin("s1")
        for _ in range(3):
            await world.feeder().feed(0)
        assert await world.answers_of(job, "s1") == {"judge:judge-2"}
        assert reasons(world.costs) == {"regrade": 2}  # what is no use is paid as well


@pytest.mark.parametrize(("has_labels", "first"), [(True, 1), (False, 3)])
async def test_cancelled_at_every_checkpoint_nobody_is_asked_twice(
    tmp_path: Path, has_labels: bool, first: int
) -> None:
    """As if the poller were killed: another one comes when nobody believes in the first.

    A command to Redis has two steps or more, so that both together try each.
    """
    async with open_batches(tmp_path, has_labels=has_labels) as world:
        del world.apis["a"]  # whose judge is left to be asked live
        for step in range(first, 1_000, 4):
            world.apis["b"].asked.clear()
            job = await world.begin(f"s{step}")
            with cancel_at_step(step) as scope:
                for _ in range(2):
                    await world.feeder("g1").feed(0)
            world.now += ASKING_S
            for _ in range(3):
                await world.feeder("g2").feed(0)
            asked = [custom_id(job, f"s{step}", seat) for seat in range(2)]
            assert world.asked == asked
            assert await world.answers_of(job, f"s{step}") == {"judge:judge-1", "judge:judge-3"}
            claim = await take(world.queue, ("background",))
            await world.queue.finish(claim, GRADE)
            await world.feeder("g2").feed(0)
            found = await world.feeder().find(job)
            assert found is not None
            assert (found.mode, found.graded) == ("done", 1)
            if not scope.cancel_called:
                break
        assert step > 20


@pytest.mark.parametrize("has_labels", [True, False])
async def test_an_answer_that_was_lost_is_looked_for_and_not_asked_for_again(
    tmp_path: Path, has_labels: bool
) -> None:
    async with open_batches(tmp_path, has_labels=has_labels) as world:
        world.apis["b"].lost = [ProviderError("b", kind="unreachable", provider="b")]
        world.apis["b"].ended = False
        await world.begin("other")
        job = await world.begin("s1")
        for _ in range(2):
            await world.feeder().feed(0)
        world.now += ASKING_S
        await world.feeder().feed(0)
        assert len(world.apis["b"].batches) == 2
        world.apis["b"].ended = True
        for _ in range(4):
            world.now += ASKING_S
            await world.feeder().feed(0)
        assert len(world.apis["b"].batches) == 2
        assert len(await world.answers_of(job, "s1")) == 3


async def test_what_was_refused_is_asked_again_and_a_fault_is_looked_for(tmp_path: Path) -> None:
    async with open_batches(tmp_path) as world:
        full = ProviderError("b", kind="rate_limited", provider="b", status=429)
        fault = ProviderError("b", kind="server_error", provider="b", status=500)
        world.apis["b"].refuse = [fault, full]
        job = await world.begin("s1")
        for _ in range(2):
            await world.feeder().feed(0)
        assert world.apis["b"].batches == {}
        await world.feeder().feed(0)
        assert world.apis["b"].batches == {}  # nobody knows yet what the fault has done
        world.now += ASKING_S
        await world.feeder().feed(0)
        assert world.asked == world.wanted(job, "s1")


async def test_a_paused_job_asks_nothing_and_a_stopped_one_ends(tmp_path: Path) -> None:
    async with open_batches(tmp_path, bulk_batch_window=1) as world:
        job = await world.begin("s1", "s2")
        feeder = world.feeder()
        found = await feeder.find(job)
        assert found is not None
        await feeder.set_mode(found, "paused")
        await feeder.feed(0)
        assert world.asked == []
        await feeder.set_mode(found, "running")
        await feeder.feed(0)
        assert world.asked == world.wanted(job, "s1")
        await feeder.set_mode(found, "stopped")
        await feeder.feed(0)
        found = await feeder.find(job)
        assert found is not None
        assert (found.mode, found.gone, found.running) == ("stopped", 1, 0)


async def test_an_org_without_money_is_not_asked_for(tmp_path: Path) -> None:
    async with open_batches(tmp_path) as world:
        job = await world.begin("s1")
        feeder = world.feeder(knows=False)
        await feeder.feed(0)
        assert world.asked == []  # nobody knows yet
        exhaust(world.costs)
        await feeder.feed(0)
        assert world.asked == []
        world.costs._use("school").hard = 2
        await feeder.feed(0)
        assert world.asked == world.wanted(job, "s1")


async def test_a_long_job_is_cut_into_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coach.grading.batch.CHUNK_ESSAYS", 2)
    async with open_batches(tmp_path) as world:
        ids = [f"s{number}" for number in range(5)]
        job = await world.begin(*ids)
        await world.feeder().feed(0)
        assert sorted(len(asked) for _, asked in world.apis["a"].batches.values()) == [1, 2, 2]
        assert world.asked == world.wanted(job, *ids)
