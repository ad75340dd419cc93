"""Grading inside the request: the same panel and rules, and what a queue would save is lost."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import attrs
import pytest
import trio

from coach import config
from coach.errors import BadMessage, ProviderUnavailable
from coach.grading.at_once import RETRY_S, AtOnce
from coach.grading.calibrations import Calibrations
from coach.grading.records import Grade, Submission
from coach.ops import Flag
from coach.providers import Prompt, ProviderError, Pseudonyms
from coach.store import NotSent
from tests.support.cancels import cancel_at_step
from tests.support.costs import new_costs, reasons

from .fakes import RUBRIC, FakeBudget, FakeProvider, bench_of, judged
from .support import essay

QUEUE: tuple[Flag, ...] = ("queue",)


@attrs.define
class Shelf:
    """Where grades are kept, and reviews listed."""

    grades: dict[str, Grade] = attrs.field(factory=dict)
    reviews: list[str] = attrs.field(factory=list)
    away: Exception | None = None

    async def keep(self, submission: Submission, grade: Grade) -> bool:
        await trio.lowlevel.checkpoint()
        if self.away is not None:
            raise self.away
        return self.grades.setdefault(submission.id, grade) is grade

    async def add(self, _org: str, submission: str, _reason: str) -> None:
        await trio.lowlevel.checkpoint()
        self.reviews.append(submission)


class World:
    """Two endpoints on fakes, each also over connections of its own."""

    def __init__(self, *replies: str | Exception | float, **settings: Any) -> None:
        self.pooled = [FakeProvider(name=name) for name in ("opus", "gpt")]
        self.unpooled = [FakeProvider(name=name) for name in ("opus", "gpt")]
        for provider in (*self.pooled, *self.unpooled):
            provider.replies = list(replies)
        self.budget = FakeBudget()
        self.shelf = Shelf()
        self.costs = new_costs()
        self.told = 0
        self.at_once = AtOnce(
            benches=[bench_of(provider, self.budget) for provider in self.pooled],
            unpooled=[provider.as_provider() for provider in self.unpooled],
            queue=cast("Any", self.shelf),
            reviews=cast("Any", self.shelf),
            rubric=RUBRIC,
            settings=config.Grading(judges=2, **settings),
            costs=self.costs,
            pseudonyms=Pseudonyms("k"),
            calibrations=Calibrations(RUBRIC),
        )

    async def grade(self, id_: str = "s1", off: Collection[Flag] = QUEUE) -> Grade:
        return await self.at_once.grade(essay(id_), off=off, on_late=self._tell)

    def _tell(self) -> None:
        self.told += 1

    @property
    def running(self) -> int:
        return sum(provider.running for provider in (*self.pooled, *self.unpooled))


async def slowly(_prompt: Prompt) -> str:
    await trio.sleep(10.0)
    return judged("by the sea")


async def test_the_panel_reads_it_and_the_grade_is_kept() -> None:
    world = World(1.0)
    grade = await world.grade()
    assert (grade.judges, grade.degraded, grade.seconds) == (2, False, 1.0)
    assert world.shelf.grades == {"s1": grade}
    assert world.shelf.reviews == []
    assert [ask[1:] for ask in world.budget.admitted] == [("submission", "school")] * 2
    assert reasons(world.costs) == {"grading": 2}
    assert world.told == 0


async def test_without_pool_and_budget_judges_are_asked_over_connections_of_their_own() -> None:
    world = World()
    await world.grade(off=("pool", "queue", "backpressure"))
    assert [len(provider.prompts) for provider in world.pooled] == [0, 0]
    assert [len(provider.prompts) for provider in world.unpooled] == [1, 1]
    assert world.budget.admitted == []


async def test_judges_far_apart_are_put_before_a_person() -> None:
    world = World()
    world.pooled[0].replies = [judged("by the sea", band=0)]
    world.pooled[1].replies = [judged("by the sea", band=5)]
    grade = await world.grade()
    assert grade.review
    assert world.shelf.reviews == ["s1"]


async def test_too_few_judges_are_an_error_and_nobody_tries_again() -> None:
    """Nothing is kept: handed in again, it is graded from the beginning."""
    down = ProviderError("down", kind="unreachable", provider="any")
    world = World(down, down)
    with pytest.raises(ProviderUnavailable, match="hand it in again") as caught:
        await world.grade()
    assert caught.value.retry_after_s == RETRY_S
    assert world.shelf.grades == {}
    assert (await world.grade()).judges == 2


async def test_a_quorum_that_does_not_come_by_the_deadline_is_told_once() -> None:
    world = World(deadline_s=8.0)
    for provider in world.pooled:
        provider.answer = slowly
    grade = await world.grade()
    assert (world.told, grade.judges) == (1, 2)


async def test_a_grade_that_cannot_be_kept_is_given_all_the_same() -> None:
    world = World()
    world.shelf.away = NotSent("no redis")
    assert (await world.grade()).judges == 2
    assert world.shelf.grades == {}


@pytest.mark.parametrize("id_", ["", "no spaces", "x" * 65])
async def test_an_id_that_cannot_be_kept_is_refused_before_anybody_is_asked(id_: str) -> None:
    world = World()
    with pytest.raises(BadMessage, match="id"):
        await world.grade(id_)
    assert world.pooled[0].prompts == []


@pytest.mark.parametrize("off", [("queue",), ("pool", "queue", "backpressure")])
async def test_cancelled_at_every_step_nobody_is_asked_any_longer(off: tuple[Flag, ...]) -> None:
    """Every admission is settled, and the grade is kept whole or not at all."""
    steps = 0
    while True:
        steps += 1
        world = World(0.5)
        grades: dict[str, Grade] = {}
        with cancel_at_step(steps) as scope:
            grades["s1"] = await world.grade(off=off)
        assert (world.running, world.budget.open) == (0, 0), steps
        assert not grades or world.shelf.grades == grades, steps
        if not scope.cancel_called:
            break
    assert grades
    assert steps > 5, "the sweep did not reach the judges"
