"""The panel's deadline: all judges, or a quorum when time is up, or the student is told."""

from __future__ import annotations

from math import inf
from typing import cast

import attrs
import pytest
import trio

from coach.grading.answers import Answer
from coach.grading.judges import Judge, JudgeOut
from coach.grading.panel import Hearing, hear


@attrs.define
class Seat:
    """A judge that answers after `after_s`, or is out then."""

    name: str
    after_s: float
    kind: str = ""
    asked: int = 0
    ended: int = 0

    async def ask(self) -> Answer:
        self.asked += 1
        try:
            await trio.sleep(self.after_s)
            if self.kind:
                raise JudgeOut(f"{self.name}: no", self.kind)  # type: ignore[arg-type]
            return Answer(criteria={}, improve_first=self.name)
        finally:
            self.ended += 1


@attrs.define
class Court:
    """A panel that is heard, and what it said when."""

    seats: tuple[Seat, ...]
    saved: dict[str, float] = attrs.field(factory=dict)
    told_at: list[float] = attrs.field(factory=list)

    async def hear(self, *, deadline_s: float = 8.0, kept: tuple[str, ...] = ()) -> Hearing:
        async def ask(judge: Judge) -> Answer:
            return await cast("Seat", judge).ask()

        async def save(judge: Judge, answer: Answer) -> None:
            del answer
            await trio.lowlevel.checkpoint()
            self.saved[judge.name] = trio.current_time()

        async def tell() -> None:
            await trio.lowlevel.checkpoint()
            self.told_at.append(trio.current_time())

        return await hear(
            cast("tuple[Judge, ...]", self.seats),
            ask,
            kept={name: Answer(criteria={}, improve_first=name) for name in kept},
            quorum=2,
            deadline_s=deadline_s,
            on_answer=save,
            on_late=tell,
        )


CASES = {
    "all answer": ((1, 2, 3), 3, {"a", "b", "c"}, {}, []),
    "one is late": ((1, 2, 30), 8, {"a", "b"}, {"c": "late"}, []),
    "two are late": ((1, 9, 30), 9, {"a", "b"}, {"c": "late"}, [8]),
    "two are too late": ((1, 17, 30), 16, {"a"}, {"b": "late", "c": "late"}, [8]),
}


@pytest.mark.parametrize("name", CASES)
async def test_the_grade_is_made_of_who_has_answered_when_it_may_be(name: str) -> None:
    after, ends_at, answered, absent, told_at = CASES[name]
    court = Court(tuple(map(Seat, "abc", after)))
    hearing = await court.hear()
    assert trio.current_time() == ends_at
    assert set(hearing.answers) == set(court.saved) == answered
    assert hearing.absent() == absent
    assert court.told_at == told_at
    assert [seat.ended for seat in court.seats] == [1, 1, 1]


async def test_each_answer_is_saved_when_it_comes() -> None:
    court = Court((Seat("a", 1), Seat("b", 2), Seat("c", 3)))
    await court.hear()
    assert court.saved == {"a": 1, "b": 2, "c": 3}


async def test_who_has_answered_in_an_earlier_attempt_is_not_asked_again() -> None:
    court = Court((Seat("a", 1), Seat("b", 2), Seat("c", 3)))
    hearing = await court.hear(kept=("a", "c"))
    assert set(hearing.answers) == {"a", "b", "c"}
    assert [seat.asked for seat in court.seats] == [0, 1, 0]


async def test_who_is_out_is_not_waited_for_and_said_to_be_missing() -> None:
    court = Court((Seat("a", 1), Seat("b", 2, "failed"), Seat("c", 3, "away")))
    hearing = await court.hear()
    assert trio.current_time() == 3
    assert (set(hearing.answers), hearing.absent()) == (
        {"a"},
        {"b": "no usable answer", "c": "away"},
    )


async def test_nobody_hurries_background_work() -> None:
    court = Court((Seat("a", 100), Seat("b", 200), Seat("c", 300)))
    hearing = await court.hear(deadline_s=inf)
    assert (len(hearing.answers), court.told_at) == (3, [])
