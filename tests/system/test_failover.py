"""Two providers of real processes, and every fault of the design by name: the student sees one
whole answer, each provider is booked for what it did, nothing stays reserved, the breaker knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, Final, Literal

import attrs
import pytest
import trio

from tests.support.stack import Stack, Student

from .failover import (
    DRAFT,
    FAULTS_MAX,
    FIRST,
    LATE_S,
    SECOND,
    STALL_S,
    WAIT_S,
    Seen,
    answer_of,
    books_of,
    one_turn,
    recover,
    stack_beside,
    until_breaker,
    until_settled,
    until_share,
)

pytestmark = pytest.mark.real_time

DEADLINE_S: Final = 8.0
ANSWERED: Final = ("started simulator", "text", "done")
BY_THE_SECOND: Final = ("started second", "text", "done")


def moved_on(reason: str) -> tuple[str, ...]:
    """Before the first text."""
    return ("started simulator", f"restarted second {reason}", "text", "done")


def began_again(reason: str) -> tuple[str, ...]:
    """After text was shown."""
    return ("started simulator", "text", f"restarted second {reason}", "text", "done")


@attrs.frozen(kw_only=True)
class Case:
    """A fault, and what must come of it."""

    name: str
    faults: Mapping[str, object]
    """The first provider's."""
    second_faults: Mapping[str, object] = attrs.field(factory=dict)
    turns: tuple[tuple[str, ...], ...]
    """What the students saw, one turn after the other."""
    asked: tuple[float, float]
    """Requests that the two providers have heard."""
    charged: Literal["nothing", "prompt", "written"]
    """What is booked on the first one for what it has failed."""
    breaker: Mapping[str, str]
    """The first one's, in Redis."""
    share: float = 1.0
    cancelled: int = 0
    """Streams that were reset at the first one."""
    seconds: float = 0.0
    """How long it took at the least."""


ONCE: Final = {"next": 1}
ONE_FAULT: Final = {"state": "closed", "faults": "1", "bad": "1", "hold": ""}
NO_FAULT: Final = {"state": "closed", "faults": "0", "bad": "0", "hold": ""}
HELD: Final = {**NO_FAULT, "hold": "held"}
OPEN: Final = {"state": "open"}

CASES: Final = (
    Case(
        name="429 with retry-after",
        faults={"rate_limited": ONCE},
        turns=(moved_on("rate_limited"), BY_THE_SECOND),
        asked=(1, 2),
        charged="nothing",
        breaker=HELD,
    ),
    Case(
        name="429 persistent",
        faults={"rate_limited": 1},
        turns=(moved_on("rate_limited"), *[BY_THE_SECOND] * 3),
        asked=(1, 4),
        charged="nothing",
        breaker=HELD,
    ),
    Case(
        name="500 once",
        faults={"server_error": ONCE},
        turns=(moved_on("server_error"),),
        asked=(1, 1),
        charged="nothing",
        breaker=ONE_FAULT,
    ),
    Case(
        name="503 persistent",
        faults={"unavailable": 1},
        turns=(*[moved_on("server_error")] * FAULTS_MAX, BY_THE_SECOND),
        asked=(FAULTS_MAX, FAULTS_MAX + 1),
        charged="nothing",
        breaker=OPEN,
        share=0.0,
    ),
    Case(
        name="TCP reset",
        faults={"reset": ONCE},
        turns=(moved_on("unreachable"),),
        asked=(1, 1),
        charged="prompt",
        breaker=ONE_FAULT,
    ),
    Case(
        name="silent upstream",
        faults={"silent": ONCE},
        turns=(moved_on("stalled"),),
        asked=(1, 1),
        charged="prompt",
        breaker=ONE_FAULT,
        cancelled=1,
        seconds=LATE_S,
    ),
    Case(
        name="first token late",
        faults={"late_first_token": ONCE},
        turns=(moved_on("stalled"),),
        asked=(1, 1),
        charged="written",
        breaker=ONE_FAULT,
        cancelled=1,
        seconds=LATE_S,
    ),
    Case(
        name="cut mid-answer",
        faults={"cut": ONCE},
        turns=(began_again("cut"),),
        asked=(1, 1),
        charged="written",
        breaker=ONE_FAULT,
    ),
    Case(
        name="connection lost mid-answer",
        faults={"disconnect": ONCE},
        turns=(began_again("cut"),),
        asked=(1, 1),
        charged="written",
        breaker=ONE_FAULT,
    ),
    Case(
        name="stall mid-answer",
        faults={"stall": ONCE},
        turns=(began_again("stalled"),),
        asked=(1, 1),
        charged="written",
        breaker=ONE_FAULT,
        cancelled=1,
        seconds=STALL_S * 7 / 8,
    ),
    Case(
        name="malformed event",
        faults={"malformed": ONCE},
        turns=(began_again("malformed"),),
        asked=(1, 1),
        charged="written",
        breaker=ONE_FAULT,
        cancelled=1,
    ),
    Case(
        name="no end marker",
        faults={"no_end": ONCE},
        turns=(began_again("cut"),),
        asked=(1, 1),
        charged="written",
        breaker=ONE_FAULT,
    ),
    Case(
        name="context too long",
        faults={"too_long": ONCE},
        turns=(("started simulator", "error too_large"),),
        asked=(1, 0),
        charged="nothing",
        breaker=NO_FAULT,
    ),
    Case(
        name="content filter",
        faults={"filtered": ONCE},
        turns=(("started simulator", "text", "error forbidden"),),
        asked=(1, 0),
        charged="written",
        breaker=NO_FAULT,
    ),
    Case(
        name="parameter refused by the fallback only",
        faults={"server_error": ONCE},
        second_faults={"bad_parameter": ONCE},
        turns=(
            ("started simulator", "restarted second server_error", "error provider_unavailable"),
        ),
        asked=(1, 1),
        charged="nothing",
        breaker=ONE_FAULT,
    ),
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One for all: each test begins with `recover`."""
    with stack_beside(tmp_path_factory.mktemp("failover")) as stack:
        yield stack
        written = stack.log() + stack.log("grade")
        assert "Traceback" not in written
        assert "[error" not in written


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_fault_comes_out_right(stack: Stack, case: Case) -> None:
    await recover(stack)
    before = await books_of(stack)
    await stack.providers[FIRST].control(faults=case.faults)
    await stack.providers[SECOND].control(faults=case.second_faults)

    began = trio.current_time()
    seen = [await one_turn(stack) for _ in case.turns]
    took_s = trio.current_time() - began

    assert tuple(turn.story for turn in seen) == case.turns
    assert took_s >= case.seconds
    for turn in seen:
        if turn.last["type"] == "done":
            assert turn.text == answer_of(SECOND)
        else:
            assert answer_of(FIRST).startswith(turn.text)
            # asking again helps where the fault was a provider's, not where it was the text's
            assert ("retry_after_ms" in turn.last) == (case.asked[1] > 0)
    await until_settled(stack)
    after = await books_of(stack)
    first, second = (after[name].since(before[name]) for name in (FIRST, SECOND))
    assert (first.requests, second.requests) == case.asked
    assert first.cancelled == case.cancelled
    assert not second.cancelled
    assert second.booked == second.tokens == usage_of(seen, second.tokens)
    if case.charged == "nothing":
        assert not any(first.booked.values())
        assert not any(first.tokens.values())
    else:
        # what was written is known, what is left of it is estimated, and never too low
        assert sum(first.booked.values()) >= sum(first.tokens.values())
        assert first.booked["output"] <= 1.5 * first.tokens["output"] + 8
        assert sum(first.booked.values()) - first.booked["output"] > 0
    if case.charged == "written":
        for kind in ("input", "cache_write", "cache_read"):
            assert first.booked[kind] == first.tokens[kind]
    await until_breaker(stack, FIRST, **case.breaker)
    await until_breaker(stack, SECOND, state="closed", bad="0")
    await until_share(stack, FIRST, case.share)


def usage_of(turns: list[Seen], like: Mapping[str, float]) -> dict[str, float]:
    """What the students were told of their turns, in the words of the books."""
    told = dict.fromkeys(like, 0.0)
    for turn in turns:
        if turn.last["type"] == "done":
            told["input"] += turn.usage["input"]
            told["cache_read"] += turn.usage.get("cached", 0)
            told["output"] += turn.usage["output"]
    return told


async def test_usage_is_booked_on_the_model_that_answered(stack: Stack) -> None:
    """A turn of the first, then one that it begins and the second answers."""
    await recover(stack)
    start = await books_of(stack)
    whole = await one_turn(stack)
    assert (whole.story, whole.text) == (ANSWERED, answer_of(FIRST))
    await until_settled(stack)
    middle = await books_of(stack)
    first, second = (middle[name].since(start[name]) for name in (FIRST, SECOND))
    assert first.booked == first.tokens
    assert whole.usage["output"] == first.tokens["output"]
    assert not any(second.booked.values())

    await stack.providers[FIRST].control(faults={"cut": ONCE})
    rescued = await one_turn(stack)
    assert rescued.story == began_again("cut")
    await until_settled(stack)
    end = await books_of(stack)
    first, second = (end[name].since(middle[name]) for name in (FIRST, SECOND))
    assert second.booked == second.tokens == usage_of([rescued], second.tokens)
    assert first.booked["output"] >= first.tokens["output"] > 0
    assert rescued.usage["output"] == second.tokens["output"]


async def test_429_is_waited_out_for_as_long_as_it_says(stack: Stack) -> None:
    """Not asked while it wants to be left alone; asked again after it."""
    await recover(stack)
    await stack.providers[FIRST].control(faults={"rate_limited": ONCE})
    began = trio.current_time()
    assert (await one_turn(stack)).story == moved_on("rate_limited")
    with trio.fail_after(WAIT_S):
        while (turn := await one_turn(stack)).story == BY_THE_SECOND:  # noqa: ASYNC110
            await trio.sleep(0.2)
    assert turn.story == ANSWERED
    assert 5 <= trio.current_time() - began < 6.5


async def test_flapping(stack: Stack) -> None:
    """A provider that comes and goes costs nobody an answer, and is let in again in the end."""
    await recover(stack)
    before = await books_of(stack)
    seen: list[Seen] = []

    async def write() -> None:
        while True:
            seen.append(await one_turn(stack))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(write)
        for _ in range(4):
            await stack.providers[FIRST].control(faults={"unavailable": 1})
            await trio.sleep(0.4)
            await stack.providers[FIRST].control(faults={})
            await trio.sleep(0.4)
        flapped = len(seen)
        await until_breaker(stack, FIRST, state="closed")
        await until_share(stack, FIRST, 1.0)
        nursery.cancel_scope.cancel("it has recovered")

    assert {turn.last["type"] for turn in seen} == {"done"}
    whole = {answer_of(FIRST), answer_of(SECOND)}
    assert {turn.text for turn in seen} == whole
    moved = sum(turn.story == moved_on("server_error") for turn in seen)
    assert all(turn.story in {ANSWERED, BY_THE_SECOND, moved_on("server_error")} for turn in seen)
    await until_settled(stack)
    after = await books_of(stack)
    first = after[FIRST].since(before[FIRST])
    assert FAULTS_MAX <= moved < flapped / 2
    assert first.requests < len(seen) + 4
    assert first.booked["output"] >= first.tokens["output"] * 0.9


async def test_both_down(stack: Stack) -> None:
    """Feedback is refused with a time to come back; an essay waits, and is graded afterwards.

    One provider that is back is enough: its model stands in for the other's, and the grade says so.
    """
    await recover(stack)
    before = {name: await judged(stack, name) for name in (FIRST, SECOND)}
    for name in (FIRST, SECOND):
        await stack.providers[name].control(faults={"unavailable": 1})
    async with stack.student() as student:
        turn = await one_turn(stack, student)
        assert turn.story == (
            *("started simulator", "restarted second server_error"),
            "error provider_unavailable",
        )
        retry_after_ms = turn.last["retry_after_ms"]
        assert isinstance(retry_after_ms, int)
        assert 0 < retry_after_ms <= 10_000

        await student.send(type="submit", submission="waits", assignment="essay", text=DRAFT)
        await student.until("grading")
        with trio.fail_after(WAIT_S):
            for name in (FIRST, SECOND):
                while await judged(stack, name) < before[name] + 1:  # noqa: ASYNC110
                    await trio.sleep(0.02)
        status = (await stack.submission(student.token, "waits")).json()["status"]
        assert status not in {"graded", "failed"}

        await stack.providers[SECOND].control(faults={})
        # somebody else's turn: this student may hear of the essay at any time from now on
        assert (await one_turn(stack)).story[-2:] == ("text", "done")
        with trio.fail_after(WAIT_S):
            grade = await student.until("grade")
        assert (grade["submission"], grade["judges"], grade["degraded"]) == ("waits", 3, True)
        assert FIRST in str(grade["degraded_reason"])
        await stack.providers[FIRST].control(faults={})
        assert (await one_turn(stack, student, "after")).story[-2:] == ("text", "done")
    await until_settled(stack)


async def test_one_provider_down_costs_no_judge_and_its_own_returns_by_itself(stack: Stack) -> None:
    await recover(stack)
    await stack.providers[FIRST].control(faults={"unavailable": 1})
    async with stack.student() as student:
        grade: dict[str, Any] = {}
        for name in ("down-1", "down-2", "down-3", "down-4"):
            grade, seconds = await graded(student, name)
            assert (grade["judges"], grade["degraded"]) == (3, True)
            assert FIRST in grade["degraded_reason"]
            assert seconds < DEADLINE_S
        await stack.providers[FIRST].control(faults={})
        with trio.fail_after(2 * WAIT_S):
            numbers = count()
            while grade.get("degraded", False):
                await trio.sleep(0.2)
                grade, _ = await graded(student, f"up-{next(numbers)}")
        assert grade["judges"] == 3
    await until_settled(stack)


async def graded(student: Student, submission: str) -> tuple[dict[str, Any], float]:
    """Hand an essay in; its grade, and seconds until it came."""
    handed_in_at = trio.current_time()
    await student.send(type="submit", submission=submission, assignment="essay", text=DRAFT)
    with trio.fail_after(WAIT_S):
        grade = await student.until("grade")
    assert grade["submission"] == submission
    return grade, trio.current_time() - handed_in_at


async def judged(stack: Stack, name: str) -> float:
    """Requests for a grade that a provider has heard."""
    return (await stack.providers[name].stats())["judge_requests"]
