"""One feedback turn by itself: what the student hears, in which order, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from coach.budget import Ask
from coach.errors import ProviderUnavailable
from coach.providers import Completion, FirstTokens, Prompt, ProviderError, Sink, Usage
from coach.providers.failover import GATE_S
from coach.session import Pacer, wire
from coach.session.attempts import Attempt
from coach.session.turn import Interrupted, Turn, TurnCancelled
from tests.support.cancels import cancel_at_step

from .world import ANA, World, asked, says

STARTED = Usage(input=50, cache_write=5, cache_read=10, output=1)
WHOLE = Usage(input=50, cache_write=5, cache_read=10, output=7)


@attrs.define
class Told:
    """In place of an outbox: what was said, and when."""

    messages: list[wire.ServerMessage] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)

    def send(self, message: wire.ServerMessage) -> None:
        self.messages.append(message)
        self.times.append(trio.current_time())

    @property
    def kinds(self) -> list[str]:
        return [type(message).__name__.lower() for message in self.messages]

    @property
    def endings(self) -> int:
        return sum(isinstance(message, wire.Done | wire.Error) for message in self.messages)


def new_turn(pacer: Pacer | None = None) -> tuple[Turn, Told]:
    told = Told()
    pacer = pacer or Pacer(0)
    return Turn(request="r1", draft="d", outbox=told, pacer=pacer), told  # type: ignore[arg-type]


def begun_turn(pacer: Pacer | None = None) -> tuple[Turn, Told]:
    """A turn at a provider that has all the time in the world; `started` was not told."""
    turn, told = new_turn(pacer)
    patient = FirstTokens(s_min=3600, s_max=3600)
    turn._attempt = Attempt(patient, deadline_s=math.inf, stall_s=math.inf)
    return turn, told


async def run(turn: Turn, world: World) -> None:
    """As a session does it."""
    await trio.lowlevel.checkpoint()
    try:
        with turn.scope:
            await turn.run(
                world.services(),
                ANA,
                question=asked("The sea was calm."),
                assignment="",
            )
    except ProviderUnavailable as error:
        turn.fail(error)


async def test_the_student_hears_in_order_and_before_the_settlements() -> None:
    world = World(says("a", "b", pause_s=1.0), line=[(2, 1.0), (1, 1.0)], settle_s=0.5)
    turn, told = new_turn()
    await run(turn, world)
    assert told.kinds == ["queued", "queued", "started", "delta", "delta", "done"]
    assert told.times == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert trio.current_time() == 6.0
    assert turn.outcome == "done"


async def test_a_failure_is_told_before_the_settlements_too() -> None:
    world = World(fails(says_until="start", error=refusal("cut", None)), settle_s=1.0)
    turn, told = new_turn()
    await run(turn, world)
    assert told.kinds == ["started", "error"]
    assert told.times == [0.0, 0.0]
    assert turn.outcome == "provider_unavailable"


SCENES = pytest.mark.parametrize(
    ("line", "settle_s"),
    [([], 0.0), ([], 1.0), ([(1, 1.0)], 0.0), ([(1, 1.0)], 1.0)],
    ids=["at once", "slow Redis", "in line", "in line, slow Redis"],
)


@SCENES
async def test_when_the_session_ends_at_any_step_everything_is_given_back(
    line: list[tuple[int, float]], settle_s: float
) -> None:
    n = 0
    while True:
        n += 1
        world = World(says("a", "b", pause_s=1.0, usage=WHOLE), line=line, settle_s=settle_s)
        turn, told = new_turn()
        with cancel_at_step(n) as step:
            await run(turn, world)
        assert told.endings == (turn.outcome is not None), n
        assert_settled(world, n)
        if not step.cancel_called:
            break
    assert turn.outcome == "done"


@SCENES
async def test_cancelled_by_the_client_at_any_step_it_ends_once(
    line: list[tuple[int, float]], settle_s: float
) -> None:
    """The student hears of it at once, then nothing more; what was sent is charged."""
    n, endings = 0, set()
    while True:
        n += 1
        world = World(says("a", "b", pause_s=1.0, usage=WHOLE), line=line, settle_s=settle_s)
        turn, told = new_turn()
        with cancelled_at_step(n, turn) as step:
            await run(turn, world)
        assert told.endings == 1, n
        assert told.kinds[-1] == ("done" if turn.outcome == "done" else "error"), n
        assert_settled(world, n)
        if step.left > 0:
            break
        endings.add(turn.outcome)
    assert endings == {"cancelled", "done"}


def assert_settled(world: World, n: int) -> None:
    """Nothing is held; it was charged if and only if it was sent."""
    assert world.balanced, n
    is_charged = [settled is not None for settled in world.limits.ended + world.budget.ended]
    assert is_charged == [world.streams == 1] * len(is_charged), n


@attrs.define(eq=False)
class AtStep(trio.abc.Instrument):
    """Calls `act` at the nth step of the task that made it; cf. tests/support/cancels.py."""

    left: int
    act: Callable[[], None]
    task: trio.lowlevel.Task = attrs.field(factory=trio.lowlevel.current_task)

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.after_io_wait(0.0)

    def after_io_wait(self, timeout: float) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


@contextmanager
def cancelled_at_step(n: int, turn: Turn) -> Iterator[AtStep]:
    """The client's `cancel` arrives at the nth step."""
    step = AtStep(n, lambda: turn.cancel(TurnCancelled("cancelled by the client")))
    trio.lowlevel.add_instrument(step)
    try:
        yield step
    finally:
        trio.lowlevel.remove_instrument(step)


@pytest.mark.parametrize("at_s", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 4.25, 4.5, 5.5])
async def test_a_cancel_is_answered_at_once_and_by_nothing_else(at_s: float) -> None:
    """Also in the very moment of admission, of a delta and of the end."""
    world = World(says("a", "b", pause_s=1.0), line=[(1, 1.0)], settle_s=0.5)
    turn, told = new_turn()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, turn, world)
        await trio.sleep(at_s)
        turn.cancel(TurnCancelled("cancelled by the client"))
        length = len(told.messages)
        assert told.endings == 1
    assert len(told.messages) == length, "something was said after the end"
    assert world.balanced


async def test_cancelled_in_the_moment_of_its_admission_nothing_is_sent() -> None:
    """The line has let it go, it was cancelled, and only then its task runs on."""
    turn, told = new_turn()
    world = World(
        says("a"), on_admitted=lambda: turn.cancel(TurnCancelled("cancelled by the client"))
    )
    await run(turn, world)
    assert told.kinds == ["error"]
    assert world.streams == 0
    assert world.limits.ended == world.budget.ended == [None]


async def test_replaced_as_the_answer_ends_it_stays_replaced() -> None:
    """The provider's last word and a newer request in one moment: the student hears one ending."""
    turn, told = new_turn()

    async def script(prompt: Prompt, sink: Sink) -> Completion:
        completion = await says("a", usage=WHOLE)(prompt, sink)
        turn.cancel(TurnCancelled("replaced by a newer request"))
        return completion

    world = World(script)
    await run(turn, world)
    assert told.kinds == ["started", "delta", "error"]
    assert turn.outcome == "cancelled"
    assert world.limits.ended == [72]


def fails(*, says_until: str, error: Exception) -> Callable[[Prompt, Sink], Awaitable[Completion]]:
    """A provider's script that ends in `error`: before the start, after it, or after some text."""

    async def script(_prompt: Prompt, sink: Sink) -> Completion:
        await trio.lowlevel.checkpoint()
        if says_until != "nothing":
            sink.on_start("script-1", STARTED)
        if says_until == "text":
            sink.on_delta("x" * 70)
        raise error

    return script


def refusal(kind: str, status: int | None, retry_after_s: float | None = None) -> ProviderError:
    return ProviderError(
        "no",
        kind=kind,  # type: ignore[arg-type]
        provider="scripted",
        status=status,
        retry_after_s=retry_after_s,
    )


@pytest.mark.parametrize(
    ("says_until", "error", "spent", "total"),
    [
        ("nothing", refusal("rate_limited", 429), Ask(0, 0), 0),
        ("nothing", refusal("refused", 400), Ask(0, 0), 0),
        ("nothing", refusal("stalled", None), None, None),
        ("nothing", RuntimeError("a bug"), None, None),
        ("start", refusal("cut", None), Ask(55, 1), 66),
        ("text", refusal("cut", None), Ask(55, 36), 101),
        ("text", refusal("overloaded", None), Ask(55, 36), 101),
    ],
    ids=["429", "400", "silence", "bug", "cut at the start", "cut", "529 within"],
)
async def test_what_a_failed_turn_is_charged(
    says_until: str, error: Exception, spent: Ask | None, total: int | None
) -> None:
    """A refusal read nothing; silence may have read the prompt; text shown was paid for."""
    world = World(fails(says_until=says_until, error=error))
    turn, _ = new_turn()
    await trio.lowlevel.checkpoint()
    with suppress(RuntimeError):
        await run(turn, world)
    (settled,), (tokens,) = world.budget.ended, world.limits.ended
    assert isinstance(settled, Ask)
    if spent is None:
        assert settled.input == tokens
        assert settled.input > 100
        assert settled.output == 0
    else:
        assert (settled, tokens) == (spent, total)


async def test_a_whole_answer_is_charged_as_counted() -> None:
    world = World(says("a long word", usage=WHOLE))
    await run(new_turn()[0], world)
    assert world.budget.ended == [Ask(input=55, output=7)]
    assert world.limits.ended == [72]


@pytest.mark.parametrize(("spare", "answer"), [(40, 64), (80, 80), (5_000, 100)])
async def test_an_answer_is_no_longer_than_its_reservation(spare: int, answer: int) -> None:
    """A small limit lends less than the most that may be used: then the answer is shorter."""
    asked: list[Prompt] = []

    async def script(prompt: Prompt, sink: Sink) -> Completion:
        asked.append(prompt)
        return await says("a word", usage=WHOLE)(prompt, sink)

    world = World(script)
    await run(new_turn()[0], world)
    read = world.estimator.most(asked[0].size())
    assert world.wanted[0]["tokens"] == read + 100
    assert world.wanted[0]["tokens_least"] == world.estimator.least(asked[0].size()) + 64

    world.tokens_lent = read + spare
    await run(new_turn()[0], world)
    assert asked[-1].output_tokens_max == answer


@pytest.mark.parametrize(
    ("error", "gates"),
    [
        (refusal("rate_limited", 429, 12.5), [12.5]),
        (refusal("overloaded", 529), [GATE_S]),
        (refusal("server_error", 500, 12.5), []),
        (refusal("cut", None), []),
    ],
    ids=["429", "529", "500", "cut"],
)
async def test_a_provider_at_its_limit_closes_its_gate_for_all(
    error: ProviderError, gates: list[float]
) -> None:
    world = World(fails(says_until="nothing", error=error))
    await run(new_turn()[0], world)
    assert world.gates == gates


EVENTS = st.lists(
    st.sampled_from(["start", "delta", "position", "finish", "fail", "cancel", "interrupt"]),
    max_size=12,
)


@given(EVENTS)
def test_in_any_order_of_events_there_is_one_ending_and_nothing_after_it(events: list[str]) -> None:
    async def play() -> None:
        await trio.lowlevel.checkpoint()
        turn, told = begun_turn()
        acts: dict[str, Callable[[], None]] = {
            "start": lambda: turn.on_start("m", STARTED),
            "delta": lambda: turn.on_delta("x"),
            "position": lambda: turn.on_position(3, 1.5),
            "finish": lambda: turn.finish(
                Completion(text="x", usage=WHOLE, stop_reason="end_turn", model="m")
            ),
            "fail": lambda: turn.fail(ProviderUnavailable("down")),
            "cancel": lambda: turn.cancel(TurnCancelled("by the client")),
            "interrupt": lambda: turn.cancel(Interrupted("the server restarts")),
        }
        for event in events:
            acts[event]()
        ends = [event for event in events if event in {"finish", "fail", "cancel", "interrupt"}]
        assert told.endings == bool(ends)
        assert (turn.outcome is not None) == bool(ends)
        if ends:
            assert told.kinds[-1] == ("done" if ends[0] == "finish" else "error")
            assert told.kinds.count("delta") == events[: events.index(ends[0])].count("delta")

    trio.run(play)
