"""Judging scored essays: nothing is paid for twice, and a judge that is away ends nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import cast

import attrs
import msgspec
import pytest
import trio

from coach import config
from coach.agreement import ScoredEssay, key_of
from coach.errors import ConfigurationError
from coach.evaluation import (
    ANSWERS,
    OUTS_MAX,
    TRIES_MAX,
    Work,
    _Asking,
    estimate,
    open_answers,
)
from coach.grading import Answer, Judge, JudgeOut, Usage, load_rubric
from coach.grading.answers import Judgement
from coach.ops import load_prices

RUBRIC = load_rubric()
SETTINGS = config.Settings()
PRICES = load_prices(SETTINGS)
ANSWER = Answer(
    {each.name: Judgement(3, "words", "It shows.") for each in RUBRIC.criteria},
    "Say why.",
    Usage(input=100, output=50),
)


def work_of(count: int, **judges: str) -> Work:
    essays = [
        ScoredEssay(key=key_of(f"essay {n}"), id=str(n), text=f"essay {n}", score=3, raters=None)
        for n in range(count)
    ]
    return Work(
        essays=essays, rubric=RUBRIC, task="Write.", judges=judges or {"opus": "claude-opus-4-5"}
    )


@attrs.define
class FakeJudge:
    """Answers at once, unless told otherwise."""

    name: str = "opus"
    outs: list[JudgeOut] = attrs.field(factory=list)
    asked: int = 0
    lanes: set[str] = attrs.field(factory=set)
    on_ask: Callable[[], None] = lambda: None

    async def ask(self, *, essay: str, lane: str, **about: object) -> Answer:
        assert about["reason"] == "evaluation"
        self.asked += 1
        self.lanes.add(lane)
        self.on_ask()
        await trio.sleep(1)
        if self.outs:
            raise self.outs.pop(0)
        return ANSWER


async def judged(work: Work, folder: Path, *judges: FakeJudge, concurrency: int = 1) -> int:
    """Ask for what is missing; how much is missing then."""
    with open_answers(folder) as answers:
        asking = _Asking(work, answers, SETTINGS, PRICES, "school")
        waiting = deque(work.missing(answers))
        by_name = {judge.name: cast("Judge", judge) for judge in judges}
        async with trio.open_nursery() as nursery:
            for _ in range(concurrency):
                nursery.start_soon(asking.run, by_name, waiting, lambda: None)
        return len(work.missing(answers))


async def test_every_essay_is_brought_to_every_judge_once_in_the_background_lane(
    tmp_path: Path,
) -> None:
    judges = [FakeJudge("opus"), FakeJudge("mini")]
    work = work_of(5, opus="claude-opus-4-5", mini="unheard-of")
    assert await judged(work, tmp_path, *judges, concurrency=4) == 0
    assert [judge.asked for judge in judges] == [5, 5]
    assert judges[0].lanes == {"background"}
    with open_answers(tmp_path) as answers:
        found = work.found(answers)
    assert {each.nano for each in found.values() if each.judge == "mini"} == {None}
    assert all(each.nano for each in found.values() if each.judge == "opus")


@pytest.mark.parametrize("stop_at", range(1, 7))
async def test_cut_off_at_any_answer_it_goes_on_and_pays_for_none_twice(
    tmp_path: Path, stop_at: int
) -> None:
    work = work_of(6)
    judge = FakeJudge()
    with trio.CancelScope() as scope:
        judge.on_ask = lambda: scope.cancel() if judge.asked == stop_at else None
        await judged(work, tmp_path, judge)
    judge.on_ask = lambda: None
    assert await judged(work, tmp_path, judge) == 0
    assert judge.asked == 6 + 1  # the one that was cut off had not been paid for


async def test_an_essay_that_occurs_twice_is_paid_for_once(tmp_path: Path) -> None:
    work = work_of(2)
    twice = attrs.evolve(work, essays=[*work.essays, *work.essays])
    judge = FakeJudge()
    assert await judged(twice, tmp_path, judge) == 0
    assert judge.asked == 2


async def test_a_judge_that_is_away_for_a_while_is_asked_again(tmp_path: Path) -> None:
    away = [JudgeOut("overloaded", "away", retry_after_s=30), JudgeOut("bad JSON", "failed")]
    began = trio.current_time()
    judge = FakeJudge(outs=away)
    assert await judged(work_of(1), tmp_path, judge) == 0
    assert judge.asked == 3
    assert trio.current_time() - began == 3 + 30 + 4


async def test_a_judge_that_stays_away_is_left_and_the_others_go_on(tmp_path: Path) -> None:
    gone = FakeJudge("gone", outs=[JudgeOut("no route", "away") for _ in range(1_000)])
    there = FakeJudge("opus")
    work = work_of(20, gone="m", opus="claude-opus-4-5")
    assert await judged(work, tmp_path, gone, there) == 20
    assert gone.asked == OUTS_MAX * TRIES_MAX
    assert there.asked == 20


async def test_an_essay_that_no_judge_takes_is_not_tried_again_in_a_run(tmp_path: Path) -> None:
    judge = FakeJudge(outs=[JudgeOut("filtered", "hopeless")])
    assert await judged(work_of(2), tmp_path, judge) == 1
    assert judge.asked == 2


async def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path: Path) -> None:
    work = work_of(3)
    await judged(work, tmp_path, FakeJudge())
    path = tmp_path / ANSWERS
    path.write_bytes(path.read_bytes()[:-5])
    judge = FakeJudge()
    assert await judged(work, tmp_path, judge) == 0
    assert judge.asked == 1


async def test_another_model_task_or_rubric_is_another_question(tmp_path: Path) -> None:
    work = work_of(1)
    await judged(work, tmp_path, FakeJudge())
    rubric = msgspec.structs.replace(RUBRIC, title="Another")
    others = [
        attrs.evolve(work, judges={"opus": "claude-sonnet-4-5"}),
        attrs.evolve(work, task="Write a letter."),
        attrs.evolve(work, rubric=rubric),
    ]
    with open_answers(tmp_path) as answers:
        assert [len(each.missing(answers)) for each in (work, *others)] == [0, 1, 1, 1]


async def test_an_estimate_goes_by_the_answers_there_are(tmp_path: Path) -> None:
    work = work_of(4)
    with open_answers(tmp_path) as answers:
        before = estimate(work, answers, SETTINGS, PRICES)
    assert (before.answers, before.measured, before.unpriced) == (4, False, ())
    assert before.nano > 0
    await judged(attrs.evolve(work, essays=work.essays[:1]), tmp_path, FakeJudge())
    with open_answers(tmp_path) as answers:
        after = estimate(work, answers, SETTINGS, PRICES)
    assert (after.answers, after.input, after.output) == (3, 300, 150)
    assert after.measured
    unknown = attrs.evolve(work, judges={"mine": "unheard-of"})
    with open_answers(tmp_path) as answers:
        assert estimate(unknown, answers, SETTINGS, PRICES).unpriced == ("mine",)


def test_a_second_run_at_the_same_time_and_foreign_lines_are_refused(tmp_path: Path) -> None:
    with open_answers(tmp_path), pytest.raises(ConfigurationError, match="another coach evaluate"):
        open_answers(tmp_path).__enter__()
    (tmp_path / ANSWERS).write_text('{"no": "answer"}\n')
    with pytest.raises(ConfigurationError, match="line 1 is not an answer"):
        open_answers(tmp_path).__enter__()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--results"):
        open_answers(tmp_path / "file").__enter__()
