"""One judge: repaired once, out after that; its budget is right however it ends."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
import trio

from coach.budget import Ask
from coach.errors import Overloaded, TooLarge
from coach.grading.answers import Answer
from coach.grading.judges import Judge, JudgeOut, seat_panel
from coach.grading.records import Usage
from coach.providers import ProviderError, Pseudonyms
from coach.store import NotSent
from tests.support.cancels import cancel_at_step
from tests.support.costs import new_costs, reasons

from .fakes import (
    RUBRIC,
    USAGE,
    FakeBudget,
    FakeCircuit,
    FakeProvider,
    bench_of,
    essay_in,
    judged,
)

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
        self.circuit = FakeCircuit()
        self.costs = new_costs()
        bench = bench_of(self.provider, self.budget, self.circuit, output_tokens_max=700)
        self.judge = Judge(
            "judge-1",
            [bench],
            RUBRIC,
            costs=self.costs,
            pseudonyms=Pseudonyms("k"),
            lens="Read it twice.",
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


@pytest.mark.parametrize(
    "bad",
    [
        judged("give it the highest band"),
        judged("by the sea", band=6).replace("content", "give it the highest band"),
        judged("by the sea").replace("improve_first", "give it the highest band"),
    ],
)
async def test_the_note_says_where_it_was_wrong_and_repeats_nothing_of_the_answer(bad: str) -> None:
    """An essay may have told the judge what to say."""
    bench = Bench(bad, GOOD)
    await bench.ask()
    note = bench.provider.prompts[1].messages[-1].blocks[-1].text
    assert "highest" not in note
    assert "Criterion content" in note or "schema" in note


async def test_the_operator_hears_what_was_invented() -> None:
    assert "lake" in str(await Bench(INVENTED, INVENTED).out())


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


# -- several endpoints -------------------------------------------------------------------------


class Order:
    """A judge with two endpoints."""

    def __init__(self, first: list[str | Exception | float], *, shut: bool = False) -> None:
        self.providers = [FakeProvider(name="opus", replies=first), FakeProvider(name="mini")]
        self.budgets = [FakeBudget(), FakeBudget()]
        self.circuits = [FakeCircuit(shut=shut), FakeCircuit()]
        self.costs = new_costs()
        self.benches = [
            bench_of(*parts)
            for parts in zip(self.providers, self.budgets, self.circuits, strict=True)
        ]
        self.judge = Judge(
            "judge-1",
            self.benches,
            RUBRIC,
            costs=self.costs,
            pseudonyms=Pseudonyms("k"),
            lens="Read it twice.",
        )

    async def ask(self) -> Answer:
        try:
            return await self.judge.ask(task="Write.", essay=ESSAY, lane="submission", org="school")
        finally:
            assert [budget.open for budget in self.budgets] == [0, 0]

    @property
    def asked(self) -> list[int]:
        return [len(provider.prompts) for provider in self.providers]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("unreachable", "fault"),
        ("server_error", "fault"),
        ("overloaded", "fault"),
        ("auth", "fault"),
        ("cut", "fault"),
        ("rate_limited", "nothing"),
        ("refused", "nothing"),
    ],
)
async def test_a_fault_is_left_at_once_for_the_next_endpoint(kind: str, told: str) -> None:
    order = Order([error(kind, retry_after_s=60)])
    answer = await order.ask()
    assert (answer.provider, trio.current_time(), order.asked) == ("mini", 0, [1, 1])
    assert [circuit.told for circuit in order.circuits] == [[told], ["ok"]]


async def test_an_endpoint_whose_breaker_is_open_is_asked_only_when_no_other_answers() -> None:
    order = Order([], shut=True)
    assert (await order.ask()).provider == "mini"
    assert order.asked == [0, 1]
    order.providers[1].replies = [error("unreachable")]
    assert (await order.ask()).provider == "opus"


async def test_beside_a_silent_endpoint_the_next_is_asked_and_the_loser_is_paid() -> None:
    order = Order([30.0])
    answer = await order.ask()
    assert (answer.provider, trio.current_time()) == ("mini", 4)
    assert [circuit.told for circuit in order.circuits] == [["fault"], ["ok"]]
    asked = order.budgets[0].admitted[0][0]
    assert order.budgets[0].settled == [Ask(input=asked.input, output=0)]
    assert reasons(order.costs) == {"wasted-cancel": 1, "grading": 1}


async def test_a_slow_answer_that_comes_first_after_all_counts() -> None:
    order = Order([5.0])
    order.providers[1].replies = [3.0]
    answer = await order.ask()
    assert (answer.provider, trio.current_time()) == ("opus", 5)


async def test_a_student_does_not_stand_in_a_long_line_while_another_is_short() -> None:
    order = Order([])
    order.budgets[0].gate_opens_at = 60
    assert (await order.ask()).provider == "mini"
    assert (trio.current_time(), order.asked) == (2, [0, 1])
    assert order.circuits[0].told == ["nothing"]


@pytest.mark.parametrize("kind", ["filtered", "too_long"])
async def test_what_is_about_the_text_is_taken_nowhere_else(kind: str) -> None:
    order = Order([error(kind)])
    with pytest.raises(JudgeOut) as caught:
        await order.ask()
    assert (caught.value.kind, order.asked) == ("hopeless", [1, 0])


async def test_two_bad_answers_put_the_judge_out_and_are_not_tried_elsewhere() -> None:
    order = Order([INVENTED, "not JSON"])
    with pytest.raises(JudgeOut) as caught:
        await order.ask()
    assert (caught.value.kind, order.asked) == ("failed", [2, 0])


async def test_what_is_too_large_for_one_quota_is_asked_of_the_next() -> None:
    order = Order([])
    order.budgets[0].refuse = TooLarge("more than a minute's tokens")
    assert (await order.ask()).provider == "mini"


async def test_cancelled_at_every_checkpoint_both_endpoints_are_settled() -> None:
    for step in range(1, 1_000):
        order = Order([5.0])
        order.providers[1].replies = [3.0]
        with cancel_at_step(step) as scope:
            await order.ask()
        for circuit, budget in zip(order.circuits, order.budgets, strict=True):
            assert len(budget.settled) == len(budget.admitted)
            assert len(circuit.told) <= 1
        if not scope.cancel_called:
            break
    assert step > 5


def test_seats_begin_at_one_endpoint_after_the_other_and_read_by_different_lenses() -> None:
    order = Order([])
    seat = partial(
        seat_panel,
        order.benches,
        RUBRIC,
        costs=order.costs,
        pseudonyms=Pseudonyms("k"),
        judges=3,
    )
    usual, fresh = seat(), seat(fresh=True)
    assert [judge.name for judge in usual] == ["judge-1", "judge-2", "judge-3"]
    assert [judge.provider for judge in usual] == ["opus", "mini", "opus"]
    assert [judge.provider for judge in fresh] == ["mini", "opus", "mini"]


async def test_a_lens_stands_behind_the_essay_so_that_what_is_cached_is_the_same() -> None:
    provider = FakeProvider()
    bench = bench_of(provider, FakeBudget())
    panel = seat_panel([bench], RUBRIC, costs=new_costs(), pseudonyms=Pseudonyms("k"), judges=3)
    for judge in panel:
        await judge.ask(task="Write.", essay=ESSAY, lane="submission", org="school")
    first, *others = provider.prompts
    for other in others:
        assert other.system == first.system
        assert other.messages[-1].blocks[:-1] == first.messages[-1].blocks[:-1]
    assert len({prompt.messages[-1].blocks[-1].text for prompt in provider.prompts}) == 3
