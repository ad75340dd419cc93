"""Held text: the first delta at once, then one message a window, nothing lost or out of order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from coach.errors import ProviderUnavailable
from coach.session import Pacer, wire
from coach.session.pacer import TICK_S
from coach.session.turn import TurnCancelled

from .test_turn import Told, begun_turn

WINDOW_S = 0.04


@asynccontextmanager
async def open_pacer(window_s: float = WINDOW_S) -> AsyncIterator[Pacer]:
    async with trio.open_nursery() as nursery:
        pacer = Pacer(window_s)
        nursery.start_soon(pacer.run)
        await trio.testing.wait_all_tasks_blocked()
        yield pacer
        nursery.cancel_scope.cancel()


def texts(told: Told) -> list[str]:
    return [message.text for message in told.messages if isinstance(message, wire.Delta)]


async def test_the_first_delta_leaves_at_once_and_then_one_message_a_window() -> None:
    async with open_pacer() as pacer:
        turn, told = begun_turn(pacer)
        for number in range(100):
            turn.on_delta(f"{number} ")
            await trio.sleep(0.003)
        await trio.sleep(1)
        assert told.times[0] == 0.0
        gaps = [later - earlier for earlier, later in pairwise(told.times)]
        assert min(gaps) >= WINDOW_S - 1e-9
        assert max(gaps) <= WINDOW_S + 2 * TICK_S
        assert "".join(texts(told)) == "".join(turn.text)
        assert len(told.messages) < 10


async def test_a_slow_provider_is_passed_on_piece_by_piece() -> None:
    async with open_pacer() as pacer:
        turn, told = begun_turn(pacer)
        for number in range(5):
            turn.on_delta(str(number))
            assert texts(told)[-1] == str(number)
            await trio.sleep(0.1)


async def test_window_zero_holds_nothing() -> None:
    turn, told = begun_turn(Pacer(0))
    for number in range(5):
        turn.on_delta(str(number))
    assert texts(told) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_ending_brings_what_is_held_before_it(cancelled: bool) -> None:
    async with open_pacer() as pacer:
        turn, told = begun_turn(pacer)
        for text in "abc":
            turn.on_delta(text)
        if cancelled:
            turn.cancel(TurnCancelled("stop"))
        else:
            turn.fail(ProviderUnavailable("cut"))
        turn.on_delta("late")
        await trio.sleep(1)
        assert texts(told) == ["a", "bc"]
        assert told.kinds == ["delta", "delta", "error"]


@attrs.define(eq=False)
class Flushed:
    times: list[float] = attrs.field(factory=list)

    def flush(self) -> None:
        self.times.append(trio.current_time())


@given(st.lists(st.tuples(st.floats(0, 0.2), st.floats(0, 0.1)), max_size=30))
def test_everything_is_flushed_soon_after_it_is_due_in_whatever_order_it_comes(
    asked: list[tuple[float, float]],
) -> None:
    async def main() -> None:
        async with open_pacer() as pacer:
            holders = []
            for pause_s, ahead_s in asked:
                await trio.sleep(pause_s)
                due_s, holder = trio.current_time() + ahead_s, Flushed()
                pacer.flush_at(due_s, holder)
                holders.append((due_s, holder))
            await trio.sleep(1)
            for due_s, holder in holders:
                (at_s,) = holder.times
                assert due_s <= at_s + 1e-9 <= due_s + TICK_S + 1e-6

    trio.run(main, clock=MockClock(autojump_threshold=0))
