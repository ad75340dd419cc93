"""One judge: repaired once, out after that; its budget is right however it ends."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from coach.budget import Ask
from coach.errors import Overloaded
from coach.grading.judges import Judge, JudgeOut
from coach.grading.records import Usage
from coach.providers import ProviderError, Pseudonyms
from coach.store import NotSent
from tests.support.costs import new_costs, reasons
from tests.support.warmth import no_warmth

from .fakes import RUBRIC, USAGE, FakeBudget, FakeProvider, essay_in, judged

ESSAY = "I like to read by the sea, where it is calm."
GOOD = judged("read by the sea")
INVENTED = judged("read by the <b>lake</b>")
ACTUAL = Ask(input=USAGE.input + USAGE.cache_write, output=USAGE.output)


def error(kind: str, retry_after_s: float | None = None) -> ProviderError:
    return ProviderError(kind, kind=kind, provider="opus", retry_after_s=retry_after_s)  # type: ignore[arg-type]


class Bench:
    """A judge on fakes."""

    def __init__(self, *replies: str | Exception | float) -> None:
        self.provider = FakeProvider(replies=list(replies))
        self.budget = FakeBudget()
        self.costs = new_costs()
        self.judge = Judge(
            self.provider.as_provider(),
            self.budget.as_budget(),
            RUBRIC,
            costs=self.costs,
            warmth=no_warmth(),
            pseudonyms=Pseudonyms("k"),
            output_tokens_max=700,
        )

    async def ask(self) -> object:
        return await self.judge.ask(task="Write.", essay=ESSAY, lane="submission", org="school")

    async def out(self) -> JudgeOut:
        with pytest.raises(JudgeOut) as caught:
            await self.ask()
        assert self.budget.open == 0
        return caught.value


async def test_a_good_answer_costs_one_request_settled_by_what_it_used() -> None:
    bench = Bench(GOOD)
    answer = await bench.judge.ask(task="Write.", essay=ESSAY, lane="background", org="school")
    assert answer.criteria["content"].evidence == "read by the sea"
    assert answer.usage == Usage(input=100, cache_write=10, cache_read=1_000, output=50)
    ((ask, lane, org),) = bench.budget.admitted
    assert (ask.output, lane, org) == (700, "background", "school")
    assert ask.input > len(ESSAY) / 3.5
    assert bench.budget.settled == [ACTUAL]


async def test_the_prompt_holds_rubric_task_schema_and_the_essay_last() -> None:
    bench = Bench(GOOD)
    await bench.ask()
    (prompt,) = bench.provider.prompts
    assert essay_in(prompt) == ESSAY
    assert prompt.schema == RUBRIC.schema()
    assert prompt.output_tokens_max == 700
    everything = str(prompt)
    assert "Write." in everything
    assert RUBRIC.criteria[0].bands[5] in everything


@pytest.mark.parametrize("bad", ["not JSON", INVENTED, judged("sea", band=6), judged("")])
async def test_a_bad_answer_is_repaired_once_by_saying_what_was_wrong(bad: str) -> None:
    """The second prompt is the first with a note at its end, so that its cached prefix serves."""
    bench = Bench(bad, GOOD)
    answer = await bench.judge.ask(task="Write.", essay=ESSAY, lane="submission", org="school")
    assert answer.usage == Usage(input=200, cache_write=20, cache_read=2_000, output=100)
    first, second = bench.provider.prompts
    assert second.system == first.system
    assert second.messages[:-1] == first.messages[:-1]
    *same, note = second.messages[-1].blocks
    assert tuple(same) == first.messages[-1].blocks
    assert "could not be used" in note.text
    assert "<" not in note.text
    assert essay_in(second) == ESSAY
    assert bench.budget.settled == [ACTUAL, ACTUAL]


async def test_the_note_names_the_invented_quote() -> None:
    bench = Bench(INVENTED, GOOD)
    await bench.ask()
    note = bench.provider.prompts[1].messages[-1].blocks[-1].text
    assert "lake" in note
    assert "content" in note


async def test_a_second_bad_answer_puts_the_judge_out_at_its_price() -> None:
    bench = Bench(INVENTED, "not JSON", GOOD)
    out = await bench.out()
    assert (out.kind, out.usage.output) == ("failed", 100)
    assert len(bench.provider.prompts) == 2


async def test_an_answer_cut_off_at_its_length_is_no_answer() -> None:
    bench = Bench(GOOD, GOOD)
    bench.provider.stop_reason = "max_tokens"
    out = await bench.out()
    assert "cut off" in str(out)


READ = Ask(input=-1, output=0)  # -1: whatever was asked for
REFUSED = Ask(input=0, output=0)
FAULTS = {
    "rate_limited": ("away", REFUSED),
    "overloaded": ("away", REFUSED),
    "unreachable": ("away", None),
    "auth": ("away", REFUSED),
    "server_error": ("away", READ),
    "refused": ("failed", REFUSED),
    "cut": ("failed", READ),
    "stalled": ("failed", READ),
    "malformed": ("failed", READ),
    "filtered": ("hopeless", READ),
    "too_long": ("hopeless", READ),
}


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_fault_puts_the_judge_out_and_the_budget_right(kind: str) -> None:
    bench = Bench(error(kind, retry_after_s=60))
    out = await bench.out()
    expected_kind, spent = FAULTS[kind]
    asked = bench.budget.admitted[0][0].input
    assert (out.kind, out.retry_after_s) == (expected_kind, 60)
    if spent is READ:
        spent = Ask(input=asked, output=0)
    assert bench.budget.settled == [spent]
    assert bench.budget.gate_opens_at == (60 if kind in ("rate_limited", "overloaded") else 0)


async def test_a_short_rate_limit_is_waited_for_at_the_gate() -> None:
    bench = Bench(error("rate_limited", retry_after_s=2), error("overloaded"), GOOD)
    await bench.ask()
    assert trio.current_time() == 3
    assert bench.budget.settled == [REFUSED, REFUSED, ACTUAL]
    assert len(bench.budget.observed) == 3


async def test_a_rate_limit_that_stays_is_waited_for_in_the_queue() -> None:
    bench = Bench(*[error("rate_limited", retry_after_s=1)] * 9)
    out = await bench.out()
    assert (out.kind, len(bench.provider.prompts)) == ("away", 3)


async def test_a_fault_of_the_repair_does_not_forget_what_the_first_answer_cost() -> None:
    bench = Bench(INVENTED, error("unreachable"))
    out = await bench.out()
    assert (out.kind, out.usage.output) == ("away", 50)


@pytest.mark.parametrize(
    "refusal", [Overloaded("the line is full", retry_after_s=4.0), NotSent("no Redis")]
)
async def test_without_admission_nothing_is_asked(refusal: Exception) -> None:
    bench = Bench()
    bench.budget.refuse = refusal
    out = await bench.out()
    assert out.kind == "away"
    assert out.retry_after_s == getattr(refusal, "retry_after_s", None)
    assert bench.provider.prompts == []


async def test_cancelled_while_it_thinks_the_prompt_counts_as_read() -> None:
    bench = Bench(5.0, GOOD)
    with trio.move_on_after(1):
        await bench.ask()
    assert bench.budget.open == 0
    assert bench.budget.settled == [Ask(input=bench.budget.admitted[0][0].input, output=0)]


@pytest.mark.parametrize(
    ("replies", "booked"),
    [
        ([GOOD], {"grading": 1}),
        ([INVENTED, GOOD], {"grading": 2}),
        ([error("cut"), GOOD], {"wasted-failover": 1}),
        ([error("unreachable")], {}),
        ([error("rate_limited"), GOOD], {"grading": 1}),
    ],
)
async def test_every_answer_is_booked_and_nothing_that_was_not_read(
    replies: list[str | Exception], booked: dict[str, int]
) -> None:
    bench = Bench(*replies)
    with suppress(JudgeOut):
        await bench.ask()
    assert reasons(bench.costs) == booked


async def test_a_judge_that_is_cancelled_may_have_read_the_essay() -> None:
    bench = Bench(3.0)
    with trio.move_on_after(1):
        await bench.ask()
    assert reasons(bench.costs) == {"wasted-cancel": 1}
