"""A turn that its first provider fails goes on at the next: the student sees one whole answer."""

from __future__ import annotations

import pytest
import trio

from coach.budget import Ask, Patience
from coach.errors import CoachError, Overloaded
from coach.ops import BudgetExhausted
from coach.providers import Completion, Prompt, ProviderError, Sink, Usage
from coach.session import wire
from coach.session.attempts import RETRY_S
from coach.session.turn import TurnCancelled
from tests.support.cancels import cancel_at_step
from tests.support.costs import booked, exhaust, reasons

from .test_turn import Told, fails, new_turn, refusal
from .world import ANA, World, asked, says

FAULTS = ["overloaded", "server_error", "unreachable", "cut", "stalled", "malformed", "auth"]
MOVES_ON = [*FAULTS, "rate_limited", "refused"]


async def ask(world: World) -> tuple[Told, CoachError | None]:
    """One turn over the world's providers."""
    turn, told = new_turn()
    try:
        with turn.scope:
            await turn.run(world.services(), ANA, question=asked("The sea."), assignment="")
    except CoachError as error:
        turn.fail(error)
        return told, error
    return told, None


def two(first: World) -> World:
    """`first`, and a second provider that answers."""
    first.others.append(World(says("b1", "b2"), name="second", model="m2"))
    return first


@pytest.mark.parametrize("kind", MOVES_ON)
async def test_a_fault_before_any_text_moves_on_at_once(kind: str) -> None:
    world = two(World(fails(says_until="nothing", error=refusal(kind, None))))
    told, error = await ask(world)
    assert error is None
    assert told.kinds == ["started", "restarted", "delta", "delta", "done"]
    assert set(told.times) == {0.0}
    restarted = told.messages[1]
    assert isinstance(restarted, wire.Restarted)
    assert (restarted.provider, restarted.reason) == ("second", kind)
    assert world.circuit.told[-1] == ("fault" if kind in FAULTS else "nothing")
    assert world.others[0].circuit.told == ["ok"]
    assert world.budget.open == world.others[0].budget.open == world.limits.open == 0


async def test_after_text_was_shown_the_page_is_told_to_drop_it() -> None:
    world = two(World(fails(says_until="text", error=refusal("cut", None))))
    told, error = await ask(world)
    assert error is None
    assert told.kinds == ["started", "delta", "restarted", "delta", "delta", "done"]
    shown = [message.text for message in told.messages[3:] if isinstance(message, wire.Delta)]
    assert shown == ["b1", "b2"]


async def test_each_provider_is_charged_what_it_was_asked_and_the_student_for_both() -> None:
    world = two(World(fails(says_until="text", error=refusal("cut", None))))
    await ask(world)
    (first,), (second,), (total,) = (
        world.budget.ended,
        world.others[0].budget.ended,
        world.limits.ended,
    )
    assert isinstance(first, Ask)
    assert isinstance(second, Ask)
    assert isinstance(total, int)
    assert first.output > 1
    assert total >= first.input + first.output + second.input + second.output


@pytest.mark.parametrize("second_is", ["well", "full", "failing"])
async def test_a_settlement_that_takes_its_time_holds_up_nobody(second_is: str) -> None:
    """And nothing stays reserved when the turn has ended, however that is."""
    world = two(World(fails(says_until="nothing", error=refusal("unreachable", None))))
    world.settle_s = 5.0
    second = world.others[0]
    if second_is == "full":
        second.full = Overloaded("the line is full", retry_after_s=1.0)
    elif second_is == "failing":
        second.script = fails(says_until="nothing", error=refusal("server_error", 500))
    told, error = await ask(world)
    assert (error is None) == (second_is == "well")
    assert set(told.times) == {0.0}
    assert world.budget.open == second.budget.open == world.limits.open == 0
    assert len(world.budget.ended) == 1


async def test_who_waits_in_the_next_line_keeps_no_reservation_at_the_last_provider() -> None:
    world = two(World(fails(says_until="nothing", error=refusal("unreachable", None))))
    second, open_then = world.others[0], []
    second.line = [(1, 10.0)]
    second.on_admitted = lambda: open_then.append(world.budget.open)
    told, error = await ask(world)
    assert error is None
    assert told.times[-1] == 10.0
    assert open_then == [0]


async def late(prompt: Prompt, sink: Sink) -> Completion:
    sink.on_start("m", Usage(10, 0, 0, 1))
    await trio.sleep(60)
    sink.on_delta("at last")
    return Completion(text="at last", usage=Usage(1, 0, 0, 1), stop_reason="end_turn", model="m")


async def stalls(prompt: Prompt, sink: Sink) -> Completion:
    sink.on_start("m", Usage(10, 0, 0, 1))
    for _ in range(20):
        sink.on_delta("word ")
        await trio.sleep(1)
    return await late(prompt, sink)


async def test_a_late_first_token_moves_on_and_the_loser_is_cancelled() -> None:
    world = two(World(late))
    told, error = await ask(world)
    assert error is None
    assert told.kinds == ["started", "restarted", "delta", "delta", "done"]
    assert told.times[1] == 5.0
    assert world.streams_open == 0
    assert world.circuit.told == ["fault"]


async def test_a_stall_moves_on_within_its_deadline_and_steady_text_never_does() -> None:
    world = two(World(stalls))
    stall_s = world.services().settings.failover.stall_s_max
    told, error = await ask(world)
    assert error is None
    at = told.times[told.kinds.index("restarted")]
    assert 19 + stall_s * 7 / 8 <= at <= 19 + stall_s


async def test_who_has_nobody_to_go_to_waits_for_a_late_answer() -> None:
    told, error = await ask(World(late))
    assert error is None
    assert told.kinds == ["started", "delta", "done"]
    assert told.times[1] == 60.0


@pytest.mark.parametrize(("kind", "code"), [("filtered", "forbidden"), ("too_long", "too_large")])
async def test_what_is_about_the_text_is_never_taken_elsewhere(kind: str, code: str) -> None:
    world = two(World(fails(says_until="nothing", error=refusal(kind, 400))))
    told, error = await ask(world)
    assert isinstance(error, CoachError)
    assert error.code == code
    assert told.kinds == ["started", "error"]
    message = told.messages[-1]
    assert isinstance(message, wire.Error)
    assert (message.code, message.retry_after_ms) == (code, None)
    assert world.others[0].streams == 0
    assert world.circuit.told == ["nothing"]


async def test_when_all_fail_the_first_reason_is_told_once_and_when_to_come_back() -> None:
    world = two(World(fails(says_until="nothing", error=refusal("server_error", 503))))
    world.others[0].script = fails(says_until="nothing", error=refusal("refused", 400))
    told, error = await ask(world)
    assert isinstance(error, ProviderError)
    assert error.kind == "server_error"
    assert error.retry_after_s == RETRY_S
    assert told.kinds == ["started", "restarted", "error"]
    message = told.messages[-1]
    assert isinstance(message, wire.Error)
    assert (message.code, message.retry_after_ms) == ("provider_unavailable", RETRY_S * 1000)


async def test_a_breaker_that_is_open_costs_nothing() -> None:
    world = two(World(says("a")))
    world.circuit.shut = True
    told, error = await ask(world)
    assert error is None
    assert told.kinds == ["started", "delta", "delta", "done"]
    assert world.streams == 0


async def test_breakers_that_are_all_open_are_passed_by() -> None:
    world = two(World(says("a")))
    world.circuit.shut = world.others[0].circuit.shut = True
    _, error = await ask(world)
    assert error is None
    assert (world.streams, world.others[0].streams) == (1, 0)


async def test_a_provider_left_out_is_asked_when_the_others_have_failed() -> None:
    world = two(World(says("a")))
    world.circuit.shut = True
    world.others[0].script = fails(says_until="nothing", error=refusal("unreachable", None))
    told, error = await ask(world)
    assert error is None
    assert told.kinds == ["started", "restarted", "delta", "done"]


async def test_a_full_line_moves_on() -> None:
    world = two(World(says("a")))
    world.full = Overloaded("the line is full", retry_after_s=1.0)
    told, error = await ask(world)
    assert error is None
    assert told.kinds == ["started", "delta", "delta", "done"]
    assert world.circuit.told == ["nothing"]


async def test_cancelled_at_every_step_everything_is_given_back_everywhere() -> None:
    for n in range(1, 80):
        world = two(World(fails(says_until="text", error=refusal("cut", None))))
        turn, _ = new_turn()
        with cancel_at_step(n) as scope:
            await turn.run(world.services(), ANA, question=asked("The sea."), assignment="")
        for each in (world, *world.others):
            assert each.budget.open == each.limits.open == each.streams_open == 0
            assert len(each.circuit.told) <= 1
        if not scope.cancelled_caught:
            return
    raise AssertionError("it never came to its end")


async def test_a_cancelled_turn_is_not_taken_elsewhere() -> None:
    world = two(World(late))
    turn, told = new_turn()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            with turn.scope:
                await turn.run(world.services(), ANA, question=asked("The sea."), assignment="")

        nursery.start_soon(run)
        await trio.sleep(1)
        turn.cancel(TurnCancelled("enough"))
    assert told.kinds == ["started", "error"]
    assert world.others[0].streams == 0
    assert world.circuit.told == ["nothing"]


async def test_each_attempt_is_booked_on_who_was_asked_and_for_what() -> None:
    world = two(World(fails(says_until="text", error=refusal("cut", None))))
    await ask(world)
    found = {
        (cell.provider, cell.reason, cell.user): amounts["output"]
        for cell, amounts in booked(world.costs).items()
    }
    assert set(found) == {("scripted", "wasted-failover", "ana"), ("second", "feedback", "ana")}
    assert found["second", "feedback", "ana"] == 2


@pytest.mark.parametrize(
    ("kind", "status"), [("unreachable", None), ("rate_limited", 429), ("server_error", 500)]
)
async def test_what_a_provider_never_read_costs_nothing(kind: str, status: int | None) -> None:
    world = two(World(fails(says_until="nothing", error=refusal(kind, status))))
    await ask(world)
    assert reasons(world.costs) == {"feedback": 1}


async def test_what_a_student_gives_up_is_booked_as_wasted() -> None:
    world = World(says("a", "b", "c", pause_s=1.0))
    turn, _ = new_turn()
    with trio.move_on_after(2.5), turn.scope:
        await turn.run(world.services(), ANA, question=asked("The sea."), assignment="")
    assert reasons(world.costs) == {"wasted-cancel": 1}


async def test_an_org_without_money_is_refused_before_anything_is_reserved() -> None:
    world = World(says("a"))
    exhaust(world.costs)
    told, error = await ask(world)
    assert isinstance(error, BudgetExhausted)
    assert (error.code, error.retry_after_s) == ("rate_limited", None)
    assert told.kinds == ["error"]
    assert world.limits.ended == world.budget.ended == []
    assert world.streams == 0


async def test_limits_and_all_budgets_wait_for_redis_together() -> None:
    """One patience for the whole turn: else a student waits 5 s for each of them."""
    world = two(World(says("never")))
    world.full = Overloaded("the shared limits cannot be reached now", retry_after_s=5.0)
    await ask(world)
    (limits,) = (wanted["patience"] for wanted in world.wanted)
    assert limits == Patience(world.services().settings.limits.wait_s)
    assert [id(each) for each in world.patiences + world.others[0].patiences] == [id(limits)] * 2
